"""A memory is asked by the chunks of a batch as it stood a number of rows before, in whatever processes, and what it answers comes with the rows."""

import threading
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from data_sources import open_stream
from data_sources.batch import Arrivals
from data_sources.chunks import NOWHERE, Chunks
from data_sources.feed import Closed
from data_sources.recall import Answers, MemoryStates, State
from data_sources.stream import Options
from tests.data_sources.streams import byte_tokenizer, three_sources

SIZE, LENGTH, ROWS, LAG = 8, 37, 48, 96


class Echo(NamedTuple):
    """Answers each chunk with itself and the state that was asked, so that a test sees who asked what."""

    def ask(self, chunks: Chunks, state: State | None) -> Answers:
        asked = chunks.at != NOWHERE
        tokens, length = chunks.tokens[asked][:, None], chunks.length[asked][:, None]
        told = np.full_like(tokens[:, :, :1], -1 if state is None else state[0])
        return Answers(chunks.row[asked], chunks.at[asked], np.concatenate([told, tokens], 2), length)

    def close(self) -> None:
        """Nothing is open."""


def answered(folder: Path, batches: int, world_size: int = 1, workers: int = 0, cursor=None, known=None):
    """The batches of all ranks, each rank's states being announced as if its batches were trained on."""
    found = []
    for rank in range(world_size):
        states = MemoryStates(LAG, known)
        options = Options(workers, chunk_size=SIZE, recall=Echo(), states=states)
        with open_stream(three_sources(folder), byte_tokenizer(), LENGTH, ROWS // world_size, rank, world_size, cursor=cursor, options=options) as stream:
            read = []
            for batch, after in islice(stream, batches):
                read.append((batch, after))
                states.announce(after["next_row"], (1000 + after["next_row"],))
        found.append((read, states))
    return found


def test_a_batch_sees_the_memory_as_it_was_some_rows_before(tmp_path: Path) -> None:
    ((batches, _),) = answered(tmp_path, 6)
    for number, (batch, _) in enumerate(batches):
        seen = number * ROWS - LAG
        assert {*batch.answers.tokens[:, 0, 0].tolist()} == {1000 + seen if seen > 0 else -1}
        asked = batch.chunks.at != NOWHERE
        index = batch.chunks.row[asked] - number * ROWS
        assert batch.answers.at.tolist() == (index * LENGTH + batch.chunks.at[asked]).tolist()
        assert torch.equal(batch.answers.tokens[:, 0, 1:], torch.from_numpy(batch.chunks.tokens[asked]).long())


def columns(batches) -> list[list[tuple]]:
    """Batch by batch, what was answered, by row and place."""
    found = []
    for batch in batches:
        rows, at = batch.row[batch.answers.at // LENGTH].tolist(), (batch.answers.at % LENGTH).tolist()
        found.append(list(zip(rows, at, map(str, batch.answers.tokens.tolist()), batch.answers.length[:, 0].tolist(), strict=True)))
    return found


def test_any_number_of_processes_gets_the_same_answers(tmp_path: Path) -> None:
    ((alone, _),) = answered(tmp_path, 6)
    ((loaded, _),) = answered(tmp_path, 6, workers=2)
    ranks = [columns([batch for batch, _ in read]) for read, _ in answered(tmp_path, 6, world_size=3)]
    together = [sorted(sum(parts, [])) for parts in zip(*ranks, strict=True)]
    assert columns([batch for batch, _ in alone]) == columns([batch for batch, _ in loaded]) == together


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_gets_the_answers_that_would_have_come(tmp_path: Path, workers: int) -> None:
    ((whole, _),) = answered(tmp_path, 8)
    ((begun, states),) = answered(tmp_path, 4)
    ((rest, _),) = answered(tmp_path, 4, workers=workers, cursor=begun[-1][1], known=states.needed(4 * ROWS))
    assert columns([batch for batch, _ in rest]) == columns([batch for batch, _ in whole[4:]])


def test_pieces_of_a_batch_have_their_part_of_the_answers(tmp_path: Path) -> None:
    ((batches, _),) = answered(tmp_path, 3)
    batch = batches[-1][0]
    whole = {(row, at): str(tokens) for row, at, tokens, _ in columns([batch])[0]}
    found = {}
    for part in batch.split(7):
        for start, piece in zip(range(0, LENGTH, 10), part.pieces(10), strict=True):
            width = piece.tokens.shape[1]
            for at, tokens in zip(piece.answers.at.tolist(), piece.answers.tokens.tolist(), strict=True):
                found[int(piece.row[at // width]), start + at % width] = str(tokens)
    assert found == whole and len(found) > 50


def test_states_are_settled_once_and_kept_while_they_are_needed() -> None:
    states = MemoryStates(10, {5: (1,)})
    states.announce(20, (2,))
    states.announce(20, (2,))
    for row, state in ((20, (3,)), (19, (2,))):
        with pytest.raises(ValueError, match="settled already"):
            states.announce(row, state)
    assert [states.of(row) for row in (3, 14, 15, 29, 30)] == [None, None, (1,), (1,), (2,)]
    states.announce(40, (4,))
    assert states.needed(35) == {20: (2,), 40: (4,)}
    closing = threading.Event()
    closing.set()
    with pytest.raises(Closed):
        states.of(51, closing)
    with pytest.raises(ValueError, match="lag 0"):
        MemoryStates(0)


@pytest.mark.parametrize("shape", [(3, 7), (1, 21), (7, 3), (2, 0)])
def test_parts_of_answers_are_those_that_come_within(shape: tuple[int, int]) -> None:
    """By rows and by time, each against a list of (row, column, what)."""
    size = shape[0] * shape[1]
    at = torch.arange(size).repeat_interleave(torch.arange(size) % 3)
    answers = Arrivals(at, torch.arange(len(at))[:, None, None], torch.arange(len(at))[:, None])
    told = [(place // shape[1], place % shape[1], number) for number, place in enumerate(at.tolist())]
    for rows in (slice(None), slice(0, 1), slice(1, 9), slice(2, 2)):
        for columns in (slice(None), slice(0, 2), slice(2, 5), slice(5, 50)):
            part = answers.part(rows, columns, shape)
            (top, bottom, _), (left, right, _) = rows.indices(shape[0]), columns.indices(shape[1])
            meant = [((row - top) * (right - left) + column - left, n) for row, column, n in told if top <= row < bottom and left <= column < right]
            assert list(zip(part.at.tolist(), part.tokens.flatten().tolist(), strict=True)) == meant and torch.equal(part.tokens[:, 0], part.length)

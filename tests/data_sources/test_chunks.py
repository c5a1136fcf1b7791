"""Chunks of what stands in rows: each once, in whatever rows and processes, and what was found by it is seen from the next token on."""

import re
from itertools import islice
from pathlib import Path

import pytest

from data_sources import open_stream
from data_sources.chunks import NOWHERE, SHORTEST, key_of
from data_sources.stream import Options
from tests.data_sources.streams import byte_tokenizer, paragraphs, three_sources

SIZE, LENGTH = 8, 37


def read(data, batches: int = 60, world_size: int = 1, cursor=None, **options):
    """Batches and cursors of each rank."""
    found = []
    for rank in range(world_size):
        with open_stream(
            data, byte_tokenizer(), LENGTH, 48 // world_size, rank, world_size, cursor=cursor, options=Options(chunk_size=SIZE, **options)
        ) as stream:
            found.append(list(islice(stream, batches)))
    return found


@pytest.mark.parametrize("context_length", [None, 30])
def test_each_chunk_is_new_once_and_seen_from_the_next_token_on(tmp_path: Path, context_length: int | None) -> None:
    """Counted anew from the rows alone: a document is what stands between two restarts of a lane."""
    data = three_sources(tmp_path)
    lanes: dict[int, list[int]] = {}
    (batches,) = read(data, context_length=context_length)
    told = 0
    for batch, _ in batches:
        wanted, new = [], []
        for row, tokens, restart, source in zip(batch.row.tolist(), batch.tokens.tolist(), batch.restart.tolist(), batch.source.tolist(), strict=True):
            text = lanes.setdefault(row % 48, [])
            for at in range(LENGTH):
                if source[at] < 0:
                    continue
                if restart[at]:
                    text.clear()
                if len(text) >= SIZE and (at == 0 or len(text) % SIZE == 0):
                    number = len(text) // SIZE
                    wanted.append((row, at, tuple(text[(number - 1) * SIZE : number * SIZE])))
                text.append(tokens[at])
                if len(text) % SIZE == 0:
                    new.append((row, tuple(text[-SIZE:])))
        chunks = batch.chunks
        rows = [(row, at, tuple(tokens)) for row, at, tokens in zip(chunks.row.tolist(), chunks.at.tolist(), chunks.tokens.tolist(), strict=True)]
        assert [each for each in rows if each[1] != NOWHERE] == wanted
        whole = chunks.is_new & (chunks.length == SIZE)
        assert [(row, tokens) for (row, _, tokens), is_whole in zip(rows, whole.tolist(), strict=True) if is_whole] == new
        told += len(new)
    assert told > 500


def told(batches) -> list[list[tuple]]:
    """Batch by batch, what is told of each chunk."""
    found = []
    for batch in batches:
        chunks = batch.chunks
        columns = (chunks.row, chunks.at, chunks.is_new, chunks.document, chunks.number, chunks.length, map(tuple, chunks.tokens.tolist()))
        found.append([(*each, chunks.about[each[3]]) for each in zip(*(map(int, column) for column in columns[:-1]), columns[-1], strict=True)])
    return found


def test_any_number_of_processes_tells_the_same_chunks(tmp_path: Path) -> None:
    data = three_sources(tmp_path)
    alone, with_loaders = (told([batch for batch, _ in read(data, 12, **options)[0]]) for options in ({}, {"workers": 2}))
    ranks = [told([batch for batch, _ in rank]) for rank in read(data, 12, world_size=3)]
    together = [sorted(sum(parts, []), key=lambda each: each[0]) for parts in zip(*ranks, strict=True)]
    assert alone == with_loaders == together


def test_a_resumed_stream_tells_the_chunks_that_come_next(tmp_path: Path) -> None:
    data = three_sources(tmp_path)
    (batches,) = read(data, 12)
    (rest,) = read(data, 7, cursor=batches[4][1])
    assert told([batch for batch, _ in rest]) == told([batch for batch, _ in batches[5:]])


def test_a_document_is_told_by_its_text_and_where_it_stands(tmp_path: Path) -> None:
    """Alike texts are one document, also when they come again; the end of a document is told unless it is very short."""
    (batches,) = read(three_sources(tmp_path), 60)
    known = {key_of(text): len(text.encode()) + 1 for text in paragraphs(460)}
    numbers: dict[tuple[int, int], list[int]] = {}  # by document and lane: in another round another lane may read it
    for row, _, is_new, document, number, length, _, about in (each for batch in told([batch for batch, _ in batches]) for each in batch):
        assert about.source in ("many", "one", "few") and re.fullmatch(r".*\.jsonl, row \d+: .{1,60}(\.\.\.)?", about.place)
        size = known[document]
        assert length == SIZE or (length == size % SIZE and number == size // SIZE and SHORTEST * length >= SIZE)
        if is_new:
            numbers.setdefault((document, row % 48), []).append(number)
    parts = {document: size // SIZE + (SHORTEST * (size % SIZE) >= SIZE) for document, size in known.items()}
    assert len(numbers) > 400
    for (document, _), found in numbers.items():
        assert found[: parts[document]] == list(range(min(parts[document], len(found))))

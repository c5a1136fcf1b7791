"""Rows of a length that their number decides, and documents that begin anew: the same for every process and through every resume."""

from pathlib import Path

import numpy as np
import pytest

from data_sources import open_stream
from data_sources.lengths import RowLengths, Stage
from data_sources.stream import Options
from tests.data_sources.streams import Row, byte_tokenizer, data_config, files, global_batches, paragraphs, read_texts, rows_of, three_sources, write_jsonl

GROWING = RowLengths((Stage(2_000, 10, 24), Stage(6_000, 33, 24)), 64, rows=24)
RAMP = RowLengths.of([(2_000, 10), (6_000, 33)], [(1_000, 7), (4_000, 13)], (64, 24))


def test_stages_end_with_the_batch_that_crosses_their_end() -> None:
    lengths = [GROWING.at(24 * batch) for batch in range(16)]
    tokens = np.cumsum([0] + [24 * length for length in lengths])
    for before, length in zip(tokens, lengths, strict=False):
        assert length == (10 if before < 2_000 else 33 if before < 6_000 else 64)
    assert set(lengths) == {10, 33, 64}


def test_counting_may_begin_anywhere() -> None:
    moved = GROWING._replace(origin=1_000, tokens=1_900)
    assert [moved.at(1_000 + 24 * batch) for batch in range(7)] == [10, 33, 33, 33, 33, 33, 64]
    assert GROWING._replace(tokens=10**9).at(0) == 64 == RowLengths.constant(64).at(12_345)


def test_rows_of_a_batch_grow_with_the_life() -> None:
    """By a loop over batches: each is as its curricula say where it begins."""
    row, tokens, kinds = 0, 0, set()
    for _ in range(40):
        length = 10 if tokens < 2_000 else 33 if tokens < 6_000 else 64
        rows = 7 if tokens < 1_000 else 13 if tokens < 4_000 else 24
        for inside in (row, row + rows - 1):
            assert (RAMP.at(inside), RAMP.rows_at(inside), RAMP.tokens_before(inside)) == (length, rows, tokens)
        row, tokens = row + rows, tokens + rows * length
        kinds.add((length, rows))
    assert kinds == {(10, 7), (10, 13), (33, 13), (33, 24), (64, 24)} and RAMP.most_rows == 24
    assert RAMP._replace(origin=100, tokens=3_990).rows_at(100) == 13 and RAMP._replace(origin=100, tokens=3_990).rows_at(113) == 24
    assert RowLengths.of([], [(500, 48)], (64, 24)).most_rows == 48


@pytest.mark.parametrize("world_size", [2, 3])
def test_batches_that_grow_are_the_same_on_any_number_of_ranks_and_through_a_stop(tmp_path: Path, world_size: int) -> None:
    """A batch of seven rows can't be shared out evenly by any of them."""
    mix, options = three_sources(tmp_path), Options(lengths=RAMP)
    whole = global_batches(mix, 32, 24, options=options)
    sizes = [(len(rows), len(rows[0].tokens)) for rows, _ in whole]
    numbers = [row.number for rows, _ in whole for row in rows]
    assert numbers == list(range(sum(size for size, _ in sizes))) and {size for size, _ in sizes} == {7, 13, 24}
    assert sizes == [(RAMP.rows_at(rows[0].number), RAMP.at(rows[0].number)) for rows, _ in whole]
    assert global_batches(mix, 32, 24, world_size=world_size, options=options) == whole
    for stop in (5, 16, 27):
        again = global_batches(mix, 32 - stop, 24, world_size=world_size, cursor=whole[stop - 1][1], options=options)
        assert again == whole[stop:]
    assert global_batches(mix, 18, 24, options=Options(lengths=RAMP, workers=2)) == whole[:18]


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_same_batches_on_any_number_of_ranks_and_through_a_stop(tmp_path: Path, world_size: int) -> None:
    mix, options = three_sources(tmp_path), Options(lengths=GROWING)
    whole = global_batches(mix, 16, 24, options=options)
    assert [len(rows[0].tokens) for rows, _ in whole] == [GROWING.at(24 * batch) for batch in range(16)]
    assert global_batches(mix, 16, 24, world_size=world_size, options=options) == whole
    for stop in (3, 9):
        again = global_batches(mix, 16 - stop, 24, world_size=world_size, cursor=whole[stop - 1][1], options=options)
        assert again == whole[stop:]


def test_loaders_keep_to_them(tmp_path: Path) -> None:
    mix = three_sources(tmp_path)
    whole = global_batches(mix, 12, 24, options=Options(lengths=GROWING))
    assert global_batches(mix, 12, 24, options=Options(lengths=GROWING, workers=2)) == whole


def test_no_text_is_lost_where_rows_change(tmp_path: Path) -> None:
    texts = paragraphs(300)
    mix = data_config(files("a", write_jsonl(tmp_path / "a.jsonl", texts)))
    rows: list[Row] = []
    with open_stream(mix, byte_tokenizer(), 64, 24, options=Options(lengths=GROWING)) as stream:
        for batch, _ in stream:
            rows += rows_of(batch)
        held_out = [text for _, text in stream.held_out.take_new()]
    assert sorted([text.decode() for text in read_texts(rows)] + held_out) == sorted(texts)


def test_lengths_for_other_batches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batches of 24 rows, and these have 48"):
        open_stream(three_sources(tmp_path), byte_tokenizer(), 64, 48, options=Options(lengths=GROWING))


@pytest.mark.parametrize("context_length", [1, 7, 50])
def test_long_documents_begin_anew(tmp_path: Path, context_length: int) -> None:
    """A restart at each multiple of the length within a document, through a stop in the middle of one; the tokens are as without."""
    mix = three_sources(tmp_path)
    plain = global_batches(mix, 12, 24)
    cut = global_batches(mix, 12, 24, options=Options(context_length=context_length))
    resumed = global_batches(mix, 5, 24, world_size=2, cursor=cut[6][1], options=Options(context_length=context_length))
    assert resumed == cut[7:]
    place: dict[int, int] = {}
    again = 0
    for (rows, _), (marked, _) in zip(plain, cut, strict=True):
        for row, other in zip(rows, marked, strict=True):
            assert row._replace(restart=()) == other._replace(restart=())
            for begins, restarts in zip(row.restart, other.restart, strict=True):
                place[row.lane] = 0 if begins else place[row.lane] + 1
                assert restarts == (place[row.lane] % context_length == 0)
                again += restarts and not begins
    assert again > 20

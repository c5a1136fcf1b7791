"""Any number of ranks for any number of rows: a rank's share may change from batch to batch, and be nothing."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data_sources import merge_cursors, open_stream
from data_sources.config import DataConfig
from data_sources.stream import Options, Stream
from tests.data_sources.streams import byte_tokenizer, data_config, files, global_batches, paragraphs, read_texts, rows_of, three_sources, write_jsonl


@pytest.fixture
def mix(tmp_path: Path) -> DataConfig:
    return three_sources(tmp_path)


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
@pytest.mark.parametrize("rows", [5, 16])
def test_rows_that_cannot_be_shared_out_evenly(mix: DataConfig, world_size: int, rows: int) -> None:
    assert global_batches(mix, 12, rows, world_size) == global_batches(mix, 12, rows)


def test_a_run_goes_from_4_to_3_to_8_to_1(mix: DataConfig) -> None:
    whole = global_batches(mix, 16, rows=16)
    read, cursor = [], None
    for world_size in (4, 3, 8, 1):
        read += global_batches(mix, 4, 16, world_size, cursor=cursor)
        cursor = read[-1][1]
    assert read == whole


def test_a_batch_without_rows(mix: DataConfig) -> None:
    with open_stream(mix, byte_tokenizer(), 37, 1, rank=6, world_size=8, options=Options(global_rows=5)) as stream:
        batches = [next(stream)[0] for _ in range(8)]
    assert [len(batch.lane) for batch in batches] == [sum(row % 8 == 6 for row in range(5 * n, 5 * n + 5)) for n in range(8)]
    empty = batches[0]
    assert empty.tokens.shape == empty.source.shape == (0, 37) and empty.row.dtype == torch.int64
    assert empty.split(3) == [] and empty.digests() == [] and empty.cu_seqlens.tolist() == [0] and not empty.any_restart
    assert (empty.valid, empty.last) == (0, False) and empty.to(torch.device("cpu")).tokens.shape == (0, 37)
    assert [len(part.lane) for part in batches[1].split(3)] == [1]


def test_the_number_of_rows_must_be_positive(mix: DataConfig) -> None:
    with pytest.raises(ValueError, match="global_rows 0"):
        open_stream(mix, byte_tokenizer(), 37, 1, options=Options(global_rows=0))


def test_census_over_changing_numbers_of_ranks(tmp_path: Path) -> None:
    """A finite mix read to its end by 4, then 3, 8, 1 and 2 ranks: each document once, those held out among them."""
    texts = paragraphs(700)
    for shard in range(3):
        write_jsonl(tmp_path / "a" / f"{shard}.jsonl", texts[shard * 200 : (shard + 1) * 200])
    write_jsonl(tmp_path / "b.jsonl", texts[600:])
    data = data_config(files("a", tmp_path / "a"), files("b", tmp_path / "b.jsonl"))
    rows, held_out, cursor = [], set(), None
    for world_size in itertools.cycle((4, 3, 8, 1, 2)):
        streams = [open_stream(data, byte_tokenizer(), 64, 1, rank, world_size, cursor, options=Options(global_rows=25)) for rank in range(world_size)]
        for _ in range(7):
            parts = step(streams)
            if parts is None:
                break
            rows += [row for batch, _ in parts for row in rows_of(batch)]
            cursor = merge_cursors([each for _, each in parts])
        held_out |= {text for stream in streams for _, text in stream.held_out.take_new()}
        for stream in streams:
            stream.close()
        if parts is None:
            break
    assert [row.number for row in sorted(rows)] == list(range(len(rows)))
    assert Counter(read_texts(rows)) + Counter(text.encode() for text in held_out) == Counter(text.encode() for text in texts)


def step(streams: Sequence[Stream]) -> list[tuple[Any, Any]] | None:
    """What all ranks read next, None where all have come to the end."""
    try:
        parts = [next(stream) for stream in streams]
    except StopIteration:
        return None
    return None if all(batch.last for batch, _ in parts) else parts

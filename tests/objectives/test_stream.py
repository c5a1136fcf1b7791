"""UL2 rows as the stream gives them: every document whole, rows full, the same for any number of processes and through every resume."""

import json
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data_sources import merge_cursors, open_stream
from data_sources.config import DataConfig
from data_sources.stream import Options
from data_sources.tokenizer import tokenizer_from_json, tokenizer_to_json
from data_sources.weights import WeightSchedule
from tests.data_sources.streams import BOS, data_config, files, paragraphs, rows_of, three_sources, write_jsonl
from tests.objectives.rebuilding import examples, mixture, parsed, tokenizer_with_gaps

LENGTH = 160
UL2 = Options(rewrite=mixture(longest=48))


@pytest.fixture
def mix(tmp_path: Path) -> DataConfig:
    return three_sources(tmp_path)


def batches(data: DataConfig, count: int, world_size: int = 1, cursor: Any = None, options: Options = UL2) -> list[tuple[list[Any], Any]]:
    """Rows with their kinds, and the merged cursor, of each of the first global batches of 48 rows."""
    ranks = []
    for rank in range(world_size):
        with open_stream(data, tokenizer_with_gaps(), LENGTH, 48, rank, world_size, cursor, options=options._replace(global_rows=48)) as stream:
            ranks.append(list(islice(stream, count)))
    merged = []
    for parts in zip(*ranks, strict=True):
        rows = sorted((*row, tuple(kind)) for batch, _ in parts for row, kind in zip(rows_of(batch), batch.kind.tolist(), strict=True))
        merged.append((rows, json.loads(json.dumps(merge_cursors([each for _, each in parts])))))
    return merged


@pytest.mark.parametrize("packing", ["documents", "pad"])
def test_every_document_is_rebuilt_from_the_rows_alone(tmp_path: Path, packing: str) -> None:
    texts = [*paragraphs(150), "\n\n".join(paragraphs(30, start=400))]
    write_jsonl(tmp_path / "a.jsonl", texts)
    data, tokenizer = data_config(files("a", tmp_path / "a.jsonl"), shuffle=False, packing=packing), tokenizer_with_gaps()
    with open_stream(data, tokenizer, LENGTH, 48, options=UL2) as stream:
        read = [(row, batch) for batch, _ in stream for row in rows_of(batch)]
        held_out = {text for _, text in stream.held_out.take_new()}
    lanes, kinds = defaultdict(list), Counter()
    for row, _ in sorted(read, key=lambda pair: pair[0].number):
        for tokens, targets in examples(row):
            found = parsed(tokens, targets)
            kinds[found.kind] += 1
            lanes[row.lane] += found.text
    rebuilt = []
    for tokens in lanes.values():
        for token in tokens:
            if token == BOS:
                rebuilt.append([])
            else:
                rebuilt[-1].append(token)
    assert Counter(map(tokenizer.decode, rebuilt)) == Counter(text for text in texts if text not in held_out)
    assert min(kinds.values()) > 20 and set(kinds) == {"R", "S", "X"}


def test_rows_are_full(mix: DataConfig) -> None:
    rows = [row for found, _ in batches(mix, 6) for row in found]
    held = sum(source >= 0 for row in rows for source in row[5])
    assert held / (len(rows) * LENGTH) > 0.97, "what sentinels add is made room for"


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_number_of_processes_reads_the_same(mix: DataConfig, world_size: int) -> None:
    assert batches(mix, 6, world_size) == batches(mix, 6)


def test_loader_processes_make_the_same_rows(mix: DataConfig) -> None:
    assert [rows for rows, _ in batches(mix, 4, options=UL2._replace(workers=2))] == [rows for rows, _ in batches(mix, 4)]


def test_a_resume_goes_on_exactly_on_another_number_of_processes(mix: DataConfig) -> None:
    whole = batches(mix, 8)
    read, cursor = [], None
    for world_size in (3, 1, 4, 2):
        read += batches(mix, 2, world_size, cursor)
        cursor = read[-1][1]
    assert read == whole


def test_weights_that_change_change_no_draw(mix: DataConfig) -> None:
    schedule = WeightSchedule((1 / 3,) * 3, 48)
    for interval in range(6):
        schedule.announce(interval, (1 / 3,) * 3)
    first, again = (batches(mix, 4, options=UL2._replace(schedule=schedule)) for _ in range(2))
    assert first == again


def test_what_is_rewritten_is_not_carried_and_not_looked_up(mix: DataConfig) -> None:
    with pytest.raises(ValueError, match="nothing goes on from row to row"):
        open_stream(mix, tokenizer_with_gaps(), LENGTH, 48, options=UL2._replace(context_length=100))


def test_the_tokens_of_objectives_join_once_and_travel() -> None:
    tokenizer = tokenizer_with_gaps()
    size = len(tokenizer)
    again = tokenizer_from_json(tokenizer_to_json(tokenizer))
    assert len(tokenizer_with_gaps()) == len(again) == size and again.get_added_vocab() == tokenizer.get_added_vocab()
    written = again.encode("a <|gap_0|> and <|R|>", add_special_tokens=False, split_special_tokens=True)
    assert max(written) < 256, "what a text says of them is text"
    assert again.decode([*written, size - 1], skip_special_tokens=True) == "a <|gap_0|> and <|R|>"

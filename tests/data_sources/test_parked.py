"""Sources that leave the mix and come back, habits that change, and sources read over and over."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_sources import merge_cursors, open_stream, reopened
from data_sources.config import DataConfig
from data_sources.stream import Stream
from tests.data_sources.streams import byte_tokenizer, data_config, files, global_batches, paragraphs, read_texts, three_sources, write_jsonl


@pytest.fixture
def mix(tmp_path: Path) -> DataConfig:
    return three_sources(tmp_path)


def only(data: DataConfig, *numbers: int) -> DataConfig:
    return data.model_copy(update={"sources": tuple(data.sources[number] for number in numbers)})


def lines(stream: Stream) -> list[tuple[str | None, str]]:
    return [(event.get("source"), event["text"]) for event in stream.events() if event["event"] == "notice"]


def notices(data: DataConfig, cursor: Any) -> list[tuple[str | None, str]]:
    with open_stream(data, byte_tokenizer(), 37, 48, cursor=cursor) as stream:
        return lines(stream)


def test_a_source_comes_back_where_it_was(mix: DataConfig) -> None:
    """`many` is read, then not, then again, on other numbers of processes: each document once, the one under way from its place."""
    first = global_batches(mix, 5)
    without = global_batches(only(mix, 1, 2), 5, world_size=3, cursor=first[-1][1])
    cursor = without[-1][1]
    assert list(cursor["parked"]) == ["many"] and len(cursor["parked"]["many"]["lanes"]) == 48 and cursor["parked"]["many"]["fingerprint"]
    assert json.loads(json.dumps(cursor)) == cursor
    later = global_batches(only(mix, 0, 2), 40, world_size=2, cursor=reopened(cursor), seq_length=64)
    assert list(later[-1][1]["parked"]) == ["one"]
    texts = [text.encode() for text in paragraphs(240)]
    read = Counter(text for text in read_texts([row for rows, _ in first + later for row in rows]) if text in set(texts))
    assert set(read.values()) == {1} and len(texts) - 8 < len(read) < len(texts)
    assert not [row for rows, _ in without for row in rows if set(row.source) - {-1, 0, 1}]


def test_what_leaves_and_returns_is_told(mix: DataConfig) -> None:
    cursor = global_batches(mix, 2)[-1][1]
    assert notices(only(mix, 0, 2), cursor) == [("one", "no longer in this mix: its place is kept")]
    away = global_batches(only(mix, 0, 2), 2, cursor=cursor)[-1][1]
    assert notices(mix, away) == [("one", "back in this mix: goes on where it was")]
    assert notices(only(mix, 0, 2), away) == []


def test_parked_places_go_through_merging_and_on(mix: DataConfig) -> None:
    """Away through several runs and numbers of processes, the place is the same to the integer."""
    cursor = global_batches(mix, 3)[-1][1]
    place = {lane: state[2:11] for lane, state in cursor["lanes"].items()}
    for world_size in (2, 3, 1, 4):
        cursor = global_batches(only(mix, 1, 2), 2, world_size=world_size, cursor=cursor)[-1][1]
        assert cursor["parked"]["many"]["lanes"] == place
    with open_stream(mix, byte_tokenizer(), 37, 48, cursor=cursor) as stream:
        back = stream.cursor()["lanes"]
        assert stream.cursor()["parked"] == {}
    assert {lane: state[2:10] for lane, state in back.items()} == {lane: numbers[:8] for lane, numbers in place.items()}


def test_what_returns_or_is_new_takes_its_share_and_no_more(tmp_path: Path, mix: DataConfig) -> None:
    data = mix.model_copy(
        update={"mix_strategy": "weighted", "source_weights": (1.0, 1.0, 1.0), "sources": tuple(s.model_copy(update={"repeat": True}) for s in mix.sources)}
    )
    long = global_batches(only_weighted(data, 1, 2), 60, cursor=global_batches(data, 4)[-1][1])
    for cursor in (long[-1][1], global_batches(only_weighted(data, 1, 2), 60)[-1][1]):
        rows = [row for found, _ in global_batches(data, 40, cursor=cursor) for row in found]
        counts = Counter(source for row in rows for source in row.source)
        assert all(abs(counts[source] / sum(counts.values()) - 1 / 3) < 0.05 for source in range(3)), counts


def only_weighted(data: DataConfig, *numbers: int) -> DataConfig:
    return only(data, *numbers).model_copy(update={"source_weights": (1.0,) * len(numbers)})


def test_other_weights_do_not_make_up_for_the_past(mix: DataConfig) -> None:
    """Also after another strategy, whose shares were whatever they were."""
    base = mix.model_copy(update={"sources": tuple(source.model_copy(update={"repeat": True}) for source in mix.sources)})
    weighted = base.model_copy(update={"mix_strategy": "weighted", "source_weights": (8.0, 1.0, 1.0)})
    other = weighted.model_copy(update={"source_weights": (1.0, 4.0, 5.0)})
    for before in (weighted, base):
        cursor = global_batches(before, 20)[-1][1]
        counts = Counter(source for rows, _ in global_batches(other, 60, cursor=cursor, seq_length=201) for row in rows for source in row.source)
        assert all(abs(counts[source] / sum(counts.values()) - share) < 0.03 for source, share in enumerate((0.1, 0.4, 0.5))), counts


def test_older_cursors_load(mix: DataConfig) -> None:
    whole = global_batches(mix, 3)
    old = {key: value for key, value in whole[0][1].items() if key not in ("parked", "shuffle", "packing", "weights", "held_out")}
    assert [rows for rows, _ in global_batches(mix, 2, cursor=old)] == [rows for rows, _ in whole[1:]]
    assert notices(mix.model_copy(update={"shuffle": False, "packing": "pad"}), old) == []
    assert merge_cursors([old])["parked"] == {} == merge_cursors([old])["held_out"]


DAMAGED: list[dict[str, Any]] = [{"held_out": value} for value in ([3], {"a": "00"}, {"a": ["x"]}, {"a": [3]}, {"a": ["1" * 17]})]
DAMAGED += [{"weighed": value} for value in (-1, 0.5, None, "4")]


@pytest.mark.parametrize(
    "parked",
    [
        [],
        {"x": None},
        {"x": {"lanes": {}}},
        {"x": {"fingerprint": "", "lanes": {"0": [1, 2]}}},
        {"x": {"fingerprint": "", "lanes": {"48": [0] * 9}}},
        {"x": {"fingerprint": "", "lanes": {"0": [0.5] * 9}}},
        {"x": {"fingerprint": 1, "lanes": {}}},
        {"x": {"fingerprint": "", "lanes": {"zero": [0] * 9}}},
    ],
    ids=str,
)
def test_damage_is_told_in_a_line(mix: DataConfig, parked: Any) -> None:
    cursor = global_batches(mix, 1)[-1][1]
    with pytest.raises(ValueError, match="damaged at parked") as error:
        open_stream(mix, byte_tokenizer(), 37, 48, cursor=cursor | {"parked": parked})
    assert "\n" not in str(error.value)
    for damage in ({"weights": [0.5]}, {"weights": [0.0, 1.0, 1.0]}, {"weights": None}, {"events": [3]}, {"events": None}, *DAMAGED):
        with pytest.raises(ValueError, match=f"damaged at {next(iter(damage))}"):
            open_stream(mix, byte_tokenizer(), 37, 48, cursor=cursor | damage)


def test_changed_habits_are_told(mix: DataConfig) -> None:
    cursor = global_batches(mix, 1)[-1][1]
    (line,) = notices(mix.model_copy(update={"shuffle": False}), cursor)
    assert "shuffle is off and was on" in line[1]
    (line,) = notices(mix.model_copy(update={"packing": "pad"}), cursor)
    assert 'packing is "pad" and was "documents"' in line[1]
    assert notices(mix, cursor) == []


def test_a_source_read_more_than_four_times_is_told_once(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "few.jsonl", paragraphs(96))
    write_jsonl(tmp_path / "more.jsonl", paragraphs(600, start=100))
    data = data_config(files("few", tmp_path / "few.jsonl", repeat=True), files("more", tmp_path / "more.jsonl", repeat=True))
    told, cursor = [], None
    for _ in range(4):
        with open_stream(data, byte_tokenizer(), 256, 48, cursor=cursor) as stream:
            for _ in range(8):
                _, cursor = next(stream)
            told.append([text for _, text in lines(stream)])
            epochs = [source.epoch for source in stream.sources]
    assert sum(told, []) == ["few: read more than four times over; a model learns little from more repeats (Muennighoff et al. 2023)"]
    assert told[0] == [] and epochs[0] > 4 > epochs[1]

"""The order of the data is a property of the data and the seed: any number of processes, any stop, every document once."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data_sources import encoder, merge_cursors, open_stream
from data_sources.config import DataConfig
from data_sources.encoder import Encoder
from data_sources.order import permutation
from tests.data_sources.streams import byte_tokenizer, data_config, files, global_batches, paragraphs, read_texts, rows_of, three_sources, write_jsonl


@pytest.fixture
def mix(tmp_path: Path) -> DataConfig:
    return three_sources(tmp_path)


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_any_number_of_processes_reads_the_same_rows(mix: DataConfig, world_size: int) -> None:
    assert global_batches(mix, 8, world_size=world_size) == global_batches(mix, 8)


def test_a_run_of_four_goes_on_with_three(mix: DataConfig) -> None:
    whole = global_batches(mix, 8)
    first = global_batches(mix, 3, world_size=4)
    assert first + global_batches(mix, 5, world_size=3, cursor=first[-1][1]) == whole


def test_a_batch_that_is_no_multiple_of_the_lanes(mix: DataConfig) -> None:
    whole = [row for rows, _ in global_batches(mix, 20, rows=14) for row in rows]
    assert [row.number for row in whole] == list(range(280)) and all(row.lane == row.number % 48 for row in whole)
    assert whole == [row for rows, _ in global_batches(mix, 20, rows=14, world_size=2) for row in rows]
    assert whole[: 48 * 5] == [row for rows, _ in global_batches(mix, 5) for row in rows]


OPTIONS = [
    {"mix_strategy": "round_robin"},
    {"mix_strategy": "sequential", "shuffle": False},
    {"mix_strategy": "weighted", "source_weights": {"many": 5.0, "one": 3.0, "few": 1.0}},
    {"packing": "pad"},
    {"mix_strategy": "weighted", "source_weights": [1.0, 2.0, 3.0], "packing": "pad", "shuffle": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_cursor_goes_on_with_the_next_batch(tmp_path: Path, options: dict[str, object]) -> None:
    data = three_sources(tmp_path, **options)
    whole = global_batches(data, 13, rows=29)
    for stop in range(1, 13):
        assert global_batches(data, 1, rows=29, cursor=whole[stop - 1][1]) == whole[stop : stop + 1], f"after batch {stop}"


def test_a_resumed_run_goes_on_to_the_end(mix: DataConfig) -> None:
    whole = global_batches(mix, 60)
    assert whole[:17] + global_batches(mix, 43, cursor=whole[16][1]) == whole


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2])
def test_census_each_document_once(tmp_path: Path, shuffle: bool, world_size: int) -> None:
    texts = paragraphs(700)
    for shard in range(3):
        write_jsonl(tmp_path / "a" / f"{shard}.jsonl", texts[shard * 200 : (shard + 1) * 200])
    write_jsonl(tmp_path / "b.jsonl", texts[600:])
    data = data_config(files("a", tmp_path / "a"), files("b", tmp_path / "b.jsonl"), shuffle=shuffle)
    rows, held_out = [], set()  # what the first documents hold out, every rank finds
    for rank in range(world_size):
        with open_stream(data, byte_tokenizer(), 64, 24, rank, world_size) as stream:
            for batch, _ in stream:
                if batch.last:
                    break
                rows += rows_of(batch)
            held_out |= {text for _, text in stream.held_out.take_new()}
            assert [source.state for source in stream.sources] == ["finished", "finished"]
    assert 1 <= len(held_out) < 30
    assert Counter(read_texts(rows)) + Counter(text.encode() for text in held_out) == Counter(text.encode() for text in texts)


def test_held_out_part_is_the_rest(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", paragraphs(700))
    data = data_config(files("a", tmp_path / "a.jsonl", repeat=True))
    with open_stream(data, byte_tokenizer(), 64, 24, part="held_out") as stream:
        held_out = read_texts([row for batch, _ in stream for row in rows_of(batch)])
    finite = data_config(files("a", tmp_path / "a.jsonl"))
    with open_stream(finite, byte_tokenizer(), 64, 24) as stream:
        assert len(list(stream)) > 100
        assert Counter(held_out) == Counter(text.encode() for _, text in stream.held_out.take_new())


def test_every_epoch_reads_everything_in_a_new_order(tmp_path: Path) -> None:
    texts = paragraphs(96, start=300)
    write_jsonl(tmp_path / "a.jsonl", texts)
    data = data_config(files("a", tmp_path / "a.jsonl", repeat=True))
    with open_stream(data, byte_tokenizer(), 256, 48) as stream:
        rows = [row for batch, _ in islice(stream, 16) for row in rows_of(batch)]
        assert stream.sources[0].epoch > 2
        (held_out,) = [text.encode() for _, text in stream.held_out.take_new()]
    counts = Counter(read_texts(rows))
    assert set(counts) == {text.encode() for text in texts} - {held_out}
    assert permutation(96, 0, "a", 0) != permutation(96, 0, "a", 1)


def test_shards_come_in_a_new_order_each_epoch(tmp_path: Path) -> None:
    for shard in range(12):
        write_jsonl(tmp_path / "a" / f"{shard:02}.jsonl", [f"{shard:02} {number}" for number in range(48)])
    with open_stream(data_config(files("a", tmp_path / "a", repeat=True)), byte_tokenizer(), 64, 48) as stream:
        rows = [row for batch, _ in islice(stream, 6) for row in rows_of(batch)]
    moved = []
    for lane in range(48):
        shards = [int(text[:2]) for text in read_texts([row for row in rows if row.lane == lane])]
        first, second = shards[:12], shards[12:24]
        if sorted(first) == sorted(second) == list(range(12)):  # no held-out document among them
            moved.append(first != second)
    assert len(moved) > 15 and all(moved)


@pytest.mark.parametrize("world_size", [1, 3])
def test_no_document_is_tokenised_twice(mix: DataConfig, monkeypatch: pytest.MonkeyPatch, world_size: int) -> None:
    finite = data_config(*mix.sources[:2])
    monkeypatch.setattr(encoder, "AHEAD_CHARACTERS", 3000)
    encoded = encoded_from_now_on(monkeypatch)
    made = global_batches(finite, 40, world_size=world_size)
    assert len(encoded) > 400 and set(encoded.values()) == {1}

    encoded.clear()
    stop = 12  # lanes have drifted apart by then: what some have still to read stands among what others have read
    global_batches(finite, 28, world_size=world_size, cursor=made[stop - 1][1])
    read = {text.decode() for text in read_texts([row for rows, _ in made[:stop] for row in rows])}
    assert len(read) > 100 and set(encoded.values()) == {1} and not read & set(encoded), "nor after a resume"


def encoded_from_now_on(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the texts that are tokenised."""
    encoded: Counter[str] = Counter()
    encode = Encoder.encode

    def counted(self: Encoder, texts: Sequence[str]) -> list[Any]:
        encoded.update(texts)
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "encode", counted)
    return encoded


def test_the_seed_and_shuffle_decide_the_order(mix: DataConfig, tmp_path: Path) -> None:
    plain, other = global_batches(mix, 2), global_batches(mix, 2, seed=1)
    assert plain[0][0] != other[0][0]
    assert global_batches(mix, 1, cursor=plain[0][1], seed=1) == plain[1:], "the cursor's own seed counts"
    assert global_batches(three_sources(tmp_path, shuffle=False), 2)[0][0] != plain[0][0]


def test_weights_hold_over_documents_of_unlike_length(tmp_path: Path) -> None:
    texts = paragraphs(600)
    long = ["\n\n".join(texts[start : start + 20]) for start in range(0, 600, 10)]
    short = sorted(texts, key=len)[:300]
    write_jsonl(tmp_path / "short.jsonl", short)
    write_jsonl(tmp_path / "long.jsonl", long)
    sources = files("short", tmp_path / "short.jsonl", repeat=True), files("long", tmp_path / "long.jsonl", repeat=True)
    data = data_config(*sources, mix_strategy="weighted", source_weights={"short": 3, "long": 1})
    with open_stream(data, byte_tokenizer(), 512, 48) as stream:
        short_and_long = [int((batch.source == number).sum()) for batch, _ in islice(stream, 40) for number in (0, 1)]
    share = sum(short_and_long[::2]) / sum(short_and_long)
    assert sum(map(len, long)) / len(long) > 50 * sum(map(len, short)) / len(short)
    assert abs(share - 0.75) < 0.02


def test_round_robin_takes_a_document_of_each_in_turn(mix: DataConfig) -> None:
    with open_stream(mix, byte_tokenizer(), 16, 48) as stream:
        rows = [row for batch, _ in islice(stream, 60) for row in rows_of(batch)]
    begun = [row.source[at] for row in rows if row.lane == 7 for at, restart in enumerate(row.restart) if restart]
    assert len(begun) > 4 and begun == [(begun[0] + turn) % 3 for turn in range(len(begun))]


def test_sequential_reads_one_source_to_its_end(tmp_path: Path) -> None:
    data = three_sources(tmp_path, mix_strategy="sequential")
    with open_stream(data, byte_tokenizer(), 64, 48) as stream:
        rows = [row for batch, _ in islice(stream, 60) for row in rows_of(batch)]
    begun = [row.source[at] for row in rows if row.lane == 7 for at, restart in enumerate(row.restart) if restart]
    assert begun == sorted(begun) and set(begun) == {0, 1, 2}


def test_two_ranks_make_equally_many_batches(tmp_path: Path) -> None:
    """Five documents reach five lanes at most: one rank runs dry long before the other, and both go on until both are `last`."""
    write_jsonl(tmp_path / "a.jsonl", ["\n".join(paragraphs(40, start=at)) for at in range(0, 200, 40)])
    data = data_config(files("a", tmp_path / "a.jsonl"))
    with open_stream(data, byte_tokenizer(), 32, 24, 0, 2) as one, open_stream(data, byte_tokenizer(), 32, 24, 1, 2) as two:
        valid, lasts = 0, []
        for (left, _), (right, _) in zip(one, two, strict=True):
            valid += left.valid + right.valid
            lasts.append((left.last, right.last))
            assert left.valid == (left.targets != -100).sum() and left.tokens.shape == (24, 32)
            if left.last and right.last:
                assert (left.tokens == 258).all() and (left.source == -1).all()
                break
        assert one.exhausted and two.exhausted
        assert any(first != second for first, second in lasts)
        (_, held_out), *_ = one.held_out.take_new() + two.held_out.take_new()
    with open_stream(data, byte_tokenizer(), 32, 48) as alone:
        assert sum(batch.valid for batch, _ in alone) == valid > len(held_out)


@pytest.mark.parametrize(("world_size", "rank"), [(5, 0), (0, 0), (7, 1), (2, 2), (49, 0)])
def test_lanes_that_cannot_be_shared_out(mix: DataConfig, world_size: int, rank: int) -> None:
    with pytest.raises(ValueError, match="processes") as error:
        open_stream(mix, byte_tokenizer(), 8, 8, rank, world_size)
    assert "\n" not in str(error.value)


def test_cursors_that_do_not_belong_together(mix: DataConfig) -> None:
    cursors = []
    for rank, batches in ((0, 1), (1, 2)):
        with open_stream(mix, byte_tokenizer(), 32, 24, rank, 2) as stream:
            cursors.append(list(islice(stream, batches))[-1][1])
    with pytest.raises(ValueError, match="next_row"):
        merge_cursors(cursors)
    with pytest.raises(ValueError, match="merge_cursors"):
        open_stream(mix, byte_tokenizer(), 32, 48, cursor=cursors[0])
    with pytest.raises(ValueError, match="format"):
        open_stream(mix, byte_tokenizer(), 32, 48, cursor={**cursors[0], "version": 99})


def test_a_cursor_is_small_plain_json(mix: DataConfig) -> None:
    cursor = global_batches(mix, 30)[-1][1]
    assert json.loads(json.dumps(cursor)) == cursor
    assert len(json.dumps(cursor)) < 7000


def test_other_sources_than_the_cursors(tmp_path: Path, mix: DataConfig) -> None:
    cursor = global_batches(mix, 5)[-1][1]
    write_jsonl(tmp_path / "new.jsonl", paragraphs(200, start=500))
    many, _, few = mix.sources
    changed = data_config(files("new", tmp_path / "new.jsonl"), few, many)
    with open_stream(changed, byte_tokenizer(), 37, 48, cursor=cursor) as stream:
        before = {source.name: source.documents for source in stream.sources}
        texts = {(event["source"], event["text"].split(":")[0]) for event in stream.events() if event["event"] == "notice"}
        batch, after = next(stream)
    assert texts >= {("new", "new in this mix"), ("one", "no longer in this mix")}
    assert before["new"] == 0 and before["many"] > 20 and before["few"] > 20
    assert [name for name, _ in after["sources"]] == ["new", "few", "many"]
    assert batch.row[0] == 240
    under_way = [row.source[0] for row in rows_of(batch) if not row.restart[0]]
    assert len(under_way) > 10 and set(under_way) == {1, 2}, "documents under way go on under their source's new number"


def test_changed_files_are_noticed(tmp_path: Path, mix: DataConfig) -> None:
    cursor = global_batches(mix, 2)[-1][1]
    write_jsonl(tmp_path / "many" / "9.jsonl", paragraphs(50, start=600))
    with open_stream(mix, byte_tokenizer(), 37, 48, cursor=cursor) as stream:
        assert [event["source"] for event in stream.events() if event["event"] == "changed" and "files are others" in event["text"]] == ["many"]

"""Held-out text: by content alone, at least one where a local source has two, frozen on disk."""

import json
import pickle
from itertools import islice
from pathlib import Path

import pytest

from data_sources import HeldOutStore, merge_cursors, open_stream
from data_sources.cursor import read_so_far
from data_sources.held_out import SHARE, Choice, Held, HeldOut, local_choice
from data_sources.order import content_hash
from data_sources.stream import Options
from tests.data_sources.streams import byte_tokenizer, data_config, files, global_batches, paragraphs, read_texts, rows_of, write_jsonl


def held_out_of(folder: Path, texts: list[str], world_size: int = 1, **options: object) -> tuple[list[str], list[str]]:
    """(held out by any rank, trained on) of a source with `texts`."""
    write_jsonl(folder / "a.jsonl", texts)
    data = data_config(files("a", folder / "a.jsonl"))
    held_out, trained = set(), []
    for rank in range(world_size):
        with open_stream(data, byte_tokenizer(), 64, 48, rank, world_size, **options) as stream:
            rows = [row for batch, _ in islice(stream, 300) for row in rows_of(batch)]
            trained += [text.decode() for text in read_texts(rows)]
            held_out |= {text for _, text in stream.held_out.take_new()}
    return sorted(held_out), sorted(trained)


def test_one_percent_by_hash() -> None:
    choice = Choice()
    texts = [f"{number} {text}" for text in paragraphs(700) for number in range(30)]
    assert 0.007 < sum(map(choice.holds, texts)) / len(texts) < 0.013


def test_the_same_for_any_seed_and_number_of_processes(tmp_path: Path) -> None:
    texts = paragraphs(500)
    held_out, trained = held_out_of(tmp_path, texts)
    assert held_out == held_out_of(tmp_path, texts, seed=5)[0] == held_out_of(tmp_path, texts, world_size=2)[0]
    assert set(held_out) >= {text for text in texts if content_hash(text) < SHARE} and held_out
    assert not set(held_out) & set(trained) and sorted(held_out + trained) == sorted(texts)


@pytest.mark.parametrize("number", [2, 3, 20])
def test_at_least_one_of_a_small_local_source(tmp_path: Path, number: int) -> None:
    texts = [text for text in paragraphs(200) if content_hash(text) >= SHARE][:number]
    held_out, trained = held_out_of(tmp_path, texts)
    assert held_out == [min(texts, key=content_hash)] and sorted(held_out + trained) == sorted(texts)


@pytest.mark.parametrize(("world_size", "away"), [(1, False), (2, False), (2, True)])
def test_what_was_held_out_once_stays_so_when_files_are_added(tmp_path: Path, world_size: int, away: bool) -> None:
    """Also while its source is out of the mix. Where ranks held out different ones, all of them are."""
    texts = [text for text in paragraphs(500) if content_hash(text) >= SHARE]
    *lower, first = sorted(texts, key=content_hash)[:4]
    before = [first, *sorted(set(texts) - {first, *lower})[:200]]
    write_jsonl(tmp_path / "a" / "b.jsonl", before)
    write_jsonl(tmp_path / "other.jsonl", paragraphs(40, start=520))
    other = files("other", tmp_path / "other.jsonl", repeat=True)
    data = data_config(files("a", tmp_path / "a", repeat=True), other)
    cursor = global_batches(data, 2, world_size=world_size)[-1][1]
    assert cursor["held_out"]["a"] == [f"{content_hash(first):016x}"]
    if away:
        cursor = global_batches(data_config(other), 2, world_size=world_size, cursor=cursor)[-1][1]
    write_jsonl(tmp_path / "a" / "a.jsonl", lower)
    with open_stream(data, byte_tokenizer(), 64, 48, cursor=cursor) as stream:
        assert [text for source, text in stream.held_out.take_new() if source == "a"] == [first]
    later = global_batches(data, 25, world_size=world_size, seq_length=400, cursor=cursor)
    assert read_so_far(later[-1][1])["a"]["epochs"] > 0 and later[-1][1]["held_out"] == cursor["held_out"]
    trained = {text.decode() for text in read_texts([row for rows, _ in later for row in rows])}
    assert first not in trained and set(lower) < trained
    assert merge_cursors([cursor, cursor | {"held_out": {"a": ["00"]}}])["held_out"]["a"] == ["00", f"{content_hash(first):016x}"]


@pytest.mark.parametrize("texts", [["the only one"], ["the same"] * 5])
def test_a_source_of_one_document_holds_nothing_out_and_says_so(tmp_path: Path, texts: list[str]) -> None:
    write_jsonl(tmp_path / "a.jsonl", texts)
    with open_stream(data_config(files("a", tmp_path / "a.jsonl")), byte_tokenizer(), 64, 48) as stream:
        assert len([row for batch, _ in stream for row in rows_of(batch) if row.restart[0]]) == len(texts)
        assert stream.held_out.take_new() == []
        assert "one document only: nothing is held out" in [event.get("text") for event in stream.events()]


def test_no_extra_where_the_hash_found_one() -> None:
    falls_in = next(text for text in (f"text {number}" for number in range(10_000)) if content_hash(text) < SHARE)
    choice = local_choice([falls_in, "another", "a third"])
    assert choice.holds(falls_in) and not choice.holds("another") and not choice.holds("a third")


def test_each_document_is_handed_out_once() -> None:
    held_out = HeldOut()
    for source, text in (("a", "x"), ("a", "y"), ("b", "x"), ("a", "x")):
        held_out.add(source, text)
    assert held_out.take_new() == [("a", "x"), ("a", "y"), ("b", "x")]
    held_out.add("a", "y")
    held_out.add("a", "z")
    assert held_out.take_new() == [("a", "z")]


def test_what_nobody_takes_is_bounded() -> None:
    held_out = HeldOut()
    for number in range(100):
        held_out.add("a", f"{number}" + "x" * 100_000)
    assert sum(len(text) for _, text in held_out.take_new()) < 5_000_000


def test_the_store_freezes_at_its_limit_and_survives(tmp_path: Path) -> None:
    names = ["plain", "with/slash", "..", "ünï cödé " * 20, "with_slash"]
    store = HeldOutStore(tmp_path / "held", 10)
    store.extend([(name, f"{name} {number}") for name in names for number in range(9)], lambda text: 3)
    store.extend([("plain", "plain 0"), ("plain", "late")], lambda text: 3)
    for held in (store, HeldOutStore(tmp_path / "held", 10)):
        assert sorted(held.sources()) == sorted(names)
        for name in names:
            assert held.texts(name) == [f"{name} {number}" for number in range(4)] and held.tokens(name) == 12 and held.frozen(name)
    assert sorted(path.parent.name for path in tmp_path.rglob("*.jsonl")) == ["held"] * 5 and not list(tmp_path.rglob("*.tmp"))


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    store = HeldOutStore(tmp_path, 100)
    store.extend([("a", "first\u2028line"), ("a", "second\nline")], len)
    (file,) = tmp_path.glob("*.jsonl")
    file.write_text(file.read_text() + json.dumps({"source": "a", "text": "torn", "tokens": 4})[:-3] + "\n[]\n")
    assert HeldOutStore(tmp_path, 100).texts("a") == ["first\u2028line", "second\nline"]


def test_of_a_long_text_the_beginning_is_kept_and_once(tmp_path: Path) -> None:
    store, long = HeldOutStore(tmp_path, 1_000), "word " * 1_000_000
    asked = Held("w " * 100_000 + "an answer", ((200_000, 200_009),))
    for _ in range(2):
        store.extend([("a", long), ("b", asked)], lambda text: 10)
    assert store.texts("a") == [long[:8_000]], "8 characters a token"
    assert store.texts("b") == [asked], "where nothing of its beginning is learned, all of it is kept"


def test_what_is_learned_of_a_text_is_kept_with_it_and_old_lines_are_learned_as_a_whole(tmp_path: Path) -> None:
    store = HeldOutStore(tmp_path, 100)
    asked = pickle.loads(pickle.dumps(Held("what? thät", ((6, 10),))))
    store.extend([("a", asked), ("a", Held("a text"))], len)
    (file,) = tmp_path.glob("*.jsonl")
    assert [set(json.loads(line)) for line in file.read_text().splitlines()] == [{"source", "text", "tokens", "learned"}, {"source", "text", "tokens"}]
    for held in (store, HeldOutStore(tmp_path, 100)):
        first, second = held.texts("a")
        assert (first, first.learned, first.learned_bytes) == ("what? thät", ((6, 10),), 5) and (second.learned, second.learned_bytes) == (None, 6)
    assert (first.beginning(8), first.beginning(8).learned, first.beginning(3).learned) == ("what? th", ((6, 8),), ())


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_met_says_what_is_learned_of_it(tmp_path: Path, workers: int) -> None:
    rows = [{"q": f"what is {text}?", "a": text} for text in paragraphs(250)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = data_config(files("a", tmp_path / "pairs.jsonl", input_field="q", target_field="a"))
    with open_stream(data, byte_tokenizer(), 64, 48, options=Options(workers=workers)) as stream:
        for _ in stream:
            pass
        found = {held: held.learned for _, held in stream.held_out.take_new()}
    assert found and all(spans == ((10 + (len(text) - 10) // 2, len(text)),) for text, spans in found.items())


def test_what_could_not_be_written_is_written_by_the_next_call(tmp_path: Path) -> None:
    folder = tmp_path / "held"
    folder.write_text("in the way")
    store = HeldOutStore(folder, 100)
    with pytest.raises(OSError):
        store.extend([("a", "first"), ("b", "other")], len)
    folder.unlink()
    store.extend([], len)
    held = HeldOutStore(folder, 100)
    assert held.texts("a") == ["first"] and held.texts("b") == ["other"]

"""Text that was read is sampled, and read again: the sample is a function of what was read, and its share holds in every mix."""

import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from data_sources import Options, open_stream
from data_sources.config import DataConfig, PastSource
from data_sources.cursor import check_cursor, without
from data_sources.documents import GivenUp, SourcesFailed
from data_sources.past import ANY, LONGEST, OVERHEAD, Past, PastReader, Read, read_past, remove_others, write_past
from data_sources.weights import WeightSchedule, base_weights
from tests.data_sources.streams import byte_tokenizer, data_config, files, global_batches, paragraphs, read_texts, rows_of, three_sources, write_jsonl

LENGTH, ROWS, LIMIT = 64, 24, 40_000


def reads(texts: Sequence[str], source: str = "a") -> list[Read]:
    return [Read.of(0, source, text, None) for text in texts]


def kept_of(documents: Sequence[Read], limit: int) -> list[Read]:
    """The definition: in the order of their priorities, as long as they fit."""
    kept, total = [], 0
    for document in sorted(set(documents)):
        total += document.size
        if total > limit:
            break
        kept.append(document)
    return kept


def test_any_order_and_any_cut_give_the_same_sample(tmp_path: Path) -> None:
    documents = reads(paragraphs(300))
    wanted = kept_of(documents, LIMIT)
    assert 20 < len(wanted) < 280
    for seed in range(5):
        shuffled = random.Random(seed).sample(documents, len(documents)) + documents[:40]
        past = Past(LIMIT)
        for start in range(0, len(shuffled), 50):
            past.add(shuffled[start : start + 50])
            digest = write_past(tmp_path, past.name(), past.documents(), past.until)
            past = read_past(tmp_path / past.name(), digest, LIMIT)
        assert past.documents() == wanted
    assert len({path.name for path in tmp_path.iterdir()}) > 5, "named after what is in them"


def test_every_document_has_the_same_chance() -> None:
    """Of 300 documents of one length 100 are kept: how often each is, over 400 seeds, is as spread out as drawing lots makes it."""
    texts = [f"document {number:04}" for number in range(300)]
    size = Read.of(0, "a", texts[0], None).size
    drawn: Counter[str] = Counter()
    for seed in range(400):
        past = Past(100 * size)
        past.add([Read.of(seed, "a", text, None) for text in texts])
        assert len(past.documents()) == 100
        drawn.update(document.text for document in past.documents())
    expected, variance = 400 / 3, 400 * (1 / 3) * (2 / 3)
    chi = sum((drawn[text] - expected) ** 2 / variance for text in texts)
    assert 200 < chi < 400, chi  # 299 degrees of freedom: four deviations to each side


def test_a_long_document_keeps_its_beginning_and_what_is_learned_of_it(tmp_path: Path) -> None:
    long = Read.of(0, "a", "ab\ud800 " * LONGEST, ((5, 10), (LONGEST - 5, LONGEST + 5), (LONGEST + 1, LONGEST + 9)))
    assert (len(long.text), long.scored) == (LONGEST, ((5, 10), (LONGEST - 5, LONGEST)))
    past = Past(10 * LONGEST, [long])
    digest = write_past(tmp_path, past.name(), past.documents(), past.until)
    (found,) = read_past(tmp_path / past.name(), digest, 10 * LONGEST).documents()
    assert found == long
    (document,) = PastReader(PastSource(path=str(tmp_path / past.name()), sources=("a",), share=0.1)).read(0, 0) or []
    assert (document.text, document.scored) == (long.text, long.scored)


def test_other_sizes(tmp_path: Path) -> None:
    documents = reads(paragraphs(300))
    past = Past(LIMIT, documents)
    digest = write_past(tmp_path, past.name(), past.documents(), past.until)
    assert read_past(tmp_path / past.name(), digest, LIMIT // 2).documents() == kept_of(documents, LIMIT // 2)
    larger = read_past(tmp_path / past.name(), digest, 4 * LIMIT)
    assert larger.until == ANY and larger.documents() == past.documents()
    assert Past(0, documents).documents() == []


def test_the_size_is_of_bytes(tmp_path: Path) -> None:
    """Of text that takes three bytes a character as much is kept as of any other: a third of the characters."""
    texts = ["".join(chr(0x4E00 + (7 * number + place) % 9000) for place in range(100)) for number in range(300)]
    past = Past(20 * (300 + OVERHEAD), reads(texts))
    assert [len(document.text) for document in past.documents()] == [100] * 20
    digest = write_past(tmp_path, past.name(), past.documents(), past.until)
    held = pyarrow.parquet.read_table(tmp_path / past.name()).column("text").to_pylist()
    assert sum(map(len, held)) == 20 * 300
    assert Read.of(0, "a", "\ud800🌱é", None).size == OVERHEAD + 3 + 4 + 2
    assert read_past(tmp_path / past.name(), digest, 20 * (300 + OVERHEAD)).until == past.until, "it did not grow"


def test_a_damaged_sample_is_never_read_as_text(tmp_path: Path) -> None:
    past = Past(LIMIT, reads(paragraphs(300)))
    path = tmp_path / past.name()
    digest = write_past(tmp_path, past.name(), past.documents(), past.until)
    content = path.read_bytes()
    flips = [content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :] for place in range(0, len(content), len(content) // 40)]
    source = PastSource(path=str(path), sources=("a",), share=0.1)
    true = {document.text for document in past.documents()}
    for damaged in [*flips, content[: len(content) // 2], content[:-9], b"", None]:
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(OSError):
            read_past(path, digest, LIMIT)
        with contextlib.suppress(GivenUp):  # found out late, in the middle of a run
            reader = PastReader(source)
            texts = [document.text for _ in reader.shards() for block in range(reader.blocks(0)) for document in reader.read(0, block) or []]
            assert set(texts) <= true
        path.touch()


def test_a_sample_that_was_damaged_meanwhile_is_written_again(tmp_path: Path) -> None:
    past = Past(LIMIT, reads(paragraphs(60)))
    sample = past.name(), past.documents(), past.until
    digest = write_past(tmp_path, *sample)
    path, before = tmp_path / past.name(), (tmp_path / past.name()).stat().st_ino
    assert write_past(tmp_path, *sample, digest) == digest and path.stat().st_ino == before, "what is whole stays"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert write_past(tmp_path, *sample, digest) == digest
    assert read_past(path, digest, LIMIT).documents() == past.documents()


def test_what_no_snapshot_names_is_removed(tmp_path: Path) -> None:
    for number in range(3):
        past = Past(LIMIT, reads(paragraphs(30 + number)))
        write_past(tmp_path, past.name(), past.documents(), past.until)
    (tmp_path / "left.parquet.tmp").touch()
    kept = past.name()
    remove_others(tmp_path, [kept, "not there.parquet"])
    assert [path.name for path in tmp_path.iterdir()] == [kept]
    remove_others(tmp_path / "nowhere", [])


# In the stream


def begun(data: DataConfig, batches: int, keep: tuple[int, int] = (LIMIT, ANY), world_size: int = 1, cursor: Any = None, workers: int = 0) -> list[Read]:
    """What ranks tell of the documents that begin in their first batches."""
    found: list[Read] = []
    for rank in range(world_size):
        options = Options(keep=keep, workers=workers)
        with open_stream(data, byte_tokenizer(), LENGTH, ROWS // world_size, rank, world_size, cursor, options=options) as stream:
            for batch, _ in islice(stream, batches):
                found += batch.begun
    return found


def test_the_sample_does_not_know_how_many_processes_read(tmp_path: Path) -> None:
    data = three_sources(tmp_path)
    whole = Past(LIMIT, begun(data, 40)).documents()
    assert len(whole) > 30 and {document.source for document in whole} == {"many", "one", "few"}
    for world_size in (2, 3):
        assert Past(LIMIT, begun(data, 40, world_size=world_size)).documents() == whole
    assert Past(LIMIT, begun(data, 40, workers=2)).documents() == whole


def test_a_stop_changes_nothing(tmp_path: Path) -> None:
    data = three_sources(tmp_path)
    whole = Past(LIMIT, begun(data, 40)).documents()
    for stop in (1, 7, 25):
        past = Past(LIMIT, begun(data, stop))
        cursor = global_batches(data, stop, ROWS, seq_length=LENGTH)[-1][1]
        past.add(begun(data, 40 - stop, (LIMIT, past.until), cursor=cursor))
        assert past.documents() == whole


def test_all_that_is_read_is_offered_and_no_held_out_text(tmp_path: Path) -> None:
    data = data_config(files("a", write_jsonl(tmp_path / "a.jsonl", paragraphs(200))))
    offered = {read.text for read in begun(data, 10_000, (10**9, ANY))}
    with open_stream(data, byte_tokenizer(), LENGTH, ROWS) as stream:
        rows = [row for batch, _ in stream for row in rows_of(batch)]
        held = {text for _, text in stream.held_out.take_new()}
    assert held and not held & offered
    assert {text.encode() for text in offered} == set(read_texts(rows))


def test_nothing_is_told_unless_asked(tmp_path: Path) -> None:
    with open_stream(three_sources(tmp_path), byte_tokenizer(), LENGTH, ROWS) as stream:
        assert all(not batch.begun for batch, _ in islice(stream, 3))


def sample(folder: Path, number: int = 60) -> str:
    """Paragraphs that no source of `three_sources` holds."""
    past = Past(10**9, [*reads(paragraphs(number, start=460), "old"), *reads(["of another source"], "else")])
    write_past(folder, past.name(), past.documents(), past.until)
    return str(folder / past.name())


def with_past(folder: Path, share: float = 0.1, **options: Any) -> DataConfig:
    return three_sources(folder, **options).with_past(PastSource(path=sample(folder / "past"), sources=("old",), share=share))


MIXES = [
    {"mix_strategy": "round_robin"},
    {"mix_strategy": "sequential"},
    {"mix_strategy": "weighted", "source_weights": {"many": 5.0, "one": 3.0, "few": 1.0}},
]


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix["mix_strategy"])
def test_the_past_has_its_share_in_every_mix(tmp_path: Path, mix: dict[str, Any]) -> None:
    data = with_past(tmp_path, **mix)
    counts: Counter[int] = Counter()
    first_at: list[int] = []
    for number, (rows, _) in enumerate(global_batches(data, 70, 48, seq_length=LENGTH)):
        for row in rows:
            counts.update(row.source)
            first_at += [number] * (3 in row.source)
    total = sum(count for source, count in counts.items() if source >= 0)
    assert 0.07 < counts[3] / total < 0.13
    assert len(set(first_at)) > 15, "not all lanes at once"
    without_past = Counter(
        source for rows, _ in global_batches(three_sources(tmp_path, **mix), 70, 48, seq_length=LENGTH) for row in rows for source in row.source
    )
    rest = sum(without_past[source] for source in range(3))
    for source in range(3):
        assert abs(counts[source] / (total - counts[3]) - without_past[source] / rest) < 0.08, "the others share the rest as before"


def test_long_documents_of_the_past_have_no_more_than_their_share_at_first(tmp_path: Path) -> None:
    """Once a lane would have had a whole one before its share allows for it: here half of the lanes have none yet, and a few have two."""
    texts = paragraphs(460)
    long = [" ".join(texts[start : start + 12]) for start in range(0, 456, 12)]
    length = round(sum(map(len, long)) / len(long)) + 1
    past = Past(10**9, reads(long, "old"))
    write_past(tmp_path, past.name(), past.documents(), past.until)
    present = data_config(files("a", write_jsonl(tmp_path / "a.jsonl", texts), repeat=True))
    counts: Counter[int] = Counter()
    source = PastSource(path=str(tmp_path / past.name()), sources=("old",), share=0.05, document_tokens=length)
    for rows, _ in global_batches(present.with_past(source), 24, 48, seq_length=512):
        for row in rows:
            counts.update(row.source)
    assert length > 1500 and 0.03 < counts[1] / (counts[0] + counts[1]) < 0.07


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix["mix_strategy"])
def test_it_is_exact_through_stops_and_on_any_number_of_processes(tmp_path: Path, mix: dict[str, Any]) -> None:
    data = with_past(tmp_path, **mix)
    whole = global_batches(data, 12, ROWS)
    for stop in (1, 5, 11):
        assert global_batches(data, 12 - stop, ROWS, cursor=whole[stop - 1][1]) == whole[stop:]
    assert global_batches(data, 12, ROWS, 3) == whole


def test_only_the_text_of_the_named_sources_and_nothing_held_out(tmp_path: Path) -> None:
    data = with_past(tmp_path, 0.5, mix_strategy="sequential")
    with open_stream(data, byte_tokenizer(), LENGTH, ROWS, options=Options(keep=(10**9, ANY))) as stream:
        batches = [batch for batch, _ in islice(stream, 60)]
        assert "past text" not in {source for source, _ in stream.held_out.take_new()}
    rows = [row._replace(source=row.source) for batch in batches for row in rows_of(batch)]
    old = {text.encode() for text in paragraphs(60, start=460)}
    from_past = {text for row in rows for text, source in zip(*_documents(row), strict=True) if source == 3}
    assert len(from_past) > 5 and from_past <= old
    assert not {read.text.encode() for batch in batches for read in batch.begun} & old, "what is read again is not kept again"


def _documents(row: Any) -> tuple[list[bytes], list[int]]:
    """Documents that stand in one row as a whole, and their sources."""
    starts = [at for at, restart in enumerate(row.restart) if restart] + [len(row.tokens)]
    found = [(row.tokens[a:b], row.targets[b - 1], row.source[a]) for a, b in itertools.pairwise(starts) if row.targets[b - 1] == EOS and row.tokens[a] == BOS]
    decode = byte_tokenizer().decode
    return [decode(tokens[1:]).encode() for tokens, _, _ in found], [source for _, _, source in found]


BOS, EOS = byte_tokenizer().bos_token_id, byte_tokenizer().eos_token_id


def test_a_mix_that_is_read_to_its_end_ends(tmp_path: Path) -> None:
    data = data_config(files("a", write_jsonl(tmp_path / "a.jsonl", paragraphs(100)))).with_past(PastSource(path=sample(tmp_path), sources=("old",), share=0.2))
    with open_stream(data, byte_tokenizer(), LENGTH, ROWS) as stream:
        batches = list(islice(stream, 5000))
    assert len(batches) < 1000, "the past alone is no reason to go on"


def test_the_past_alone_is_no_reason_to_go_on(tmp_path: Path) -> None:
    data = data_config(files("a", tmp_path / "nowhere")).with_past(PastSource(path=sample(tmp_path), sources=("old",), share=0.2))
    with open_stream(data, byte_tokenizer(), LENGTH, ROWS) as stream, pytest.raises(SourcesFailed, match="no source can be read: a: there is no"):
        next(stream)


def test_a_lost_sample_leaves_the_rest(tmp_path: Path) -> None:
    data = with_past(tmp_path)
    Path(data.sources[-1].path).unlink()
    with open_stream(data, byte_tokenizer(), LENGTH, ROWS) as stream:
        batches = list(islice(stream, 10))
        assert {int(source) for batch, _ in batches for source in batch.source.unique()} <= {-1, 0, 1, 2}
        assert [state.state for state in stream.sources] == ["reading"] * 3 + ["given up"]


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix["mix_strategy"])
def test_a_run_after_it_goes_on_with_the_others_where_they_were(tmp_path: Path, mix: dict[str, Any]) -> None:
    data = with_past(tmp_path, **mix)
    made = global_batches(data, 6, 48)
    cursor = without(made[-1][1], "past text")
    check_cursor(cursor, range(48))
    assert [name for name, _ in cursor["sources"]] == ["many", "one", "few"]
    plain = three_sources(tmp_path, **mix)
    rows = [row for batch, _ in [*made, *global_batches(plain, 400, 48, cursor=cursor)] for row in batch if set(row.source) - {3, -1}]
    counts = Counter(text for text in read_texts(rows) if text)
    both = {text.encode() for text in paragraphs(440)}
    assert {text for text in counts if counts[text] > 1} & both == set(), "none twice"
    assert without(cursor, "past text")["sources"] == cursor["sources"]
    assert without({**cursor, "parked": {"past text": {}, "x": {}}}, "past text")["parked"] == {"x": {}}


def test_its_name_is_taken() -> None:
    with pytest.raises(ValueError, match="give the source another"):
        data_config(files("past text", "somewhere"))


def test_weights_that_change_leave_its_share(tmp_path: Path) -> None:
    data = with_past(tmp_path, mix_strategy="weighted", source_weights=[1.0, 1.0, 1.0])
    schedule = WeightSchedule(base_weights(data), 48)
    for interval in range(2, 80):
        schedule.announce(interval, (0.05, 0.05, 0.05, 0.85) if interval % 2 else (0.6, 0.2, 0.1, 0.1))
    counts: Counter[int] = Counter()
    for rows, _ in global_batches(data, 70, 48, seq_length=LENGTH, options=Options(schedule=schedule)):
        for row in rows:
            counts.update(row.source)
    assert 0.07 < counts[3] / sum(count for source, count in counts.items() if source >= 0) < 0.13

"""A memory of what was read, while a model trains: exact through stops, with loader processes, and consistent with every snapshot."""

import errno
import os
import shutil
import subprocess
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_sources.documents import Stopped
from data_sources.tokenizer import tokenizer_from_json
from lm.memory.embedder import Hashed
from lm.memory.layout import MemoryFault
from lm.memory.lookup import Chance, Lookup
from lm.memory.memory import Memory, Options, chunks_of
from lm.memory.store import State, Writer
from lm.model import build_model
from lm.training import Halted, remembering, train
from lm.training.evaluation import Place, Rows, evaluate, grouped, tally_of
from lm.training.memory_worth import worth_of
from lm.training.remembering import MEMORY, Noted, Remembering, embedder_of, lookup_of
from lm.training.snapshot_evaluation import evaluate_snapshot, held_out_texts
from lm.training.snapshots import Snapshots
from tests.data_sources.streams import byte_tokenizer, paragraphs
from tests.training.elastic import taken_over
from tests.training.test_run import STEP, Recorder, Tiny, trained

RETRO = {"enabled": True, "chunk_size": 8, "layers": "all"}


def remembered(folder: Path, name: str = "current") -> tuple[Memory, State]:
    """The memory as a snapshot holds it."""
    snapshot = Snapshots(folder).read(name)
    tokenizer = tokenizer_from_json(snapshot.tokenizer)
    state = Noted.of(snapshot.run["memory"]).newest
    terms = (folder / MEMORY, RETRO["chunk_size"], len(tokenizer), embedder_of(snapshot.preset, tokenizer))
    return Memory.open(*terms, state, Options(snapshot.preset.retro.memory_chunks)), state


def contents(folder: Path) -> list[Any]:
    """Chunks ever added, and all columns of those that are still found."""
    memory, state = remembered(folder)
    chunks = memory._store.take(np.arange(memory.first(state.length), state.length))
    return [state.length, *(chunks[name].tolist() for name in ("document", "place", "count", "tokens"))]


@pytest.mark.slow
def test_on_another_number_of_processes(tiny: Tiny, tmp_path: Path) -> None:
    """Four rows a step, on one process, on three, and on one again: the same chunks come into the memory, in the same order, and the same are found."""
    preset, same = (tiny(retro=RETRO, train={"loader_processes": count, "learning_rate": 0.003}) for count in (1, 0))
    alone = trained(same, tmp_path / "alone", 30).of("step")
    folder = tmp_path / "moved"
    first = trained(preset, folder, 30, stop_after=11)
    second = taken_over(3, preset, tmp_path, folder, 30 * STEP, 9)
    third = trained(preset, folder, 30)
    steps = [*first.of("step"), *(event for event in second if event["event"] == "step"), *third.of("step")]
    assert [event["batch_hash"] for event in steps] == [event["batch_hash"] for event in alone]
    assert [event["loss"] for event in steps] == pytest.approx([event["loss"] for event in alone], rel=1e-3)
    assert contents(folder) == contents(tmp_path / "alone")
    assert [event["exact"] for event in second if event["event"] == "certificate"] == [True]


@pytest.fixture(scope="module")
def at_once(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path]:
    """A run of twenty steps, and its folder. What is read is found from about the tenth on."""
    folder = tmp_path_factory.mktemp("once")
    return trained(tiny(retro=RETRO), folder, 20), folder


@pytest.mark.parametrize("workers", [0, 2])
def test_exactly_through_a_stop(tiny: Tiny, at_once: tuple[Recorder, Path], tmp_path: Path, workers: int) -> None:
    preset, (whole, folder) = tiny(retro=RETRO, train={"loader_processes": workers}), at_once
    first = trained(preset, tmp_path, 20, stop_after=13)
    second = trained(preset, tmp_path, 20)
    assert [len(part.of("step")) for part in (first, second)] == [13, 7]
    assert second.of("resume")[0]["exact"]
    steps = first.of("step") + second.of("step")
    for key in ("batch_hash", "loss", "gradient_norm"):
        assert [event[key] for event in steps] == [event[key] for event in whole.of("step")], key
    one, two = (Snapshots(place).read("current") for place in (folder, tmp_path))
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    assert contents(folder) == contents(tmp_path)
    assert contents(folder)[0] > 15 * STEP // 8 * 0.9


def test_neighbours_reach_the_model(tiny: Tiny, at_once: tuple[Recorder, Path], tmp_path: Path) -> None:
    """With a memory the same batches come to other losses, once it is behind by fewer steps than were taken."""
    without = trained(tiny(retro=RETRO | {"memory_chunks": 1}), tmp_path, 20)
    differs = [a["loss"] != b["loss"] for a, b in zip(at_once[0].of("step"), without.of("step"), strict=True)]
    assert not any(differs[:9]) and all(differs[11:])


@pytest.mark.parametrize("workers", [0, 2])
def test_each_step_tells_of_the_memory(tiny: Tiny, tmp_path: Path, workers: int) -> None:
    """Its chunks, of which the oldest leave; what it took to ask, from the first step on that something is known; what it took to add."""
    steps = trained(tiny(retro=RETRO | {"memory_chunks": 300}, train={"loader_processes": workers}), tmp_path, 14).of("step")
    told = [event["memory"] for event in steps]
    chunks = [each["chunks"] for each in told]
    assert chunks == sorted(chunks) and 0 < chunks[0] < STEP // 8 + 8 and chunks[-1] == 300
    assert [each["asked_seconds"] > 1e-4 for each in told].count(True) >= 4 and told[0]["asked_seconds"] < told[-1]["asked_seconds"]
    assert all(0 < each["added_seconds"] < 5 for each in told)
    assert all("memory" not in event for event in trained(tiny(), tmp_path / "none", 2).of("step"))


def test_held_out_text_is_measured_with_the_memory(at_once: tuple[Recorder, Path]) -> None:
    """What evaluation hands in is what training would have: the stream's own chunks of the same rows, asked for in the same state."""
    run, folder = at_once
    last = run.of("evaluation")[-1]
    memory, state = remembered(folder)
    snapshot = Snapshots(folder).read("current")
    tokenizer = tokenizer_from_json(snapshot.tokenizer)
    texts = [text for kept in held_out_texts(folder).values() for text in kept]
    lookup = Lookup(memory, state.length, RETRO["chunk_size"], 2)
    groups = [group for (group,) in grouped(texts, tokenizer, 64, partial(Rows.compared, find=lookup))]
    model = build_model(snapshot.preset, len(tokenizer))
    model.load_state_dict(snapshot.model_weights)
    found = {
        name: evaluate(model, tokenizer, {"all": texts}, snapshot.preset, find=find)
        for name, find in (("on", lookup), ("off", None), ("chance", Chance(lookup)))
    }
    assert len({measures["cross_entropy"] for measures in found.values()}) == 3
    assert last["bits_per_byte"] == pytest.approx(found["on"]["bits_per_byte"], rel=1e-5)
    assert last["without_memory"]["bits_per_byte"] == pytest.approx(found["off"]["bits_per_byte"], rel=1e-5)
    *by_overlap, every = worth_of(model, tokenizer, {"all": texts}, snapshot.preset, lookup)
    for way, measures in found.items():
        assert every["bits"][way] == pytest.approx(measures["bits_per_byte"], rel=1e-6)
        assert sum(each["bits"][way] * each["bytes"] for each in by_overlap) == pytest.approx(every["bits"][way] * every["bytes"])
    assert every["bytes"] == sum(len(text.encode()) for text in texts) and len(by_overlap) > 2
    assert by_overlap[0]["overlap"] == "nothing handed in" and by_overlap[0]["bits"]["off"] == pytest.approx(by_overlap[0]["bits"]["on"])
    assert evaluate_snapshot(folder)["memory"][-1]["bits"] == pytest.approx(every["bits"])
    position, document = 0, []
    for rows in groups:
        handed = dict(zip(rows.arrivals.at.tolist(), rows.arrivals.tokens, strict=True))
        for at, (token, begins) in enumerate(zip(rows.tokens.flatten().tolist(), rows.restart.flatten().tolist(), strict=True)):
            document = [] if begins else document
            whole = len(document) // 8 * 8
            wanted = whole > 0 and (len(document) == whole or at % 64 == 0)
            assert (at in handed) == wanted
            if wanted:
                expected, _ = lookup(np.array([document[whole - 8 : whole]]))
                assert handed[at].tolist() == expected[0].tolist()
            document.append(token)
            position += 1
    assert position > 500


@pytest.mark.parametrize("long", [False, True])
def test_a_memory_is_asked_for_what_is_read_next_alone(tiny: Tiny, tmp_path: Path, long: bool) -> None:
    """Each rank asks for its own rows, and one that is stopped for no more: so that a person need not wait. Together they read what one reads alone."""
    words = [text[:240] for text in paragraphs(32)]
    tokenizer = byte_tokenizer()
    embedder = Hashed(len(tokenizer))
    memory = Memory.open(tmp_path, 8, len(tokenizer), embedder, write=True)
    for number, text in enumerate(words[16:]):
        memory.add(chunks_of(number, np.array(tokenizer.encode(text)[:64], np.int64), 8, ("a", str(number))))
    carried = {"long_context": {"enabled": True, "chunk_length": 36, "context_length": 500}} if long else {}
    plan = {"longformer": {"enabled": True, "layers": "all", "window": 16}} if long else {}
    preset = tiny(retro=RETRO, train=carried, **plan)
    torch.manual_seed(0)
    model = build_model(preset, len(tokenizer)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    asked: list[int] = []

    class Counted(Lookup):
        def __call__(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            asked.append(len(tokens))
            return super().__call__(tokens)

    def read(place: Place, pieces: int = 10**9) -> list[float]:
        """Of the tally; nothing once it is stopped after so many pieces."""
        asked.clear()
        left = iter(range(pieces))
        with torch.inference_mode(), suppress(Stopped):
            return list(tally_of(model, words[:16], tokenizer, preset, place, lambda: next(left, None) is None, Counted(memory, memory.length, 8, 2)))
        return []

    alone, questions = read(Place(0, 1)), sum(asked)
    parts, shares = zip(*((read(Place(rank, 3)), sum(asked)) for rank in range(3)), strict=True)
    np.testing.assert_allclose(np.sum(parts, 0), alone, rtol=1e-5)
    assert sum(shares) == questions > 200 and max(shares) < 0.8 * questions
    assert read(Place(0, 1), 2) == [] and len(asked) == 2 and sum(asked) < questions / 2
    without = list(tally_of(model, words[:16], tokenizer, preset, Place(0, 1), lambda: False))
    assert abs(without[0] - alone[0]) > 1e-3 * alone[0]
    memory.close()


def test_a_disk_that_is_full_stops_no_training(tiny: Tiny, tmp_path: Path) -> None:
    """The memory takes in what there is room for, says so once, and is as the snapshot says."""
    small = tmp_path / "small"
    small.mkdir()
    if not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("this machine mounts no small disk")
    try:
        told = trained(tiny(retro=RETRO | {"index_path": str(small / "memory")}), tmp_path / "checkpoints", 20)
        said = [event["text"] for event in told.of("notice") if "memory" in event["text"]]
        assert said == ["the memory can't take in what is read: No space left on device; training goes on"]
        assert len(told.of("step")) == 20 and told.of("end")[0]["reason"] == "the run's tokens are read"
        snapshot = Snapshots(tmp_path / "checkpoints").read("current")
        lookup = lookup_of(snapshot, tmp_path / "checkpoints", tokenizer_from_json(snapshot.tokenizer))
        assert 0 < lookup.length < 18 * STEP // 8
        assert len(lookup.memory.about(np.arange(lookup.length))) == lookup.length
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@pytest.mark.parametrize("failing", [(2, 3), (1, 2, 3, 4, 5, 6)], ids=["for a while", "always"])
def test_a_disk_that_fails_in_a_snapshot_costs_no_snapshot(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: tuple[int, ...]) -> None:
    """The model is saved with the memory as it was last whole, which goes on from there; each time a line says so."""
    wanted: list[Any] = []
    sync, synced = Writer.sync, Remembering.synced

    def failing_sync(writer: Writer) -> None:
        if len(wanted) in failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(writer)

    monkeypatch.setattr(Writer, "sync", failing_sync)
    monkeypatch.setattr(Remembering, "synced", lambda memory, noted: wanted.append(noted) or synced(memory, noted))
    preset = tiny(retro=RETRO, train={"snapshot_every_tokens": 4 * STEP})
    named: list[Any] = []

    def keep_its_memory(event: Any) -> None:
        if event["event"] == "snapshot":
            named.append(Snapshots(tmp_path).read("current").run["memory"])

    told = Recorder()
    train(preset, tmp_path, 16 * STEP, observers=(told, keep_its_memory))
    said = [event["text"] for event in told.of("notice") if "memory" in event["text"]]
    assert said == ["the memory can't be put on disk: Input/output error; training goes on, with the memory as it was last whole"] * len(said)
    assert len(told.of("step")) == 16 and told.of("end")[0]["reason"] == "the run's tokens are read"
    assert len(named) == len(wanted) >= 4 and len(said) == min(len(failing), 4), "once for each that had something new"
    last = None
    for number, (has, noted) in enumerate(zip(named, wanted, strict=True), 1):
        last = last if number in failing else noted
        assert has == last
    length = [noted[-1][1] for noted in wanted]
    assert length[0] >= 4 * STEP // 8 and max(length) < 3 * length[0], "what could not be put there has left"
    resumed = trained(preset, tmp_path, 4)
    assert len(resumed.of("step")) == 4 and resumed.of("end")[0]["reason"] == "the run's tokens are read"
    if last:
        assert contents(tmp_path)[0] > last[-1][1]


@pytest.mark.slow
def test_a_run_may_read_on_without_its_memory(tiny: Tiny, tmp_path: Path) -> None:
    """Switched off in the middle of a run and on again, it goes on with what it held."""
    with_memory = tiny(retro=RETRO)
    trained(with_memory, tmp_path, 40, stop_after=20)
    before = contents(tmp_path)
    trained(tiny(), tmp_path, 40, stop_after=5)
    last = trained(with_memory, tmp_path, 40)
    assert last.of("end")[0]["reason"] == "the run's tokens are read"
    after = contents(tmp_path)
    assert after[0] > before[0] and [column[: before[0]] for column in after[1:]] == before[1:]


@pytest.mark.slow
def test_exactly_through_a_stop_while_blocks_are_indexed_and_leave(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks of 64 chunks, of which the newest 200 are kept: what is found does not depend on which indexes were ready, nor on a stop."""
    monkeypatch.setattr(remembering, "Options", partial(Options, unit=64))
    preset = tiny(retro=RETRO | {"memory_chunks": 200})
    at_once = trained(preset, tmp_path / "once", 30)
    parts = [trained(preset, tmp_path / "twice", 30, stop_after=stop) for stop in (9, 8, None)]
    assert [event["loss"] for part in parts for event in part.of("step")] == [event["loss"] for event in at_once.of("step")]
    assert contents(tmp_path / "once") == contents(tmp_path / "twice")
    names = [path.name for path in (tmp_path / "once" / MEMORY / "index").glob("*.faiss")]
    assert names and min(int(name.split("-")[0]) for name in names) > 0, "blocks that left have no index any more"


def test_a_damaged_memory_stops_no_training(tiny: Tiny, tmp_path: Path) -> None:
    """Nor an evaluation, nor the next start; each says so."""
    preset = tiny(retro=RETRO)
    trained(preset, tmp_path, 26, stop_after=14)

    def flip(_: Any = None) -> None:
        for path in (tmp_path / MEMORY).glob("*.chunks"):
            with open(path, "r+b") as file:
                file.seek(200)
                file.write(bytes(100_000))

    told: list[Any] = []

    def damage(event: Any) -> None:
        told.append(event)
        if event["event"] == "step" and sum(each["event"] == "step" for each in told) == 3:
            flip()

    train(preset, tmp_path, 26 * STEP, observers=(damage,))
    said = [event["text"] for event in told if event["event"] == "notice"]
    assert any("can't be asked" in text and "is damaged" in text and text.endswith("training goes on") for text in said)
    assert any("measured with a damaged memory" in text for text in said)
    assert [event["reason"] for event in told if event["event"] == "end"] == ["the run's tokens are read"]
    event = evaluate_snapshot(tmp_path)
    assert "is damaged" in event["trouble"] and event["bits_per_byte"] > 0
    again = trained(preset, tmp_path, 5)
    assert any("begins anew" in event["text"] for event in again.of("notice")) and len(again.of("step")) == 5


def test_a_folder_holds_the_memory_of_one_model(tiny: Tiny, tmp_path: Path) -> None:
    """Another model's would be deleted; so would be what is not of a memory at all."""
    place = tmp_path / "memory"
    (place / "index").mkdir(parents=True)
    mine = [place / "notes.tmp", place / "index" / "sales-2024-q1.csv"]
    for path in mine:
        path.write_text("mine")
    preset = tiny(retro=RETRO | {"index_path": str(place)})
    trained(preset, tmp_path / "one", 5)
    with pytest.raises(Halted, match=r"index_path .* holds the memory of another model \(.*one\); give this one a folder of its own"):
        trained(preset, tmp_path / "other", 5)
    (tmp_path / "one").rename(tmp_path / "moved")
    assert trained(preset, tmp_path / "moved", 5).of("resume")
    assert all(path.read_text() == "mine" for path in mine)
    snapshot = Snapshots(tmp_path / "moved").read("current")
    tokenizer = tokenizer_from_json(snapshot.tokenizer)
    assert lookup_of(snapshot, tmp_path / "moved", tokenizer)
    place.rename(tmp_path / "elsewhere")
    way_back = f"{place}, which retro.index_path names, is not there; put the folder back, or a link to where it is now"
    with pytest.raises(MemoryFault, match=way_back):
        lookup_of(snapshot, tmp_path / "moved", tokenizer)
    assert any(way_back in event["text"] for event in trained(preset, tmp_path / "moved", 5).of("notice"))


def test_nothing_is_found_in_the_same_text_or_in_what_comes_later(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A census of all that was handed in: chunks of other documents, read at least so many steps before."""
    told: list[tuple[int, int, int, int]] = []  # asked by a document at a length: found a chunk, of a document
    real = Memory.nearest

    def nearest(memory: Memory, tokens: Any, count: Any, k: int, length: int, exclude: Any = None) -> Any:
        found = real(memory, tokens, count, k, length, exclude)
        for asked, numbers in zip(exclude if exclude is not None else [], found.numbers, strict=False):
            there = numbers[numbers >= 0]
            of = memory._store.take(there)["document"].tolist()
            told.extend((int(asked), length, number, document) for number, document in zip(there.tolist(), of, strict=True))
        return found

    monkeypatch.setattr(Memory, "nearest", nearest)
    trained(tiny(retro=RETRO), tmp_path, 25)
    memory, state = remembered(tmp_path)
    stored = memory._store.take(np.arange(state.length))["document"].tolist()
    assert len(told) > 500 and len({asked for asked, *_ in told} & set(stored)) > 20
    assert all(document != asked and number < length < state.length for asked, length, number, document in told)

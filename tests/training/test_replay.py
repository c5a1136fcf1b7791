"""Not forgetting: a sample of what was read stands beside each snapshot, and is read again when the mix has changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_sources.past import Read, read_past
from lm.preset import Preset
from lm.training import train
from lm.training.headers import listed
from lm.training.snapshots import Snapshots
from tests.training.conftest import TEXTS
from tests.training.elastic import taken_over
from tests.training.test_sources import STEP, of, trained

Tiny = Callable[..., Preset]
LIMIT = 1_000_000


@pytest.fixture
def mixes(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """Two mixes of one source each, of short documents from different ends of the reference."""
    texts = [text for topic in TEXTS for text in topic.split("\n\n") if len(text) > 60]
    found = {}
    for name, part in (("a", texts[: len(texts) // 2]), ("b", texts[len(texts) // 2 :])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part), encoding="utf-8")
        found[name] = [{"type": "files", "name": name, "path": str(tmp_path / f"{name}.jsonl"), "repeat": True}]
    return found


def preset(tiny: Tiny, sources: list[dict[str, Any]], **switches: Any) -> Preset:
    quick = {"per_gpu_batch_size": 4, "learning_rate": 0.01, "snapshot_every_minutes": 1000, "replay_megabytes": 1}
    return tiny(data={"sources": sources, "vocab_size": 500}, train=quick | switches)


def sample_of(folder: Path, past: dict[str, Any]) -> list[Read]:
    return read_past(folder / "past" / past["file"], past["digest"], LIMIT).documents()


def sample(folder: Path, past: dict[str, Any]) -> set[str]:
    return {document.text for document in sample_of(folder, past)}


def notices(events: list[Any]) -> list[str]:
    return [text for text in of(events, "notice", "text") if "read before" in text or "sample" in text]


def test_a_changed_mix_reads_some_of_the_past_again(tiny: Tiny, mixes: dict[str, list[Any]], tmp_path: Path) -> None:
    folder = tmp_path / "c"
    assert notices(trained(preset(tiny, mixes["a"]), folder, 40)) == []
    first = Snapshots(folder).newest()
    assert first is not None and first.run["replay"] is None
    events = trained(preset(tiny, mixes["b"]), folder, 120)
    assert notices(events) == ["5 % of the text is what was read before, from a"]
    steps = [event["sources"] for event in events if event["event"] == "step"]
    again, new = steps[-1]["past text"]["tokens"], steps[-1]["b"]["tokens"]
    assert 0.02 < again / (again + new) < 0.07
    assert any(step["past text"]["loss"] is not None for step in steps)
    second = Snapshots(folder).newest()
    old = first.life["past"]
    assert second is not None
    length = second.run["replay"].pop("document_tokens")
    assert second.run["replay"] == {"file": old["file"], "digest": old["digest"], "share": 0.05, "sources": ["a"]}
    texts = [document.text for document in sample_of(folder, old)]
    assert len(" ".join(texts)) / len(texts) / 6 < length < len(" ".join(texts)) / len(texts), "the mean in tokens of a few characters"
    kept = sample_of(folder, second.life["past"])
    assert {document.source for document in kept} == {"a", "b"} and sample(folder, old) < {document.text for document in kept}


def test_the_same_mix_does_not_unless_told(tiny: Tiny, mixes: dict[str, list[Any]], tmp_path: Path) -> None:
    trained(preset(tiny, mixes["a"]), tmp_path / "c", 10)
    assert notices(trained(preset(tiny, mixes["a"]), tmp_path / "c", 11)) == []
    assert notices(trained(preset(tiny, mixes["a"], replay_share=0.2), tmp_path / "c", 12)) == ["20 % of the text is what was read before, from a"]
    assert notices(trained(preset(tiny, [*mixes["a"], *mixes["b"]]), tmp_path / "c", 13)) == [], "a mix that grew lacks nothing"
    assert notices(trained(preset(tiny, mixes["b"], replay_share=0), tmp_path / "c", 14)) == []


def test_exactly_through_a_stop_and_again_afterwards(tiny: Tiny, mixes: dict[str, list[Any]], tmp_path: Path) -> None:
    """20 steps at once, and 9, a stop, 11: the same batches, weights and samples; and so in the run after."""
    ends = []
    for name, stops in (("whole", [None]), ("cut", [9, None])):
        folder = tmp_path / name
        trained(preset(tiny, mixes["a"]), folder, 15)
        hashes = []
        for stop in stops:
            events = trained(preset(tiny, mixes["b"], replay_share=0.3), folder, 20, stop_after=stop)
            hashes += of(events, "step", "batch_hash")
        hashes += of(trained(preset(tiny, mixes["a"], replay_share=0.3), folder, 16), "step", "batch_hash")
        end = Snapshots(folder).newest()
        assert end is not None
        ends.append((hashes, end))
    (hashes, one), (others, other) = ends
    assert len(hashes) == 36 and hashes == others
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert one.life["past"] == other.life["past"] and one.run["replay"] == other.run["replay"]


@pytest.mark.slow
def test_on_two_machines_and_then_on_one(tiny: Tiny, mixes: dict[str, list[Any]], tmp_path: Path) -> None:
    """A run that begins on two ranks without a folder in common and goes on on one: batches, what is read again and samples are those of one rank."""
    first, second = preset(tiny, mixes["a"]), preset(tiny, mixes["b"], replay_share=0.3, per_gpu_batch_size=8, accumulation_steps=2)
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    trained(first, whole, 15)
    shutil.copytree(whole, moved)
    alone = of(trained(second, whole, 60), "step", "batch_hash")
    spread_out = second.model_copy(update={"train": second.train.model_copy(update={"accumulation_steps": 1})})
    together = taken_over(2, spread_out, tmp_path, moved, 60 * STEP, 10, apart=True)
    assert notices(together) == ["30 % of the text is what was read before, from a"]
    end = Snapshots(moved).read("current")
    assert [path.name for path in (tmp_path / "rank1" / "past").iterdir()] == [end.run["replay"]["file"]], "rank 1 was sent the sample it reads"
    later = trained(second, moved, 60)
    assert of(later, "resume", "tokens") == [40 * STEP] and of(later, "certificate", "exact") == [True]
    assert of(together + later, "step", "batch_hash") == alone
    assert [of(events, "step", "sources")[-1]["past text"]["tokens"] > 500 for events in (together, later)] == [True, True]
    one, other = Snapshots(whole).read("current"), Snapshots(moved).read("current")
    assert one.run["replay"] == other.run["replay"] and one.life["past"] == other.life["past"] and one.life["sources"] == other.life["sources"]


def test_each_snapshot_has_the_sample_of_its_moment(tiny: Tiny, mixes: dict[str, list[Any]], tmp_path: Path) -> None:
    folder = tmp_path / "c"
    trained(preset(tiny, mixes["a"], snapshot_every_tokens=10 * STEP, replay_megabytes=32), folder, 45)
    found = {each.kind: each.header for each in listed(folder)}
    pasts = {kind: header.life["past"] for kind, header in found.items() if header}
    files = {kind: past["file"] for kind, past in pasts.items()}
    assert set(files) >= {"current", "prev", "prev2"} and len(set(files.values())) >= 3
    assert {path.name for path in (folder / "past").iterdir()} == set(files.values()), "and none that nobody names"
    assert sample(folder, pasts["prev2"]) < sample(folder, pasts["prev"]) < sample(folder, pasts["current"])


def test_going_on_from_an_earlier_snapshot_takes_its_sample(tiny: Tiny, mixes: dict[str, list[Any]], tmp_path: Path) -> None:
    folder = tmp_path / "c"
    made = preset(tiny, mixes["a"], snapshot_every_tokens=5 * STEP, replay_megabytes=32)
    trained(made, folder, 30, stop_after=20)
    (folder / "lm_current.pth").unlink()
    (folder / "simple_lm_trained.pth").unlink()
    trained(made, folder, 30)
    trained(made, tmp_path / "whole", 30)
    one, other = Snapshots(folder).newest(), Snapshots(tmp_path / "whole").newest()
    assert one is not None and other is not None and one.life["past"] == other.life["past"]


@pytest.mark.parametrize("loss", ["folder", "file"])
def test_a_lost_sample_costs_the_past_only(tiny: Tiny, mixes: dict[str, list[Any]], tmp_path: Path, loss: str) -> None:
    folder = tmp_path / "c"
    trained(preset(tiny, mixes["a"]), folder, 20)
    for file in (folder / "past").iterdir():
        file.unlink() if loss == "folder" else file.write_bytes(b"PAR1 what is this?")
    if loss == "folder":
        (folder / "past").rmdir()
    events = trained(preset(tiny, mixes["b"]), folder, 21)
    assert any("is lost" in text for text in notices(events)) and len(of(events, "step", "loss")) == 21
    assert {document.source for document in sample_of(folder, _named(folder))} == {"b"}


def test_lost_in_the_middle_of_a_run(tiny: Tiny, mixes: dict[str, list[Any]], tmp_path: Path) -> None:
    folder = tmp_path / "c"
    trained(preset(tiny, mixes["a"]), folder, 20)
    trained(preset(tiny, mixes["b"]), folder, 30, stop_after=10)
    for file in (folder / "past").iterdir():
        file.unlink()
    events = trained(preset(tiny, mixes["b"]), folder, 30)
    assert of(events, "resume", "exact") == [False] and "is lost" in of(events, "resume", "differs")[0][0]
    assert len(of(events, "step", "loss")) == 20


def _named(folder: Path) -> dict[str, Any]:
    snapshot = Snapshots(folder).newest()
    assert snapshot is not None
    return snapshot.life["past"]


def test_none_is_kept_where_none_is_wanted(tiny: Tiny, mixes: dict[str, list[Any]], tmp_path: Path) -> None:
    folder = tmp_path / "c"
    trained(preset(tiny, mixes["a"], replay_megabytes=0), folder, 10)
    assert not (folder / "past").exists() and "past" not in Snapshots(folder).newest().life
    assert notices(trained(preset(tiny, mixes["b"], replay_share=0.5), folder, 11)) == []


def test_a_sample_that_cannot_be_written_costs_no_snapshot(tiny: Tiny, mixes: dict[str, list[Any]], tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "past").write_text("in the way")
    events: list[Any] = []
    train(preset(tiny, mixes["a"], snapshot_every_tokens=10 * STEP), folder, 30 * STEP, (events.append,))
    assert any("can't be written" in text for text in notices(events)) and "past" not in Snapshots(folder).read("current").life
    (folder / "past").unlink()
    trained(preset(tiny, mixes["a"]), folder, 31)
    assert sample_of(folder, _named(folder))


def test_a_run_that_keeps_none_leaves_the_sample_as_it_is(tiny: Tiny, mixes: dict[str, list[Any]], tmp_path: Path) -> None:
    folder = tmp_path / "c"
    trained(preset(tiny, mixes["a"]), folder, 10)
    before = sample(folder, _named(folder))
    trained(preset(tiny, mixes["b"], replay_megabytes=0), folder, 11)
    assert sample(folder, _named(folder)) == before
    assert notices(trained(preset(tiny, mixes["b"]), folder, 12)) == ["5 % of the text is what was read before, from a"]


def test_a_snapshot_that_cannot_be_read_lets_no_samples_pile_up(tiny: Tiny, mixes: dict[str, list[Any]], tmp_path: Path) -> None:
    folder = tmp_path / "c"
    (folder / "archive").mkdir(parents=True)
    (folder / "archive" / "left-000000000000001.pth").write_bytes(b"cut off")
    (folder / "past").mkdir()
    (folder / "past" / "0123456789abcdef.parquet").write_bytes(b"perhaps its own")
    trained(preset(tiny, mixes["a"], snapshot_every_tokens=4 * STEP, replay_megabytes=32), folder, 40)
    there = {path.name for path in (folder / "past").iterdir()}
    assert "0123456789abcdef.parquet" in there and len(there) <= 5

"""What training and the stream do together: weights that follow losses, loader processes, another number of ranks in the middle of a run."""

import encodings
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import lm.training.step as step_module
from lm.preset import Preset
from lm.training import Halted, train
from lm.training.snapshots import Snapshots
from tests.training.conftest import TEXTS
from tests.training.elastic import taken_over

Tiny = Callable[..., Preset]
STEP = 4 * 64


def trained(preset: Preset, folder: Path, steps: int, stop_after: int | None = None) -> list[Any]:
    events: list[Any] = []
    seen = lambda: sum(event["event"] == "step" for event in events)  # noqa: E731
    train(preset, folder, budget_tokens=steps * STEP, observers=(events.append,), should_stop=lambda: stop_after is not None and seen() >= stop_after)
    return events


def of(events: list[Any], kind: str, key: str) -> list[Any]:
    return [event[key] for event in events if event["event"] == kind]


@pytest.fixture
def uneven(tmp_path: Path) -> list[dict[str, Any]]:
    """Prose, and tables of characters that are nearly the same from file to file: learned much faster. Both in short documents."""
    tables = sorted(Path(encodings.__file__).parent.glob("cp*.py"))[:40]
    for name, texts in (("prose", TEXTS), ("tables", [file.read_text(encoding="utf-8", errors="ignore") for file in tables])):
        text = "".join(texts)
        rows = [json.dumps({"text": text[start : start + 300]}) for start in range(0, len(text), 300)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return [{"type": "files", "name": name, "path": str(tmp_path / f"{name}.jsonl"), "repeat": True} for name in ("prose", "tables")]


def adaptive(tiny: Tiny, sources: list[dict[str, Any]], steps: int) -> Preset:
    switches = {"enable_adaptive_sources": True, "adaptive_interval_tokens": steps * STEP, "adaptive_smoothing": 0.5}
    return tiny(auxiliary=switches, data={"sources": sources, "vocab_size": 500})


def test_the_source_with_the_higher_loss_is_read_more(tiny: Tiny, uneven: list[dict[str, Any]], tmp_path: Path) -> None:
    events = trained(adaptive(tiny, uneven, 10), tmp_path / "c", 120)
    losses = [event["sources"] for event in events if event["event"] == "step"]
    late = {name: [s[name]["loss"] for s in losses[-30:] if s[name]["loss"] is not None] for name in ("prose", "tables")}
    assert sum(late["tables"]) / len(late["tables"]) < 0.8 * sum(late["prose"]) / len(late["prose"]), "one is learned much faster"
    weights = of(events, "weights", "weights")
    assert weights[0] == {"prose": 0.5, "tables": 0.5}, "what is measured in interval 0 applies from interval 2"
    assert weights[-1]["prose"] > 0.56 and sum(weights[-1].values()) == pytest.approx(1)
    read = {name: [s[name]["tokens"] for s in losses] for name in ("prose", "tables")}
    early, last = ({name: counts[stop] - counts[start] for name, counts in read.items()} for start, stop in ((0, 19), (-40, -1)))
    assert last["prose"] / sum(last.values()) > early["prose"] / sum(early.values()) + 0.03
    assert last["prose"] / sum(last.values()) == pytest.approx(weights[-2]["prose"], abs=0.08), "shares follow the weights"


def test_adaptive_weights_go_on_exactly_after_a_stop(tiny: Tiny, uneven: list[dict[str, Any]], tmp_path: Path) -> None:
    preset = adaptive(tiny, uneven, 3)
    once = trained(preset, tmp_path / "once", 30)
    twice = [event for stop in (4, 9, 3, None) for event in trained(preset, tmp_path / "twice", 30, stop)]
    for key in ("batch_hash", "loss", "tokens"):
        assert of(twice, "step", key) == of(once, "step", key)
    assert of(twice, "weights", "weights") == of(once, "weights", "weights")
    assert len({json.dumps(weights) for weights in of(once, "weights", "weights")}) > 4
    one, two = (Snapshots(tmp_path / name).read("current") for name in ("once", "twice"))
    assert one.run == two.run and one.cursor == two.cursor
    assert one.cursor["weights"] == list(of(once, "weights", "weights")[-2].values()), "those in force in the last batch"


def test_a_step_that_is_skipped_and_a_mix_that_ends_do_not_stop_the_weights(
    tiny: Tiny, uneven: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finite = []
    for source in uneven:
        short = tmp_path / f"short_{source['name']}.jsonl"
        short.write_text("\n".join(Path(source["path"]).read_text(encoding="utf-8").splitlines()[:40]), encoding="utf-8")
        finite.append(source | {"repeat": False, "path": str(short)})
    assert of(trained(adaptive(tiny, finite, 1), tmp_path / "ends", 3000), "end", "reason") == ["every source has been read to its end"]
    honest, count = step_module.weighted_sum, 0

    def poisoned(losses: Any, weights: Any) -> Any:
        nonlocal count
        count += 1
        return honest({name: loss * (torch.nan if count in (2, 3, 6) else 1) for name, loss in losses.items()}, weights)

    monkeypatch.setattr(step_module, "weighted_sum", poisoned)
    preset = adaptive(tiny, uneven, 2)
    events = [event for stop in (4, 2, None) for event in trained(preset, tmp_path / "skips", 12, stop)]
    assert len(of(events, "weights", "weights")) >= 5


def test_other_base_weights_begin_anew(tiny: Tiny, uneven: list[dict[str, Any]], tmp_path: Path) -> None:
    trained(adaptive(tiny, uneven, 5), tmp_path, 20, stop_after=3)
    data = {"sources": uneven, "vocab_size": 500, "mix_strategy": "weighted", "source_weights": [0.9, 0.1]}
    other = adaptive(tiny, uneven, 5).model_copy(update={"data": tiny(data=data).data})
    weights = of(trained(other, tmp_path, 20), "weights", "weights")
    assert weights[0] == {"prose": 0.9, "tables": 0.1}


def test_a_loader_that_is_killed_costs_nothing(tiny: Tiny, tmp_path: Path) -> None:
    preset = tiny(train={"loader_processes": 2})
    events: list[Any] = []

    def kill_one(event: Any) -> None:
        events.append(event)
        if event["event"] == "step" and event["step"] == 5:
            loaders = [child for child in psutil.Process().children() if "data_sources.worker" in " ".join(child.cmdline())]
            assert len(loaders) == 2
            loaders[0].kill()

    with pytest.raises(Halted, match="a loader process was ended from outside"):
        train(preset, tmp_path, budget_tokens=400 * STEP, observers=(kill_one,))
    reached = of(events, "step", "tokens")[-1]
    assert Snapshots(tmp_path).read("current").run["tokens"] == reached >= 5 * STEP
    again = trained(preset, tmp_path, 400, stop_after=8)
    assert of(again, "resume", "tokens") == [reached] and of(again, "certificate", "exact") in ([True], [])


def test_loader_processes_change_nothing(tiny: Tiny, tmp_path: Path) -> None:
    alone = trained(tiny(), tmp_path / "alone", 8)
    first = trained(tiny(train={"loader_processes": 2}), tmp_path / "helped", 8, stop_after=4)
    second = trained(tiny(train={"loader_processes": 1}), tmp_path / "helped", 8)
    for key in ("batch_hash", "loss"):
        assert of(first + second, "step", key) == of(alone, "step", key)
    assert of(second, "certificate", "exact") in ([True], []) and of(second, "resume", "exact") == [True]
    with pytest.raises(Halted, match="can't share 48 lanes"):
        train(tiny(train={"loader_processes": 5}), tmp_path / "five")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tiny: Tiny, tmp_path: Path) -> None:
    """Four rows a step: on one process, then on three, which read two, one and one of them in turn, then on one again."""
    preset = tiny()
    alone = trained(preset, tmp_path / "alone", 18)
    folder = tmp_path / "moved"
    first = trained(preset, folder, 18, stop_after=6)
    second = taken_over(3, preset, tmp_path, folder, 18 * STEP, 7)
    third = trained(preset, folder, 18)
    together = first + second + third
    assert of(together, "step", "batch_hash") == of(alone, "step", "batch_hash")
    assert of(together, "step", "loss") == pytest.approx(of(alone, "step", "loss"), rel=1e-3)
    assert of(together, "step", "tokens") == of(alone, "step", "tokens")
    assert of(second, "run", "world_size") == [3]
    assert "3 x CPU" in of(second, "resume", "text")[0]
    assert of(second, "certificate", "exact") == of(third, "certificate", "exact") == [True], "the data is proved on any number of processes"


def test_what_is_not_scored_is_read_all_the_same(tiny: Tiny, tmp_path: Path) -> None:
    """Loss on the answer only: the questions count as read, and not in the loss."""
    rows = [{"q": f"What comes after {number}?", "a": f"{number + 1}."} for number in range(2000)]
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = {"type": "files", "path": str(tmp_path / "qa.jsonl"), "fields": ["q", "a"], "format": "Q: {q}\nA: {a}", "loss_on": "answer", "repeat": True}
    events = trained(tiny(data={"sources": [source]}), tmp_path / "c", 40)
    assert of(events, "step", "tokens")[-1] == 40 * STEP
    assert of(events, "step", "loss")[-1] < 3.5

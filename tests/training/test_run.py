"""Runs end to end on real text: learning, exact resume, one run after another, and everything that can stop one."""

import json
import math
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lm.training.journal as journal_module
import lm.training.step as step_module
from lm.auxiliary.heads import HEADS
from lm.preset import Preset
from lm.training import Halted, train
from lm.training.evaluation import brief_tokens
from lm.training.journal import Journal
from lm.training.loop import BESIDE
from lm.training.session import Session
from lm.training.snapshots import SnapshotError, Snapshots, read_snapshot
from lm.training.step import Teacher
from tests.data_sources.streams import paragraphs
from tests.loopback_hub import LoopbackHub, make_dataset
from tests.training.conftest import TEXTS

Tiny = Callable[..., Preset]
STEP = 4 * 64  # tokens of a step


class Recorder:
    """Keeps the events, and asks to stop after so many steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.events: list[Mapping[str, Any]] = []
        self.stop_after = stop_after

    def __call__(self, event: Mapping[str, Any]) -> None:
        json.dumps(event, allow_nan=True)
        self.events.append(event)

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def stop(self) -> bool:
        return self.stop_after is not None and len(self.of("step")) >= self.stop_after


def trained(preset: Preset, folder: Path, steps: int, stop_after: int | None = None) -> Recorder:
    recorder = Recorder(stop_after)
    train(preset, folder, budget_tokens=steps * STEP, observers=(recorder,), should_stop=recorder.stop)
    return recorder


def test_waiting_for_data_is_told_as_a_share_of_the_whole_step(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, step = Session.next_batch, Teacher.step
    monkeypatch.setattr(Session, "next_batch", lambda *given: (time.sleep(0.05), read(*given))[1])
    monkeypatch.setattr(Teacher, "step", lambda *given: (time.sleep(0.15), step(*given))[1])
    waits = [event["data_wait"] for event in trained(tiny(), tmp_path, 5).of("step")]
    assert all(0.01 < share < 0.7 for share in waits[2:]), waits  # a quarter, on a machine that has nothing else to do


def test_it_learns(tiny: Tiny, tmp_path: Path) -> None:
    recorder = Recorder()
    summary = train(tiny(), tmp_path, budget_tokens=60 * STEP, observers=(recorder,))
    losses = [event["loss"] for event in recorder.of("step")]
    assert losses[0] == pytest.approx(torch.tensor(500.0).log().item(), abs=0.1)
    assert sum(losses[-10:]) / 10 < losses[0] - 1
    assert not summary.stopped
    assert summary.tokens == recorder.of("step")[-1]["tokens"] >= 60 * STEP
    assert summary.evaluation["cross_entropy"] < losses[0] - 1
    assert summary.evaluation["perplexity"] == pytest.approx(torch.tensor(summary.evaluation["cross_entropy"]).exp().item(), rel=1e-5)
    kinds = [event["event"] for event in recorder.events]
    assert kinds.index("snapshot") < kinds.index("evaluation"), "saved before it is evaluated"
    assert recorder.of("end")[0]["reason"] == "the run's tokens are read"


HEADS_ON = {f"enable_{name}": True for name in HEADS} | {"share_every": 3}
KINDS = {"dense": {}, "experts": {"moe": {"enabled": True, "experts": 4}}, "muon": {"train": {"optimizer": "muon"}}, "heads": {"auxiliary": HEADS_ON}}
AS_SHIPPED = {"model": {"activation": "relu2"}, "train": {"optimizer": "muon", "precision": "bfloat16"}}
KINDS |= {"averaged": {"train": {"average_tokens": 700}}, "as shipped": AS_SHIPPED}


@pytest.mark.parametrize(("kind", "before", "after"), [("dense", 13, 17), *((kind, 5, 6) for kind in KINDS if kind != "dense")])
def test_all_steps_at_once_equal_those_before_a_stop_and_after(kind: str, before: int, after: int, tiny: Tiny, tmp_path: Path) -> None:
    """Also with what units and heads heard of the step before."""
    sections, steps = KINDS[kind], before + after
    at_once = trained(tiny(**sections), tmp_path / "once", steps)
    first = trained(tiny(**sections), tmp_path / "twice", steps, stop_after=before)
    second = trained(tiny(**sections), tmp_path / "twice", steps)
    assert [len(part.of("step")) for part in (first, second)] == [before, after]
    assert second.of("resume")[0]["tokens"] == before * STEP
    assert second.of("resume")[0]["exact"]
    steps = first.of("step") + second.of("step")
    for key in ("batch_hash", "loss", "losses", "units", "gradient_norm", "learning_rate", "tokens", "life_tokens", "step"):
        assert [event[key] for event in steps] == [event[key] for event in at_once.of("step")], key
    one, two = (Snapshots(tmp_path / name).read("current") for name in ("once", "twice"))
    for part in ("weights", "optimizer", "random", "average"):
        ours, theirs = getattr(one, part), getattr(two, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part
    assert one.cursor == two.cursor
    assert one.run == two.run
    heard = [one.weights[f"model.layers.{layer}.1.unit.{name}"] for layer in range(2) for name in ("bias", "share")] if "moe" in sections else []
    heard += [one.weights[f"heads.{name}"] for name in ("span_contrastive.left", "span_contrastive.lane")] if "auxiliary" in sections else []
    assert one.model_weights.keys() == {name.removeprefix("model.") for name in one.weights if not name.startswith("heads.")}
    assert all(values.double().std() > 0 for values in heard)


def test_the_weights_of_the_units_losses_are_the_presets(tiny: Tiny, tmp_path: Path) -> None:
    """A balance loss that counts much more evens the loads; both are told with each step, per layer and unweighted."""
    runs = {weight: trained(tiny(moe={"enabled": True, "bias_rate": 0, "balance_weight": weight}), tmp_path / str(weight), 30) for weight in (0.0, 3.0)}
    last = {weight: run.of("step")[-1] for weight, run in runs.items()}
    assert "moe_balance" not in last[0.0]["losses"] and {"next_token", "moe_balance", "moe_z"} == last[3.0]["losses"].keys()
    assert last[3.0]["losses"]["moe_balance"] == pytest.approx(2, abs=0.3), "two layers, each near 1"
    busiest = {weight: max(max(load) * len(load) / sum(load) for load in event["units"].values()) for weight, event in last.items()}
    assert busiest[3.0] < busiest[0.0], busiest
    assert all(sum(load) == 2 * STEP for load in last[0.0]["units"].values()), "two experts for each token that is scored"


def test_a_finished_run_is_followed_by_another_on_the_same_model(tiny: Tiny, tmp_path: Path) -> None:
    first, second = trained(tiny(), tmp_path, 25), trained(tiny(), tmp_path, 25)
    assert second.of("resume")[0]["tokens"] == 0
    assert second.of("step")[-1]["life_tokens"] == 50 * STEP
    hashes = [event["batch_hash"] for part in (first, second) for event in part.of("step")]
    assert len(set(hashes)) == 50, "the data goes on, too"
    assert second.of("step")[0]["loss"] < first.of("step")[0]["loss"] - 0.5
    assert [run["tokens"] for run in Snapshots(tmp_path).read("current").life["runs"]] == [25 * STEP, 25 * STEP]
    assert len(list((tmp_path / "archive").glob("*.pth"))) == 2


def test_the_journal_holds_what_the_observers_saw_and_mends_a_torn_line(tiny: Tiny, tmp_path: Path) -> None:
    first = trained(tiny(), tmp_path, 3, stop_after=2)
    journal = tmp_path / "run.jsonl"
    with journal.open("a", encoding="utf-8") as file:
        file.write('{"event": "step", "tok')
    second = trained(tiny(), tmp_path, 3)
    with journal.open("a", encoding="utf-8") as file:
        file.write('{"event": "of another program, whole but for its newline"}')
    third = trained(tiny(), tmp_path, 3)
    second.events.append({"event": "of another program, whole but for its newline"})
    second.events += third.events
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    times = [line.pop("at", None) for line in lines]
    assert lines == first.events + second.events
    assert all(datetime.fromisoformat(time) for time in times if time) and times.count(None) == 1


def test_the_journal_has_null_for_what_is_no_number_wherever_it_stands(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal({"event": "step", "loss": math.nan, "units": {"layers.0": [0.5, math.inf, (1.0, -math.inf)]}})
    journal.close()
    line = json.loads((tmp_path / "run.jsonl").read_text(encoding="utf-8"))
    assert line.pop("at") and line == {"event": "step", "loss": None, "units": {"layers.0": [0.5, None, [1.0, None]]}}


@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
@pytest.mark.parametrize("end", ['{"a": 2}\n', '{"a": 2}', '{"a": 2}\n{"to', "{to", ""])
def test_a_torn_last_line_is_looked_for_from_the_end(end: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "PIECE", piece)
    (tmp_path / "run.jsonl").write_text('{"a": 1}\n' * 3 + end, encoding="utf-8")
    Journal(tmp_path).close()
    whole = '{"a": 1}\n' * 3 + '{"a": 2}\n' * ("2" in end)
    assert (tmp_path / "run.jsonl").read_text(encoding="utf-8") == whole


def test_life_json_says_what_the_menu_shows(tiny: Tiny, tmp_path: Path) -> None:
    trained(tiny(), tmp_path, 5)
    life = json.loads((tmp_path / "life.json").read_text(encoding="utf-8"))
    assert {"born", "runs", "life_tokens", "last_preset", "run_tokens", "budget", "parameters", "vocab_size", "sources", "read"} == life.keys()
    assert (life["runs"], life["life_tokens"], life["last_preset"]) == (1, 5 * STEP, "tiny")
    assert life["sources"] == {"reference": 5 * STEP}
    assert life["read"]["reference"].keys() == {"documents", "epochs"} and life["read"]["reference"]["documents"] >= 5


def test_another_model_keeps_what_fits_and_archives_the_old(tiny: Tiny, tmp_path: Path) -> None:
    trained(tiny(), tmp_path, 5)
    recorder = trained(tiny(model={"num_layers": 3}), tmp_path, 5)
    assert any("tensors kept" in event["text"] for event in recorder.of("notice"))
    assert list((tmp_path / "archive").glob("before-*.pth"))
    assert not recorder.of("resume")[0]["exact"]


def test_held_out_text_is_kept_and_frozen(tiny: Tiny, tmp_path: Path) -> None:
    trained(tiny(train={"eval_tokens": 300}), tmp_path, 20)
    texts = [json.loads(line) for file in (tmp_path / "held_out").glob("*.jsonl") for line in file.read_text(encoding="utf-8").splitlines()]
    assert texts
    assert sum(text["tokens"] for text in texts[:-1]) < 300


def test_evaluations_and_samples_change_nothing(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm.training.session.SAMPLE_TOKENS", 5)
    plain = trained(tiny(train={"evaluate_every_tokens": 10**9, "sample_every_tokens": 10**9}), tmp_path / "plain", 10)
    busy = trained(tiny(train={"evaluate_every_tokens": 2 * STEP, "sample_every_tokens": STEP}), tmp_path / "busy", 10)
    assert len(busy.of("sample")) == 10
    assert len(busy.of("evaluation")) >= 4
    assert [event["loss"] for event in plain.of("step")] == [event["loss"] for event in busy.of("step")]


def test_what_is_done_beside_the_steps_waits_past_two_percent_of_the_time(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a step takes 20 seconds, an evaluation 2 and a sample 1; both are always due. What is learned is the same."""
    now = [0.0]
    monkeypatch.setattr("lm.training.session.SAMPLE_TOKENS", 5)

    def taking(seconds: float, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            now[0] += seconds
            return work(*given, **named)

        return timed

    always, never = ({"evaluate_every_tokens": every, "sample_every_tokens": every} for every in (STEP, 10**9))
    without = trained(tiny(train=never), tmp_path / "without", 40)
    monkeypatch.setattr("lm.training.loop.BESIDE", BESIDE)
    monkeypatch.setattr("lm.training.loop.time", SimpleNamespace(monotonic=lambda: now[0]))
    for of, name, seconds in ((step_module.Teacher, "step", 20), (Session, "evaluate", 2), (Session, "write_sample", 1)):
        monkeypatch.setattr(of, name, taking(seconds, getattr(of, name)))
    bounded = trained(tiny(train=always), tmp_path / "bounded", 40)
    brief = [event["tokens"] // STEP for event in bounded.of("evaluation") if event["brief"]]
    assert brief == [event["tokens"] // STEP for event in bounded.of("sample")] == [1, 9, 16, 24, 31, 38]
    assert [event["brief"] for event in bounded.of("evaluation")] == [True] * 6 + [False], "at its end a run is always measured"
    assert len(bounded.of("snapshot")) == 2, "at the end, and with what was measured there"
    learned = [[(event["batch_hash"], event["loss"]) for event in each.of("step")] for each in (without, bounded)]
    assert learned[0] == learned[1]


def test_many_sources_share_a_brief_evaluation() -> None:
    assert [brief_tokens(sources) for sources in (0, 1, 8, 16, 1000)] == [8_192, 8_192, 8_192, 4_096, 1_024]


ODD = [
    {"model": {"seq_length": 1}, "train": {"per_gpu_batch_size": 1, "eval_tokens": 100}},
    {"model": {"seq_length": 1, "position": "learned"}, "train": {"eval_tokens": 100}, "data": {"packing": "pad"}},
    {"model": {"hidden_size": 13, "num_heads": 1, "position": "learned", "seq_length": 17, "ffn_size": 7}, "train": {"per_gpu_batch_size": 3}},
    {
        "model": {"hidden_size": 34, "num_heads": 17, "num_kv_heads": 1, "num_layers": 1, "seq_length": 61},
        "train": {"per_gpu_batch_size": 5, "accumulation_steps": 7},
    },
    {"model": {"seq_length": 97}, "train": {"per_gpu_batch_size": 53}, "data": {"packing": "pad"}},
]


@pytest.mark.parametrize("sections", ODD, ids=range(len(ODD)))
def test_odd_sizes_train_and_resume(tiny: Tiny, tmp_path: Path, sections: dict[str, Any]) -> None:
    preset = tiny(**sections)
    budget = 6 * preset.step_rows * preset.model.seq_length
    for stop_after in (3, None):
        recorder = Recorder(stop_after)
        summary = train(preset, tmp_path, budget_tokens=budget, observers=(recorder,), should_stop=recorder.stop)
        assert math.isfinite(summary.loss)
    assert summary.tokens >= budget


def test_a_stop_ends_the_last_evaluation_too(tiny: Tiny, tmp_path: Path) -> None:
    recorder, asked = Recorder(), 0

    def stop() -> bool:
        nonlocal asked
        asked += any(event.get("text") == "evaluating on held-out text" for event in recorder.events)
        return asked > 2

    summary = train(tiny(), tmp_path, budget_tokens=40 * STEP, observers=(recorder,), should_stop=stop)
    assert asked == 3
    assert summary.evaluation == {} and not recorder.of("evaluation")
    assert recorder.of("notice")[-1]["text"] == "the evaluation was stopped"
    assert recorder.of("end") and Snapshots(tmp_path).newest().run["tokens"] == summary.tokens


def test_starting_and_stopping_wears_out_no_snapshot(tiny: Tiny, tmp_path: Path) -> None:
    for _ in range(3):
        trained(tiny(), tmp_path, 30, stop_after=5)
    before = [Snapshots(tmp_path).read(which).run["tokens"] for which in ("current", "prev", "prev2")]
    assert before == [15 * STEP, 10 * STEP, 5 * STEP]
    for _ in range(3):
        assert not trained(tiny(), tmp_path, 30, stop_after=0).of("snapshot")
    assert [Snapshots(tmp_path).read(which).run["tokens"] for which in ("current", "prev", "prev2")] == before


def test_where_the_text_is_kept_begins_no_new_run(tiny: Tiny, tmp_path: Path) -> None:
    trained(tiny(), tmp_path, 30, stop_after=5)
    preset = tiny()
    cached = preset.model_copy(update={"data": type(preset.data).model_validate(preset.data.model_dump() | {"cache": {"path": str(tmp_path / "cache")}})})
    (resume,) = trained(cached, tmp_path, 30, stop_after=2).of("resume")
    assert resume["tokens"] == 5 * STEP and resume["exact"]


def test_snapshots_come_by_tokens_too(tiny: Tiny, tmp_path: Path) -> None:
    recorder = trained(tiny(train={"snapshot_every_tokens": 5 * STEP}), tmp_path, 20)
    assert len(recorder.of("snapshot")) >= 4


def test_all_sources_failed_halts(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Halted, match="nowhere") as caught:
        train(tiny(data={"sources": [{"type": "files", "path": str(tmp_path / "nowhere")}]}), tmp_path / "checkpoints")
    assert "\n" not in str(caught.value)


def test_sources_that_all_fail_on_the_way_end_a_run_that_is_saved(tiny: Tiny, hub: LoopbackHub, tmp_path: Path) -> None:
    make_dataset(tmp_path / "hub", "some/words", [{"text": text} for text in paragraphs(600)], row_group_size=20)
    preset, recorder = tiny(data={"sources": [{"type": "hf", "name": "remote", "dataset": "some/words"}]}), Recorder()

    def observe(event: Mapping[str, Any]) -> None:
        recorder(event)
        if len(recorder.of("step")) == 3:
            hub._server.fault = lambda answer, path: answer.refuse(401) or True

    with pytest.raises(Halted, match="remote: the Hub refused access"):
        train(preset, tmp_path / "c", 1000 * STEP, observers=(observe,))
    saved = Snapshots(tmp_path / "c").read("current")
    assert saved.run["tokens"] == recorder.of("step")[-1]["tokens"] >= 3 * STEP
    assert "refused access" in saved.life["faults"]["remote"]["last_error"]
    hub._server.fault = None
    again = trained(preset, tmp_path / "c", 1000, stop_after=3)
    assert again.of("resume")[0]["exact"] and again.of("step")[0]["tokens"] > saved.run["tokens"]


def test_a_finite_mix_ends_early(tiny: Tiny, tmp_path: Path) -> None:
    recorder = Recorder()
    preset = tiny(data={"sources": [few_documents(tmp_path)], "vocab_size": 500})
    summary = train(preset, tmp_path / "checkpoints", observers=(recorder,))
    assert recorder.of("end")[0]["reason"] == "every source has been read to its end"
    assert 0 < summary.tokens < 100_000
    assert not summary.stopped
    assert Snapshots(tmp_path / "checkpoints").newest() is not None
    again = train(preset, tmp_path / "checkpoints", observers=(recorder,))
    assert again.tokens == summary.tokens, "a new run reads finite sources again"


def few_documents(folder: Path) -> dict[str, Any]:
    """A source of sixty short ones."""
    texts = TEXTS[0].split("\n\n")[:60]
    (folder / "few.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return {"type": "files", "path": str(folder / "few.jsonl")}


def test_a_bad_step_is_skipped_and_counted(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, {3})
    recorder = trained(tiny(), tmp_path, 6)
    steps = recorder.of("step")
    assert [event["skipped"] for event in steps] == [0, 0, 1, 1, 1, 1]
    assert [math.isnan(event["losses"]["next_token"]) for event in steps] == [False, False, True, False, False, False]
    assert all(torch.isfinite(tensor).all() for tensor in Snapshots(tmp_path).read("current").weights.values())


def test_ten_bad_steps_in_a_row_halt(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, set(range(3, 100)))
    with pytest.raises(Halted, match="10 steps in a row"):
        trained(tiny(), tmp_path, 50)


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the loss of these steps, counted from one, not a number."""
    count = 0
    honest = step_module.weighted_sum

    def poisoned(losses: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
        nonlocal count
        count += 1
        for loss in losses.values():
            if count in steps:
                loss.data.fill_(torch.nan)
        return honest(losses, weights)

    monkeypatch.setattr(step_module, "weighted_sum", poisoned)


def test_a_run_goes_on_without_looks_that_there_is_no_memory_for(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for name in ("evaluate", "generate"):
        monkeypatch.setattr(f"lm.training.session.{name}", full)
    recorder = trained(tiny(train={"evaluate_every_tokens": STEP, "sample_every_tokens": STEP, "eval_tokens": 300}), tmp_path, 25)
    said = [event["text"] for event in recorder.of("notice")]
    assert sum(text.startswith("the evaluation was left out") for text in said) > 2
    assert sum(text.startswith("nothing was written along the way") for text in said) > 2
    assert len(recorder.of("step")) == 25
    kept = Snapshots(tmp_path).read("current").run
    assert kept["tokens"] == 25 * STEP and kept["closed"], "else the next start would try again for ever"


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = trained(tiny(), tmp_path / "plenty", 4)
    honest, sizes = step_module.weighted_sum, []
    limit = 2
    original = step_module.Teacher._gradients

    def short_of_memory(self: Any, batch: Any, *rest: Any) -> Any:
        sizes.append(self.micro_rows)
        if self.micro_rows > limit:
            raise torch.OutOfMemoryError("no more")
        return original(self, batch, *rest)

    monkeypatch.setattr(step_module.Teacher, "_gradients", short_of_memory)
    short = trained(tiny(), tmp_path / "short", 4)
    assert sizes == [4, 2, 2, 2, 2]
    assert honest is step_module.weighted_sum
    for one, other in zip(plenty.of("step"), short.of("step"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["batch_hash"] == other["batch_hash"]


def test_two_runs_in_one_folder_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    import subprocess
    import sys

    program = "import sys, time; from lm.training.snapshots import Snapshots; held = Snapshots(sys.argv[1]).lock(); print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Halted, match="another run is using this folder"):
            trained(tiny(), tmp_path, 2)
    finally:
        other.kill()
        other.wait()
    trained(tiny(), tmp_path, 2)


def test_a_resume_is_certified(tiny: Tiny, tmp_path: Path) -> None:
    trained(tiny(), tmp_path, 30, stop_after=6)
    held = Snapshots(tmp_path).read("current").certificate
    assert held["probe_loss"] > 0 and len(held["probe"]) > 60 and held["environment"]["torch"] == torch.__version__
    second = trained(tiny(generation={"temperature": 0.1}), tmp_path, 30, stop_after=9)
    (resume,) = second.of("resume")
    assert resume["exact"] and resume["differs"] == [] and "exactly as it was" in resume["text"]
    assert [(event["exact"], event["text"]) for event in second.of("certificate")] == [(True, "the first batches are exactly those that would have come")]
    third = trained(tiny(train={"weight_decay": 0.2}), tmp_path, 30, stop_after=2)
    assert third.of("resume")[0]["differs"] == ["train.weight_decay was 0.1 and is 0.2"]
    assert not third.of("resume")[0]["exact"]
    other = tiny().data.sources[0].model_dump() | {"name": "other"}
    fourth = trained(tiny(data={"sources": [other], "vocab_size": 500}), tmp_path, 30, stop_after=1)
    assert fourth.of("resume")[0]["differs"] == ["train.weight_decay was 0.2 and is 0.1", "data.sources is another"]


def test_other_text_is_noticed(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    preset = tiny(data={"sources": [{"type": "files", "path": str(folder)}]})
    trained(preset, tmp_path / "checkpoints", 30, stop_after=6)
    for file in folder.glob("*.txt"):
        file.write_text(file.read_text(encoding="utf-8").swapcase(), encoding="utf-8")
    again = trained(preset, tmp_path / "checkpoints", 30, stop_after=3)
    assert [event["exact"] for event in again.of("certificate")] == [False]


def test_another_device_is_said(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tiny(), tmp_path, 30, stop_after=6)
    import lm.training.certificate as certificate_module

    monkeypatch.setattr(certificate_module, "device_in_words", lambda ranks: "another device")
    honest = certificate_module.probe_loss
    monkeypatch.setattr(certificate_module, "probe_loss", lambda *given: honest(*given) * (1 + 1e-6))
    (resume,) = trained(tiny(), tmp_path, 30, stop_after=2).of("resume")
    assert not resume["exact"]
    assert [line.split(" ")[0] for line in resume["differs"]] == ["device", "the"]
    assert resume["differs"][1].endswith("close enough for another device")


def test_saving_goes_on_beside_training(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are taken while a snapshot is being written; the file holds the run as it was when the save began; failures are told."""
    import time

    import lm.training.certificate as certificate_module

    honest, written = Snapshots.save, []

    def slow(self: Snapshots, snapshot: Any, amends: bool) -> Path:
        written.append(snapshot.run["tokens"])
        if len(written) == 2:
            raise SnapshotError("no room")
        time.sleep(0.5)
        return honest(self, snapshot, amends)

    def slowly_certified(*given: Any) -> Any:
        time.sleep(0.1)
        return certificate_module.certified(*given)

    monkeypatch.setattr(Snapshots, "save", slow)
    monkeypatch.setattr("lm.training.session.certified", slowly_certified)
    recorder = trained(tiny(train={"snapshot_every_tokens": 20 * STEP}), tmp_path, 70)
    kinds = [event["event"] for event in recorder.events]
    began, told = 20, kinds.index("snapshot")
    assert kinds[:told].count("step") > began, "training went on"
    assert recorder.of("snapshot")[0]["tokens"] == written[0]
    assert 0.1 < recorder.of("snapshot")[0]["stall"] < 0.4 < recorder.of("snapshot")[0]["seconds"]
    assert "no room; training goes on" in recorder.of("notice")[0]["text"]
    assert Snapshots(tmp_path).read("current").run["tokens"] == recorder.of("step")[-1]["tokens"]


def test_a_last_snapshot_that_fails_says_what_is_lost(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, written = Snapshots.save, []

    def full(self: Snapshots, snapshot: Any, amends: bool) -> Path:
        written.append(snapshot.run["tokens"])
        if len(written) > 1:
            raise SnapshotError("no room")
        return honest(self, snapshot, amends)

    monkeypatch.setattr(Snapshots, "save", full)
    with pytest.raises(Halted, match="^no room; the last (.*) tokens are in no snapshot$") as halted:
        trained(tiny(train={"snapshot_every_tokens": 3 * STEP}), tmp_path, 5)
    lost = int(str(halted.value).split()[4].replace(",", ""))
    assert 0 < lost == written[-1] - Snapshots(tmp_path).read("current").run["tokens"]


def test_what_is_forgotten_is_said(tiny: Tiny, tmp_path: Path) -> None:
    """A run on prose, then one on digits alone: prose is measured all the same, its best is kept, and its loss is told."""
    digits = tmp_path / "digits.jsonl"
    rows = [json.dumps({"text": " ".join(str(number * step) for number in range(1, 80))}) for step in range(1, 1500)]
    digits.write_text("\n".join(rows), encoding="utf-8")
    first = trained(tiny(train={"eval_tokens": 500}), tmp_path / "c", 80)
    best = first.of("evaluation")[-1]["sources"]["reference"]["bits_per_byte"]
    assert Snapshots(tmp_path / "c").read("current").life["measured"]["full"]["reference"]["best"] == best, "the last snapshot holds it"
    assert not [event for event in first.of("notice") if "forgotten" in event["text"]]
    second = trained(tiny(data={"sources": [{"type": "files", "name": "digits", "path": str(digits), "repeat": True}]}), tmp_path / "c", 80)
    (last,) = [event for event in second.of("evaluation") if not event["brief"]]
    assert set(last["sources"]) == {"reference", "digits"}
    assert last["cross_entropy"] == last["sources"]["digits"]["cross_entropy"], "the whole is of this mix"
    measured = Snapshots(tmp_path / "c").read("current").life["measured"]["full"]["reference"]
    assert measured["best"] == best < measured["now"] / 1.02
    said = [event["text"] for event in second.of("notice")]
    assert any(text.startswith("reference: ") and "forgotten" in text for text in said)
    assert said[-1].startswith("To forget less: train.replay_share 0.2 (now 0.05) in the next run's preset")


@pytest.mark.parametrize("finite", [False, True])
def test_an_end_that_was_cut_off_is_made_up_for(tiny: Tiny, tmp_path: Path, finite: bool) -> None:
    """Killed while it is measured at its end, a run is closed by the next start, and only then followed by another."""
    data = {"sources": [few_documents(tmp_path) | {"repeat": not finite}], "vocab_size": 500}
    budget = 10**6 if finite else 5 * STEP

    def run(cut: bool) -> Recorder:
        recorder = Recorder()

        def observe(event: Mapping[str, Any]) -> None:
            recorder(event)
            if cut and event["event"] == "phase" and event["text"].startswith("evaluating"):
                raise SystemExit

        train(tiny(data=data), tmp_path / "c", budget, observers=(observe,))
        return recorder

    with pytest.raises(SystemExit):
        run(cut=True)
    cut = Snapshots(tmp_path / "c").read("current")
    assert cut.run["tokens"] > 0 and not cut.run["closed"] and not (tmp_path / "c" / "archive").exists()
    closing = run(cut=False)
    assert closing.of("step") == [] and len(closing.of("evaluation")) == len(closing.of("end")) == 1
    closed = Snapshots(tmp_path / "c").read("current")
    assert closed.run["closed"] and closed.life["runs"][-1]["after"] and len(closed.life["runs"]) == 1
    assert len(list((tmp_path / "c" / "archive").glob("run-*.pth"))) == 1
    assert run(cut=False).of("step") and len(Snapshots(tmp_path / "c").read("current").life["runs"]) == 2


def test_the_archive_where_there_are_no_hard_links(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    trained(tiny(), tmp_path, 2)
    old = Snapshots(tmp_path).read("current")
    monkeypatch.setattr("os.link", refuse)
    trained(tiny(model={"num_layers": 3}), tmp_path, 3)
    (before,) = (tmp_path / "archive").glob("before-*.pth")
    assert read_snapshot(before).life == old.life and len(list((tmp_path / "archive").glob("run-*.pth"))) == 2


def test_an_archive_that_cannot_be_written_halts_in_a_line(tiny: Tiny, tmp_path: Path) -> None:
    trained(tiny(), tmp_path, 8, stop_after=2)
    (tmp_path / "archive").write_text("in the way")
    with pytest.raises(Halted, match="can't be archived: file exists"):
        trained(tiny(model={"num_layers": 3}), tmp_path, 3)

"""A learning rate that is too high is found out within 200 steps, and the last good snapshot stays; a change of the mix is no divergence."""

import contextlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_sources import Batch
from lm.app.facts import Facts
from lm.app.interrupts import Interrupts
from lm.app.run_screen import train_watched
from lm.training import Halted, train
from lm.training.divergence import IDLE, PATIENCE, RISE, Watch
from lm.training.headers import NAMES
from lm.training.session import Session
from lm.training.snapshots import Snapshots
from lm.training.step import Teacher
from tests.training.test_run import STEP, Recorder, Tiny, trained


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_rate_that_is_too_high_ends_the_run_and_costs_no_snapshot(optimizer: str, tiny: Tiny, tmp_path: Path) -> None:
    trained(tiny(train={"optimizer": optimizer}), tmp_path, 25)
    good = Snapshots(tmp_path).read("current")
    often = {"snapshot_every_tokens": 10 * STEP, "evaluate_every_tokens": 15 * STEP, "eval_tokens": 500}
    wild = tiny(train={"optimizer": optimizer, "learning_rate": 3.0, "warmup_share": 0.01, **often})
    with pytest.raises(Halted, match=r"learning has come apart; the last snapshot from before is kept: lower train\.learning_rate \(3\)"):
        trained(wild, tmp_path, 400)
    kept = [Snapshots(tmp_path).read(name) for name, file in NAMES.items() if (tmp_path / file).exists()]
    assert kept[0].life["tokens"] - good.life["tokens"] <= 20 * STEP, "none was taken once the loss had risen"
    assert any(all(torch.equal(good.weights[name], one.weights[name]) for name in good.weights) for one in kept)


@pytest.mark.parametrize("end", ["a stop", "failed sources", "the budget"])
def test_a_run_that_ends_while_the_loss_has_risen_saves_nothing(end: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tiny(), tmp_path, 25)
    good, watches, recorder = Snapshots(tmp_path).read("current"), [], Recorder()
    first = good.life["tokens"]

    class Seen(Watch):
        def __init__(self, vocab_size: int) -> None:
            super().__init__(vocab_size)
            watches.append(self)

    def has_risen() -> bool:
        return bool(watches) and watches[0].risen >= PATIENCE // 2

    read = Session.next_batch
    monkeypatch.setattr("lm.training.loop.Watch", Seen)
    if end == "failed sources":
        monkeypatch.setattr(Session, "next_batch", lambda *given: (None, None, "all are gone") if has_risen() else read(*given))
    wild = tiny(train={"learning_rate": 3.0, "warmup_share": 0.01, "snapshot_every_minutes": 1000})
    steps = 45 if end == "the budget" else 400
    with pytest.raises(Halted, match="all are gone; the loss has risen") if end == "failed sources" else contextlib.nullcontext():
        summary = train(wild, tmp_path, steps * STEP, observers=(recorder,), should_stop=lambda: end == "a stop" and has_risen())
        assert summary.unsaved == watches[0].unsaved() and summary.stopped == (end == "a stop")
    assert recorder.of("step")[-1]["life_tokens"] > first and watches[0].risen, "it had begun to come apart"
    kept = Snapshots(tmp_path).read("current")
    assert kept.life == good.life and all(torch.equal(good.weights[name], kept.weights[name]) for name in good.weights)
    assert any(event["text"].startswith(f"the loss has risen for {watches[0].risen} steps: what was learned") for event in recorder.of("notice"))
    assert not recorder.of("snapshot") and len(list((tmp_path / "archive").glob("run-*.pth"))) == 1


def test_a_person_who_stops_then_is_not_told_that_it_was_saved(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained(tiny(), tmp_path / "checkpoints", 25)
    facts, interrupts = Facts(), Interrupts(lambda: None, lambda: None)

    def watching(event: dict[str, Any]) -> None:
        facts(event)
        if event["event"] == "step" and event["step"] >= 25 + 20:
            interrupts.ask()

    wild = tiny(train={"learning_rate": 3.0, "warmup_share": 0, "snapshot_every_minutes": 1000})
    outcome = train_watched(wild, facts, watching, interrupts)
    assert "the loss has risen for " in outcome.line and "is not saved, and the next start goes on from that one" in outcome.line
    assert outcome.line.startswith("Stopped at ") and outcome.status == 0


def test_it_is_found_within_two_hundred_steps() -> None:
    watch = Watch(500)
    for _ in range(1000):
        watch.saw([4.0 * 100], [100])
    found = next(step for step in range(1, 500) if watch.saw([6.0 * 100], [100]) or watch.is_apart)
    assert PATIENCE < found < 200
    assert watch.in_words(0.5).startswith(f"for {PATIENCE} steps the loss stands at 6.0") and "it was 4.00 before" in watch.in_words(0.5)


def test_one_who_learns_nothing_from_the_start_is_found() -> None:
    watch = Watch(500)
    assert not any(watch.saw([math.log(500) * 100], [100]) or watch.is_apart for _ in range(500)), "a guess is no worse than a guess"
    watch = Watch(500)
    found = next(step for step in range(1, 500) if watch.saw([7.5 * 100], [100]) or watch.is_apart)
    assert found < 200 and "6.21 are those of one who knows nothing" in watch.in_words(0.5)


def test_another_mix_and_a_source_that_gets_harder_are_no_divergence() -> None:
    watch = Watch(500)
    for _ in range(300):
        watch.saw([2.0 * 90, 5.0 * 10], [90, 10])
    for _ in range(300):  # the easy source has come to its end
        watch.saw([0.0, 5.0 * 100], [0, 100])
        assert not watch.risen
    for _ in range(300):  # a third of the text is worse by far
        watch.saw([0.0, 5.0 * 67, 9.0 * 33], [0, 67, 33])
        assert not watch.is_apart


def test_what_is_no_number_or_passes_is_no_divergence() -> None:
    watch = Watch(500)
    for step in range(600):
        high = 100 < step < 100 + PATIENCE - 20
        watch.saw([math.nan if step % 50 == 49 else (4.0 + high * 2 * RISE) * 100], [100])
        assert not watch.is_apart


def test_steps_without_a_number_do_not_hide_it() -> None:
    """They come where learning comes apart; and nothing is saved between them."""
    watch = Watch(500)
    for _ in range(100):
        watch.saw([4.0 * 100], [100])
    for step in range(2 * PATIENCE):
        watch.saw([math.nan if step % 7 == 6 else 9.0 * 100], [100])
        assert watch.risen or step < 10
    assert watch.is_apart


def test_what_falls_is_learned_however_badly_it_is_known() -> None:
    """Text unlike all that was read costs more nats at first than knowing nothing does."""
    watch = Watch(8192)
    for step in range(400):
        watch.saw([(14 - 4 * step / 400) * 100], [100])
        assert not watch.is_apart
    assert watch.risen, "but it is no model to take a good one's place yet"
    for _ in range(200):
        watch.saw([10.0 * 100], [100])
    assert watch.is_apart, "it falls no more"


def test_a_model_that_learns_nothing_is_told_of_once(tiny: Tiny, tmp_path: Path) -> None:
    recorder = Recorder()
    train(tiny(train={"learning_rate": 1e-7}), tmp_path, (IDLE + 20) * STEP, observers=(recorder,))
    told = [event["text"] for event in recorder.of("notice") if event["text"].startswith(f"after {IDLE} steps the loss stands at")]
    assert len(told) == 1 and "train.learning_rate (1e-07) may be much too high, or too low" in told[0]
    watch = Watch(500)
    assert not any(watch.saw([5.5 * 100], [100]) or watch.is_idle for _ in range(2 * IDLE))
    watch = Watch(500)
    assert sum(bool(watch.saw([math.nan if step % 2 else 6.2 * 100], [100]) or watch.is_idle) for step in range(4 * IDLE)) == 1


def test_another_objective_is_watched_anew(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss is another: filling long gaps costs more nats than going on from whole text."""
    watches: list[Watch] = []

    class Counted(Watch):
        def __init__(self, vocab_size: int) -> None:
            super().__init__(vocab_size)
            watches.append(self)

    monkeypatch.setattr("lm.training.loop.Watch", Counted)
    stages = [{"until_tokens": 6 * STEP, "objective": "clm"}]
    trained(tiny(train={"objectives": stages, "objective": "ul2"}, ul2={"enabled": True}), tmp_path, 12)
    assert len(watches) == 2 and max(source.steps for source in watches[0].sources.values()) == 6


def test_an_easy_stretch_of_a_source_before_a_hard_one_is_no_divergence(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself the loss can't tell: it rises by more than when a rate is too high. What was well known still is."""
    easy, read, asked = 150, Session.next_batch, []

    def alike(batch: Batch) -> Batch:
        """A single word, over and over."""
        return replace(batch, tokens=torch.full_like(batch.tokens, 7), targets=torch.where(batch.targets >= 0, 7, batch.targets))

    def next_batch(session: Session, should_stop: Any) -> tuple[Any, ...]:
        batch, *rest = read(session, should_stop)
        asked.append(batch)
        return alike(batch) if len(asked) <= easy else batch, *rest

    known = Teacher.nats_of
    again: list[float] = []

    def nats_of(teacher: Teacher, batch: Batch) -> tuple[float, float]:
        nats, scored = known(teacher, batch)
        again.append(nats / scored)
        return nats, scored

    monkeypatch.setattr(Session, "next_batch", next_batch)
    monkeypatch.setattr(Teacher, "nats_of", nats_of)
    recorder = trained(tiny(train={"learning_rate": 0.003, "warmup_share": 0.01}), tmp_path, easy + 3 * PATIENCE)
    losses = [event["loss"] for event in recorder.of("step")]
    assert losses[easy - 1] < 0.5 and min(losses[easy : easy + 2 * PATIENCE]) > losses[easy - 1] + RISE, "as in a divergence"
    assert again and max(again) < losses[easy - 1] + RISE
    assert len(losses) == easy + 3 * PATIENCE and Snapshots(tmp_path).read("current").life["steps"] == len(losses)


def test_sources_that_are_seen_seldom_say_nothing_of_a_rate() -> None:
    """Of none of them is it known what it can be learned to."""
    watch = Watch(500)
    for step in range(2 * IDLE):
        watch.saw([300.0 * (source == step % 100) for source in range(100)], [100.0 * (source == step % 100) for source in range(100)])
        assert not watch.is_idle


def test_text_counts_as_well_known_where_its_sources_are() -> None:
    watch = Watch(500)
    for _ in range(20):
        watch.saw([200.0, 500.0, 0.0], [100, 100, 0])
    assert watch.well_known([240.0, 540.0, 0.0], [100, 100, 0]) == pytest.approx(3.5)
    assert watch.well_known([300.0, 610.0, 0.0], [100, 100, 0]) is None, "not as well as it was"
    assert watch.well_known([200.0, 500.0, 100.0], [100, 100, 100]) is None, "the third source was not seen yet"
    assert watch.is_worse(3.5, 5.1) and watch.is_worse(3.5, math.nan) and not watch.is_worse(3.5, 4.9)
    lost = Watch(500)
    for _ in range(20):
        lost.saw([700.0], [100])
    assert lost.well_known([700.0], [100]) is None, "worse than a guess is not known"

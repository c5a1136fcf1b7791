"""Objectives in training, end to end on real text: what they teach, what they leave exact, and what a life that was born before them becomes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_sources.special_tokens import OF_OBJECTIVES, ObjectiveTokens
from data_sources.tokenizer import tokenizer_from_json
from lm.app.partner import awoken
from lm.export import ExportError, export_snapshot
from lm.generation.infilling import NOT_YET
from lm.model import build_model
from lm.preset import Preset
from lm.preset.objectives import Ul2Config
from lm.training import Halted, train
from lm.training.change import change_of
from lm.training.evaluation import evaluate
from lm.training.forgetting import last_measured
from lm.training.headers import read_header
from lm.training.run import taught
from lm.training.snapshot_evaluation import evaluate_snapshot, held_out_texts
from lm.training.snapshots import Snapshots
from tests.training.test_run import STEP, trained

Tiny = Callable[..., Preset]
UL2 = {"objective": "ul2"}


def steps(folder: Path) -> list[dict[str, Any]]:
    return [event for event in map(json.loads, (folder / "run.jsonl").read_text().splitlines()) if event["event"] == "step"]


def without_time(told: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(step["tokens"], step["loss"], step["losses"], step["gradient_norm"], step["batch_hash"]) for step in told]


def test_ul2_learns_tells_each_denoisers_loss_and_goes_on_exactly(tiny: Tiny, tmp_path: Path) -> None:
    preset = tiny(train={**UL2, "snapshot_every_tokens": 5 * STEP, "eval_tokens": 1000})
    train(preset, tmp_path / "whole", 24 * STEP)
    trained(preset, tmp_path / "halved", 24, stop_after=12)
    train(preset, tmp_path / "halved", 24 * STEP)
    whole = steps(tmp_path / "whole")
    assert without_time(steps(tmp_path / "halved")) == without_time(whole)
    told = [step["losses"] for step in whole]
    assert {name for losses in told for name in losses} == {"next_token", "ul2_R", "ul2_S", "ul2_X"}
    assert sum(step["loss"] for step in whole[-5:]) / 5 < whole[0]["loss"] - 0.5
    for step in whole:  # a mean of the denoisers' means
        parts = [loss for name, loss in step["losses"].items() if name != "next_token"]
        assert min(parts) - 1e-4 <= step["loss"] <= max(parts) + 1e-4


def test_a_life_born_before_gets_the_tokens_and_keeps_them(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(), tmp_path, 4 * STEP)
    before = Snapshots(tmp_path).newest()
    change = change_of(read_header(before.path), tiny(train=UL2))
    assert change.switches == ["the tokenizer gets 103 tokens for gaps and masks"] and [part.tensors for part in change.parts if part.fate != "kept"] == [
        1,
        0,
        0,
    ]
    recorder = trained(tiny(train=UL2), tmp_path, 8)
    assert change_of(read_header(Snapshots(tmp_path).newest().path), tiny(train=UL2)) is None
    grown = Snapshots(tmp_path).newest()
    size, now = (len(snapshot.model_weights["embedding.weight"]) for snapshot in (before, grown))
    assert now == size + len(OF_OBJECTIVES)
    assert any("103 tokens for gaps and masks" in event["text"] for event in recorder.of("notice"))
    assert any(f"embedding from {size} x 32 to {now} x 32" in event["text"] for event in recorder.of("notice"))
    tokenizer = tokenizer_from_json(grown.tokenizer)
    assert ObjectiveTokens.of(tokenizer) and ObjectiveTokens.of(tokenizer_from_json(before.tokenizer)) is None
    text = "Gaps are filled."
    assert tokenizer.encode(text) == tokenizer_from_json(before.tokenizer).encode(text), "the tokens of texts are what they were"
    recorder = trained(tiny(), tmp_path, 12)
    assert Snapshots(tmp_path).newest().tokenizer == grown.tokenizer and not recorder.of("fit")
    assert all(set(step["losses"]) == {"next_token"} for step in recorder.of("step"))


def test_what_can_not_be_is_refused_in_a_line(tiny: Tiny, tmp_path: Path) -> None:
    long = {"enabled": True, "chunk_length": 64}
    with pytest.raises(Halted, match=r'objective "ul2" reads each row or example afresh, and train.long_context carries states'):
        train(tiny(train={**UL2, "long_context": long}, s5={"enabled": True}), tmp_path)
    with pytest.raises(Halted, match='objective "custom" learns targets that sources give, and reference gives none'):
        train(tiny(train={"objective": "custom"}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_micro_batches_change_nothing(tiny: Tiny, tmp_path: Path) -> None:
    told = []
    for rows in (1, 4):
        train(tiny(train={**UL2, "per_gpu_batch_size": rows, "accumulation_steps": 4 // rows, "eval_tokens": 0}), tmp_path / str(rows), 3 * STEP)
        told.append([step["losses"] for step in steps(tmp_path / str(rows))])
    for one, four in zip(*told, strict=True):
        assert one == pytest.approx(four, rel=1e-4)


def test_objectives_follow_one_another_and_a_resume_finds_the_one_that_is_due(tiny: Tiny, tmp_path: Path) -> None:
    """Causal until ten steps are dealt out, then mostly S, then all denoisers; stopped in each, on each side of an edge."""
    rows = [{"until_tokens": 10 * STEP, "objective": "clm"}, {"until_tokens": 15 * STEP, "objective": "ul2", "probabilities": {"S": 1.0}}]
    preset = tiny(train={**UL2, "objectives": rows, "snapshot_every_tokens": 4 * STEP, "eval_tokens": 0})
    sittings = [trained(preset, tmp_path / "whole", 20)]
    told = ["by denoisers (S 100%) until 3,840 tokens", "by denoisers (R 25%, S 50%, X 25%)"]
    assert [event["text"] for event in sittings.pop().of("stage")] == [f"from now on it learns {words}" for words in told]
    for stop in (9, 10, 14, 17):
        sittings.append(trained(preset, tmp_path / "halved", 20, stop_after=stop - len(steps(tmp_path / "halved")) if stop > 9 else stop))
    sittings.append(trained(preset, tmp_path / "halved", 20))
    assert [len(sitting.of("stage")) for sitting in sittings] == [0, 1, 0, 1, 0], "once each, and never again after a stop"
    whole = steps(tmp_path / "whole")
    assert without_time(steps(tmp_path / "halved")) == without_time(whole)
    learned = [set(step["losses"]) - {"next_token"} for step in whole]
    assert learned[:15] == [set()] * 10 + [{"ul2_S"}] * 5 and set.union(*learned[15:]) == {"ul2_R", "ul2_S", "ul2_X"}


def test_gaps_are_offered_once_they_were_taught(tiny: Tiny, tmp_path: Path) -> None:
    stage = {"until_tokens": 4 * STEP, "objective": "clm"}
    preset = tiny(train={**UL2, "objectives": [stage], "eval_tokens": 0}, ul2={"objective_probabilities": {"X": 1.0}})
    trained(preset, tmp_path, 8, stop_after=4)
    before = Snapshots(tmp_path).newest()
    conversation = awoken(before, tmp_path).conversation()
    assert before.life["taught"] == {} and "___" not in conversation.in_words
    assert "".join(conversation.say("The ___ statement")) == NOT_YET
    train(preset, tmp_path, 8 * STEP)
    after = Snapshots(tmp_path).newest()
    conversation = awoken(after, tmp_path).conversation()
    assert STEP < taught(after)["X"] < 4 * STEP and not taught(after).get("R"), "half of the text or so stood in gaps"
    assert conversation.in_words.endswith("___ is filled in")
    assert "".join(conversation.say("The ___ statement")).endswith(" statement")
    del after.life["taught"]  # as a life from before they were counted
    assert taught(after) == {"X": 1}


MASKED = {"train": {"objective": "mlm", "eval_tokens": 1000, "snapshot_every_tokens": 4 * STEP, "sample_every_tokens": 6 * STEP}}


def test_masks_are_learned_and_gone_on_with_exactly(tiny: Tiny, tmp_path: Path) -> None:
    preset = tiny(**MASKED, model={"bidirectional": "own"})
    recorder = trained(preset, tmp_path / "whole", 14)
    trained(preset, tmp_path / "halved", 14, stop_after=7)
    train(preset, tmp_path / "halved", 14 * STEP)
    whole = steps(tmp_path / "whole")
    assert without_time(steps(tmp_path / "halved")) == without_time(whole)
    learned = [taught(Snapshots(tmp_path / name).newest()) for name in ("whole", "halved")]
    assert learned[0] == learned[1] and 0.1 * 14 * STEP < learned[0].pop("mask") < 0.2 * 14 * STEP and not learned[0]
    assert sum(step["loss"] for step in whole[-3:]) / 3 < whole[0]["loss"] - 0.2
    (evaluation,) = recorder.of("evaluation")
    assert evaluation["pseudo"] and 1 < evaluation["perplexity"] < 500
    life = Snapshots(tmp_path / "whole").newest().life
    assert life["measured"]["full"]["reference"]["pseudo"] and life["runs"][-1]["after"] and not last_measured(life, pseudo=False)
    sample = recorder.of("sample")[-1]
    before, after = sample["prompt"].split(" ___")
    assert sample["text"].startswith(before) and sample["text"].endswith(after) and len(sample["text"]) > len(before + after)


def test_a_masked_model_fills_gaps_and_says_what_it_can_not_do(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(**MASKED, model={"bidirectional": "shared"}), tmp_path, 6 * STEP)
    conversation = awoken(Snapshots(tmp_path).newest(), tmp_path).conversation()
    said = []
    for message in ("The ___ statement is used for iteration.", "Tell me a story."):
        answer = conversation.say(message)
        said.append("".join(answer))
        assert answer.finished_by == "end"
        conversation.settle(answer)
    assert said[0].startswith("The") and said[0].endswith(" statement is used for iteration.") and "___" not in said[0]
    assert "can't go on from where your words stop" in said[1] and "___" in said[1]
    assert conversation.turns == []
    with pytest.raises(ExportError, match="only causal models are exported"):
        export_snapshot(Snapshots(tmp_path).newest(), tmp_path / "exports")
    assert evaluate_snapshot(tmp_path)["pseudo"]


@pytest.mark.longest
def test_each_denoiser_lowers_its_own_held_out_loss(tiny: Tiny, tmp_path: Path) -> None:
    """Trained by one of them for as long, a model is the best of all at what that one asks."""
    found = {}
    for kind in "RSX":
        ul2 = {"objective_probabilities": {kind: 1.0}}
        train(tiny(train={**UL2, "eval_tokens": 20_000, "decay_share": 0.5}, ul2=ul2), tmp_path / kind, 150 * STEP)
        snapshot = Snapshots(tmp_path / kind).newest()
        all_kinds = snapshot.preset.model_copy(update={"ul2": Ul2Config()})
        first = build_model(snapshot.preset, len(snapshot.model_weights["embedding.weight"]))
        trained_model = build_model(snapshot.preset, len(snapshot.model_weights["embedding.weight"]))
        trained_model.load_state_dict(snapshot.model_weights)
        texts, tokenizer = held_out_texts(tmp_path / kind), tokenizer_from_json(snapshot.tokenizer)
        before, found[kind] = (evaluate(model, tokenizer, texts, all_kinds)["denoisers"] for model in (first, trained_model))
        assert found[kind][kind] < before[kind] - 0.5
    for kind in "RSX":
        assert found[kind][kind] == min(found[other][kind] for other in "RSX"), found

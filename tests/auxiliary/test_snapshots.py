"""Heads in snapshots: they travel under names of their own, come and go, and leave the model as it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_sources.special_tokens import PAD
from lm.auxiliary.heads import HEADS, build_heads, load_heads
from lm.export.contents import config
from lm.model import build_model
from lm.preset import Preset, load_preset
from lm.training import train
from lm.training.change import change_of
from lm.training.growth import Fit, fit, fitted, fitted_moments
from lm.training.headers import read_header
from lm.training.learner import Learner
from lm.training.setup import open_session
from lm.training.snapshots import Snapshot, Snapshots
from tests.auxiliary.small import ALL, learner_of, preset_of

STEP = 4 * 64
Tiny = Callable[..., Preset]
EVERY = {f"enable_{name}": True for name in HEADS} | {"share_every": 0}


@pytest.fixture
def lived(tiny: Tiny, tmp_path: Path) -> tuple[Path, Preset]:
    """A model that was trained a little with all heads on."""
    preset = tiny(auxiliary=EVERY, train={"eval_tokens": 0})
    train(preset, tmp_path, budget_tokens=6 * STEP)
    return tmp_path, preset


def newest(folder: Path) -> Snapshot:
    snapshot = Snapshots(folder).newest()
    assert snapshot is not None
    return snapshot


def without(preset: Preset, *names: str) -> Preset:
    return preset.model_copy(update={"auxiliary": preset.auxiliary.model_copy(update={f"enable_{name}": False for name in names})})


def went_on(folder: Path, preset: Preset) -> tuple[list[dict[str, Any]], Snapshot, Snapshot]:
    """What was told while one more step was taken, and the snapshots before and after."""
    events: list[dict[str, Any]] = []
    before = newest(folder)
    train(preset, folder, budget_tokens=STEP, observers=(events.append,))
    return events, before, newest(folder)


def test_heads_travel_by_names_of_their_own(lived: tuple[Path, Preset]) -> None:
    folder, preset = lived
    snapshot = newest(folder)
    vocabulary = len(snapshot.model_weights["embedding.weight"])
    heads = build_heads(snapshot.preset, pad=0)
    heads.load_state_dict(snapshot.head_weights)
    assert {name.split(".")[0] for name in snapshot.head_weights} == set(HEADS)
    build_model(preset, vocabulary).load_state_dict(snapshot.model_weights)
    assert float(heads["value"].mean) > 0 and float(heads["value"].steps) == 6
    assert all(f"{name}/exp_avg" in snapshot.optimizer for name, _ in Learner(build_model(preset, vocabulary), heads).named_parameters())
    assert not set(config(snapshot)["loss_weights"]) & set(preset.loss_weights), "an exported model knows nothing of them"


def test_heads_that_go_and_come_leave_the_rest_as_it_is(lived: tuple[Path, Preset]) -> None:
    """The value head and the dynamics go; the next run has them again, new."""
    folder, preset = lived
    header = read_header(folder / "lm_current.pth")
    change = change_of(header, without(preset, "value", "dynamics"))
    assert change is not None
    parts = {part.fate: part.names for part in change.parts}
    assert parts["left behind"] == "heads.value, heads.dynamics" and not parts["new"] and not parts["grown"]
    events, before, after = went_on(folder, without(preset, "value", "dynamics"))
    (fitting,) = [event for event in events if event["event"] == "fit"]
    assert fitting["new"] == [] and all(name.startswith(("heads.value.", "heads.dynamics.")) for name in fitting["left"])
    assert any("other heads on the same model than the snapshot's" in event["text"] for event in events if event["event"] == "notice")
    assert {name.split(".")[0] for name in after.head_weights} == set(HEADS) - {"value", "dynamics"}
    assert after.weights.keys() < before.weights.keys()
    assert after.life["tokens"] == before.life["tokens"] + STEP
    events, _, again = went_on(folder, preset)
    (fitting,) = [event for event in events if event["event"] == "fit"]
    assert fitting["left"] == [] and {name.split(".")[1] for name in fitting["new"]} == {"value", "dynamics"}
    assert float(again.head_weights["value.steps"]) == 1
    events, _, last = went_on(folder, without(preset, *HEADS))
    assert not last.head_weights and last.model_weights.keys() == before.model_weights.keys()


def between(old: Preset, new: Preset) -> tuple[Learner, Learner, Fit, dict[str, torch.Tensor]]:
    before, after = learner_of(old), learner_of(new)
    for parameter in after.parameters():
        parameter.data.add_(1)
    how = fit(after.model, after.state_dict(), old, before.state_dict())
    moments = {f"{name}/exp_avg": parameter.detach() for name, parameter in before.named_parameters()}
    after.load_state_dict(fitted(after.state_dict(), before.state_dict(), how), strict=False)
    return before, after, how, fitted_moments(moments, how)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_more_or_less_is_the_same_model(name: str) -> None:
    for old, new in ((ALL, ALL | {f"enable_{name}": False}), (ALL | {f"enable_{name}": False}, ALL)):
        before, after, how, moments = between(preset_of(old), preset_of(new))
        assert how.is_same_model and not how.is_whole
        gone = [path for path in (*how.new, *how.left) if path.startswith(f"heads.{name}.")]
        assert len(gone) == len(how.new) + len(how.left) > 0
        ours = dict(after.named_parameters())
        assert all(torch.equal(tensor, ours[path]) for path, tensor in before.named_parameters() if path in ours)
        assert {path.split("/")[0] for path in moments} == {path for path, _ in before.named_parameters() if path in ours}


def test_a_head_of_another_width_begins_anew_as_a_whole() -> None:
    _, _, how, moments = between(preset_of(ALL), preset_of(ALL | {"dynamics_size": 13, "span_negatives": 1000}))
    assert {path.split(".")[1] for path in how.new} == {"dynamics", "span_contrastive"} == {path.split(".")[1] for path in how.left}
    assert any(path.endswith("dynamics.norm.weight") for path in how.new) and not any("dynamics" in path for path in moments)
    assert how.is_same_model and "other heads" in how.in_words()


def test_a_head_that_kept_other_things_begins_anew_and_the_others_go_on() -> None:
    """What spans were told from was once their keys: in training and in chat."""
    before = learner_of(preset_of(ALL)).state_dict()
    old = {path: tensor for path, tensor in before.items() if path != "heads.span_contrastive.left"} | {"heads.span_contrastive.keys": torch.ones(384, 7)}
    after = learner_of(preset_of(ALL))
    how = fit(after.model, after.state_dict(), preset_of(ALL), old)
    assert {path.split(".")[1] for path in (*how.new, *how.left)} == {"span_contrastive"} and how.is_same_model
    heads = build_heads(preset_of(ALL), pad=0)
    first = heads["span_contrastive"].key.weight.clone()
    load_heads(heads, {path.removeprefix("heads."): tensor for path, tensor in old.items() if path.startswith("heads.")})
    assert torch.equal(heads["span_contrastive"].key.weight, first)
    assert all(torch.equal(tensor, old[f"heads.{path}"]) for path, tensor in heads.state_dict().items() if not path.startswith("span_contrastive"))


def test_another_trunk_under_the_same_heads_is_another_model() -> None:
    _, _, how, _ = between(preset_of(ALL), preset_of(ALL, model={"hidden_size": 24, "num_layers": 3, "num_heads": 2, "seq_length": 64}))
    assert not how.is_same_model and "another model" in how.in_words()
    assert not any(path.startswith("heads.") for path in (*how.new, *how.left))


def test_carried_states_stay_when_heads_change(tiny: Tiny, tmp_path: Path) -> None:
    long = {"eval_tokens": 0, "long_context": {"enabled": True, "chunk_length": 32}}
    train(tiny(auxiliary=EVERY, train=long, s5={"enabled": True}), tmp_path, budget_tokens=STEP)
    events, _, _ = went_on(tmp_path, tiny(train=long, s5={"enabled": True}))
    told = " ".join(event["text"] for event in events if event["event"] in ("notice", "resume"))
    assert "other heads on the same model" in told and "the states of the snapshot are of another model" not in told


def test_what_masks_spans_is_no_word_and_stays_when_the_tokenizer_grows(tiny: Tiny, tmp_path: Path) -> None:
    """Also for a model that was born without the tokens of objectives and gets them."""
    sizes = []
    for sections in ({}, {"ul2": {"enabled": True}}):
        preset = tiny(auxiliary={"enable_span_contrastive": True}, train={"eval_tokens": 0}, **sections)
        with open_session(preset, tmp_path, STEP, ()) as session:
            sizes.append(len(session.tokenizer))
            mask = session.run.learner.heads["span_contrastive"].mask
            assert mask == session.tokenizer.pad_token_id and session.tokenizer.convert_ids_to_tokens(mask) == PAD
        train(preset, tmp_path, budget_tokens=STEP)
    assert sizes[1] > sizes[0]


def test_every_shipped_preset_has_weights_for_the_heads_it_names() -> None:
    for path in sorted(Path("configs").glob("[0-9]*.json")):
        preset = load_preset(path)
        assert set(build_heads(preset, pad=0)) == set(preset.auxiliary.heads)

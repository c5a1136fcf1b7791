"""Shares of the trunk's gradient: what they are, that they cost training nothing, and where they are told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lm.auxiliary.heads import HEADS
from lm.preset import Preset
from lm.training import train
from lm.training.distribution import Ranks
from lm.training.optimizer import build_optimizer
from lm.training.step import Step, Teacher
from tests.auxiliary.small import ALL, learner_of, preset_of
from tests.training.ranks import rows


def taught(preset: Preset, steps: int) -> tuple[list[Step], dict[str, torch.Tensor]]:
    """Steps on the same eight rows, and the weights after them."""
    learner = learner_of(preset)
    teacher = Teacher(
        Ranks(preset.train), learner, build_optimizer(learner, preset.train), preset.train, preset.loss_weights, None, preset.auxiliary.share_every
    )
    return [teacher.step(rows(), 1, 0, 10_000, number) for number in range(steps)], learner.state_dict()


def test_a_share_is_the_length_of_a_weighted_gradient_over_the_sum_of_all() -> None:
    preset = preset_of(ALL | {"value_weight": 3.0, "stop_gradients": ["policy"], "share_every": 1}, train={"precision": "float32"})
    learner, lengths = learner_of(preset), {}
    trunk = list(learner.model.parameters())
    for name in ["next_token", *preset.loss_weights]:
        loss = learner([rows()]).losses[name] * preset.loss_weights.get(name, 1.0)
        found = torch.autograd.grad(loss, trunk, allow_unused=True)
        lengths[name] = sum(float(gradient.square().sum()) for gradient in found if gradient is not None) ** 0.5
    total = sum(lengths.values())
    shares = taught(preset, 1)[0][0].shares
    assert shares == pytest.approx({name: length / total for name, length in lengths.items()}, rel=1e-4)
    assert shares.pop("policy") == 0 and all(share > 0 for share in shares.values()) and sum(shares.values()) == pytest.approx(1)


def test_looking_changes_nothing_and_is_done_every_so_often() -> None:
    looked, weights = taught(preset_of(ALL | {"share_every": 2}), 4)
    never, same = taught(preset_of(ALL | {"share_every": 0}), 4)
    assert [bool(step.shares) for step in looked] == [True, False, True, False]
    assert not any(step.shares for step in never)
    assert [step.losses for step in looked] == [step.losses for step in never]
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_a_step_in_bfloat16_is_sound() -> None:
    preset = preset_of(ALL | {"share_every": 1}, train={"precision": "bfloat16"})
    teacher_steps, weights = taught(preset, 2)
    assert all(step.sound and step.shares for step in teacher_steps)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_what_is_not_a_number_is_not_told() -> None:
    preset = preset_of(ALL | {"share_every": 1})
    learner = learner_of(preset)
    learner.model.embedding.weight.data[3] = torch.nan
    teacher = Teacher(Ranks(preset.train), learner, build_optimizer(learner, preset.train), preset.train, preset.loss_weights, None, 1)
    step = teacher.step(rows(), 1, 0, 10_000, 0)
    assert not step.sound and step.shares == {}


def test_memory_for_looking_is_counted() -> None:
    """The trunk's gradient of one loss, and the sum of those over the rows."""
    lasting = {}
    for every in (0, 5):
        preset = preset_of(ALL | {"share_every": every})
        learner = learner_of(preset)
        optimizer = build_optimizer(learner, preset.train)
        lasting[every] = Teacher(Ranks(preset.train), learner, optimizer, preset.train, preset.loss_weights, None, every).fit_memory(rows()).lasting
    assert lasting[5] - lasting[0] == 2 * sum(parameter.nbytes for parameter in learner.model.parameters())


def test_where_there_is_no_memory_to_look_it_is_said_once(tiny: Callable[..., Preset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **more: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("lm.training.shares.torch.autograd.grad", full)
    events: list[Any] = []
    preset = tiny(auxiliary={"enable_value": True, "share_every": 2}, train={"eval_tokens": 0})
    train(preset, tmp_path, budget_tokens=4 * 64 * 5, observers=(events.append,))
    assert sum("what share of the gradient" in event.get("text", "") for event in events if event["event"] == "notice") == 1
    steps = [event for event in events if event["event"] == "step"]
    assert len(steps) == 5 and not any("gradient_shares" in event for event in steps)


def test_a_run_tells_them_and_its_losses_by_name(tiny: Callable[..., Preset], tmp_path: Path) -> None:
    """Also where states are carried from row to row; in run.jsonl, and without what heads keep for themselves."""
    preset = tiny(
        auxiliary={f"enable_{name}": True for name in HEADS} | {"share_every": 2},
        s5={"enabled": True},
        train={"per_gpu_batch_size": 4, "eval_tokens": 0, "long_context": {"enabled": True, "chunk_length": 32, "backprop_chunks": 2}},
    )
    train(preset, tmp_path, budget_tokens=4 * 64 * 3)
    events: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    named = {"next_token", *preset.loss_weights}
    assert all(event["losses"].keys() == named for event in steps)
    told = [event["gradient_shares"] for event in steps if "gradient_shares" in event]
    assert len(told) == (len(steps) + 1) // 2 and all(shares.keys() == named for shares in told)
    assert told[-1]["dynamics"] > 0 and told[-1]["span_contrastive"] > 0
    assert not any(name.startswith("heads") for event in steps for name in event["units"])

"""A step's sums: what they come to, and that the host waits for the device once, after all micro-batches; and memory that is short at the end of it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from data_sources import Batch
from lm.model import build_model
from lm.objectives.ul2 import KINDS
from lm.training import Halted
from lm.training.averaging import Average
from lm.training.carried import Carried
from lm.training.distribution import Ranks
from lm.training.learner import Learned, Learner
from lm.training.optimizer import Optimizer, build_optimizer
from lm.training.snapshots import Snapshots
from lm.training.step import Cut, Teacher, Total
from tests.training.ranks import V, rows
from tests.training.test_run import Tiny, trained


def test_nothing_waits_for_the_device_in_a_micro_batch() -> None:
    """What is counted by source and by denoiser: as by a loop over tokens, bit for bit, and with tensors that have shapes and no values."""
    generator = torch.Generator().manual_seed(3)
    batch = rows(padding_from=6)
    source = torch.randint(3, batch.tokens.shape, generator=generator).masked_fill(batch.source < 0, -1)
    kind = torch.randint(-1, len(KINDS), batch.tokens.shape, generator=generator).to(torch.int8)
    read, nll = replace(batch, source=source, kind=kind), torch.rand(batch.tokens.shape, generator=generator)
    nll[-1] = torch.nan  # of padding
    by_source, by_kind = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(2, len(KINDS), dtype=torch.float64)
    Teacher._count(by_source, by_kind, read, nll)
    expected, expected_by_kind = torch.zeros_like(by_source), torch.zeros_like(by_kind)
    for target, place, denoiser, nats in zip(read.targets.flatten(), source.flatten(), kind.flatten(), nll.flatten().double(), strict=True):
        if target >= 0:
            expected[:2, place] += torch.stack([nats, torch.ones_like(nats)])
            if denoiser >= 0:
                expected_by_kind[:, denoiser] += torch.stack([nats, torch.ones_like(nats)])
        if place >= 0:
            expected[2, place] += 1
    assert torch.equal(by_source, expected) and torch.equal(by_kind, expected_by_kind) and bool(expected_by_kind.all())
    with FakeTensorMode(allow_non_fake_inputs=False) as fake:
        shapes = {name: fake.from_tensor(getattr(read, name)) for name in ("tokens", "targets", "restart", "source", "kind")}
        Teacher._count(fake.from_tensor(by_source), fake.from_tensor(by_kind), replace(read, **shapes), fake.from_tensor(nll))


def test_the_host_waits_for_the_device_once_a_step(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device of tensors that have shapes and no values, where anything else that the host wants to know ends the step."""
    preset, meta = tiny(train={"per_gpu_batch_size": 2}), torch.device("meta")
    ranks = Ranks(preset.train)
    ranks.device, ranks.accelerator = meta, SimpleNamespace(prepare_model=lambda learner: learner, no_sync=ranks.accelerator.no_sync)
    learner, heard, read = WithStats(build_model(preset, V)).to(meta), [], []
    monkeypatch.setattr(learner, "after_step", heard.append)
    monkeypatch.setattr("lm.training.learner.linear_cross_entropy", plain_cross_entropy)
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: read.append(tensor.shape) or torch.ones(tensor.shape, dtype=tensor.dtype))
    plain = torch.optim.SGD([{"params": list(learner.parameters()), "scale": 1.0}])  # fused AdamW is for real devices
    teacher = Teacher(ranks, learner, plain, preset.train, preset.loss_weights, average=Average(learner, 1000))
    for _ in range(2):
        assert teacher.step(rows(padding_from=7), 3, 0, 10**6).sound
    assert read == [(1 + 3 * 3 + 1 + 2 + 15,)] * 2, "the norm, sums by source, a loss, and stats"
    assert [{name: value.shape for name, value in stats.items()} for stats in heard] == [{"load": (3, 5), "share": (2,)}] * 2


class WithStats(Learner):
    """As if units told something of what they did."""

    def forward(self, *given: Any) -> Learned:
        learned = super().forward(*given)
        return learned._replace(stats={"share": learned.nll.new_ones(2), "load": learned.nll.new_ones(3, 5)})


def test_each_row_goes_to_the_device_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """In micro-batches, and in chunks of one window; what is counted of the chunks is what is counted of whole rows."""
    moved, honest = [], Batch.to
    monkeypatch.setattr(Batch, "to", lambda batch, device: moved.append(batch.tokens) or honest(batch, device))
    whole, batch = {}, rows(padding_from=6)
    for cut in (Cut(), Cut(window=10, chunk=5)):
        preset = tiny(train={"per_gpu_batch_size": 4})
        learner = Learner(build_model(preset, V))
        carried = Carried(learner.model) if cut.chunk == 5 else None
        teacher = Teacher(Ranks(preset.train), learner, build_optimizer(learner, preset.train), preset.train, {}, carried)
        moved.clear()
        found = teacher._gradients(batch, Total(batch.valid, int(batch.is_text.sum())), 1, cut)
        assert sum(tokens.numel() for tokens in moved) == batch.tokens.numel()
        whole[cut.chunk] = found.sums[1:].tolist()
    assert whole[5] == whole[Cut().chunk] == [batch.valid, int(batch.is_text.sum())]


def test_what_a_model_reads_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a device that takes from there; the rest of the batch stays as it is."""
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    batch = rows()
    same = batch.pinned()
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in (batch.tokens, batch.targets, batch.restart, batch.source, batch.cu_seqlens)}
    assert torch.equal(same.tokens, batch.tokens) and same.tokens is not batch.tokens and same.lane is batch.lane


def plain_cross_entropy(hidden: Tensor, readout: torch.nn.Module, targets: Tensor) -> tuple[Tensor, Tensor]:
    nll = F.cross_entropy(hidden @ readout.weight.T, targets, reduction="none")
    return nll.sum(), nll.detach()


@pytest.mark.parametrize("where", [(Optimizer, "step"), (Average, "follow")])
def test_moments_that_do_not_fit_end_a_run_in_a_line(where: tuple[type, str], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(*where, short)
    with pytest.raises(Halted, match=r"^the optimizer's moments do not fit into memory: lower model\.hidden_size or model\.num_layers$"):
        trained(tiny(train={"average_tokens": 1000}), tmp_path, 3)
    assert Snapshots(tmp_path).newest() is None

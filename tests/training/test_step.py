"""A step's sums: what they come to, and that no micro-batch has the host wait for the device."""

from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lm.objectives.ul2 import KINDS
from lm.training.step import Teacher
from tests.training.ranks import rows


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

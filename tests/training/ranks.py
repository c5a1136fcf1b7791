"""What two processes do, for test_ranks: run by tests/training/two_ranks.py with a folder as the working directory, never by a person."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from data_sources import Batch
from data_sources.batch import bounds_of
from lm.auxiliary.heads import build_heads
from lm.model import build_model
from lm.preset import Preset, preset_from_json
from lm.training import Halted, train
from lm.training.distribution import Ranks
from lm.training.learner import Learner
from lm.training.optimizer import build_optimizer
from lm.training.step import Cut, Teacher, Total

ROWS, T, V = 8, 16, 50


def rows(padding_from: int = ROWS, length: int = T) -> Batch:
    """Eight rows with restarts; from row `padding_from` on nothing is scored. The third row holds little text."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(V, (ROWS, length), generator=generator)
    targets = torch.randint(V, (ROWS, length), generator=generator)
    restart = torch.rand(ROWS, length, generator=generator) < 0.1
    targets[2, 3:] = -100
    targets[padding_from:] = -100
    source = torch.zeros_like(tokens).masked_fill(targets < 0, -1)
    bounds = torch.from_numpy(bounds_of(restart.numpy()))
    number = torch.arange(ROWS)
    return Batch(tokens, targets, restart, source, number, number, bounds, int((targets >= 0).sum()), int(restart.sum()), last=False)


def part_of(batch: Batch, rank: int, size: int) -> Batch:
    """The rows of one rank: those whose number is `rank` modulo `size`."""
    pieces = batch.split(1)[rank::size]
    joined = {name: torch.cat([getattr(piece, name) for piece in pieces]) for name in ("tokens", "targets", "restart", "source", "lane", "row")}
    bounds = torch.from_numpy(bounds_of(joined["restart"].numpy()))
    return Batch(**joined, cu_seqlens=bounds, valid=sum(piece.valid for piece in pieces), restarts=sum(piece.restarts for piece in pieces), last=False)


def teacher_of(preset: Preset, micro_rows: int, ranks: Ranks) -> Teacher:
    """The same weights on every number of ranks."""
    torch.manual_seed(ranks.rank)  # DDP gives all ranks the weights of rank 0
    learner = Learner(build_model(preset, V), build_heads(preset, pad=0))
    teacher = Teacher(ranks, learner, build_optimizer(learner, preset.train), preset.train, {})
    torch.manual_seed(9)
    for parameter in learner.parameters():
        parameter.data.normal_(std=0.1)
    for buffer in learner.buffers():  # what units heard of the step before
        if buffer.is_floating_point():
            buffer.uniform_(0, 0.1)
        else:
            buffer.copy_(1 + torch.arange(buffer.numel()).view_as(buffer) % (V - 1))
    teacher.micro_rows = micro_rows
    return teacher


def nats(preset: Preset, batch: Batch, micro_rows: int, ranks: Ranks, short: bool = False) -> tuple[float, float]:
    """What rows cost that are read again; by a rank that is `short`, memory runs out over it."""
    teacher = teacher_of(preset, micro_rows, ranks)
    if short:
        teacher.alone.forward = out_of_memory
    return teacher.nats_of(batch)


def out_of_memory(*given: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def gradients(preset: Preset, batch: Batch, micro_rows: int, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Gradients after summing over ranks, before they are clipped."""
    teacher = teacher_of(preset, micro_rows, ranks)
    total = Total(*map(int, ranks.summed([float(batch.valid), float(batch.is_text.sum())])))
    teacher._gradients_in_memory(batch, total, 1, Cut())
    ranks.sum_gradients(teacher.parameters)
    return {name: parameter.grad.clone() for name, parameter in teacher.alone.named_parameters()}


def sharing(preset: Preset) -> Preset:
    """`preset` with keys, values and feed-forwards that layers share, and gates."""
    sections = {"shared_attention": {"enabled": True}, "shared_ffn": {"enabled": True, "private_share": 0.25}, "head_gating": {"enabled": True}}
    return Preset.model_validate(preset.model_dump(mode="json") | sections)


def gradients_by_part(preset: Preset, ranks: Ranks) -> dict[str, dict[str, torch.Tensor]]:
    """Those of all rows, and of half of them with nothing for rank 1; in one micro-batch and in two."""
    out = {}
    for name, batch in {"full": rows(), "half padding": rows(padding_from=0)}.items():
        mine = part_of(batch, ranks.rank, ranks.size)
        if name == "half padding":  # rank 1 has padding only
            mine = part_of(rows(), 0, 2) if ranks.rank == 0 else mine
        out[name] = gradients(preset, mine, 4, ranks)
        out[f"{name}, accumulated"] = gradients(preset, mine, 2, ranks)
    return out


def preset_of(text: str) -> Preset:
    return preset_from_json(text, "test")


def fails_on_rank_0(ranks: Ranks) -> None:
    if ranks.is_first:
        raise FileNotFoundError("rank 0")


def main() -> None:
    folder = Path.cwd()
    preset = preset_of((folder / "preset.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    with patch("lm.training.distribution.bfloat16_gain", lambda: 9.0 * int(os.environ["RANK"])):  # each finds something else
        precision = Ranks(preset.train.model_copy(update={"precision": "auto"})).precision
    ranks = Ranks(preset.train)
    out: dict[str, Any] = gradients_by_part(preset, ranks)
    mine = part_of(rows(), ranks.rank, ranks.size)
    out["nats"] = nats(preset, mine, 2, ranks), nats(preset, mine, 2, ranks, short=not ranks.is_first)
    out["shared"] = gradients(sharing(preset), part_of(rows(), ranks.rank, ranks.size), 2, ranks)
    events: list[Any] = []
    summary = train(preset, folder / "checkpoints", budget_tokens=int(os.environ.get("BUDGET", "6144")), observers=(events.append,))
    try:
        missing = preset.model_copy(update={"data": preset_of('{"data": {"sources": [{"type": "files", "path": "nowhere"}]}}').data})
        train(missing, folder / "other")
        halted = ""
    except Halted as error:
        halted = str(error)
    try:
        together = str(ranks.all_do(lambda: fails_on_rank_0(ranks)))
    except Exception as error:
        together = f"{type(error).__name__}: {error}"
    opening = train(
        preset_of((folder / "remote.json").read_text(encoding="utf-8")),
        folder / "checkpoints",
        should_stop=lambda: ranks.is_first and (folder / "asked").exists(),  # the first alone is asked, as by a key
    )
    opened = {"stopped": opening.stopped, "tokens": opening.tokens, "returned": time.time()}
    if ranks.is_first:
        torch.save(out, folder / "gradients.pt")
        (folder / "events.json").write_text(json.dumps(events), encoding="utf-8")
    told = {"tokens": summary.tokens, "loss": summary.loss, "halted": halted, "together": together, "opening": opened, "precision": precision}
    (folder / f"rank{ranks.rank}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

"""How much of the trunk's gradient each loss makes, so that nobody trains with a head that does nothing.

    share_i = |w_i g_i| / sum_j |w_j g_j|,   g_i: the gradient of loss i with respect to every weight of the model, the heads' aside

Weights rather than hidden states, since some heads have the trunk read other tokens. The gradients are those of the first rows of a step, as
many for any number of ranks; training sees nothing of them. The norms of gradients that point apart add up to more than the norm of their
sum: shares say who pulls how strongly, not who wins.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from data_sources import Batch
from lm.model import ModelState
from lm.training.distribution import Ranks, is_out_of_memory
from lm.training.learner import Learner

SHARE_ROWS = 8  # over all ranks


class Window(NamedTuple):
    """The beginning of some rows, as a learner takes it."""

    pieces: Sequence[Batch]
    state: ModelState | None
    recompute: bool


def gradient_shares(learner: Learner, windows: Sequence[Window], weights: Mapping[str, float], ranks: Ranks) -> dict[str, float] | None:
    """Of each loss that has a weight, and of the next token's. Empty where a gradient is not finite, None where memory is short. All ranks together."""
    pieces = [piece for window in windows for piece in window.pieces]
    scored, text = ranks.summed([float(sum(piece.valid for piece in pieces)), float(sum(int(piece.is_text.sum()) for piece in pieces))])
    lengths, is_short = {}, False
    for name in ["next_token", *sorted(weights)]:
        gradient, fits = _gradient(learner, windows, name, weights.get(name, 1.0), scored / max(text, 1))
        is_short = is_short or not fits
        ranks.sum_tensors(gradient)
        lengths[name] = math.sqrt(sum(float(part.square().sum(dtype=torch.float64)) for part in gradient))
    total = sum(lengths.values())
    if ranks.highest([float(is_short)])[0]:
        return None
    if not math.isfinite(total) or not total:
        return {}
    return {name: length / total for name, length in lengths.items()}


def _gradient(learner: Learner, windows: Sequence[Window], name: str, weight: float, scored_share: float) -> tuple[list[Tensor], bool]:
    """Of one weighted loss, with respect to each tensor of the model; and whether it fitted the memory. scored_share: of the text."""
    trunk = [parameter for parameter in learner.model.parameters() if parameter.requires_grad]
    total = [torch.zeros_like(parameter) for parameter in trunk]
    try:
        for window in windows:
            learned = learner(window.pieces, window.state, window.recompute)
            loss = learned.losses.get(name)
            if loss is None or not loss.requires_grad:
                continue
            counts = (scored_share * int(piece.is_text.sum()) if name in learned.of_text else piece.valid for piece in window.pieces)
            found = torch.autograd.grad(loss * (weight * sum(counts)), trunk, allow_unused=True)
            for part, gradient in zip(total, found, strict=True):
                if gradient is not None:
                    part.add_(gradient)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return total, False
    return total, True

"""Cross entropy of a linear output, without ever holding the logits of all tokens.

    nll_n = logsumexp_v(s_nv) - s_n,target(n),    s_nv = h_n . w_v,    with a soft cap c: s_nv = c tanh(h_n . w_v / c)

A batch of logits is the largest tensor of a small model's training step. Here it exists for one chunk of tokens at a time: the
gradients of the chunk are taken at once and only those are kept. torch 2.13's own F.linear_cross_entropy gives no loss for each
token, and older versions lack it; tests/benchmarks/output_loss.py compares the two.

Sizes: N tokens, D hidden, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lm.ops.readout import Readout

IGNORED = -100
CHUNK_ELEMENTS = 2**22  # logits held at a time on the host: 16 MiB in float32, which its caches like
DEVICE_FACTOR = 16  # a GPU wants larger matrices


def linear_cross_entropy(hidden: Tensor, readout: Readout, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the negative log-likelihoods in nats, and each of them, detached.

    `hidden` (N, D), `readout` of V entries, `targets` (N,) int64 where IGNORED is not scored -> scalar, (N,). Softmax in at least float32;
    the matrix products in the autocast dtype where autocast is on. Can be differentiated once.
    """
    device, weight = hidden.device.type, readout.weight
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, targets, readout.soft_cap, product, needs_gradient)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, soft_cap: float | None, product: torch.dtype, needs_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        nll = hidden.new_empty(len(targets), dtype=exact)
        matrix = weight.to(product)
        grad_hidden = torch.empty_like(hidden) if needs_gradient else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if needs_gradient else None
        # Outside autocast: the products below are in `product` already, and the softmax must not be lowered.
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _chunks(len(targets), len(weight), hidden.device):
                inputs, scored = hidden[part].to(product), targets[part, None] != IGNORED
                picked = targets[part, None].clamp(min=0)
                # From here on one matrix is worked over in place: logits, exponentials, gradient of the logits.
                logits = (inputs @ matrix.T).to(exact)
                slope = None if soft_cap is None else _cap(logits, soft_cap)
                highest = logits.amax(-1, keepdim=True)
                target_logit = logits.gather(1, picked)
                total = logits.sub_(highest).exp_().sum(-1, keepdim=True)
                nll[part] = ((total.log() + highest - target_logit) * scored)[:, 0]
                if grad_hidden is None:
                    continue
                grad_logits = logits.mul_(scored / total).scatter_add_(1, picked, -scored.to(exact))
                grad_logits = (grad_logits if slope is None else grad_logits.mul_(slope)).to(product)
                grad_hidden[part] = grad_logits @ matrix
                _add_product(grad_weight, grad_logits.T, inputs)
        if grad_hidden is not None:
            ctx.save_for_backward(grad_hidden, grad_weight)  # and not as an attribute: a checkpoint lets go of what is saved
        ctx.mark_non_differentiable(nll)
        return nll.sum(), nll

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors  # scaled in place, so they serve once
        return grad_hidden.mul_(grad_total.to(grad_hidden.dtype)), grad_weight.mul_(grad_total), None, None, None, None


def _cap(logits: Tensor, soft_cap: float) -> Tensor:
    """Put `logits` within the cap, in place: how they change with what they were."""
    logits.div_(soft_cap).tanh_()
    slope = 1 - logits.square()
    logits.mul_(soft_cap)
    return slope


def _chunks(tokens: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    elements = CHUNK_ELEMENTS * (1 if device.type == "cpu" else DEVICE_FACTOR)
    size = max(1, elements // vocabulary)
    return (slice(start, start + size) for start in range(0, tokens, size))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without another matrix of its size where the dtypes agree."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right

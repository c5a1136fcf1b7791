"""flash-linear-attention's kernels for GPUs, where that package is installed, over rows of documents.

The documents of all rows stand one behind the other. Each begins with a memory of its own: its row's where it goes on, none where it begins.

Sizes: B batch, T time, N documents, H heads, K key, V value.
"""

import functools
import importlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Kernel = Callable[..., tuple[Tensor, Tensor]]


def fused_kernel(name: str, x: Tensor, dtype: torch.dtype) -> Kernel | None:
    """The function "package.module.function" for streams like `x` (B, T, ...), projected in `dtype`; None where it is not for them.

    The kernels multiply in bfloat16, so only what was computed in it goes there; and they read in chunks, which one token would not fill.
    """
    return installed(name) if x.device.type == "cuda" and dtype == torch.bfloat16 and x.shape[1] > 1 else None


@functools.cache
def installed(name: str) -> Kernel | None:
    """The function of that name, None where its package is not installed, or has none."""
    module, _, function = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), function, None)
    except ImportError:
        return None


def by_documents(kernel: Kernel, streams: Mapping[str, Tensor], memory: Tensor, restart: Tensor | None, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """What `kernel` reads (B, T, H, V), and the memory after the last token (B, H, K, V).

    streams: (B, T, ...) each, under the kernel's names; memory (B, H, K, V); restart (B, T), None where every row
    is one document that goes on from its memory; cu_seqlens (N + 1,): where documents and rows begin in the flattened B * T, and its end.
    """
    kernel = functools.partial(kernel, scale=1.0, output_final_state=True)
    if restart is None:
        return kernel(**streams, initial_state=memory)
    rows, time = restart.shape
    starts = cu_seqlens[:-1].long()
    goes_on = (starts % time == 0) & ~restart.flatten()[starts]
    begun = torch.where(goes_on[:, None, None, None], memory[starts // time], 0)
    flat = {name: stream.flatten(0, 1)[None] for name, stream in streams.items()}
    y, ended = kernel(**flat, initial_state=begun, cu_seqlens=cu_seqlens)
    ends = torch.arange(1, rows + 1, device=starts.device) * time
    return y[0].unflatten(0, (rows, time)), ended[torch.searchsorted(cu_seqlens[1:].long(), ends)]

"""What a run asks of this machine: memory before its first step, and, once a few steps were taken, time and the share of what the device can do.

Memory is counted, not guessed: a short piece of a row is read as in training, and all that torch keeps of it for the way back is added up. It
grows with the tokens that are read at once, so that a row's share follows from it: fused attention keeps no matrix of the row, and where attention does
(lm/units/attention.py, attend_by_blocks), the piece is as long as the longest text that it does so for. Autocast's copies of the weights do not grow:
half of the piece keeps as much of them.
"""

import re
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn

from lm.preset import Preset, count_parameters
from lm.preset.holding import held_bytes
from lm.training.distribution import is_out_of_memory
from lm.training.host import group_bytes, processes
from lm.units.attention import SHORT

# What a step takes at its height over what it keeps: gradients on the way back, and what is freed late. On the host steps of the shipped presets took
# 0.8 to 1.6 times what they keep, and who takes too much is killed; a device refuses, and then fewer rows are read.
SLACK_OF_HOST, SLACK_OF_DEVICES = 1.6, 1.2
ROOM = 0.9  # of what is free: other programs live here, too
PROBE = SHORT  # tokens that are read to count, and half as many

# Dense products in bfloat16 a second, added up in float32, by the makers' data sheets; the first whose words are in the device's name.
PEAKS = {
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 5090": 210e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


class Need(NamedTuple):
    """Bytes that a step takes beside what is held already, and what there is."""

    lasting: int  # gradients and moments that are not there yet, the output loss, the copies for a snapshot and by autocast
    row: int  # for each row that is read at once
    free: int
    total: int

    def of(self, rows: int) -> int:
        return self.lasting + rows * self.row

    def rows(self, asked: int) -> int:
        """How many rows fit at once, up to `asked` and at least one."""
        room = int(ROOM * self.free) - self.lasting
        return max(1, min(asked, room // max(self.row, 1)))

    def told(self, rows: int, asked: int, length: int) -> dict[str, Any]:
        """What an event says of it, when `rows` of `length` tokens are read at a time where `asked` were to be."""
        text = f"a step with rows of {length:,} tokens needs about {self.of(rows) / 1e9:.1f} GB more, and {self.free / 1e9:.1f} GB are free"
        if rows < asked:
            text += f": {'one row is' if rows == 1 else f'{rows} rows are'} read at a time, not {asked}; what is learned is the same"
        tight = self.of(rows) > self.free
        if tight:
            text += "; it may not fit: close other programs, or lower model.seq_length or model.hidden_size"
        return {"text": text, "needs_bytes": self.of(rows), "free_bytes": self.free, "rows": rows, "asked": asked, "tight": tight}

    @property
    def is_hopeless(self) -> bool:
        """Whether not even a single row would fit if nothing else ran here."""
        return self.of(1) > self.total


def too_large(preset: Preset, vocab_size: int, device: torch.device) -> str:
    """Why the model of `preset` can't be trained and saved here, in a line; empty where its parameters fit. Known before any of them is made."""
    held, host = held_bytes(preset, vocab_size), torch.device("cpu")
    for place in {device, host}:
        needed, (_, total) = held.training * (place == device) + held.copy // processes() * (place == host), memory_of(place)
        if needed > total:
            count = count_parameters(preset, vocab_size).total
            what = f"{count:,} parameters need {needed / 1e9:,.0f} GB with what training and saving keep beside them"
            return f"{what}, and this machine has {total / 1e9:,.0f} GB: lower model.hidden_size or model.num_layers"
    return ""


def kept_bytes(forward: Callable[[], object], aside: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps of `forward` for the way back, each storage once, but for those of `aside`."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()
    for tensor in aside:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del result  # until here it held what was kept, so that no address was given twice
    return sum(kept.values())


def lasting_bytes(module: nn.Module, missing: Callable[[nn.Parameter], int]) -> int:
    """Bytes of gradients and moments that are still to come for the parameters of `module`; `missing`: how many moments of each."""
    return sum(parameter.nbytes * ((parameter.grad is None) + missing(parameter)) for parameter in module.parameters() if parameter.requires_grad)


def copy_bytes(module: nn.Module, moments: Callable[[nn.Parameter], int], averaged: bool, device: torch.device) -> int:
    """Bytes that the copy of weights, moments (how many there are of a parameter) and average takes, which a snapshot is written from, where training
    itself is in host memory: this process's part of them, as the first makes it for all."""
    copied = sum((1 + moments(parameter) + averaged) * parameter.nbytes for parameter in module.parameters())
    return copied // processes() if device.type == "cpu" else 0


def memory_of(device: torch.device) -> tuple[int, int]:
    """Bytes that this process may still take on `device`, and what the whole of it has. Of the host's, processes beside it get equal parts."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total
    host, beside = psutil.virtual_memory(), processes()
    limit, left = group_bytes()
    return min(host.available, left) // beside, min(host.total, limit) // beside


def slack(device: torch.device) -> float:
    """What a step takes at its height on `device`, over what it keeps."""
    return SLACK_OF_HOST if device.type == "cpu" else SLACK_OF_DEVICES


def peak_by_name(name: str) -> float | None:
    """What a whole device of this name does by its data sheet; None for one that is not known, a slice of one, or a laptop's of the same name."""
    if re.search(r"\b(MIG|Laptop|Max-Q)\b", name):
        return None
    return next((peak for words, peak in PEAKS.items() if re.search(rf"\b{words}\b(?! (D|Ti)\b)", name)), None)


@cache
def peak_products(device: torch.device, precision: str) -> float | None:
    """Floating point operations a second at best: by the data sheet where the device is known, else measured with a square product; None where
    there is no memory for that."""
    if device.type == "cuda" and precision == "bfloat16" and (known := peak_by_name(torch.cuda.get_device_name(device))):
        return known
    try:
        return _measured_products(device, getattr(torch, precision))
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _measured_products(device: torch.device, dtype: torch.dtype) -> float:
    size = 8192 if device.type == "cuda" else 1024
    draws = torch.Generator(device)  # of its own: a run's draws don't depend on what is measured
    square = torch.rand(size, size, generator=draws, device=device).to(dtype)  # equal numbers draw less power, and flatter a GPU
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        (square @ square).sum().item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def duration_told(tokens: int, pace: float, operations: float | None, peak: float | None) -> dict[str, Any]:
    """What an event says of `tokens` that are read at `pace` a second, each of `operations`, on what can do `peak` a second."""
    seconds = tokens / pace
    text = f"{tokens:,} tokens are to be read: about {in_hours(seconds)} at {pace:,.0f} a second"
    share = operations * pace / peak if operations and peak else None
    if share is not None:
        text += f", {100 * share:.0f}% of what the device can multiply"
    return {"text": text, "tokens_per_second": pace, "seconds": seconds, "device_share": share}


def in_hours(seconds: float) -> str:
    """ "45 minutes", "21 hours", "3 days"."""
    for size, name in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}s"
    return f"{seconds:.0f} seconds"

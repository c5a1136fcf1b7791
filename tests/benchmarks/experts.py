"""Time of a layer of experts, forward and backward: by the experts that a token uses, by those that there are, against the dense layer of
as many active parameters, and against transformers' Mixtral block with the same weights: python -m tests.benchmarks.experts

All take the same input in turns, and the median of the paired ratios counts. On the CPU the time is that of the processor, so that other
work on the machine weighs less. A router of first weights, so that loads are nearly even; and
one that sends every token to the same experts. EXPERTS_TOKENS (2048, as many as a step of the shipped presets has) says how many.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from lm.preset import Preset
from lm.units import Context
from lm.units.moe import Moe
from lm.units.swiglu import SwiGLU

TOKENS = int(os.environ.get("EXPERTS_TOKENS", 2048))
SECONDS = float(os.environ.get("EXPERTS_SECONDS", 6))
SIZE, WIDTH = 256, 352
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time


class Layer(NamedTuple):
    """Something that reads (1, T, D)."""

    module: nn.Module
    read: Callable[[Tensor], Tensor]


def preset_of(width: int, **moe: Any) -> Preset:
    return Preset.model_validate({"model": {"hidden_size": SIZE, "ffn_size": width}, "data": {"sources": ["c4"]}, "moe": moe})


def layer_of(unit: nn.Module) -> Layer:
    for parameter in unit.parameters():
        nn.init.normal_(parameter, std=0.02)
    unit.to(DEVICE)
    return Layer(unit, lambda x: unit(x, (), Context().derived(x[..., 0], torch.zeros(1, dtype=torch.int64, device=DEVICE), carry=False)).y)


def experts(count: int, used: int, skewed: bool = False) -> Layer:
    unit = Moe(preset_of(WIDTH, experts=count, experts_per_token=used, expert_size=WIDTH))
    if skewed:
        unit.bias[:used] = 2.0
    return layer_of(unit)


def dense(used: int) -> Layer:
    return layer_of(SwiGLU(preset_of(used * WIDTH)))


def mixtral(count: int, used: int, how: str) -> Layer:
    config = MixtralConfig(hidden_size=SIZE, intermediate_size=WIDTH, num_local_experts=count, num_experts_per_tok=used, experts_implementation=how)
    block = MixtralSparseMoeBlock(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.02)
    return Layer(block.to(DEVICE), block)


def timed(layer: Layer, x: Tensor) -> float:
    """With gradients made anew, as in a step."""
    layer.module.zero_grad(set_to_none=True)
    began = clock()
    layer.read(x).square().mean().backward()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def compared(layers: dict[str, Layer]) -> None:
    """A line for each: milliseconds, and its time over that of the first."""
    x = torch.randn(1, TOKENS, SIZE, device=DEVICE, requires_grad=True)
    times: dict[str, list[float]] = {name: [] for name in layers}
    for layer in layers.values():
        timed(layer, x)
    began = clock()
    while len(times[next(iter(layers))]) < 5 or clock() - began < SECONDS:
        for name, layer in layers.items():
            times[name].append(timed(layer, x))
    first = next(iter(times.values()))
    for name, found in times.items():
        ratio = statistics.median(each / one for each, one in zip(found, first, strict=True))
        print(f"  {name:44} {1e3 * statistics.median(found):8.2f} ms   {ratio:5.2f}", flush=True)


def main() -> None:
    print(f"{DEVICE.type}, float32, {TOKENS:,} tokens, hidden {SIZE}, experts {WIDTH} wide, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("by experts that a token uses, of 8; dense: as wide as those together")
    compared({name: layer for used in (1, 2, 4) for name, layer in {f"{used} of 8": experts(8, used), f"dense, {used} wide": dense(used)}.items()})
    print("by experts that there are, 2 used")
    compared({"dense, 2 wide": dense(2)} | {f"2 of {count}": experts(count, 2) for count in (4, 16, 64)} | {"2 of 64, always the same": experts(64, 2, True)})
    for count in (8, 64):
        print(f"against transformers' Mixtral block, 2 of {count}")
        compared({"ours": experts(count, 2)} | {f"Mixtral, {how}": mixtral(count, 2, how) for how in ("eager", "grouped_mm")})


if __name__ == "__main__":
    main()

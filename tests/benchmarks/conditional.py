"""Computing only where it pays: the time of a forward and backward pass of CoLT5's units, and of a layer that some tokens read, by the share of
tokens that is picked, against the dense layer, and for the feed-forward against a dense one of equal active width.

What they do to a model's held-out bits per byte is measured by tests/benchmarks/cards.py. `python -m tests.benchmarks.conditional`
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lm.model import Context, Layer
from lm.preset import Preset
from lm.units import UNITS, Unit
from lm.units.mixture_of_depths import MixtureOfDepths
from lm.units.router import Router
from lm.units.swiglu import SwiGLU

SHARES = (0.05, 0.125, 0.25, 0.5, 1.0)
SIZES = {"hidden_size": 256, "num_heads": 4, "seq_length": 512}
BATCH, TIME, READINGS = 4, 512, 9


def preset_of(model: dict[str, Any], **sections: Any) -> Preset:
    return Preset.model_validate({"model": model, "data": {"sources": ["c4"]}, **sections})


def prepared(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim >= 2:  # an output of zeros would hide what follows from it
            nn.init.normal_(parameter, std=0.05)
    return module


def seconds(read: Callable[[Tensor, Context], Tensor]) -> float:
    """Of a pass there and back over the same batch, the median."""
    x = torch.randn(BATCH, TIME, SIZES["hidden_size"], generator=torch.Generator().manual_seed(1)).requires_grad_()
    context = Context().derived(x[..., 0], torch.zeros(BATCH, dtype=torch.int64), carry=False)
    taken = []
    for _ in range(READINGS + 1):
        began = time.perf_counter()
        read(x, context).square().mean().backward()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def picking(module: nn.Module, share: float) -> None:
    """Set thresholds so that `share` of what the routers are given is picked."""

    @torch.no_grad()
    def settle(router: Router, inputs: tuple[Tensor, Any, Context]) -> None:
        scores = router.scores(inputs[0]).flatten()
        router.threshold.copy_(scores.sort().values[round((1 - share) * len(scores)) - 1] if share < 1 else scores.min() - 1)

    for router in (part for part in module.modules() if isinstance(part, Router)):
        router.register_forward_pre_hook(settle)


def times() -> None:
    def of_unit(unit: Unit) -> float:
        return seconds(lambda x, context: unit(x, unit.initial_state(BATCH), context).y)

    def of_layer(layer: Layer, depths: MixtureOfDepths | None) -> float:
        if depths is None:
            return seconds(lambda x, context: layer(x, layer.initial_state(BATCH), context).y)
        return seconds(lambda x, context: depths(layer, x, depths.initial_state(layer, BATCH), context).y)

    preset = preset_of(SIZES)
    width = preset.model.feed_forward_size
    layer = Layer(("attention", "swiglu"), [UNITS["attention"](preset), UNITS["swiglu"](preset)], SIZES["hidden_size"], 1e-6, tells=False)
    prepared(layer)
    dense = {name: of_unit(prepared(UNITS[name](preset))) for name in ("swiglu", "attention")} | {"layer": of_layer(layer, None)}
    print(f"{BATCH} rows of {TIME}, {SIZES}, {torch.get_num_threads()} threads, float32; forward and backward", flush=True)
    print(f"dense: {', '.join(f'{name} {1e3 * took:.1f} ms' for name, took in dense.items())}", flush=True)
    for share in SHARES:
        colt5, heads = (prepared(UNITS[name](preset)) for name in ("colt5", "colt5_attention"))
        depths = MixtureOfDepths(preset)
        depths.initialise()
        for module in (colt5, heads, depths):
            picking(module, share)
        active = round(width * (0.5 + 2 * share))
        peer = of_unit(prepared(SwiGLU(preset, active)))
        found = {"colt5": of_unit(colt5), f"dense of {active}": peer, "colt5_attention": of_unit(heads), "depths": of_layer(layer, depths)}
        print(f"{share:6.1%} picked: {', '.join(f'{name} {1e3 * took:.1f} ms' for name, took in found.items())}", flush=True)


if __name__ == "__main__":
    times()

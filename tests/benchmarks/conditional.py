"""Computing only where it pays: python -m tests.benchmarks.conditional

    time     a forward and backward pass of CoLT5's units and of a layer that some tokens read, by the share of tokens that is picked, against the
             dense layer, and for the feed-forward against a dense one of equal active width
    quality  held-out bits per byte of models with the same trunk, by tokens and by seconds of training, and the shares that were picked

CONDITIONAL_PARTS="time" leaves the other out. CONDITIONAL_TOKENS (500,000) and CONDITIONAL_SEED (0) belong to the second. Text: the Hub that
HF_ENDPOINT leads to, else installed documentation.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from data_sources import open_stream
from data_sources.tokenizer import build_tokenizer, token_bytes
from lm.model import Context, Layer, build_model
from lm.preset import Preset, count_parameters, load_preset
from lm.training.learner import Learner, weighted_sum
from lm.units import UNITS, Unit
from lm.units.mixture_of_depths import MixtureOfDepths
from lm.units.router import QUICK, Router
from lm.units.swiglu import SwiGLU
from tests.benchmarks.learning import bits_per_byte, factor
from tests.benchmarks.peers import stepper
from tests.benchmarks.text import LOCAL

SHARES = (0.05, 0.125, 0.25, 0.5, 1.0)
SIZES = {"hidden_size": 256, "num_heads": 4, "seq_length": 512}
BATCH, TIME, READINGS = 4, 512, 9
TOKENS, SEED = int(os.environ.get("CONDITIONAL_TOKENS", 500_000)), int(os.environ.get("CONDITIONAL_SEED", 0))
TRUNK = {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "seq_length": 256, "ffn_size": 176}
ROWS, HELD_OUT_BATCHES, RATE, VOCABULARY, LOOKS = 8, 8, 2e-3, 2048, 8
ON = {"enabled": True}
PLANS: dict[str, dict[str, Any]] = {
    "dense": {},
    "colt5 0.1": {"colt5": ON | {"budget": 0.1}},
    "colt5 0.25": {"colt5": ON | {"budget": 0.25}},
    "colt5 0.5": {"colt5": ON | {"budget": 0.5}},
    "colt5_attention 0.25": {"colt5_attention": ON | {"budget": 0.25}},
    "depths 0.5, odd": {"mixture_of_depths": ON | {"share": 0.5, "layers": "odd"}},
    "depths 0.125, odd": {"mixture_of_depths": ON | {"share": 0.125, "layers": "odd"}},
    "longformer, odd": {"longformer": ON | {"window": 64, "layers": "odd"}},
    "longformer masked, odd": {
        "longformer": ON | {"window": 64, "layers": "odd"},
        "mixture_of_depths": ON | {"share": 0.5, "layers": "odd", "select": "previous_ffn"},
    },
}


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
        router.threshold.copy_((scores.sort().values[round((1 - share) * len(scores)) - 1] if share < 1 else scores.min() - 1) / QUICK)

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


def quality() -> None:
    data = load_preset("configs/00_best_general.json").data if os.environ.get("HF_ENDPOINT") else LOCAL
    tokenizer = build_tokenizer(data.model_copy(update={"vocab_size": VOCABULARY}), seed=0)
    sizes, length = torch.tensor(token_bytes(tokenizer)), TRUNK["seq_length"]
    with open_stream(data, tokenizer, length, ROWS, part="held_out") as stream:
        held = [batch for batch, _ in (next(stream) for _ in range(HELD_OUT_BATCHES))]
    names = os.environ["CONDITIONAL_PLANS"].split(";") if "CONDITIONAL_PLANS" in os.environ else list(PLANS)
    presets = {name: preset_of(TRUNK, **PLANS[name]) for name in names}
    learners, told = {}, {name: {} for name in names}
    for name, preset in presets.items():
        torch.manual_seed(SEED)
        learners[name] = Learner(build_model(preset, len(tokenizer)))
        count = count_parameters(preset, len(tokenizer))
        print(f"{name}: {count.total if count else 0:,} parameters", flush=True)
    steps, taken = TOKENS // (ROWS * length), dict.fromkeys(names, 0.0)

    def loss_of(name: str) -> Callable[[Any], Tensor]:
        def loss(batch: Any) -> Tensor:
            learned = learners[name]([batch])
            told[name] = learned.stats
            return weighted_sum(learned.losses, presets[name].loss_weights) if learners[name].training else learned.losses["next_token"]

        return loss

    losses = {name: loss_of(name) for name in names}
    takers = {name: stepper(learners[name], losses[name], RATE) for name in names}
    sums: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    with open_stream(data, tokenizer, length, ROWS, seed=SEED) as stream:
        for index in range(steps):
            batch, _ = next(stream)
            for name, take in takers.items():
                began = time.perf_counter()
                take(batch, factor(index, steps))
                learners[name].model.after_step(told[name])
                taken[name] += time.perf_counter() - began
                sums[name] |= {key: sums[name].get(key, 0) + value for key, value in told[name].items()}
            if (index + 1) % (steps // LOOKS) == 0:
                print(f"seed {SEED}, {(index + 1) * ROWS * length:,} tokens:", flush=True)
                for name in names:
                    bits, _ = bits_per_byte(losses[name], learners[name], held, sizes)
                    shares = ", ".join(f"{key} {float(picked / of):.4f}" for key, (picked, of) in sums[name].items() if key.endswith("share"))
                    print(f"    {name:22} {bits:.4f} bits per byte after {taken[name]:6.1f} s; picked since: {shares or 'all'}", flush=True)
                    sums[name] = {}


def main() -> None:
    parts = {"time": times, "quality": quality}
    for name in os.environ.get("CONDITIONAL_PARTS", " ".join(parts)).split():
        parts[name]()


if __name__ == "__main__":
    main()

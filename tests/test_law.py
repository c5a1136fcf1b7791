"""The one law: cutting time anywhere changes nothing. Held for every entry of UNITS and for the whole model.

All parameters are random, so that a gate that starts at zero can't hide anything, and all sizes differ, so that a transposition can't.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from data_sources.batch import Arrivals
from lm.model import Context, build_model
from lm.preset import MECHANISMS, Preset, layer_plan, load_preset
from lm.preset.plan import state_grows
from lm.units import UNITS
from lm.units.neighbours import AT, ENCODED, LENGTH, encoder_size
from lm.units.retro import Neighbours
from lm.units.router import Routed, Router, mean_before

B, T, V = 2, 23, 5
ALL = slice(None)
SEQ_LENGTH = 9  # shorter than half of T: the law holds past what was trained
MODEL = {"hidden_size": 12, "num_layers": 2, "num_heads": 3, "seq_length": SEQ_LENGTH, "ffn_size": 7}
DATA = {"sources": ["installed_docs"]}
CUTS = {"single tokens": [1] * T, "uneven": [1, 5, 0, 9, 8], "halves": [12, 11], "one late": [22, 1]}

# Each entry: the sections of a preset beside the defaults. A unit is tested in every variant of its switches.
Sections = dict[str, dict[str, Any]]
VARIANTS: dict[str, list[Sections]] = {
    "attention": [
        {},
        {"model": {"num_kv_heads": 1}},
        {"model": {"qk_norm": False}},
        {"model": {"position": "learned"}},
        {"model": {"position_interpolation": 3.0}},
    ],
    "longformer": [
        {"longformer": {"window": 5, "global_tokens": 3}},
        {"longformer": {"window": 5}},
        {"longformer": {"window": 2, "global_tokens": 4}, "model": {"num_kv_heads": 1}},
        {"longformer": {"window": 1, "global_tokens": 1}, "model": {"qk_norm": False}},
        {"longformer": {"window": 31, "global_tokens": 3}, "model": {"position": "learned"}},
        {"longformer": {"window": 7, "global_tokens": 29}, "model": {"position_interpolation": 3.0}},
    ],
    "swiglu": [{}],
    "relu2": [{}, {"model": {"ffn_size": None}}],
    "rwkv": [{"rwkv": {"mix_rank": 5, "decay_rank": 7}}, {"rwkv": {"mix_rank": 1, "decay_rank": 2}, "model": {"num_heads": 1}}],
    "rwkv_channel": [{}, {"model": {"ffn_size": None}}],
    "s5": [{"s5": {"state_size": 10}}, {"s5": {"state_size": 12, "blocks": 3}}, {"s5": {"state_size": 2}}],
    "deltanet": [
        {},
        {"deltanet": {"key_size": 5, "value_size": 7, "kernel_size": 2}},
        {"deltanet": {"gated": False, "key_size": 3, "kernel_size": 1}, "model": {"num_heads": 2}},
        {"deltanet": {"gated": False, "output_gate": False, "value_size": 1, "kernel_size": 3}},
        {"deltanet": {"output_gate": False, "key_size": 1, "kernel_size": 29}, "model": {"num_heads": 1}},
    ],
    "hyena": [
        {"hyena": {"filter_order": 11, "embedding_dim": 5}},
        {"hyena": {"filter_order": 8, "embedding_dim": 3, "order": 1, "filter_length": 1, "kernel_size": 1}},
        {"hyena": {"filter_order": 7, "embedding_dim": 1, "order": 3, "filter_length": 41, "kernel_size": 4}},
        {"hyena": {"filter_order": 5, "embedding_dim": 9, "filter_length": 4, "kernel_size": 31}},
    ],
    "mamba2": [
        {"mamba2": {"state_size": 5}},
        {"mamba2": {"state_size": 7, "expand": 1, "head_size": 2, "groups": 3, "kernel_size": 1}},
        {"mamba2": {"state_size": 1, "head_size": 1, "groups": 2, "kernel_size": 31}},
    ],
    "shared_attention": [{}, {"model": {"num_kv_heads": 1}}, {"model": {"qk_norm": False}}, {"model": {"position": "learned"}}],
    "colt5": [
        {"colt5": {"light_size": 5, "heavy_size": 11, "router_size": 7}},
        {"colt5": {"router_type": "threshold"}},
        {"colt5": {"routing_strategy": "sequence_level", "router_type": "threshold", "light_size": 1}},
    ],
    "colt5_attention": [
        {"colt5_attention": {"window": 5, "light_heads": 2, "router_size": 7}},
        {"colt5_attention": {"window": 1, "router_type": "threshold"}, "model": {"num_kv_heads": 1, "qk_norm": False}},
        {"colt5_attention": {"window": 29, "routing_strategy": "sequence_level", "router_type": "threshold"}, "model": {"position": "learned"}},
    ],
    "retro": [
        {"retro": {"num_neighbors": 2, "chunk_size": 3}},
        {"retro": {"num_neighbors": 1, "chunk_size": 2}, "model": {"num_kv_heads": 1, "qk_norm": False}},
        {"retro": {"num_neighbors": 3, "chunk_size": 5, "encoder_size": 12}, "model": {"position": "learned"}},
        {"retro": {"num_neighbors": 2, "chunk_size": 31}, "model": {"position_interpolation": 3.0, "num_heads": 1}},
    ],
    "gla": [{"gla": {"decay_rank": 5}}, {"gla": {"decay_rank": 1, "key_size": 7, "decay_temperature": 0.5}}, {"model": {"num_heads": 1}}],
    "moe": [
        {"moe": {"experts": 3, "experts_per_token": 1}},
        {"moe": {"experts": 5, "experts_per_token": 2, "expert_size": 3}},
        {"moe": {"experts": 4, "experts_per_token": 3, "expert_size": 7, "shared_experts": 2}},
        {"moe": {"experts": 4, "experts_per_token": 2, "expert_size": 1, "shared_experts": 1, "normalise": False}},
    ],
}
MODELS: dict[str, Sections] = {
    "rope": {},
    "grouped": {"model": {"num_kv_heads": 1, "tie_embeddings": False}},
    "learned": {"model": {"position": "learned"}},
    "state space between, window inside": {
        "s5": {"enabled": True, "layers": "even", "state_size": 6},
        "longformer": {"enabled": True, "layers": "odd", "window": 5, "global_tokens": 2},
    },
    "convolutions": {"hyena": {"enabled": True, "filter_order": 7, "embedding_dim": 5}},
    "three delta rules, then attention": {
        "model": {"num_layers": 4},
        "deltanet": {"enabled": True, "layers": [0, 1, 2], "key_size": 5, "value_size": 7},
    },
    "rwkv": {"rwkv": {"enabled": True, "mix_rank": 5, "decay_rank": 7}, "rwkv_channel": {"enabled": True}},
    "keys and values made once": {
        "model": {"num_layers": 5, "num_kv_heads": 1},
        "gla": {"enabled": True, "layers": "first_half", "decay_rank": 5},
        "shared_attention": {"enabled": True, "layers": "last_half"},
    },
    "keys and values made once, others between and beside": {
        "model": {"num_layers": 5, "position_interpolation": 3.0},
        "shared_attention": {"enabled": True, "layers": [1, 3, 4]},
        "mamba2": {"enabled": True, "layers": [1, 2], "state_size": 5},
        "longformer": {"enabled": True, "layers": [3], "window": 4},
    },
    "gates": {"head_gating": {"enabled": True, "ffn_groups": 7}, "s5": {"enabled": True, "layers": [1], "state_size": 6}},
    "feed-forwards that share": {"model": {"num_layers": 3}, "shared_ffn": {"enabled": True, "private_share": 0.3}},
    "scores within a soft cap": {"model": {"logit_soft_cap": 1.5, "num_kv_heads": 1, "tie_embeddings": False}},
    "squared ReLU": {"model": {"activation": "relu2"}, "s5": {"enabled": True, "layers": [1], "state_size": 6}},
    "squared ReLUs that share": {"model": {"num_layers": 3, "activation": "relu2"}, "shared_ffn": {"enabled": True, "private_share": 0.3}},
    "feed-forwards that share all": {"model": {"num_layers": 3}, "shared_ffn": {"enabled": True, "private_share": 0.0, "layers": [0, 2]}},
    "gates, keys and feed-forwards that share": {
        "model": {"num_layers": 4, "ffn_size": 14},
        "head_gating": {"enabled": True, "ffn_groups": 2, "layers": [0, 1, 3]},
        "shared_ffn": {"enabled": True, "private_share": 0.3},
        "shared_attention": {"enabled": True, "layers": "last_half"},
        "rwkv_channel": {"enabled": True, "layers": [3]},
    },
    "values of the first attention": {"model": {"num_layers": 3, "num_kv_heads": 1, "value_residual": True}},
    "values of the first attention, others between, windows": {
        "model": {"num_layers": 5, "value_residual": True},
        "s5": {"enabled": True, "layers": [0, 3], "state_size": 6},
        "longformer": {"enabled": True, "layers": [2, 3], "window": 5, "global_tokens": 2},
        "head_gating": {"enabled": True, "ffn_groups": 0},
    },
    "values of the first attention in windows alone": {
        "model": {"num_layers": 3, "value_residual": True},
        "longformer": {"enabled": True, "layers": "even", "window": 4, "global_tokens": 1},
        "mixture_of_depths": {"enabled": True, "layers": [1], "router_type": "threshold"},
        "s5": {"enabled": True, "layers": [1], "state_size": 6},
    },
    "heavy tokens": {"colt5": {"enabled": True}, "colt5_attention": {"enabled": True, "layers": "odd", "window": 4}},
    "depths: attention": {"mixture_of_depths": {"enabled": True, "router_size": 7}},
    "depths: state space, window": {
        "s5": {"enabled": True, "layers": "even", "state_size": 6},
        "longformer": {"enabled": True, "layers": "odd", "window": 3, "global_tokens": 2},
        "mixture_of_depths": {"enabled": True, "router_type": "threshold"},
    },
    "depths: rwkv": {"rwkv": {"enabled": True, "mix_rank": 5, "decay_rank": 7}, "rwkv_channel": {"enabled": True}, "mixture_of_depths": {"enabled": True}},
    "depths by sequence: matrix memories": {
        "mamba2": {"enabled": True, "layers": "even", "state_size": 5},
        "gla": {"enabled": True, "layers": "odd", "decay_rank": 7},
        "mixture_of_depths": {"enabled": True, "routing_strategy": "sequence_level", "router_type": "threshold"},
    },
    "depths: delta rule, convolution": {
        "deltanet": {"enabled": True, "layers": "even", "key_size": 5, "value_size": 7},
        "hyena": {"enabled": True, "layers": "odd", "filter_order": 7, "embedding_dim": 5},
        "mixture_of_depths": {"enabled": True},
    },
    "a window sees what the feed-forward before leaves": {
        "longformer": {"enabled": True, "layers": "odd", "window": 3},
        "mixture_of_depths": {"enabled": True, "layers": "odd", "select": "previous_ffn", "router_type": "threshold"},
    },
    "depths of heavy tokens": {
        "colt5": {"enabled": True, "light_size": 5},
        "colt5_attention": {"enabled": True, "window": 3},
        "mixture_of_depths": {"enabled": True, "layers": "odd"},
    },
    "matrix memories": {"mamba2": {"enabled": True, "layers": "even", "state_size": 5}, "gla": {"enabled": True, "layers": "odd", "decay_rank": 7}},
    "neighbours": {"retro": {"enabled": True, "layers": [1], "chunk_size": 3}},
    "neighbours of many layers, learned places": {
        "model": {"num_layers": 3, "num_kv_heads": 1, "position": "learned"},
        "retro": {"enabled": True, "layers": [0, 2], "num_neighbors": 1, "chunk_size": 5, "encoder_layers": 1, "encoder_size": 12},
        "head_gating": {"enabled": True, "layers": [0], "ffn_groups": 0},
    },
    "neighbours beside states that do not grow": {
        "retro": {"enabled": True, "layers": "all", "num_neighbors": 3, "chunk_size": 2, "encoder_layers": 1},
        "s5": {"enabled": True, "layers": "even", "state_size": 6},
        "longformer": {"enabled": True, "layers": "odd", "window": 3},
        "moe": {"enabled": True, "layers": "odd", "experts": 4, "experts_per_token": 2, "expert_size": 5},
    },
    "experts": {"moe": {"enabled": True, "layers": "odd", "experts": 4, "experts_per_token": 2, "expert_size": 5}, "s5": {"enabled": True, "state_size": 6}},
}


class Reading(NamedTuple):
    """Something under the law: how it reads a piece, its first state, its parameters, what it can be fed, and neighbours that come with that."""

    read: Callable[[Tensor, Any, Tensor | None, Neighbours | None], tuple[Tensor, Any]]
    state: Callable[[int], Any]
    module: nn.Module
    text: Tensor
    memory: Neighbours | None

    def came(self, rows: slice = ALL, columns: slice = ALL) -> Neighbours | None:
        """The neighbours that come with a part of the text."""
        return None if self.memory is None else Neighbours(*Arrivals(*self.memory).part(rows, columns, self.text.shape[:2]))


def preset_of(sections: Sections) -> Preset:
    return Preset.model_validate({"data": DATA, **sections, "model": MODEL | sections.get("model", {})})


def randomised(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.4, generator=generator)
    return module.to(dtype)


def routers_of(module: nn.Module) -> list[Router]:
    return [part for part in module.modules() if isinstance(part, Router)]


@torch.no_grad()
def with_thresholds_between(it: Reading) -> Reading:
    """Each router picks the tokens of its text that score above the mean, which is no token's own score."""

    def settle(router: Router, inputs: tuple[Tensor, Any, Context]) -> None:
        scores = router.scores(inputs[0])
        router.threshold.copy_((mean_before(scores, *inputs[1:])[0] if router.by_sequence else scores).mean())

    hooks = [router.register_forward_pre_hook(settle) for router in routers_of(it.module)]
    if hooks:
        it.read(it.text, it.state(B), restarts(it.text.shape[1]), it.came())
    for hook in hooks:
        hook.remove()
    return it


def neighbours(preset: Preset, time: int) -> Neighbours:
    """At a fifth of the tokens of a short text, of any length, often of none at all; some come where a document begins, some before it."""
    generator = torch.Generator().manual_seed(5)
    came = torch.rand(B, time, generator=generator) < min(0.2, 500 / time)
    came[:, 7], came[0, 17] = True, True
    at = came.flatten().nonzero().flatten()
    count, size = preset.retro.num_neighbors, 2 * preset.retro.chunk_size
    length = torch.randint(-1, size + 1, (len(at), count), generator=generator).clamp(min=0)
    length[::7] = 0
    return Neighbours(at, torch.randint(V, (len(at), count, size), generator=generator), length)


def as_shared(memory: Neighbours | None, size: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the model makes of neighbours for a unit: any vector of `size` for each of their tokens."""
    if memory is None:
        return {}
    vectors = torch.randn(V, size, dtype=dtype, generator=torch.Generator().manual_seed(6))
    inside = torch.arange(memory.tokens.shape[2]) < memory.length[..., None]
    return {AT: memory.at, ENCODED: vectors[memory.tokens] * inside[..., None], LENGTH: memory.length}


def unit_reading(name: str, variant: Sections, dtype: torch.dtype, time: int = T) -> Reading:
    preset = preset_of(variant)
    unit = randomised(UNITS[name](preset), dtype)

    def read(x: Tensor, state: Any, restart: Tensor | None, memory: Neighbours | None) -> tuple[Tensor, Any]:
        start, inner = state
        context = Context(restart=restart, shared=as_shared(memory, encoder_size(preset), dtype)).derived(x[..., 0], start, carry=True)
        mixed = unit(x, inner, context)
        return mixed.y, (context.position[:, -1] + 1 if x.shape[1] else start, mixed.state)

    text = torch.randn(B, time, MODEL["hidden_size"], dtype=dtype, generator=torch.Generator().manual_seed(2))
    memory = neighbours(preset, time) if name == "retro" else None
    return with_thresholds_between(Reading(read, lambda rows: (torch.zeros(rows, dtype=torch.int64), unit.initial_state(rows)), unit, text, memory))


def model_reading(variant: Sections, dtype: torch.dtype, time: int = T) -> Reading:
    return reading_of(preset_of(variant), dtype, time)


def reading_of(preset: Preset, dtype: torch.dtype, time: int) -> Reading:
    model = randomised(build_model(preset, V), dtype)

    def read(tokens: Tensor, state: Any, restart: Tensor | None, memory: Neighbours | None) -> tuple[Tensor, Any]:
        out = model(tokens, state, Context(restart=restart, memory=memory))
        return out.logits, out.state

    text = torch.randint(V, (B, time), generator=torch.Generator().manual_seed(3))
    memory = neighbours(preset, time) if any("retro" in layer for layer in model.plan) else None
    return with_thresholds_between(Reading(read, model.initial_state, model, text, memory))


CASES = [pytest.param(unit_reading, (name, variant), id=f"{name}-{variant}") for name in UNITS for variant in VARIANTS[name]]
CASES += [pytest.param(model_reading, (variant,), id=f"model-{name}") for name, variant in MODELS.items()]
under_the_law = pytest.mark.parametrize(("make", "arguments"), CASES)
ONE_DOCUMENT = pytest.param(False, marks=pytest.mark.slow, id="one document")  # the documents of a row are cut, too
with_and_without_restarts = pytest.mark.parametrize("with_restarts", [ONE_DOCUMENT, pytest.param(True, id="restarts")])


def in_pieces(it: Reading, text: Tensor, cuts: list[int], restart: Tensor | None = None, rows: slice = ALL) -> tuple[Tensor, Any]:
    """Read `text`, which is the first columns of `rows` of what `it` can be fed, or something else that the same neighbours come with."""
    state, pieces, at = it.state(len(text)), [], 0
    for length in cuts:
        piece = slice(at, at + length)
        y, state = it.read(text[:, piece], state, None if restart is None else restart[:, piece], it.came(rows, piece))
        pieces.append(y)
        at += length
    assert at == text.shape[1]
    return torch.cat(pieces, 1), state


def restarts(time: int = T) -> Tensor:
    restart = torch.zeros(B, time, dtype=torch.bool)
    restart[0, [0, 4, 5, 17]] = True
    restart[1, [7, 22]] = True
    return restart


def close(a: Any, b: Any, dtype: torch.dtype) -> None:
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    leaves_a, structure_a = tree_flatten(a)
    leaves_b, structure_b = tree_flatten(b)
    assert structure_a == structure_b
    for left, right in zip(leaves_a, leaves_b, strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance * max(1.0, float(right.detach().double().abs().max()) if right.numel() else 1.0))


def test_every_unit_is_under_the_law() -> None:
    assert set(VARIANTS) == set(UNITS)
    assert set(UNITS) == {"attention", "swiglu", "relu2"} | set(MECHANISMS)


@under_the_law
@torch.no_grad()
def test_pieces_equal_the_whole_and_go_on_as_it_does(make: Callable[..., Reading], arguments: tuple[Any, ...]) -> None:
    """Whatever the cuts, also when documents began in between: what is read, and what is read after it from the states they leave."""
    it = make(*arguments, torch.float64, 3 * T)
    before, after = it.text[:, :T], it.text[:, T:]
    for restart in (None, restarts()):
        whole, state = in_pieces(it, before, [T], restart)
        continued = it.read(after, state, None, it.came(ALL, slice(T, None)))[0]
        for cuts in CUTS.values():
            pieces, state = in_pieces(it, before, cuts, restart)
            close(pieces, whole, torch.float64)
            close(it.read(after, state, None, it.came(ALL, slice(T, None)))[0], continued, torch.float64)


@with_and_without_restarts
@under_the_law
@torch.no_grad()
def test_pieces_equal_the_whole_in_single_precision(make: Callable[..., Reading], arguments: tuple[Any, ...], with_restarts: bool) -> None:
    it, restart = make(*arguments, torch.float32), restarts() if with_restarts else None
    whole = in_pieces(it, it.text, [T], restart)
    for cuts in CUTS.values():
        close(in_pieces(it, it.text, cuts, restart)[0], whole[0], torch.float32)


@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried"])
@under_the_law
def test_packed_documents_equal_documents_one_by_one(make: Callable[..., Reading], arguments: tuple[Any, ...], carried: bool) -> None:
    it = make(*arguments, torch.float64)
    packed, _ = it.read(it.text, in_pieces(it, it.text, [T])[1] if carried else it.state(B), restarts(), it.came())
    for row in range(B):
        starts = restarts()[row].nonzero().flatten().tolist()
        for start, stop in itertools.pairwise([*starts, T]):
            rows, columns = slice(row, row + 1), slice(start, stop)
            alone, _ = it.read(it.text[rows, columns], it.state(1), None, it.came(rows, columns))
            close(packed[rows, columns], alone, torch.float64)


@under_the_law
def test_rows_do_not_see_each_other(make: Callable[..., Reading], arguments: tuple[Any, ...]) -> None:
    it = make(*arguments, torch.float64)
    together, _ = in_pieces(it, it.text, CUTS["uneven"], restarts())
    for row in range(B):
        rows = slice(row, row + 1)
        alone, _ = in_pieces(it, it.text[rows], CUTS["uneven"], restarts()[rows], rows)
        close(together[rows], alone, torch.float64)


@with_and_without_restarts
@under_the_law
def test_gradients_equal(make: Callable[..., Reading], arguments: tuple[Any, ...], with_restarts: bool) -> None:
    """And what is read where they are wanted: some units do that another way."""
    it, restart = make(*arguments, torch.float64), restarts() if with_restarts else None

    def gradients(cuts: list[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
        text = it.text.clone().requires_grad_(it.text.is_floating_point())
        y, _ = in_pieces(it, text, cuts, restart)
        weight = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(4))
        inputs = [*it.module.parameters(), *([text] if text.requires_grad else [])]
        return y.detach(), torch.autograd.grad((y * weight).sum(), inputs)

    whole = gradients([T])
    assert all(bool(gradient.abs().sum() > 0) for gradient in whole[1])
    for cuts in CUTS.values():
        close(gradients(cuts), whole, torch.float64)


@under_the_law
def test_later_tokens_change_nothing_before(make: Callable[..., Reading], arguments: tuple[Any, ...]) -> None:
    it = make(*arguments, torch.float64)
    for restart in (None, restarts()):
        whole, _ = it.read(it.text, it.state(B), restart, it.came())
        for at in (1, 11, T - 1):
            other = it.text.clone()
            other[:, at:] = other[:, at:].flip(1) * 3 % V if other.dtype == torch.int64 else 50 * other[:, at:].flip(1)
            changed, _ = it.read(other, it.state(B), restart, changed_from(it.memory, at))
            close(changed[:, :at], whole[:, :at], torch.float64)


def changed_from(memory: Neighbours | None, column: int) -> Neighbours | None:
    """Other neighbours for all that come at `column` or later."""
    if memory is None:
        return None
    later = (memory.at % T >= column)[:, None]
    tokens, length = torch.where(later[..., None], memory.tokens * 3 % V, memory.tokens), torch.where(later, memory.length.flip(0), memory.length)
    return memory._replace(tokens=tokens, length=length)


@under_the_law
def test_states_are_never_written_in_place(make: Callable[..., Reading], arguments: tuple[Any, ...]) -> None:
    it = make(*arguments, torch.float64)
    _, state = in_pieces(it, it.text, [T])
    kept = tree_map(torch.clone, state)
    for restart in (None, restarts()):
        _, after = it.read(it.text, state, restart, it.came())
        close(state, kept, torch.float64)
        assert tree_flatten(after)[1] == tree_flatten(state)[1]
        for leaf in tree_leaves(after):
            assert leaf.untyped_storage().nbytes() <= max(leaf.numel() * leaf.element_size(), 8), "a slice keeps a larger buffer alive"


@under_the_law
def test_states_have_a_row_for_each_row_and_grow_only_where_the_plan_says(make: Callable[..., Reading], arguments: tuple[Any, ...]) -> None:
    it = make(*arguments, torch.float64, 9 * T)
    early, late = (tree_leaves(in_pieces(it, it.text[:, :length], [length])[1]) for length in (8 * T, 9 * T))
    assert all(len(leaf) == B for leaf in late)
    grows = [leaf.shape for leaf in early] != [leaf.shape for leaf in late]
    names = {arguments[0]} if make is unit_reading else {unit for layer in it.module.plan for unit in layer}
    assert grows == any(map(state_grows, names))


@under_the_law
def test_empty_pieces_and_empty_states(make: Callable[..., Reading], arguments: tuple[Any, ...]) -> None:
    it = make(*arguments, torch.float64)
    y, state = it.read(it.text[:, :0], it.state(B), restarts()[:, :0], it.came(ALL, slice(0)))
    assert y.shape[:2] == (B, 0)
    close(it.read(it.text, state, None, it.came())[0], it.read(it.text, it.state(B), None, it.came())[0], torch.float64)
    assert all(isinstance(leaf, Tensor) for leaf in tree_leaves(state))


@under_the_law
def test_routers_pick_some_tokens_and_not_others(make: Callable[..., Reading], arguments: tuple[Any, ...]) -> None:
    """Else what is said of picked tokens here would say nothing. Documents begin with tokens that are not picked, too."""
    it, shares, skipped = make(*arguments, torch.float64), [], []

    def look(router: Router, inputs: tuple[Tensor, Any, Context], routed: Routed) -> None:
        shares.append(float(routed.picked.double().mean()))
        skipped.append(router.by_sequence or bool(inputs[2].restart[~routed.picked].any()))

    for router in routers_of(it.module):
        router.register_forward_hook(look)
    it.read(it.text, it.state(B), restarts(), it.came())
    assert all(0.1 < share < 0.9 for share in shares), shares
    assert not skipped or any(skipped)


BOUNDED = [name for name, variant in MODELS.items() if not any(state_grows(unit) for layer in layer_plan(preset_of(variant)) for unit in layer)]


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDED)
@torch.no_grad()
def test_after_a_hundred_thousand_tokens(name: str) -> None:
    """Restarts at random places, pieces of random lengths, then token by token: as read at once."""
    time, generator = 100_040, torch.Generator().manual_seed(4)
    it = model_reading(MODELS[name], torch.float64, time)
    restart = torch.rand(B, time, generator=generator) < 5e-5
    whole, after = it.read(it.text, it.state(B), restart, it.came())
    cuts = torch.rand(9, generator=generator).mul(100_000).long().sort().values.tolist()
    lengths = [end - start for start, end in itertools.pairwise([0, *cuts, 100_000])] + [1] * 40
    pieces, state = in_pieces(it, it.text, lengths, restart)
    close(pieces, whole, torch.float64)
    close(state, after, torch.float64)


CAUSAL = [path for path in sorted(Path("configs").glob("[0-9]*.json")) if load_preset(path).model.bidirectional == "off"]


@pytest.mark.slow
@pytest.mark.parametrize("path", CAUSAL, ids=lambda path: path.stem)
@torch.no_grad()
def test_shipped_models_are_under_the_law(path: Path) -> None:
    """At their own sizes, past their rows and windows, through a restart."""
    preset = load_preset(path)
    time = preset.model.seq_length + 90
    it = reading_of(preset, torch.float64, time)
    restart = torch.zeros(B, time, dtype=torch.bool)
    restart[0, 77] = True
    whole, after = it.read(it.text, it.state(B), restart, it.came())
    pieces, state = in_pieces(it, it.text, [1, 300, 0, time - 304, 1, 1, 1], restart)
    close(pieces, whole, torch.float64)
    close(state, after, torch.float64)

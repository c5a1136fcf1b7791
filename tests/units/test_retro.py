"""Cross-attention to neighbours equals its definition, the paper's equations in numpy, and another's code; without neighbours it is nothing at all."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_sources.batch import Arrivals
from lm.model import Model, build_model
from lm.preset import Preset
from lm.units.neighbours import AT, ENCODED, LENGTH
from lm.units.retro import Neighbours, Retro, RetroState, blocks_of, retro_step
from lm.units.unit import Context

B, T, H, G, K, C, COUNT, V = 2, 19, 6, 3, 4, 5, 2, 17
SIZE, R = H * K, 2 * C
PLACES = {
    "regular": [0, 5, 10, 15, 19, 24, 29],
    "irregular": [3, 4, 18, 19, 21, 37],
    "twice at once": [7, 7, 7, 23, 23],
    "everywhere": list(range(B * T)),
    "one row": [9],
    "never": [],
}
STARTS: dict[str, list[tuple[int, int]]] = {
    "one document": [],
    "restarts": [(0, 3), (0, 5), (1, 0), (1, 12)],
    "every token": [(row, at) for row in range(B) for at in range(T)],
}
MODELS: dict[str, dict[str, Any]] = {
    "rope": {},
    "grouped, one neighbour": {"model": {"num_kv_heads": 1, "qk_norm": False}, "retro": {"num_neighbors": 1}},
    "learned, odd": {"model": {"position": "learned"}, "retro": {"num_neighbors": 3, "chunk_size": 7, "encoder_layers": 1}},
    "as wide as the model": {"retro": {"encoder_size": SIZE}},
}
places = pytest.mark.parametrize("places", PLACES.values(), ids=PLACES.keys())
starts = pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS.keys())


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def preset_of(**sections: Any) -> Preset:
    model = {"hidden_size": SIZE, "num_heads": H, "num_kv_heads": G, "num_layers": 3, "seq_length": T, "ffn_size": 7} | sections.get("model", {})
    retro = {"enabled": True, "layers": [0, 2], "num_neighbors": COUNT, "chunk_size": C} | sections.get("retro", {})
    return Preset.model_validate({"data": {"sources": ["c4"]}, **sections, "model": model, "retro": retro})


def model_of(preset: Preset) -> Model:
    torch.manual_seed(0)
    model = build_model(preset, V).double()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.4)
    return model


def unit_of(model: Model) -> Retro:
    return model.layers[0][1].unit


def came(preset: Preset, places: list[int], seed: int = 3) -> Neighbours:
    """Neighbours at `places`, of any length; every fifth time there is none."""
    count, size, generator = preset.retro.num_neighbors, 2 * preset.retro.chunk_size, torch.Generator().manual_seed(seed)
    length = torch.randint(-2, size + 1, (len(places), count), generator=generator).clamp(min=0)
    length[::5] = 0
    tokens = torch.randint(V, (len(places), count, size), generator=generator)
    return Neighbours(torch.tensor(places, dtype=torch.int64), tokens, length)


def restarts(*starts: tuple[int, int]) -> Tensor:
    restart = torch.zeros(B, T, dtype=torch.bool)
    for row, at in starts:
        restart[row, at] = True
    return restart


def held(unit: Retro, lengths: list[list[int]], distances: list[int]) -> RetroState:
    """Something in force in each row; empty slots are 0."""
    length, slots = torch.tensor(lengths), 2 * unit.chunk * unit.count
    filled = (torch.arange(2 * unit.chunk) < length[..., None]).flatten(1)[:, None, :, None]
    key, value = (drawn(B, unit.kv_heads, slots, K, seed=seed) * filled for seed in (7, 8))
    return RetroState(key, value, length, torch.tensor(distances))


def context_of(model: Model, memory: Neighbours | None, restart: Tensor, carry: bool = True) -> Context:
    shared = model.neighbour_encoder.read(memory, model.embedding)
    return Context(restart=restart, shared=shared).derived(restart, torch.ones(B, dtype=torch.int64), carry)


def by_definition(unit: Retro, x: Tensor, state: RetroState, context: Context, places: list[int]) -> tuple[Tensor, RetroState]:
    arrived, out = unit.arrived(x, context), []
    for t in range(T):
        newest = [max((n for n, place in enumerate(places) if place == row * T + t), default=-1) for row in range(B)]
        index = torch.tensor(newest)
        new = state if not places else RetroState(arrived.key[index], arrived.value[index], arrived.length[index], torch.zeros_like(index))

        def query(distance: Tensor, now: Tensor = x[:, t : t + 1]) -> Tensor:
            return unit.query(now, distance[:, None]).transpose(1, 2)

        y, state = retro_step(query, index >= 0, new, state, context.restart[:, t])
        out.append(unit.output(y.transpose(1, 2).flatten(2)))
    return torch.cat(out, 1), state


@starts
@places
@pytest.mark.parametrize("name", [name for name in MODELS if name != "as wide as the model"])
def test_it_equals_the_definition(name: str, places: list[int], starts: list[tuple[int, int]]) -> None:
    preset = preset_of(**MODELS[name])
    model, x = model_of(preset), drawn(B, T, SIZE, seed=1)
    unit, context = unit_of(model), context_of(model, came(preset, places), restarts(*starts))
    count, size = unit.count, 2 * unit.chunk
    for state in (unit.initial_state(B), held(unit, [[4, size, 1][:count], [0, size, 2][-count:]], [unit.chunk, 1])):
        fast = unit(x, state, context)
        y, after = by_definition(unit, x, state, context, places)
        torch.testing.assert_close(fast.y, y)
        for ours, meant in zip(fast.state, after, strict=True):
            torch.testing.assert_close(ours, meant)


def in_numpy(model: Model, preset: Preset, x: np.ndarray, memory: Neighbours, restart: np.ndarray) -> np.ndarray:
    """The paper's equations in float64, a neighbour, a head and a token at a time, one row: what the first layer adds (T, D)."""
    weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    heads, kv_heads, size, chunk = preset.model.num_heads, preset.model.kv_heads, preset.model.head_size, preset.retro.chunk_size
    eps, theta, rope = preset.model.norm_eps, preset.model.rope_theta, preset.model.position == "rope"

    def rms(z: np.ndarray, name: str) -> np.ndarray:
        return z / np.sqrt((z**2).mean(-1, keepdims=True) + eps) * weights[name] if name in weights else z

    def turned(z: np.ndarray, place: int) -> np.ndarray:
        pairs = (z[: size // 2] + 1j * z[size // 2 :]) * np.exp(1j * place * theta ** (-np.arange(0, size, 2) / size))
        return np.concatenate([pairs.real, pairs.imag]) if rope else z

    def softmax(z: np.ndarray) -> np.ndarray:
        return np.exp(z - z.max()) / np.exp(z - z.max()).sum()

    def encoded(tokens: np.ndarray) -> np.ndarray:
        part = "neighbour_encoder"
        z = weights["embedding.weight"][tokens]
        z = z @ weights[f"{part}.narrow.weight"].T if f"{part}.narrow.weight" in weights else z
        z = z if rope else z + weights[f"{part}.places.weight"][: len(z)]
        for block in (f"{part}.blocks.{number}" for number in range(preset.retro.encoder_layers)):
            query, key, value = np.split(rms(z, f"{block}.attention_norm.weight") @ weights[f"{block}.query_key_value.weight"].T, 3, -1)
            mixed = np.zeros_like(z)
            for head in (slice(at, at + size) for at in range(0, z.shape[1], size)):
                keys = np.array([turned(rms(each, f"{block}.key_norm.weight"), place) for place, each in enumerate(key[:, head])])
                for place, each in enumerate(query[:, head]):
                    scores = keys @ turned(rms(each, f"{block}.query_norm.weight"), place) / size**0.5
                    mixed[place, head] = softmax(scores) @ value[:, head]
            z = z + mixed @ weights[f"{block}.attended.weight"].T
            gate, up = np.split(rms(z, f"{block}.ffn_norm.weight") @ weights[f"{block}.gate_up.weight"].T, 2, -1)
            z = z + (gate / (1 + np.exp(-gate)) * up) @ weights[f"{block}.down.weight"].T
        return rms(z, f"{part}.norm.weight")

    unit, added, keys, values, since = "layers.0.1.unit", np.zeros_like(x), [], [], 0
    arrivals = dict(zip(memory.at.tolist(), range(len(memory.at)), strict=True))  # of several at one place the last
    for t, z in enumerate(x):
        if restart[t]:
            keys = []
        if t in arrivals:
            keys, values, since = [], [], t
            for tokens, length in zip(memory.tokens[arrivals[t]].numpy(), memory.length[arrivals[t]].tolist(), strict=True):
                for place, token in enumerate(encoded(tokens[:length])):
                    key, value = (weights[f"{unit}.key_value.weight"] @ token).reshape(2, kv_heads, size)
                    keys.append([turned(rms(each, f"{unit}.key_norm.weight"), place) for each in key])
                    values.append(value)
        if keys:
            beside = min(t - since, chunk)
            query = weights[f"{unit}.cross_query.weight"] @ z + (0 if rope else weights[f"{unit}.places.weight"][beside])
            read = []
            for head, each in enumerate(query.reshape(heads, size)):
                each = turned(rms(each, f"{unit}.query_norm.weight"), chunk + beside)
                group = head // (heads // kv_heads)
                scores = np.array([key[group] @ each for key in keys]) / size**0.5
                read.append(softmax(scores) @ np.array([value[group] for value in values]))
            added[t] = weights[f"{unit}.output.weight"] @ np.concatenate(read)
    return added


@pytest.mark.parametrize("sections", MODELS.values(), ids=MODELS.keys())
def test_it_equals_the_papers_equations_in_numpy(sections: dict[str, Any]) -> None:
    preset = preset_of(**sections)
    model, x = model_of(preset), drawn(B, T, SIZE, seed=1)
    memory, restart = came(preset, [8, 13, 17, 20, 24, 31, 37]), restarts((0, 8), (0, 15), (1, 9))
    found = unit_of(model)(x, unit_of(model).initial_state(B), context_of(model, memory, restart)).y
    for row in range(B):
        own = Neighbours(*Arrivals(*memory).part(slice(row, row + 1), slice(None), (B, T)))
        torch.testing.assert_close(found[row], torch.from_numpy(in_numpy(model, preset, x[row].numpy(), own, restart[row].numpy())))


def peer_of(unit: Retro, width: int) -> tuple[nn.Module, Tensor]:
    """retro-pytorch's layer with the weights of `unit`, and a vector (E,) of which it makes what its tokens see beside the neighbours."""
    published = pytest.importorskip("retro_pytorch.retro_pytorch")
    peer = published.ChunkedCrossAttention(C, dim=SIZE, context_dim=width, heads=H, dim_head=K).double()
    nothing = drawn(width, seed=9)
    key, value = unit.key_value.weight.detach().chunk(2)
    weights = {"to_q.weight": unit.cross_query.weight, "to_k.weight": key, "to_v.weight": value, "to_out.weight": unit.output.weight}
    weights |= {"to_out.bias": torch.zeros(SIZE), "null_k": key @ nothing, "null_v": value @ nothing}
    peer.cross_attn.load_state_dict(weights)
    return peer, nothing


@pytest.mark.parametrize("turned", [False, True])
def test_it_equals_retro_pytorch(turned: bool) -> None:
    """Needs `pip install retro-pytorch` (lucidrains), by which it was compared. Its tokens also see a learned vector; here that is one more
    neighbour of one token. There a chunk's neighbours come with its last token. Rotary angles are given to its attention by hand, since the
    layer around it drops all of them but a chunk's first."""
    preset = preset_of(model={"num_kv_heads": H, "qk_norm": False}, retro={"num_neighbors": COUNT + 1})
    model = model_of(preset)
    unit, chunks = unit_of(model), 4
    width, time = unit.encoder_size, chunks * C
    peer, nothing = peer_of(unit, width)
    encoded, length = drawn(chunks, COUNT, R, width, seed=2), torch.tensor([[R, 3], [1, 0], [0, R], [7, 9]])
    first = torch.zeros(chunks, 1, R, width, dtype=torch.float64)
    first[:, :, 0] = nothing
    at = torch.arange(1, chunks + 1) * C - 1
    shared = {AT: at, ENCODED: torch.cat([first, encoded], 1), LENGTH: torch.cat([torch.ones(chunks, 1, dtype=torch.int64), length], 1)}
    unit.rotary = unit.rotary if turned else None
    x = drawn(1, time, SIZE, seed=1)
    ours = unit(x, unit.initial_state(1), Context(shared=shared).derived(x[..., 0], torch.zeros(1, dtype=torch.int64), carry=False)).y
    mask = (torch.arange(R) < length[..., None])[None]
    still = torch.zeros(1, 1, C, K), torch.zeros(1, 1, R, K)
    if not turned:
        torch.testing.assert_close(ours, peer(x, context=encoded[None], context_mask=mask, pos_emb=still))
        return
    angles = torch.arange(2 * R, dtype=torch.float64)[:, None] * 10_000.0 ** (-torch.arange(0, K, 2, dtype=torch.float64) / K)
    angles = torch.cat([angles, angles], -1)
    for chunk in range(chunks - 1):
        tokens = x[:, at[chunk] : at[chunk] + C]
        beside = angles[C : 2 * C], angles[:R].repeat(COUNT, 1)
        theirs = peer.cross_attn(tokens, context=encoded[chunk].flatten(0, 1)[None], mask=mask[:, chunk].flatten(1), pos_emb=beside)
        torch.testing.assert_close(ours[:, at[chunk] : at[chunk] + C], theirs)


def without(model: Model, preset: Preset) -> Model:
    """The same model as if there were no neighbours: its other units, with their weights."""
    plain = build_model(preset.model_copy(update={"retro": type(preset.retro)()}), V).double()
    for name in ("embedding", "norm"):
        getattr(plain, name).load_state_dict(getattr(model, name).state_dict())
    for there, here, names in zip(plain.layers, model.layers, model.plan, strict=True):
        for bare, part in zip(there, (part for part, name in zip(here, names, strict=True) if name != "retro"), strict=True):
            bare.load_state_dict(part.state_dict())
    return plain


NOTHING: dict[str, Callable[[Preset], Neighbours | None]] = {
    "none handed in": lambda preset: None,
    "no arrivals": lambda preset: came(preset, []),
    "arrivals of nothing": lambda preset: came(preset, [3, 22])._replace(length=torch.zeros(2, COUNT, dtype=torch.int64)),
}


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("nothing", NOTHING.values(), ids=NOTHING.keys())
@pytest.mark.parametrize("sections", [{}, {"head_gating": {"enabled": True, "ffn_groups": 0}}], ids=["plain", "gates"])
def test_without_neighbours_nothing_is_added_and_every_parameter_has_a_gradient(sections: dict[str, Any], nothing: Any, carry: bool) -> None:
    preset = preset_of(**sections)
    model = model_of(preset)
    for name, parameter in model.named_parameters():  # open at first, as gates of what it is compared with are
        parameter.data.mul_(".output.gate." not in name)
    tokens = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(2))
    out = model(tokens, model.initial_state(B) if carry else None, Context(memory=nothing(preset)))
    plain = without(model, preset.model_copy(update={"head_gating": type(preset.head_gating)()})) if not sections else None
    out.logits.square().sum().backward()
    own = {name: parameter.grad for name, parameter in model.named_parameters() if "neighbour_encoder" in name or ".1.unit" in name and "layers.1" not in name}
    assert len(own) > 20 and all(gradient is not None and not gradient.any() for gradient in own.values())
    assert all(parameter.grad is not None for parameter in model.parameters())
    if plain is not None:
        assert torch.equal(out.logits, plain(tokens, plain.initial_state(B) if carry else None).logits)


def test_neighbours_never_reach_tokens_before_them_or_of_a_later_document() -> None:
    """Bit for bit, where they come with the piece and where they came before it."""
    preset = preset_of()
    model = model_of(preset)
    tokens, restart = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(2)), restarts((0, 15), (1, 0))
    memory = came(preset, [8, 9])._replace(length=torch.full((2, COUNT), 6))
    found, bare = (model(tokens, None, Context(restart=restart, memory=each)).logits for each in (memory, None))
    changed = (found != bare).any(-1)
    assert not changed[0, :8].any() and changed[0, 8:15].all() and not changed[0, 15:].any() and not changed[1].any()
    memory = memory._replace(at=torch.tensor([3, T]))
    states = [model(tokens, model.initial_state(B), Context(memory=each)).state for each in (memory, memory._replace(tokens=memory.tokens.flip(0)))]
    attention, others = states[0].layers[0][:1], states[0].layers[1:]
    going_on = [state._replace(layers=(attention + state.layers[0][1:], *others)) for state in states]
    one, other = (model(tokens, state, Context(restart=restart)).logits for state in going_on)
    changed = (one != other).any(-1)
    assert changed[0, :15].all() and not changed[0, 15:].any() and not changed[1].any()


def test_padding_is_never_seen_and_fewer_or_shorter_neighbours_fit() -> None:
    preset = preset_of()
    model = model_of(preset)
    tokens, memory = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(2)), came(preset, [2, 9, 20, 31])
    beyond = torch.arange(R) >= memory.length[..., None]
    other = memory._replace(tokens=torch.where(beyond, -100, memory.tokens))
    assert torch.equal(*(model(tokens, None, Context(memory=each)).logits for each in (memory, other)))
    small = Neighbours(memory.at, memory.tokens[:, :1, :6], memory.length[:, :1].clamp(max=6))
    length = torch.cat([small.length, torch.zeros_like(small.length)], 1)
    assert torch.equal(*(model(tokens, None, Context(memory=each)).logits for each in (small, memory._replace(length=length))))


def test_what_can_not_be_handed_in_is_one_line() -> None:
    preset = preset_of()
    tokens, memory = torch.zeros(B, T, dtype=torch.int64), came(preset, [3])
    kept = build_model(preset_of(retro={"add_cross_attention": False}), V)
    assert kept.plan == (("attention", "swiglu"),) * 3
    with pytest.raises(ValueError, match="no layer of this model attends to them"):
        kept(tokens, None, Context(memory=memory))
    with pytest.raises(ValueError, match=r"2 neighbours of 11 tokens are handed in; this model takes 2 \(retro.num_neighbors\) of 10 "):
        build_model(preset, V)(tokens, None, Context(memory=memory._replace(tokens=torch.zeros(1, COUNT, 11, dtype=torch.int64))))


@pytest.mark.parametrize("holds", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_blocks_hold_every_token_once_and_little_else(seed: int, holds: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, time, chunk = (int(torch.randint(1, most, (), generator=generator)) for most in (4, 60, 9))
    at = torch.randint(rows * time, (int(torch.randint(20, (), generator=generator)),), generator=generator).sort().values
    block, source, place = blocks_of(at, rows, time, chunk, holds)
    assert block.numel() <= 2 * rows * time + (len(at) + rows) * chunk
    for token in range(rows * time):
        before = [number for number, came_at in enumerate(at.tolist()) if token // time * time <= came_at <= token]
        if holds or before:
            assert block.flatten()[place[token]] == token
            assert source[place[token] // block.shape[1]] == (rows + before[-1] if before else token // time)


def test_neighbours_are_encoded_once_and_only_when_they_come() -> None:
    preset = preset_of()
    model, calls = model_of(preset), []
    model.neighbour_encoder.register_forward_hook(lambda module, inputs, out: calls.append(len(out)))
    state, tokens, memory = model.initial_state(B), torch.zeros(B, T, dtype=torch.int64), came(preset, [3, 4, 23])
    for piece in (slice(0, 4), slice(4, 5), slice(5, T)):
        part = Neighbours(*Arrivals(*memory).part(slice(None), piece, (B, T)))
        state = model(tokens[:, piece], state, Context(memory=part)).state
    assert calls == [1, 2]


def test_far_from_where_they_came_nothing_changes_any_more() -> None:
    preset = preset_of()
    model = model_of(preset)
    unit, x = unit_of(model), drawn(1, 1, SIZE, seed=1).expand(B, T, SIZE)
    memory = came(preset, [0, T])._replace(length=torch.full((2, COUNT), R))
    mixed = unit(x, unit.initial_state(B), context_of(model, memory, restarts()))
    torch.testing.assert_close(mixed.y[:, C:], mixed.y[:, C : C + 1].expand(B, T - C, SIZE))
    assert (mixed.y[:, :C].diff(dim=1).abs().amax(-1) > 1e-6).all() and mixed.state.distance.tolist() == [C, C]


ADVERSARIAL = {
    "constant": torch.ones(B, T, SIZE),
    "huge": 1e4 * torch.randn(B, T, SIZE, generator=torch.Generator().manual_seed(1)),
    "zero": torch.zeros(B, T, SIZE),
    "one token": torch.ones(B, 1, SIZE),
    "no token": torch.ones(B, 0, SIZE),
}


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("x", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
def test_nothing_is_ever_not_a_number(x: Tensor, qk_norm: bool) -> None:
    preset = preset_of(model={"qk_norm": qk_norm})
    model = model_of(preset).float()
    model.embedding.weight.data.mul_(1e3)
    unit, time, x = unit_of(model), x.shape[1], x.clone().requires_grad_()
    for places in ([], [0] if time else [], list(range(0, B * time, 2))):
        for begins in (False, True):
            memory, state = came(preset, places), unit.initial_state(B)
            for _ in range(2):
                shared = model.neighbour_encoder.read(memory, model.embedding)
                restart = torch.full((B, time), begins)
                mixed = unit(x, state, Context(restart=restart, shared=shared).derived(restart, torch.ones(B, dtype=torch.int64), carry=True))
                state = mixed.state
            inputs = [x, *unit.parameters(), *model.neighbour_encoder.parameters()]
            gradients = torch.autograd.grad(mixed.y.square().sum(), inputs)
            assert all(bool(tensor.isfinite().all()) for tensor in (mixed.y, *state, *gradients))


def test_no_token_is_left_without_anything_to_attend_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some kernels of attention give what is not a number for it."""
    attention, masks = F.scaled_dot_product_attention, []

    def noted(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, enable_gqa: bool = False) -> Tensor:
        masks.append(attn_mask)
        return attention(query, key, value, attn_mask=attn_mask, enable_gqa=enable_gqa)

    preset = preset_of()
    model, x, memory = model_of(preset), drawn(B, T, SIZE, seed=1), came(preset, PLACES["irregular"])
    context = context_of(model, memory, restarts())
    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    unit_of(model)(x, held(unit_of(model), [[0] * COUNT, [3] * COUNT], [0, 1]), context)
    model.neighbour_encoder.read(memory, model.embedding)
    assert len(masks) == 1 + preset.retro.encoder_layers and all(bool(mask.any(-1).all()) for mask in masks)


def test_autocast_is_near_float32() -> None:
    preset = preset_of()
    model, x = model_of(preset).float(), drawn(B, T, SIZE, seed=1).float()
    unit, memory = unit_of(model), came(preset, PLACES["irregular"])
    for state in (unit.initial_state(B), held(unit, [[R, 1], [3, 0]], [2, 0])):
        state = RetroState(state.key.float(), state.value.float(), *state[2:])
        exact = unit(x, state, context_of(model, memory, restarts((0, 3))))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = unit(x, state, context_of(model, memory, restarts((0, 3))))
        for near, far in ((rough.y, exact.y), (rough.state.key, exact.state.key), (rough.state.value, exact.state.value)):
            assert (near.float() - far).abs().max() < 0.05 * far.abs().max()
            assert (near.float() - far).norm() < 0.02 * far.norm()

"""Longformer's fast form equals its definition, dense attention under the same mask, and transformers' Longformer with the same weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from lm.preset import Preset
from lm.units import longformer
from lm.units.longformer import Longformer, LongformerState, longformer_parallel, longformer_step
from lm.units.unit import Context

B, T, H, G, K = 2, 29, 6, 3, 4
WINDOWS = [(1, 0), (1, 2), (2, 5), (5, 0), (5, 3), (11, 1), (40, 7)]
STARTS = {"one document": [], "restarts": [(0, 3), (0, 14), (1, 0), (1, 12), (1, 13), (1, 28)], "all anew": [(0, 0), (1, 0)]}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def restarts(name: str) -> Tensor:
    restart = torch.zeros(B, T, dtype=torch.bool)
    for row, at in STARTS[name]:
        restart[row, at] = True
    return restart


def a_state(window: int, firsts: int, length: tuple[int, int]) -> LongformerState:
    slots = [drawn(B, G, window - 1, K, seed=seed) for seed in (4, 5)]
    return LongformerState(*slots, *(drawn(B, G, firsts, K, seed=seed) for seed in (6, 7)), torch.tensor(length))


def unit_of(dtype: torch.dtype = torch.float32, window: int = 5, firsts: int = 3, **model: object) -> Longformer:
    sizes = {"hidden_size": H * K, "num_heads": H, "num_kv_heads": G, "norm_eps": 1e-5}
    section = {"enabled": True, "window": window, "global_tokens": firsts}
    unit = Longformer(Preset.model_validate({"model": sizes | model, "longformer": section, "data": {"sources": ["c4"]}}))
    for parameter in unit.parameters():
        parameter.data.normal_(std=0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    return unit.to(dtype)


def read(unit: Longformer, x: Tensor, restart: Tensor | None = None, carry: bool = True) -> tuple[Tensor, LongformerState]:
    context = Context(restart=restart).derived(x[..., 0], torch.zeros(len(x), dtype=torch.int64), carry=carry)
    mixed = unit(x, unit.initial_state(len(x)), context)
    return mixed.y, mixed.state


def seen(places: Tensor, documents: Tensor, window: int, firsts: int) -> Tensor:
    """The mask (T, T) of one row, from the words of the paper: later tokens never, within the window, or first of the document."""
    rows = []
    for place, document in zip(places.tolist(), documents.tolist(), strict=True):
        same = documents == document
        rows.append(same & (places <= place) & ((place - places < window) | (places < firsts)))
    return torch.stack(rows)


@pytest.mark.parametrize("block", [3, 8, 128])
@pytest.mark.parametrize("length", [(0, 0), (2, 0), (3, 17)], ids=str)
@pytest.mark.parametrize("starts", STARTS)
@pytest.mark.parametrize(("window", "firsts"), WINDOWS)
def test_blocks_equal_the_definition(window: int, firsts: int, starts: str, length: tuple[int, int], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longformer, "BLOCK", block)
    query, key, value = drawn(B, H, T, K, seed=1), drawn(B, G, T, K, seed=2), drawn(B, G, T, K, seed=3)
    state, restart = a_state(window, firsts, length), restarts(starts)
    fast, after = longformer_parallel(query, key, value, state, Context(restart=restart).derived(restart, state.length, carry=True))
    steps = []
    for t in range(T):
        now = slice(t, t + 1)
        y, state = longformer_step(query[:, :, now], key[:, :, now], value[:, :, now], state, restart[:, t])
        steps.append(y)
    torch.testing.assert_close(fast, torch.cat(steps, 2))
    assert torch.equal(after.length, state.length)
    for row, length_row in enumerate(state.length.tolist()):
        near, far = min(length_row, window - 1), min(length_row, firsts)
        for name, filled in (("key", slice(window - 1 - near, None)), ("value", slice(window - 1 - near, None))):
            torch.testing.assert_close(getattr(after, name)[row, :, filled], getattr(state, name)[row, :, filled])
        for name in ("global_key", "global_value"):
            torch.testing.assert_close(getattr(after, name)[row, :, :far], getattr(state, name)[row, :, :far])


@pytest.mark.parametrize("starts", STARTS)
@pytest.mark.parametrize(("window", "firsts"), WINDOWS)
def test_equals_dense_attention_under_the_same_mask(window: int, firsts: int, starts: str) -> None:
    query, key, value = drawn(B, H, T, K, seed=1), drawn(B, G, T, K, seed=2), drawn(B, G, T, K, seed=3)
    restart, empty = restarts(starts), a_state(window, firsts, (0, 0))
    context = Context(restart=restart).derived(restart, empty.length, carry=True)
    fast, _ = longformer_parallel(query, key, value, empty, context)
    for row in range(B):
        edges = restart[row].clone()
        edges[0] = True
        first = edges.nonzero().flatten()
        documents = torch.searchsorted(first, torch.arange(T), right=True) - 1
        mask = seen(torch.arange(T) - first[documents], documents, window, firsts)
        dense = F.scaled_dot_product_attention(query[row], *(x[row].repeat_interleave(H // G, 0) for x in (key, value)), attn_mask=mask)
        torch.testing.assert_close(fast[row], dense)


@pytest.mark.parametrize("size", [2, 4, 16])
@pytest.mark.parametrize("length", [(0, 0), (2, 50)], ids=str)
@pytest.mark.parametrize("starts", STARTS)
@pytest.mark.parametrize(("window", "firsts"), WINDOWS)
def test_the_sparse_form_equals_the_blocks_and_leaves_nothing_out(window: int, firsts: int, starts: str, length: tuple[int, int], size: int) -> None:
    query, key, value = drawn(B, H, T, K, seed=1), drawn(B, G, T, K, seed=2), drawn(B, G, T, K, seed=3)
    state, restart = a_state(window, firsts, length), restarts(starts)
    place = Context(restart=restart).derived(restart, state.length, carry=True).position
    columns = firsts + window - 1 + T

    def dense(*heads: Tensor, block_mask: BlockMask, enable_gqa: bool) -> Tensor:
        index = (torch.arange(n).view([-1 if i == j else 1 for j in range(4)]) for i, n in enumerate((B, 1, T, columns)))
        mask = block_mask.mask_mod(*index)
        reached = longformer._near(place, firsts, window - 1, columns, size).repeat_interleave(size, 1).repeat_interleave(size, 2)
        assert not (mask[:, 0] & ~reached[:, :T, :columns]).any()
        return F.scaled_dot_product_attention(*heads, attn_mask=mask, enable_gqa=enable_gqa)

    sparse = longformer._attend_sparse(query, key, value, state, place, dense)
    torch.testing.assert_close(sparse, longformer._attend_blocks(query, key, value, state, place, True))


def test_the_sparse_form_reaches_few_blocks() -> None:
    place = torch.arange(64 * longformer.BLOCK)[None]
    assert int(longformer._near(place, 3, 255, 258 + place.shape[1]).sum(-1).max()) <= 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the compiled kernel is for GPUs")
@pytest.mark.parametrize("restarted", [False, True])
def test_the_compiled_form_equals_the_blocks_on_a_gpu(restarted: bool) -> None:
    state = LongformerState(*(drawn(B, G, slots, 32, seed=slots).float().cuda() for slots in (199, 199, 5, 5)), torch.tensor([0, 700]).cuda())
    heads = [drawn(B, n, 1000, 32, seed=n).float().cuda().requires_grad_() for n in (H, G, G)]
    restart = (torch.rand(B, 1000, generator=torch.Generator().manual_seed(1)) < 0.01).cuda() & restarted
    place = Context(restart=restart).derived(restart, state.length, carry=True).position
    weight = drawn(B, H, 1000, 32, seed=9).float().cuda()
    both = []
    for y in (longformer._attend_sparse(*heads, state, place, longformer._compiled()), longformer._attend_blocks(*heads, state, place, True)):
        both.append([y, *torch.autograd.grad((y * weight).sum(), heads)])
    for sparse, blocks in zip(*both, strict=True):
        assert (sparse - blocks).norm() < 1e-2 * blocks.norm()


@pytest.mark.parametrize("firsts", [0, 3])
def test_equals_transformers_longformer(firsts: int) -> None:
    """Theirs sees both sides, so each prefix is a row of its own, and its last token is compared; what follows it is masked away."""
    reach, size = 4, H * K  # theirs sees `reach` tokens to either side and itself
    ours = unit_of(torch.float64, window=reach + 1, firsts=firsts, num_kv_heads=H, qk_norm=False, position="learned")
    config = LongformerConfig(hidden_size=size, num_attention_heads=H, attention_window=[2 * reach], attention_probs_dropout_prob=0.0)
    theirs = LongformerSelfAttention(config, layer_id=0).double()
    for name, weight in zip(("query", "key", "value"), ours.query_key_value.weight.chunk(3), strict=True):
        for layer in (getattr(theirs, name), getattr(theirs, f"{name}_global")):
            layer.weight.data.copy_(weight)
            nn.init.zeros_(layer.bias)
    ours.output.weight.data.copy_(torch.eye(size))
    x, length = drawn(1, T, size, seed=6), 32
    after = torch.arange(length) > torch.arange(T)[:, None]  # of each prefix, a row
    whole = (torch.arange(length) < firsts) & ~after
    mask = torch.zeros(T, length, dtype=torch.float64).masked_fill(after, -10_000.0).masked_fill(whole, 10_000.0)
    rows = F.pad(x, (0, 0, 0, length - T)).expand(T, -1, -1)
    found = theirs(rows, mask, is_index_masked=mask < 0, is_index_global_attn=mask > 0, is_global_attn=firsts > 0)[0]
    torch.testing.assert_close(read(ours, x)[0][0], found[torch.arange(T), torch.arange(T)], rtol=1e-6, atol=1e-7)  # their softmax is in float32


@pytest.mark.parametrize("starts", STARTS)
def test_bfloat16_is_near_float32(starts: str) -> None:
    unit, x = unit_of(), drawn(B, T, H * K, seed=8).float()
    exact, state = read(unit, x, restarts(starts))
    with torch.autocast("cpu", torch.bfloat16):
        rough, rough_state = read(unit, x, restarts(starts))
    assert (rough.float() - exact).norm() < 2e-2 * exact.norm()
    assert [leaf.dtype for leaf in rough_state] == [leaf.dtype for leaf in state]


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("case", ["one token", "huge", "single", "empty", "no rows"])
def test_values_and_gradients_stay_finite(case: str, restarted: bool) -> None:
    unit = unit_of()
    x = {
        "one token": torch.ones(B, 300, H * K),
        "huge": 1e15 * torch.randn(B, 300, H * K),
        "single": torch.randn(B, 1, H * K),
        "empty": torch.zeros(B, 0, H * K),
        "no rows": torch.zeros(0, 7, H * K),
    }
    x = x[case].requires_grad_()
    restart = torch.arange(x.shape[1]).expand(len(x), -1) % 3 != 1 if restarted else None
    y, state = read(unit, x, restart)
    gradients = torch.autograd.grad(y.sum(), [x, *unit.parameters()], allow_unused=True)
    assert all(bool(tensor.isfinite().all()) for tensor in (y, *state, *gradients) if tensor is not None)


def test_a_long_run_of_one_token_gives_that_tokens_value() -> None:
    unit = unit_of(window=64, firsts=3, position="learned")
    with torch.no_grad():
        y, state = read(unit, torch.ones(1, 100_000, H * K))
    torch.testing.assert_close(y, y[:, :1].expand_as(y))
    assert state.length.tolist() == [100_000]


def test_the_state_never_grows() -> None:
    unit, shapes = unit_of(), set()
    for length in (1, 2, 9, 64):
        shapes.add(tuple(leaf.shape for leaf in read(unit, drawn(B, length, H * K, seed=9).float())[1]))
    assert len(shapes) == 1
    x = drawn(B, 9, H * K, seed=9).float()
    empty = unit.initial_state(B)
    assert unit(x, empty, Context().derived(x[..., 0], empty.length, carry=False)).state is empty

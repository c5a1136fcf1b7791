"""Attention's fast form equals its definition, and transformers' Llama with the same weights."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from lm.ops.rotary import Angles, Rotary, rotated
from lm.preset import Preset
from lm.units import attention
from lm.units.attention import (
    SHORT,
    Attention,
    AttentionState,
    attend,
    attend_at_once,
    attend_by_blocks,
    attend_by_document,
    attention_parallel,
    attention_step,
    documents_kernel,
)
from lm.units.unit import Context

B, T, H, G, K, S = 2, 13, 6, 3, 4, 5


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("slots", [0, S])
@pytest.mark.parametrize("starts", [[], [(0, 3), (1, 0), (1, 12)], [(0, 0), (1, 0)]], ids=["one document", "restarts", "all anew"])
def test_parallel_equals_the_definition(slots: int, starts: list[tuple[int, int]]) -> None:
    query, key, value = drawn(B, H, T, K, seed=1), drawn(B, G, T, K, seed=2), drawn(B, G, T, K, seed=3)
    state = AttentionState(drawn(B, G, slots, K, seed=4), drawn(B, G, slots, K, seed=5), torch.tensor([slots, slots // 2]))
    restart = torch.zeros(B, T, dtype=torch.bool)
    for row, at in starts:
        restart[row, at] = True
    context = Context(restart=restart).derived(restart, state.length, carry=True)
    fast, after = attention_parallel(query, key, value, state, context)
    steps = []
    for t in range(T):
        now = slice(t, t + 1)
        y, state = attention_step(query[:, :, now], key[:, :, now], value[:, :, now], state, restart[:, t])
        steps.append(y)
    torch.testing.assert_close(fast, torch.cat(steps, 2))
    torch.testing.assert_close(after.length, state.length)
    needed = int(state.length.max())
    torch.testing.assert_close(after.key[:, :, -needed:], state.key[:, :, -needed:])


def read_documents(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *, window_size: tuple[int, int]
) -> Tensor:
    """As torch.nn.attention.varlen.varlen_attn takes and gives: tokens of all documents (B * T, H, K)."""
    assert query.shape == key.shape == value.shape and query.dtype == key.dtype == value.dtype and query.ndim == 3
    assert cu_seq_q is cu_seq_k and cu_seq_q.dtype == torch.int32 and window_size == (-1, 0)
    assert max_q == max_k >= int(cu_seq_q.diff().max())
    edges = cu_seq_q.tolist()
    documents = [tuple(each[a:b].transpose(0, 1)[None] for each in (query, key, value)) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return torch.cat([attend(*document)[0].transpose(0, 1) for document in documents])


@pytest.mark.parametrize("kv_heads", [1, G, H])
@pytest.mark.parametrize("starts", [[(0, 3), (1, 0), (1, 12)], [(row, at) for row in range(B) for at in range(T)]], ids=["some", "all"])
def test_documents_at_once_equal_documents_one_by_one(kv_heads: int, starts: list[tuple[int, int]]) -> None:
    """How rows are handed to the kernel that GPUs take, and how they come back, with gradients; the kernel itself runs nowhere else."""
    given = [drawn(B, H, T, K, seed=1), drawn(B, kv_heads, T, K, seed=2), drawn(B, kv_heads, T, K, seed=3)]
    restart = torch.zeros(B, T, dtype=torch.bool)
    for row, at in starts:
        restart[row, at] = True
    edges = Context(restart=restart).derived(restart, torch.zeros(B, dtype=torch.int64), carry=False).cu_seqlens
    heads = [each.requires_grad_() for each in given]
    found, wanted = attend_at_once(*heads, edges, read_documents), attend_by_document(*heads, edges, attend)
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(*(torch.autograd.grad(y.square().sum(), heads) for y in (found, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("device", "dtype", "size", "fits"),
    [
        ("cuda", torch.bfloat16, 64, True),
        ("cuda", torch.float16, 256, True),
        ("cpu", torch.bfloat16, 64, False),
        ("cuda", torch.float32, 64, False),
        ("cuda", torch.bfloat16, 63, False),
        ("cuda", torch.bfloat16, 264, False),
    ],
)
def test_the_kernel_is_for_half_precision_on_gpus(device: str, dtype: torch.dtype, size: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "installed", lambda name: attend_at_once)
    values = SimpleNamespace(device=SimpleNamespace(type=device), dtype=dtype, shape=(1, 2, 3, size))
    assert (documents_kernel(values) is not None) == fits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel is for GPUs")
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_the_kernel_equals_the_mask(kv_heads: int) -> None:
    heads = [drawn(B, n, 300, 32, seed=n).cuda().bfloat16().requires_grad_() for n in (4, kv_heads, kv_heads)]
    restart = (torch.rand(B, 300, generator=torch.Generator().manual_seed(1)) < 0.02).cuda()
    context = Context(restart=restart).derived(restart, torch.zeros(B, dtype=torch.int64).cuda(), carry=False)
    kernel = documents_kernel(heads[2])
    assert kernel is not None
    found = attend_at_once(*heads, context.cu_seqlens, kernel)
    wanted = attend_by_document(*(each.double() for each in heads), context.cu_seqlens, attend)
    torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=2e-2)
    weight = drawn(B, 4, 300, 32, seed=9).cuda()
    for ours, theirs in zip(*(torch.autograd.grad((y * weight).sum(), heads) for y in (found, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("kv_heads", [G, H])
def test_equals_transformers_llama(kv_heads: int) -> None:
    size = H * K
    preset = Preset.model_validate(
        {"model": {"hidden_size": size, "num_heads": H, "num_kv_heads": kv_heads, "qk_norm": False, "rope_theta": 500.0}, "data": {"sources": ["c4"]}}
    )
    ours = Attention(preset).double()
    config = LlamaConfig(
        hidden_size=size,
        num_attention_heads=H,
        num_key_value_heads=kv_heads,
        rope_parameters={"rope_theta": 500.0, "rope_type": "default"},
        attn_implementation="eager",
    )
    theirs = LlamaAttention(config, layer_idx=0).double()
    weights = torch.cat([theirs.q_proj.weight, theirs.k_proj.weight, theirs.v_proj.weight])
    ours.query_key_value.weight.data.copy_(weights)
    ours.output.weight.data.copy_(theirs.o_proj.weight)
    x = drawn(B, T, size, seed=6)
    position = torch.arange(T).expand(B, T)
    mask = torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    expected, _ = theirs(x, position_embeddings=LlamaRotaryEmbedding(config)(x, position), attention_mask=mask)
    found = ours(x, ours.initial_state(B), Context().derived(position, torch.zeros(B, dtype=torch.int64), carry=False)).y
    # Theirs takes the angles in float32.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_rotary_products_depend_on_distance_only() -> None:
    rotary = Rotary(8, 10_000.0, 1.0)
    query, key = drawn(1, 1, 1, 8, seed=7), drawn(1, 1, 1, 8, seed=8)

    def product(at: int, to: int) -> Tensor:
        angles = [rotary.angles(torch.tensor([[place]]), torch.float64) for place in (at, to)]
        return (rotated(query, angles[0]) * rotated(key, angles[1])).sum()

    torch.testing.assert_close(product(17, 5), product(1012, 1000))
    assert not torch.isclose(product(17, 5), product(17, 6))


def test_rotary_products_are_as_exact_at_far_places() -> None:
    rotary = Rotary(64, 10_000.0, 1.0)
    query, key = drawn(1, 1, 1, 64, seed=7).float(), drawn(1, 1, 1, 64, seed=8).float()

    def product(at: int, to: int) -> Tensor:
        angles = [rotary.angles(torch.tensor([[place]]), torch.float32) for place in (at, to)]
        exact = [(cos.double(), sin.double()) for cos, sin in angles]
        return (rotated(query.double(), Angles(*exact[0])) * rotated(key.double(), Angles(*exact[1]))).sum()

    for distance in (1, 3, 9):
        torch.testing.assert_close(product(1_000_000 + distance, 1_000_000), product(10 + distance, 10), rtol=1e-6, atol=1e-6)


def test_interpolation_reads_longer_texts_within_known_angles() -> None:
    places = torch.tensor([[0, 30, 60]])
    stretched, plain = Rotary(8, 10_000.0, 3.0).angles(places, torch.float64), Rotary(8, 10_000.0, 1.0).angles(places // 3, torch.float64)
    torch.testing.assert_close(stretched, plain)


def test_learned_positions_grow_without_changing_what_is_known() -> None:
    from lm.model import build_model

    model = build_model(
        Preset.model_validate({"model": {"hidden_size": 12, "num_heads": 3, "seq_length": 7, "position": "learned"}, "data": {"sources": ["c4"]}}), 11
    )
    tokens = torch.arange(7)[None]
    before = model(tokens).logits
    model.extend_max_seq_len(20)
    torch.testing.assert_close(model(tokens).logits, before)
    assert model.positions.num_embeddings == 20


@pytest.mark.parametrize("length", [1, 127, 128, 300])
@pytest.mark.parametrize("kv_heads", [1, G, H])
def test_blocks_are_the_definition(length: int, kv_heads: int) -> None:
    """What processors with bfloat16 take, in float64: also of gradients."""
    given = [drawn(B, heads, length, K, seed=seed) for seed, heads in enumerate((H, kv_heads, kv_heads))]
    one, other = ([tensor.clone().requires_grad_() for tensor in given] for _ in range(2))
    torch.testing.assert_close(attend_by_blocks(*one), attend(*other))
    weights = drawn(B, H, length, K, seed=7)
    (attend_by_blocks(*one) * weights).sum().backward()
    (attend(*other) * weights).sum().backward()
    for mine, plain in zip(one, other, strict=True):
        torch.testing.assert_close(mine.grad, plain.grad)


@pytest.mark.parametrize("starts", [[], [(0, 3), (1, 0), (1, 200)]], ids=["one document", "restarts"])
def test_bfloat16_on_a_processor_goes_by_blocks_and_stays_near(starts: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    monkeypatch.setattr("lm.units.attention.attend_by_blocks", lambda query, *rest: (lengths.append(query.shape[2]), attend_by_blocks(query, *rest))[1])
    query, key, value = (drawn(B, heads, 300, 8, seed=seed).bfloat16() for seed, heads in enumerate((H, G, G)))
    restart = torch.zeros(B, 300, dtype=torch.bool)
    for row, at in starts:
        restart[row, at] = True
    read = []
    for dtype in (torch.bfloat16, torch.float64):
        state = AttentionState.empty(value.to(dtype), B, G, 8)
        context = Context(restart=restart).derived(restart, state.length, carry=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            read.append(attention_parallel(query.to(dtype), key.to(dtype), value.to(dtype), state, context)[0])
    rough, exact = read
    assert lengths == ([3, 297, 200, 100] if starts else [300])
    assert rough.dtype == torch.bfloat16 and (rough.double() - exact).norm() < 0.01 * exact.norm()


def test_a_long_text_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks keep the square of the length; and there are none in a text of no tokens."""
    monkeypatch.setattr("lm.units.attention.attend_by_blocks", lambda *given: pytest.fail("too long for it"))
    long = torch.ones(1, 1, SHORT + 1, 8, dtype=torch.bfloat16)
    for given in (long, long[:, :, :0]):
        assert attend(given, given, given).shape == given.shape

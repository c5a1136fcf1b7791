"""Reading from both ends, with every unit that reads along time: documents apart, both sides seen, nothing beyond, and no state."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lm.model import Context, Model, build_model
from lm.preset import MECHANISMS, Preset, count_parameters, model_in_words
from lm.preset.plan import BY_TOKEN as BY_TOKEN_IN_PLANS
from lm.preset.plan import OF_ALL_TOKENS
from lm.units import UNITS
from lm.units.bidirectional import BY_TOKEN, Bidirectional, reversed_context
from tests.test_law import DATA, MODEL, VARIANTS, randomised

T, V = 23, 5
MIXERS = ["attention", *(name for name in MECHANISMS if name not in BY_TOKEN | OF_ALL_TOKENS)]
ENDS = [0, 7, 8, 17, T]  # of documents in the first row; the second is one


def model_of(name: str, ways: str = "own") -> Model:
    sections: dict[str, dict[str, Any]] = dict(VARIANTS[name][0])
    model = {**MODEL, "seq_length": 32, "bidirectional": ways} | sections.pop("model", {})
    if name != "attention":
        sections[name] = sections.get(name, {}) | {"enabled": True}
    torch.manual_seed(2)
    preset = Preset.model_validate({"model": model, "data": DATA, "train": {"objective": "mlm"}, **sections})
    return randomised(build_model(preset, V), torch.float64)


def text() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(4))
    restart = torch.zeros(2, T, dtype=torch.bool)
    restart[0, ENDS[:-1]] = True
    return tokens, restart


@pytest.mark.parametrize("ways", ["own", "shared"])
@pytest.mark.parametrize("name", MIXERS)
def test_packed_documents_equal_documents_one_by_one(name: str, ways: str) -> None:
    model = model_of(name, ways)
    tokens, restart = text()
    whole = model(tokens, context=Context(restart=restart)).logits
    for start, stop in zip(ENDS, ENDS[1:], strict=False):
        assert torch.allclose(model(tokens[:1, start:stop]).logits[0], whole[0, start:stop], atol=1e-9)
    assert torch.allclose(model(tokens[1:]).logits[0], whole[1], atol=1e-9)


@pytest.mark.parametrize("name", MIXERS)
def test_every_place_sees_both_sides_of_its_document_and_no_other(name: str) -> None:
    model = model_of(name)
    tokens, restart = text()
    embedded = model.embedding(tokens).detach().requires_grad_()
    model.embedding.register_forward_hook(lambda module, given, out: embedded)
    out = model(tokens, context=Context(restart=restart)).hidden
    sees = torch.stack([torch.autograd.grad(out[0, at].sum(), embedded, retain_graph=True)[0][0].abs().sum(-1) > 0 for at in range(T)])
    document = restart[0].cumsum(0)
    same = document[:, None] == document[None]
    assert not (sees & ~same).any()
    near = (torch.arange(T)[:, None] - torch.arange(T)).abs() <= 1  # a window or a router may leave out the rest
    assert (sees | ~(same & near)).all()


def test_shared_weights_are_one_unit_and_read_the_other_way_alike() -> None:
    model = model_of("rwkv", "shared")
    unit = model.layers[0][0].unit
    assert isinstance(unit, Bidirectional) and unit.back is None
    tokens, _ = text()
    context = Context().derived(tokens, torch.zeros(2, dtype=torch.int64), carry=False)
    x = torch.randn(2, T, MODEL["hidden_size"], dtype=torch.float64)
    y, turned = unit(x, unit.initial_state(2), context).y, unit(x.flip(1), unit.initial_state(2), context).y
    assert torch.allclose(y, turned.flip(1), atol=1e-9)


def test_documents_are_reversed_where_they_are() -> None:
    tokens, restart = text()
    start = torch.zeros(2, dtype=torch.int64)
    x = torch.zeros(2, T, 1)
    turned = reversed_context(x, Context(restart=restart).derived(tokens, start, carry=False))
    for row, ends in enumerate((ENDS, [0, T])):
        expected = [T - 1 - at for start, stop in reversed(list(zip(ends, ends[1:], strict=False))) for at in reversed(range(start, stop))]
        places = [place for start, stop in reversed(list(zip(ends, ends[1:], strict=False))) for place in range(stop - start)]
        assert turned.position[row].tolist() == places and expected == list(range(T))


@pytest.mark.parametrize("time", [0, 1, 7])
def test_edges_are_mirrored_as_they_would_be_found(time: int) -> None:
    for seed in range(20):
        restart = torch.rand(3, time, generator=torch.Generator().manual_seed(seed)) < 0.3
        context = Context(restart=restart).derived(restart.long(), torch.zeros(3, dtype=torch.int64), carry=False)
        turned = reversed_context(torch.zeros(3, time, 1), context)
        found = Context(restart=turned.restart).derived(restart.long(), torch.zeros(3, dtype=torch.int64), carry=False)
        assert turned.cu_seqlens.tolist() == found.cu_seqlens.tolist() and turned.cu_seqlens.dtype == found.cu_seqlens.dtype


LEARNED = {"colt5_attention": {"router_type": "threshold"}, "colt5": {}, "moe": {"experts": 3, "experts_per_token": 1, "balance_weight": 0.5}}


@pytest.mark.parametrize("ways", ["own", "shared"])
@pytest.mark.parametrize("name", LEARNED)
def test_losses_and_what_is_heard_are_of_both_ways(name: str, ways: str) -> None:
    """Against the unit itself, which reads the text and the text reversed: losses are halves of both, and each unit hears of what it read."""
    sections = {name: {"enabled": True} | LEARNED[name]}
    preset = Preset.model_validate({"model": MODEL, "data": DATA, **sections})
    unit = Bidirectional(lambda: UNITS[name](preset), ways == "shared")
    torch.manual_seed(3)
    for parameter in unit.parameters():
        parameter.data.normal_()
    for buffer_name, buffer in unit.named_buffers():
        buffer.fill_(0.9) if buffer_name.endswith("share") else None
    x, is_text = torch.randn(2, T, MODEL["hidden_size"]), torch.ones(2, T, dtype=torch.bool)
    is_text[:, 15:] = False  # what is no text stands at one end
    context = Context(is_text=is_text).derived(x[..., 0], torch.zeros(2, dtype=torch.int64), carry=False)
    turned = Context(is_text=is_text.flip(1)).derived(x[..., 0], torch.zeros(2, dtype=torch.int64), carry=False)
    back = unit.back or unit.onward
    readings = [each(text, each.initial_state(2), about) for each, text, about in ((unit.onward, x, context), (back, x.flip(1), turned))]
    mixed = unit(x, unit.initial_state(2), context)
    assert bool(mixed.losses) == (name == "moe") and mixed.losses.keys() == readings[0].losses.keys()
    for loss, value in mixed.losses.items():
        assert readings[0].losses[loss] != 0
        torch.testing.assert_close(value, (readings[0].losses[loss] + readings[1].losses[loss]) / 2)
    both = {key: value + readings[1].stats[key] for key, value in readings[0].stats.items()}
    heard = [both] if ways == "shared" else [reading.stats for reading in readings]
    expected = [copy.deepcopy(each) for each in [unit.onward, back][: len(heard)]]
    for each, stats in zip(expected, heard, strict=True):
        each.after_step(stats)
    before = {name: buffer.clone() for name, buffer in unit.named_buffers()}
    unit.after_step(mixed.stats)
    assert any(not torch.equal(buffer, before[name]) for name, buffer in unit.named_buffers())
    for each, found in zip(expected, [unit.onward, back], strict=False):
        assert {name: buffer.tolist() for name, buffer in each.named_buffers()} == {name: buffer.tolist() for name, buffer in found.named_buffers()}


def test_nothing_can_be_carried_on_from() -> None:
    model = model_of("attention")
    with pytest.raises(ValueError, match="nothing can be carried on from one piece to the next"):
        model(torch.zeros(1, 3, dtype=torch.int64), model.initial_state(1))


@pytest.mark.parametrize("ways", ["own", "shared"])
@pytest.mark.parametrize("name", MIXERS)
def test_counted_and_told(name: str, ways: str) -> None:
    sections = {name: {"enabled": True}} if name != "attention" else {}
    raw = {"model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "bidirectional": ways}, "data": DATA, **sections}
    preset = Preset.model_validate(raw | {"train": {"objective": "mlm"}})
    built = sum(parameter.numel() for parameter in build_model(preset, 100).parameters())
    assert count_parameters(preset, 100).total == built
    assert ("both ways" in model_in_words(preset)) == (name not in BY_TOKEN) and BY_TOKEN == BY_TOKEN_IN_PLANS


def test_a_new_layer_is_the_identity_still() -> None:
    preset = Preset.model_validate({"model": {**MODEL, "bidirectional": "own"}, "data": DATA, "train": {"objective": "mlm"}})
    model = build_model(preset, V)
    tokens = torch.arange(V)[None]
    assert torch.equal(model(tokens).hidden, model.norm(model.embedding(tokens))) and model(tokens).logits.isfinite().all()

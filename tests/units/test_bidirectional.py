"""Reading from both ends, with every unit that reads along time: documents apart, both sides seen, nothing beyond, and no state."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lm.model import Context, Model, build_model
from lm.preset import MECHANISMS, Preset, count_parameters, model_in_words
from lm.preset.plan import BY_TOKEN as BY_TOKEN_IN_PLANS
from lm.preset.plan import OF_ALL_TOKENS
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

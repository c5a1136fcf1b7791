"""Picked tokens are read as a text of their own: against a loop that reads them one by one, over every kind of unit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lm.ops.picking import added_at, beginnings, gathered, index_of
from lm.preset import Preset
from lm.units import UNITS
from lm.units.subsequence import initial_subsequence, read_picked
from lm.units.unit import Context, Mixed, Unit

B, T, D = 3, 17, 12
SECTIONS: dict[str, dict[str, Any]] = {
    "attention": {},
    "longformer": {"longformer": {"window": 3, "global_tokens": 2}},
    "s5": {"s5": {"state_size": 6}},
    "mamba2": {"mamba2": {"state_size": 5}},
    "rwkv": {"rwkv": {"mix_rank": 5, "decay_rank": 7}},
    "hyena": {"hyena": {"filter_order": 7, "embedding_dim": 5, "filter_length": 4}},
    "swiglu": {},
    "relu2": {},
}


def unit_of(name: str) -> Unit:
    model = {"hidden_size": D, "num_heads": 3, "seq_length": 9, "ffn_size": 7}
    unit = UNITS[name](Preset.model_validate({"model": model, "data": {"sources": ["c4"]}, **SECTIONS[name]})).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in unit.parameters():
        parameter.data.normal_(std=0.4, generator=generator)
    return unit


def text(seed: int = 2) -> Tensor:
    return torch.randn(B, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def picks() -> Tensor:
    picked = torch.rand(B, T, generator=torch.Generator().manual_seed(3)) < 0.4
    picked[2] = False  # a row of which nothing is picked
    return picked


def restarts() -> Tensor:
    """On picked tokens and on others, two in a row, on the first and the last."""
    restart = torch.zeros(B, T, dtype=torch.bool)
    restart[0, [0, 4, 5, 11, T - 1]] = True
    restart[1, [7]] = True
    restart[2, [3]] = True
    return restart


def context_of(restart: Tensor | None, start: Tensor, part: slice = slice(None), carry: bool = True, scored: Tensor | None = None) -> Context:
    piece = torch.zeros(B, T)[:, part]
    return Context(restart=None if restart is None else restart[:, part], is_text=scored).derived(piece, start, carry)


def one_by_one(unit: Unit, x: Tensor, picked: Tensor, restart: Tensor) -> Tensor:
    """The reference: each row by itself, each picked token by itself, nothing else read."""
    y = torch.zeros_like(x)
    for row in range(B):
        state, place, began = unit.initial_state(1), 0, False
        for t in range(T):
            began |= bool(restart[row, t])
            if picked[row, t]:
                token, place = x[row, t].view(1, 1, D), 0 if began else place
                context = Context(restart=torch.tensor([[began]])).derived(token[..., 0], torch.tensor([place]), carry=True)
                mixed = unit(token, state, context)
                y[row, t], state, place, began = mixed.y[0, 0], mixed.state, place + 1, False
    return y


@pytest.mark.parametrize("carry", [False, True], ids=["together", "row by row"])
@pytest.mark.parametrize("with_restarts", [False, True], ids=["one document", "restarts"])
@pytest.mark.parametrize("name", SECTIONS)
def test_equals_reading_picked_tokens_one_by_one(name: str, with_restarts: bool, carry: bool) -> None:
    unit, x, picked = unit_of(name), text(), picks()
    restart = restarts() if with_restarts else torch.zeros(B, T, dtype=torch.bool)
    state = initial_subsequence(unit, B, x.device)
    index, given, read = read_picked(unit, x, picked, state, context_of(restart if with_restarts else None, state.position, carry=carry))
    torch.testing.assert_close(added_at(torch.zeros_like(x), index, read.y), one_by_one(unit, x, picked, restart))
    assert torch.equal(given, x[picked]) and len(index) == int(picked.sum())


@pytest.mark.parametrize("name", SECTIONS)
def test_a_document_that_begins_unpicked_begins_later_also_in_a_later_piece(name: str) -> None:
    unit, x, picked, restart = unit_of(name), text(), picks(), restarts()
    expected = one_by_one(unit, x, picked, restart)
    for length in (1, 2, 5):
        state, start, pieces = initial_subsequence(unit, B, x.device), torch.zeros(B, dtype=torch.int64), []
        for at in range(0, T, length):
            part = slice(at, at + length)
            context = context_of(restart, start, part)
            index, _, read = read_picked(unit, x[:, part], picked[:, part], state, context)
            pieces.append(added_at(torch.zeros_like(x[:, part]), index, read.y))
            state, start = read.state, context.position[:, -1] + 1
        torch.testing.assert_close(torch.cat(pieces, 1), expected)
        assert state.waits.tolist() == [not picked[0, -1], False, True]


def test_states_that_grow_hold_the_picked_tokens_of_the_document_and_no_more() -> None:
    unit, x = unit_of("attention"), text()
    state = initial_subsequence(unit, B, x.device)
    for step in range(6):  # two rows in turns, the third picks nothing
        picked = torch.tensor([step % 2 == 0, step % 2 == 1, False])[:, None].expand(B, 3)
        state = read_picked(unit, x[:, :3], picked, state, Context().derived(x[:, :3, 0], state.position, carry=True)).mixed.state
    assert state.inner.key.shape[2] == 9 and state.position.tolist() == [9, 9, 0] == state.inner.length.tolist()


class Counts(Unit):
    """Sees what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.given: list[int] = []

    def initial_state(self, batch_size: int) -> tuple[()]:
        return ()

    def forward(self, x: Tensor, state: tuple[()], context: Context) -> Mixed:
        self.given.append(x.shape[0] * x.shape[1])
        first = x[..., 0]
        return Mixed(self.weight * x, state, {"mean": context.mean(first)}, stats={"sum": context.total(first)})


@pytest.mark.parametrize("carry", [False, True])
def test_the_reader_is_given_the_picked_tokens_only_and_its_losses_stay_means_over_all(carry: bool) -> None:
    unit, x, picked = Counts(), text(), picks()
    scored = torch.rand(B, T, generator=torch.Generator().manual_seed(8)) < 0.7
    state = initial_subsequence(unit, B, x.device)
    _, _, read = read_picked(unit, x, picked, state, context_of(restarts(), state.position, carry=carry, scored=scored))
    assert sum(unit.given) == int(picked.sum())
    expected = x[..., 0][picked & scored].sum()
    torch.testing.assert_close(read.losses["mean"], expected / scored.sum())
    torch.testing.assert_close(read.stats["sum"], expected)


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("name", SECTIONS)
def test_where_nothing_is_picked_every_parameter_gets_a_gradient_of_zero(name: str, carry: bool) -> None:
    unit, x = unit_of(name), text().requires_grad_()
    state = initial_subsequence(unit, B, x.device)
    index, _, read = read_picked(unit, x, torch.zeros(B, T, dtype=torch.bool), state, context_of(restarts(), state.position, carry=carry))
    added_at(x, index, read.y).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in unit.parameters())
    assert all(torch.equal(one, other) for one, other in zip(tree_leaves(read.state.inner), tree_leaves(state.inner), strict=True))
    assert read.state.waits.tolist() == [True, True, True]


@pytest.mark.parametrize("carry", [False, True])
def test_no_tokens_and_one_token(carry: bool) -> None:
    unit, x = unit_of("s5"), text()
    state = initial_subsequence(unit, B, x.device)
    for time in (0, 1):
        picked = torch.ones(B, time, dtype=torch.bool)
        read = read_picked(unit, x[:, :time], picked, state, Context().derived(x[:, :time, 0], state.position, carry)).mixed
        assert read.y.shape == (B * time, D)


def test_beginnings() -> None:
    picked = torch.tensor([[0, 1, 1, 0, 0, 1], [0, 0, 1, 0, 1, 0]]).bool()
    restart = torch.tensor([[0, 0, 0, 1, 0, 0], [1, 1, 0, 0, 1, 1]]).bool()
    begins, waits = beginnings(picked, restart, torch.tensor([True, False]))
    assert begins.int().tolist() == [[0, 1, 0, 0, 0, 1], [0, 0, 1, 0, 1, 0]] and waits.tolist() == [False, True]
    begins, waits = beginnings(picked, None, torch.tensor([True, False]))
    assert begins.int().tolist() == [[0, 1, 0, 0, 0, 0], [0] * 6] and waits.tolist() == [False, False]


def test_gather_and_scatter_are_each_others_inverse() -> None:
    x, picked = text(), picks()
    index = index_of(picked)
    assert torch.equal(gathered(x, index), x[picked])
    assert torch.equal(added_at(torch.zeros_like(x), index, gathered(x, index)), torch.where(picked[..., None], x, 0))

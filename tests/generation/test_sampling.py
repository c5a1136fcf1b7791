"""Draws: the nucleus is transformers' own, a draw follows its distribution, and a checked draft is a draw like any other."""

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import TopPLogitsWarper

from lm.generation.sampling import Sampler, nucleus
from lm.preset.generation import GenerationConfig
from tests.generation.chi_square import agrees

DRAWS = 3000


def some_chances(seed: int, size: int, zeros: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    chances = torch.rand(size, generator=generator) ** 2
    chances[torch.randperm(size, generator=generator)[:zeros]] = 0
    return chances / chances.sum()


@pytest.mark.parametrize("temperature", [1e-45, 1e-37, 1e-3])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_next_to_no_temperature_is_greedy(temperature: float, top_p: float) -> None:
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(GenerationConfig(temperature=temperature, top_p=top_p))
    assert sampler.draw(sampler.chances(scores)) == int(scores.argmax())


@pytest.mark.parametrize("size", [1, 5, 400, 3000])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 0.9999])
@pytest.mark.parametrize("spread", [0.1, 3.0, 60.0])
def test_the_nucleus_is_that_of_transformers(size: int, top_p: float, spread: float) -> None:
    """Flat and steep ones."""
    scores = spread * torch.randn(size, generator=torch.Generator().manual_seed(size))
    expected = TopPLogitsWarper(top_p)(None, scores[None])[0].softmax(-1)
    torch.testing.assert_close(nucleus(scores.softmax(-1), top_p), expected, rtol=1e-4, atol=2e-5)


def test_draws_follow_their_chances() -> None:
    sampler, chances = Sampler(GenerationConfig(), 3), some_chances(1, 23, zeros=7)
    assert agrees([sampler.draw(5 * chances) for _ in range(DRAWS)], dict(enumerate(chances.tolist())))
    last = torch.tensor([0.0, 1.0, 0.0])
    assert {sampler.draw(last) for _ in range(200)} == {1}


@pytest.mark.parametrize("name", ["alike", "wrong", "disjoint", "the same", "sure and wrong"])
def test_a_checked_draft_is_a_draw(name: str) -> None:
    """Whatever it was drawn from, also where that is of fewer entries. Taking every draft would not pass."""
    target = some_chances(1, 17, zeros=5)
    drafted = {
        "alike": (target[:13] + 0.02) / (target[:13] + 0.02).sum(),
        "wrong": some_chances(2, 13),
        "disjoint": torch.where(target[:13] == 0, 1.0, 0.0) / (target[:13] == 0).sum(),
        "the same": target,
        "sure and wrong": torch.eye(13)[int(target[:13].argmin())],
    }[name]
    sampler, drawn, kept = Sampler(GenerationConfig(), 4), [], 0
    for _ in range(DRAWS):
        token, is_draft = sampler.checked(target, sampler.draw(drafted), drafted)
        drawn.append(token)
        kept += is_draft
    expected = dict(enumerate(target.tolist()))
    assert agrees(drawn, expected)
    overlap = float(torch.minimum(target[: len(drafted)], drafted).sum())
    assert abs(kept / DRAWS - overlap) < 0.04, "Leviathan et al.: as often as the two agree"
    assert name == "the same" or not agrees([sampler.draw(drafted) for _ in range(DRAWS)], expected)


@pytest.mark.parametrize(
    ("target", "drafted"),
    [
        ((0.1, 0.35, 0.45, 0.1), (0.45, 0.45, 0.05, 0.05)),
        ((0.05, 0.3, 0.25, 0.4), (0.5, 0.3, 0.2)),  # the last is never drafted
        ((0.02, 0.08, 0.6, 0.3), (0.6, 0.4)),  # far more than what they should be
        ((0.2, 0.5, 0.3), (0.2, 0.5, 0.3)),
        ((0.0, 1.0, 0.0), (0.3, 0.4, 0.3)),  # greedy
    ],
)
def test_checked_drafts_of_few_tokens_follow_their_chances_closely(target: tuple[float, ...], drafted: tuple[float, ...]) -> None:
    """So many draws that another rest than p - q, such as p without the draft, would be seen: tried with it."""
    sampler, wanted, chances = Sampler(GenerationConfig(), 5), torch.tensor(target), torch.tensor(drafted)
    drafts = torch.multinomial(chances, 20_000, replacement=True, generator=torch.Generator().manual_seed(6)).tolist()
    assert agrees([sampler.checked(wanted, draft, chances)[0] for draft in drafts], dict(enumerate(target)))


def test_a_draft_that_rounding_alone_refuses_is_still_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no entry has more than it had among the drafts, nothing is left to draw from but the chances themselves."""
    drafted = torch.tensor([0.25, 0.5, 0.25])
    target = drafted * (1 - 2**-24)
    assert (target < drafted).all()
    sampler, numbers = Sampler(GenerationConfig()), iter([1 - 2**-53, 0.5])
    monkeypatch.setattr(sampler, "_uniform", lambda: next(numbers))
    assert sampler.checked(target, 0, drafted) == (1, False)

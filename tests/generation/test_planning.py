"""The planner scores by its one formula, found again here by loops; the policy steers; difficulty sets the temperature within bounds."""

import itertools
import math
from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor

from lm.generation.choosing import Chooser
from lm.generation.drafting import Ahead, Rows
from lm.generation.foresight import Foresight
from lm.generation.planning import Planner
from lm.generation.sampling import Sampler
from lm.generation.writing import Writing
from lm.preset import PresetError, preset_from_json
from lm.preset.generation import GenerationConfig, PlannerConfig
from tests.generation.chi_square import agrees
from tests.generation.test_drafting import ENDLESS, PROMPT, holds_all_it_wrote, written
from tests.generation.words import HEADS, WORDS, randomised, tiny_preset

HISTORY = [3, 4, 4]
RULES = {"repetition_penalty": 1.3, "temperature": 0, "max_new_tokens": 24, "draft_vocabulary": 2}  # which drafts alone look at
EVERY = len(WORDS)


def settings_of(planner: dict[str, Any], **others: Any) -> GenerationConfig:
    return GenerationConfig(**{**RULES, **others}, planner=PlannerConfig(enabled=True, **planner))


class Setting:
    """A model, its heads, and where it stands."""

    def __init__(self) -> None:
        self.model, self.heads = randomised(tiny_preset(), std=0.5)
        self.foresight = Foresight(self.model, self.heads)
        with torch.no_grad():
            out = self.model(torch.tensor([HISTORY]))
        self.scores, self.latent = out.logits[0, -1], out.hidden[0, -1]
        self.ahead = Ahead(Rows(self.scores[None], self.latent[None]), (), self.model.initial_state(1))

    def chooser(self, settings: GenerationConfig, seed: int = 0, ends: Collection[int] = ()) -> Chooser:
        return Chooser(settings, seed, self.model, self.heads, ends)

    def by_hand(self, piece: tuple[int, ...], config: PlannerConfig, ends: Collection[int] = ()) -> float:
        """log p + policy_weight * log pi - value_weight * v of a piece, token by token."""
        sampler, latent, scores, total, path = Sampler(GenerationConfig(**RULES)), self.latent, self.scores, 0.0, []
        for number, token in enumerate(piece):
            logs = sampler.ruled(scores, [*HISTORY, *piece[:number]]).log_softmax(-1)
            policy = self.heads["policy"].scores(latent, self.model.readout).log_softmax(-1)
            total += float(logs[token]) + config.policy_weight * float(policy[token])
            latent = self.heads["dynamics"].step(latent, self.model.embedding.weight[token])
            scores = self.model.output_weight @ latent
            path.append(latent)
        for _ in range(config.depth):
            if token in ends:
                break
            token = int((self.model.output_weight @ path[-1]).argmax())
            path.append(self.heads["dynamics"].step(path[-1], self.model.embedding.weight[token]))
        return total - config.value_weight * sum(float(self.heads["value"].estimate(each)) for each in path) / len(path)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


PLANS = [
    {"value_weight": 0.0},
    {"value_weight": 2.0, "depth": 0},
    {"value_weight": 3.0, "depth": 3, "policy_weight": 0.7},
    {"value_weight": 0.0, "policy_weight": 2.0},
]


@torch.no_grad()
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_tokens_are_scored_by_the_formula(setting: Setting, plan: dict[str, Any]) -> None:
    settings = settings_of({"candidates": EVERY, **plan})
    planner = Planner(settings, Sampler(settings), setting.foresight)
    routed = planner.routed(Sampler(settings).ruled(setting.scores, HISTORY), setting.latent)
    expected = torch.tensor([setting.by_hand((token,), settings.planner) for token in range(EVERY)])
    torch.testing.assert_close(routed, expected, rtol=1e-5, atol=1e-5)
    assert setting.chooser(settings).chosen(setting.ahead, HISTORY).token == int(expected.argmax())
    few = settings_of({"candidates": 3, **plan})
    routed = Planner(few, Sampler(few), setting.foresight).routed(Sampler(few).ruled(setting.scores, HISTORY), setting.latent)
    prior = [setting.by_hand((token,), settings.planner.model_copy(update={"value_weight": 0.0})) for token in range(EVERY)]
    assert torch.isfinite(routed).nonzero().flatten().tolist() == sorted(torch.tensor(prior).topk(3).indices.tolist())


@torch.no_grad()
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_the_best_piece_of_all_is_found_where_the_beam_holds_them(setting: Setting, plan: dict[str, Any]) -> None:
    settings = settings_of({"candidates": 256, "commit": "piece", "piece_length": 2, **plan})
    pieces = list(itertools.product(range(EVERY), repeat=2))
    scores = torch.tensor([setting.by_hand(piece, settings.planner) for piece in pieces])
    chosen = setting.chooser(settings).chosen(setting.ahead, HISTORY)
    assert (chosen.token, *chosen.planned) == pieces[int(scores.argmax())]


@torch.no_grad()
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_piece_ends_where_its_document_does(setting: Setting, plan: dict[str, Any]) -> None:
    """Nothing behind the end counts, neither of the piece nor of what is foretold; a piece is as long as it has to be."""
    settings = settings_of({"candidates": 256, "commit": "piece", "piece_length": 2, **plan})
    lengths = set()
    for ends in ((), (0,), (2, 5), (1, 3, 4, 6), range(EVERY)):
        pieces = [(token,) if token in ends else (token, other) for token in range(EVERY) for other in range(EVERY)]
        scores = {piece: setting.by_hand(piece, settings.planner, ends) for piece in pieces}
        chooser, seen = setting.chooser(settings, ends=ends), []
        chooser._sampler.tempered = lambda merit, warmth, seen=seen: seen.append(merit) or merit.softmax(-1) == merit.softmax(-1).max()
        chosen = chooser.chosen(setting.ahead, HISTORY)
        assert (chosen.token, *chosen.planned) == max(scores, key=scores.get)
        torch.testing.assert_close(seen[0].sort().values, torch.tensor(sorted(scores.values())), rtol=1e-5, atol=1e-5)
        lengths.add(1 + len(chosen.planned))
        token = settings_of({"candidates": EVERY, **plan})
        routed = Planner(token, Sampler(token), setting.foresight, ends).routed(Sampler(token).ruled(setting.scores, HISTORY), setting.latent)
        expected = torch.tensor([setting.by_hand((token,), settings.planner, ends) for token in range(EVERY)])
        torch.testing.assert_close(routed, expected, rtol=1e-5, atol=1e-5)
    assert lengths == {1, 2}


@torch.no_grad()
def test_a_token_without_a_value_is_chosen_without_dynamics(setting: Setting) -> None:
    settings = settings_of({"candidates": EVERY, "value_weight": 0.0, "policy_weight": 0.5})
    chosen = Chooser(settings, 0, setting.model, {"policy": setting.heads["policy"]}).chosen(setting.ahead, HISTORY)
    assert chosen.token == max(range(EVERY), key=lambda token: setting.by_hand((token,), settings.planner))
    assert set(settings.needs) == {"policy"} and set(settings_of({"value_weight": 0.0, "commit": "piece"}).needs) == {"dynamics"}


@torch.no_grad()
def test_pieces_and_tokens_are_drawn_by_their_scores(setting: Setting) -> None:
    plan = {"candidates": 256, "value_weight": 1.0, "policy_weight": 0.5}
    settings = settings_of({**plan, "commit": "piece", "piece_length": 2}, temperature=0.7, top_p=1.0)
    pieces = list(itertools.product(range(EVERY), repeat=2))
    chances = (torch.tensor([setting.by_hand(piece, settings.planner) for piece in pieces]) / 0.7).softmax(-1).tolist()
    chooser = setting.chooser(settings, 1)
    drawn = [(chosen.token, *chosen.planned) for chosen in (chooser.chosen(setting.ahead, HISTORY) for _ in range(120))]
    assert agrees(drawn, dict(zip(pieces, chances, strict=True)))
    settings = settings_of(plan, temperature=0.7, top_p=1.0)
    chances = (torch.tensor([setting.by_hand((token,), settings.planner) for token in range(EVERY)]) / 0.7).softmax(-1).tolist()
    chooser = setting.chooser(settings, 1)
    assert agrees([chooser.chosen(setting.ahead, HISTORY).token for _ in range(120)], dict(enumerate(chances)))


@torch.no_grad()
def test_the_value_decides_where_it_counts_for_much(setting: Setting) -> None:
    """Lower is better: what is expected to be easy is written."""
    settings = settings_of({"candidates": EVERY, "value_weight": 1000.0, "depth": 0})
    after = [setting.heads["value"].estimate(setting.foresight.next(setting.latent, torch.tensor(token))) for token in range(EVERY)]
    assert setting.chooser(settings).chosen(setting.ahead, HISTORY).token == int(torch.stack(after).argmin())


@pytest.mark.parametrize("commit", ["token", "piece"])
def test_the_state_is_that_of_what_was_written(setting: Setting, commit: str) -> None:
    """Also where it is looked at between the tokens of a piece, and where the longest answer ends within one."""
    settings = settings_of({"commit": commit}, temperature=0.8, max_new_tokens=8)
    expected = written(Writing(setting.model, ENDLESS, PROMPT, settings, seed=1, heads=setting.heads))
    writing = Writing(setting.model, ENDLESS, PROMPT, settings, seed=1, heads=setting.heads)
    for told, _ in enumerate(writing, start=1):
        assert len(writing.tokens) == told
        holds_all_it_wrote(setting.model, writing)
    assert writing.tokens == expected and len(expected) == 8


def test_drafts_leave_what_a_planner_writes_as_it_is(setting: Setting) -> None:
    settings = settings_of({"policy_weight": 0.5})
    plain, drafted = (Writing(setting.model, ENDLESS, PROMPT, settings.model_copy(update={"draft_length": length}), heads=setting.heads) for length in (0, 4))
    assert written(plain) == written(drafted) and drafted.paces.drafted.drafts


@torch.no_grad()
def test_the_policy_steers_plain_sampling(setting: Setting) -> None:
    def expected(weight: float) -> Tensor:
        policy = setting.heads["policy"].scores(setting.latent, setting.model.readout).log_softmax(-1)
        return (setting.scores + weight * policy).float().softmax(-1)

    tokens = set()
    for weight in (0.5, 50.0):
        settings = GenerationConfig(repetition_penalty=1.0, temperature=1.0, top_p=1.0, policy_weight=weight)
        chooser = setting.chooser(settings, 1)
        assert agrees([chooser.chosen(setting.ahead, HISTORY).token for _ in range(300)], dict(enumerate(expected(weight).tolist())))
        tokens.add(int(expected(weight).argmax()))
    assert int(expected(50.0).argmax()) == int(setting.foresight.policy(setting.latent).argmax())


@torch.no_grad()
@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.4, 1.0])
def test_difficulty_sets_the_temperature_within_bounds(setting: Setting, strength: float) -> None:
    settings = GenerationConfig(difficulty_temperature=strength, difficulty_bits=4.0, temperature=0.9, repetition_penalty=1.0, top_p=1.0)
    value, chooser = setting.heads["value"], setting.chooser(settings, 1)
    warmths = []
    try:
        for nats in (-50.0, 0.0, 4 * math.log(2), 6.0, 1000.0):
            value.mean.fill_(0.0)
            value.mean.fill_(nats - float(value.estimate(setting.latent)))
            warmth = chooser.warmth(setting.latent)
            assert warmth == pytest.approx(2 ** (strength * math.tanh(nats / math.log(2) / 4 - 1)))
            warmths.append(warmth)
        assert warmths[2] == pytest.approx(1.0) and all(0.5 <= warmth <= 2 for warmth in warmths)
        assert warmths == sorted(warmths, reverse=strength < 0) and warmths[0] != warmths[-1]
        expected = (setting.scores.float() / (0.9 * warmths[-1])).softmax(-1)
        assert agrees([chooser.chosen(setting.ahead, HISTORY).token for _ in range(300)], dict(enumerate(expected.tolist())))
    finally:
        value.mean.fill_(0.0)
    usual = setting.chooser(settings.model_copy(update={"difficulty_bits": GenerationConfig().difficulty_bits}))
    assert usual.warmth(setting.latent) == 1.0, "nothing was learned yet"
    try:
        for nats in (0.7, 3.0):
            value.mean.fill_(nats)
            more = float(value.estimate(setting.latent)) / nats - 1
            assert usual.warmth(setting.latent) == pytest.approx(2 ** (strength * math.tanh(more))) != 1.0
    finally:
        value.mean.fill_(0.0)
    off = setting.chooser(settings.model_copy(update={"difficulty_temperature": 0.0}))
    assert off.warmth(setting.latent) == 1.0


@pytest.mark.parametrize(
    ("generation", "heads", "said"),
    [
        ('"planner": {"enabled": true}', '"enable_value": true', "planner.enabled needs the dynamics head"),
        ('"planner": {"enabled": true}', '"enable_dynamics": true', "planner.value_weight needs the value head"),
        ('"planner": {"enabled": true, "policy_weight": 1}', '"enable_dynamics": true, "enable_value": true', "planner.policy_weight needs the policy head"),
        ('"policy_weight": 0.5', '"enable_value": true', "policy_weight needs the policy head"),
        ('"difficulty_temperature": 0.5', '"enable_policy": true', "difficulty_temperature needs the value head"),
    ],
)
def test_what_a_model_has_no_head_for_is_refused_in_one_line(generation: str, heads: str, said: str) -> None:
    switch, head = said.split(" needs the ")
    cause = rf"{said}, and auxiliary.enable_{head.split()[0]} is off: train with it on, or set {switch} to {'false' if 'enabled' in switch else '0'}"
    with pytest.raises(PresetError, match=cause) as caught:
        preset_from_json(f'{{"generation": {{{generation}}}, "auxiliary": {{{heads}}}, "data": {{"sources": ["c4"]}}}}', "test")
    assert "\n" not in str(caught.value)
    preset_from_json(f'{{"generation": {{{generation}}}, {HEADS}, "data": {{"sources": ["c4"]}}}}', "test")


def test_pieces_are_not_drafted() -> None:
    with pytest.raises(PresetError, match="draft_length: a planner that commits pieces"):
        raw = f'"generation": {{"draft_length": 2, "planner": {{"enabled": true, "commit": "piece"}}}}, {HEADS}'
        preset_from_json(f'{{{raw}, "data": {{"sources": ["c4"]}}}}', "test")

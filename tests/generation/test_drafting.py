"""Drafts change speed alone: the distribution, the state, and all that writing promises stay as they are."""

import copy
import itertools
import math
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from lm.app.chat_screen import paces_in_words
from lm.generation import Writing, generate
from lm.generation import writing as writing_module
from lm.generation.drafting import PENDING, SOUNDED, Draft, Drafter, Pace, Paces
from lm.generation.foresight import Foresight
from lm.generation.sampling import Sampler
from lm.model import Model
from lm.preset import PresetError, load_preset, preset_from_json
from lm.preset.generation import GenerationConfig, PlannerConfig
from tests.generation.chi_square import agrees
from tests.generation.words import ENDED, HEADS, WORDS, all_that_may_come, randomised, taught, tiny_preset, words_tokenizer
from tests.test_law import MODELS, preset_of

GREEDY = GenerationConfig(temperature=0, repetition_penalty=1.1, no_repeat_ngram=4, max_new_tokens=40, draft_length=4)
DRAWN = GREEDY.model_copy(update={"temperature": 0.9, "top_p": 0.97})
PROMPT = (3, 4)
TOKENIZER, ENDLESS = words_tokenizer(), words_tokenizer(ends=False)


def plain(settings: GenerationConfig) -> GenerationConfig:
    return settings.model_copy(update={"draft_length": 0})


def begun(model: Model, heads: nn.ModuleDict, settings: GenerationConfig, seed: int = 0, tokenizer: Any = ENDLESS) -> Writing:
    return Writing(model, tokenizer, PROMPT, settings, seed=seed, heads=heads)


def written(writing: Writing) -> tuple[int, ...]:
    for _ in writing:
        pass
    return writing.tokens


def holds_all_it_wrote(model: Model, writing: Writing) -> None:
    """The state is that of reading the tokens afresh."""
    afresh = model(torch.tensor([writing.document]), model.initial_state(1)).state
    for now, expected in zip(tree_leaves(writing.state), tree_leaves(afresh), strict=True):
        torch.testing.assert_close(now, expected, rtol=1e-9, atol=1e-9)


class Told:
    """Drafts what is `right` behind a prompt, with a wrong token at random places: all ways of keeping some and not others."""

    def __init__(self, right: Sequence[int], wrong: float, seed: int = 0) -> None:
        self.right, self.wrong, self.random, self.known = list(right), wrong, random.Random(seed), len(PROMPT)

    def __call__(self, latent: torch.Tensor, history: list[int], limit: int) -> tuple[Draft, ...]:
        at = len(history) - self.known
        tokens = [(token + 1) % 7 if self.random.random() < self.wrong else token for token in self.right[at : at + min(limit, 5)]]
        return tuple(Draft(token, torch.eye(len(WORDS))[token]) for token in tokens)


@pytest.mark.parametrize(
    ("kind", "vocabulary", "draws"),
    [("wrong", 5, 300), *(pytest.param(*case, marks=pytest.mark.longest) for case in (("told", 7, 600), ("taught", 7, 1200), ("wrong", 7, 600)))],
)
def test_what_is_written_has_the_distribution_of_plain_sampling(kind: str, vocabulary: int, draws: int) -> None:
    """Three tokens deep, of which drafts are the second and third, with penalties, temperature and nucleus."""
    model, heads = randomised(tiny_preset(), std=0.5)
    heads = taught(model, heads) if kind == "taught" else heads
    settings = DRAWN.model_copy(update={"max_new_tokens": 3, "draft_vocabulary": vocabulary, "repetition_penalty": 1.3})
    expected = all_that_may_come(model, PROMPT, settings, 3)
    assert abs(sum(expected.values()) - 1) < 1e-5 and sum(chance > 0.005 for chance in expected.values()) > 15
    drawn, paces, prompt = [], Paces(), begun(model, heads, settings, tokenizer=TOKENIZER)
    prompt._now = prompt._prompt_read()
    for seed in range(draws):
        writing = prompt.going_on(settings, seed)
        if kind == "told":
            writing._chooser.drafts = Told((3, 3, 4), 0.5, seed)
        tokens = written(writing)
        drawn.append(tokens if writing.finished_by == "length" else (*tokens, ENDED))
        paces = paces.plus(writing.paces)
    assert agrees(drawn, expected)
    assert paces.drafted.drafts > len(drawn) / 2 and paces.drafted.kept > len(drawn) / 10
    hotter = settings.model_copy(update={"temperature": 0.4})
    assert not agrees(drawn, all_that_may_come(model, PROMPT, hotter, 3)), "else the test could not tell"


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_token_identical_and_states_are_those_of_reading(name: str) -> None:
    """For every kind of unit, with drafts of every kind."""
    model, heads = randomised(preset_of({**MODELS[name], "auxiliary": {"enable_dynamics": True}}), std=0.4)
    for part in model.modules():
        if hasattr(part, "threshold"):
            part.threshold.zero_()
    settings = GREEDY.model_copy(update={"max_new_tokens": 13})
    expected = written(begun(model, heads, plain(settings)))
    for wrong in (None, 0.0, 0.4):
        writing = begun(model, heads, settings)
        if wrong is not None:
            writing._chooser.drafts = Told(expected, wrong)
        assert written(writing) == expected
        holds_all_it_wrote(model, writing)
        if wrong == 0:
            assert writing.paces.drafted.kept == writing.paces.drafted.drafts and writing.paces.drafted.tokens > 2 * writing.paces.drafted.passes


def test_greedy_is_token_identical_in_float32_where_tokens_are_apart() -> None:
    """As it is written in chat: passes of different lengths round differently, by far less than the likeliest tokens are apart here."""
    model, heads = (part.float() for part in randomised(tiny_preset(), std=0.5))
    settings = GREEDY.model_copy(update={"max_new_tokens": 12, "no_repeat_ngram": 0, "repetition_penalty": 1.0})
    for seed, prompt in enumerate(itertools.product((1, 5), (3, 4))):
        expected = written(Writing(model, ENDLESS, prompt, plain(settings), heads=heads))
        logits = model(torch.tensor([[*prompt, *expected]])).logits[0, len(prompt) - 1 : -1].topk(2).values
        assert logits.dtype == torch.float32 and (logits[:, 0] - logits[:, 1]).min() > 1e-4
        for wrong in (None, 0.4):
            writing = Writing(model, ENDLESS, prompt, settings, heads=heads)
            if wrong:
                writing._chooser.drafts = Told(expected, wrong, seed)
            assert written(writing) == expected and writing.paces.drafted.drafts


@pytest.mark.longest
@pytest.mark.parametrize("path", sorted(Path("configs").glob("[0-9]*.json")), ids=lambda path: path.stem)
def test_greedy_is_token_identical_for_shipped_models(path: Path) -> None:
    """At their own widths and layers."""
    shipped = load_preset(path)
    heads = shipped.auxiliary.model_copy(update={"enable_dynamics": True})
    model, heads = randomised(shipped.model_copy(update={"auxiliary": heads}), std=0.05)
    settings = GREEDY.model_copy(update={"max_new_tokens": 13})
    expected = written(begun(model, heads, plain(settings)))
    for wrong in (None, 0.3):
        writing = begun(model, heads, settings)
        if wrong:
            writing._chooser.drafts = Told(expected, wrong)
        assert written(writing) == expected and writing.paces.drafted.drafts
        holds_all_it_wrote(model, writing)


def test_between_two_pieces_the_state_is_that_of_the_tokens_told() -> None:
    """And looking at it changes nothing that comes."""
    model, heads = randomised(tiny_preset())
    for settings in (GREEDY, DRAWN):
        expected = written(begun(model, heads, settings, 5))
        writing = begun(model, heads, settings, 5)
        for told, _ in enumerate(writing, start=1):
            assert len(writing.tokens) == told
            holds_all_it_wrote(model, writing)
        assert writing.tokens == expected and len(set(expected)) > 2


def test_an_interrupt_at_any_time_leaves_state_and_tokens_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model, heads = randomised(tiny_preset())
    settings = GREEDY.model_copy(update={"max_new_tokens": 9})
    expected = written(begun(model, heads, plain(settings)))
    forward, drafted = Model.forward, writing_module.Chooser.drafts
    for count in range(1, 9, 2):
        for name, whole in (("forward", forward), ("drafts", drafted)):
            left = [count]

            def broken(*arguments: Any, whole: Callable[..., Any] = whole, left: list[int] = left) -> Any:
                left[0] -= 1
                if not left[0]:
                    raise KeyboardInterrupt
                return whole(*arguments)

            writing = begun(model, heads, settings)
            with monkeypatch.context() as patched:
                patched.setattr(Model if name == "forward" else writing_module.Chooser, name, broken)
                try:
                    written(writing)
                except KeyboardInterrupt:
                    assert writing.finished_by == "stopped"
            if not writing.begun:
                assert writing.state is None and writing.tokens == ()
                continue
            assert writing.tokens == expected[: len(writing.tokens)]
            holds_all_it_wrote(model, writing)
            more = writing.going_on(GREEDY.model_copy(update={"max_new_tokens": max(len(expected) - len(writing.tokens), 1)}))
            assert (writing.tokens + written(more))[: len(expected)] == expected
            holds_all_it_wrote(model, more)


def test_going_on_as_one_longer_writing_and_with_other_settings() -> None:
    model, heads = randomised(tiny_preset())
    expected = written(begun(model, heads, plain(GREEDY)))
    short = begun(model, heads, GREEDY.model_copy(update={"max_new_tokens": 7}))
    short._chooser.drafts = Told(expected, 0.0)
    assert written(short) == expected[:7] and short.finished_by == "length"
    for settings in (GREEDY, plain(GREEDY)):
        more = short.going_on(settings.model_copy(update={"max_new_tokens": 11}))
        assert written(more) == expected[7:18]
        holds_all_it_wrote(model, more)


def test_a_soft_cap_is_on_all_scores_that_are_written_by() -> None:
    """What the model says, what drafts are drawn from, and the policy."""
    preset = tiny_preset()
    model, heads = randomised(preset.model_copy(update={"model": preset.model.model_copy(update={"logit_soft_cap": 0.2})}), std=0.5)
    out = model(torch.tensor([PROMPT]))
    latent = out.hidden[0, -1]
    products = model.embedding.weight @ latent
    expected = 0.2 * torch.tanh(products / 0.2)
    assert (products - expected).abs().max() > 0.1
    torch.testing.assert_close(out.logits[0, -1], expected)
    torch.testing.assert_close(begun(model, heads, GREEDY)._prompt_read().ahead.rows.scores[0], expected)
    foresight = Foresight(model, heads)
    torch.testing.assert_close(foresight.scores(latent, 5), expected[:5])
    policy = model.embedding.weight @ heads["policy"].network(latent)
    torch.testing.assert_close(foresight.policy(latent), (0.2 * torch.tanh(policy / 0.2)).log_softmax(-1))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
def test_the_longest_answer_is_kept_to(length: int) -> None:
    model, heads = randomised(tiny_preset())
    expected = written(begun(model, heads, plain(GREEDY)))
    writing = begun(model, heads, GREEDY.model_copy(update={"max_new_tokens": length}))
    writing._chooser.drafts = Told(expected, 0.0)
    assert written(writing) == expected[:length] and writing.finished_by == "length"


def test_the_end_of_the_document_among_drafts_ends_it_and_is_not_read() -> None:
    model, heads = randomised(tiny_preset())
    for seed in range(40):
        writing = begun(model, heads, DRAWN, seed, TOKENIZER)
        writing._chooser.drafts = lambda latent, history, limit: tuple(Draft(token, torch.eye(len(WORDS))[token]) for token in (4, 0, 5)[:limit])
        tokens = written(writing)
        assert 0 not in tokens
        if writing.finished_by == "end":
            holds_all_it_wrote(model, writing)
            break
    else:
        pytest.fail("no document ended")


@pytest.mark.parametrize("kind", ["the end drafted", "another drafted", "planned"])
def test_going_on_after_an_end_is_to_choose_anew(kind: str) -> None:
    """As a writing that reads all of it afresh would, with the same draws: what led to the end counts no more."""
    model, heads = randomised(tiny_preset(), std=0.5)
    planner = PlannerConfig(enabled=kind == "planned", commit="piece", piece_length=6, depth=0, value_weight=0.0)
    settings = plain(DRAWN).model_copy(update={"max_new_tokens": 6, "planner": planner})
    drafts = [Draft(0 if kind == "the end drafted" else 1, torch.full((len(WORDS),), 1 / len(WORDS)))] * 2
    ended = 0
    for seed in range(100):
        writing = begun(model, heads, settings, seed, TOKENIZER)
        if kind != "planned":
            writing._chooser.drafts = lambda latent, history, limit: tuple(drafts[:limit])
        if not 0 < len(written(writing)) < 5:  # the first token is behind no draft, nor the last
            continue
        ended += 1
        for again in (1, 2, 3):
            afresh = Writing(model, TOKENIZER, writing.document, settings, seed=again, heads=heads)
            more = writing.going_on(settings, again)
            assert written(more) == written(afresh)
        holds_all_it_wrote(model, more)
        if ended == 3:
            break
    assert ended == 3


def test_no_pass_is_long_and_none_is_made_to_undo() -> None:
    """With drafts that are never kept there are as many passes as tokens, and what is read again stays within bounds."""
    model, heads = randomised(tiny_preset())
    expected = written(begun(model, heads, plain(GREEDY)))
    seen: list[int] = []
    forward = model.forward
    writing = begun(model, heads, GREEDY)
    next(writing)
    writing._chooser.drafts = Told(expected, 1.0)
    model.forward = lambda tokens, *rest: seen.append(tokens.shape[1]) or forward(tokens, *rest)
    assert written(writing) == expected
    del model.forward
    assert len(seen) == len(expected) - 1 and writing.paces.drafted.kept == 0
    assert PENDING < max(seen) <= PENDING + 1 + 5
    assert len(expected) == 40


@pytest.mark.parametrize("kind", ["half wrong", "all wrong", "never sure"])
def test_passes_as_without_drafts_are_known_by_what_they_read(kind: str) -> None:
    """One token, and no drafting tried: only those say how fast a token would be without drafts."""
    model, heads = randomised(tiny_preset())
    settings = GREEDY.model_copy(update={"max_new_tokens": 60, "no_repeat_ngram": 0})
    expected = written(begun(model, heads, plain(settings)))
    writing = begun(model, heads, settings)
    next(writing)
    drafter, forward = Told([] if kind == "never sure" else expected, 1.0 if kind == "all wrong" else 0.5), model.forward
    tried: list[int] = []
    read: list[int] = []
    writing._chooser.drafts = lambda latent, history, limit: tried.append(limit) or drafter(latent, history, limit)
    model.forward = lambda tokens, *rest: read.append(tokens.shape[1]) or forward(tokens, *rest)
    written(writing)
    del model.forward
    alone = [count == 1 and not limit for count, limit in zip(read, tried, strict=True)]
    paces = writing.paces
    assert (paces.plain.passes, paces.drafted.passes) == (sum(alone), len(alone) - sum(alone))
    assert paces.plain.tokens == paces.plain.passes and 2 <= paces.plain.passes <= 2 + len(alone) / SOUNDED, "one in sixteen, and the last"
    assert paces.drafted.tokens + paces.plain.tokens == 60 - 1 and paces_in_words(paces).startswith("drafts: ")


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.0, 0.4, 0.9, 1.5])
def test_a_draft_ends_where_its_entropy_is_high(temperature: float) -> None:
    """That of what it is drawn from; by default nowhere."""
    model, heads = randomised(tiny_preset())
    heads["dynamics"].norm.weight.data *= 5  # else all are about as uncertain
    foresight, latent = Foresight(model, heads), model(torch.tensor([PROMPT])).hidden[0, -1]

    def drafts(nats: float | None, seed: int) -> tuple[Draft, ...]:
        settings = DRAWN.model_copy(update={"temperature": temperature, "draft_entropy": nats, "no_repeat_ngram": 0})
        return Drafter(settings, Sampler(settings, seed), foresight).drafts(latent, [*PROMPT, 1 + seed % 6], 6)

    def nats_of(draft: Draft) -> float:
        return -sum(chance * math.log(chance) for chance in draft.chances.tolist() if chance)

    lengths, most = set(), statistics.quantiles((nats_of(draft) for seed in range(12) for draft in drafts(None, seed)), n=6)[-1] + 1e-5
    for seed in range(12):
        every, some = drafts(None, seed), drafts(most, seed)
        assert len(every) == 6 and [draft.token for draft in some] == [
            draft.token for draft in itertools.takewhile(lambda draft: nats_of(draft) <= most, every)
        ]
        lengths.add(len(some))
    assert lengths == {6} if temperature == 0 else len(lengths) > 1
    assert GenerationConfig().draft_entropy is None


def test_draws_repeat_with_a_seed_and_the_old_state_stays_as_it_was() -> None:
    model, heads = randomised(tiny_preset())
    first, again, other = (begun(model, heads, DRAWN, seed) for seed in (7, 7, 8))
    assert written(first) == written(again) != written(other)
    kept = copy.deepcopy(first.state)
    written(Writing(model, TOKENIZER, PROMPT[1:], DRAWN, first.state, heads=heads))
    assert all(torch.equal(*pair) for pair in zip(tree_leaves(kept), tree_leaves(first.state), strict=True))


def refused(switch: str, head: str) -> str:
    return rf"^generation\.{switch} needs the {head} head, and auxiliary\.enable_{head} is off: train with it on, or set {switch} to 0$"


def test_heads_that_are_not_there_are_refused_in_one_line() -> None:
    model, heads = randomised(tiny_preset())
    asked = {
        "dynamics": {"draft_length": 3},
        "policy": {"policy_weight": 0.5},
        "value": {"difficulty_temperature": 0.5},
    }
    for head, switches in asked.items():
        settings = GenerationConfig.model_validate(switches)
        others = nn.ModuleDict({name: module for name, module in heads.items() if name != head})
        with pytest.raises(ValueError, match=refused(next(iter(switches)), head)):
            generate(model, TOKENIZER, "a plant", settings, heads=others)
        assert "".join(generate(model, TOKENIZER, "a plant", settings, heads=heads)) is not None
    with pytest.raises(PresetError, match=r"generation.draft_length needs the dynamics head") as caught:
        preset_from_json('{"generation": {"draft_length": 4}, "data": {"sources": ["c4"]}}', "test")
    assert "\n" not in str(caught.value)
    preset_from_json(f'{{"generation": {{"draft_length": 4}}, {HEADS}, "data": {{"sources": ["c4"]}}}}', "test")


def test_paces_in_words() -> None:
    drafted, sounded = Pace(passes=50, tokens=120, seconds=1.2, drafts=150, kept=70), Pace(passes=5, tokens=5, seconds=0.1)
    assert paces_in_words(Paces(sounded, drafted)) == "drafts: 47 % of 150 kept · 2.4 tokens a pass · 1.9 times as fast as without"
    assert paces_in_words(Paces(Pace(), drafted)) == "drafts: 47 % of 150 kept · 2.4 tokens a pass"
    assert paces_in_words(Paces(Pace(), drafted._replace(drafts=0, kept=0))) == "drafts: none was sure enough · 2.4 tokens a pass"
    assert Paces(sounded).speed_up is None and Paces().speed_up is None

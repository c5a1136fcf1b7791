"""Gaps in a prompt: read as training reads them, filled one after the other, and no turn of the conversation."""

import copy
from typing import Any

import pytest
import torch

from data_sources.special_tokens import ObjectiveTokens, with_objective_tokens
from lm.generation.chat import PLAIN, Conversation
from lm.generation.infilling import NOT_YET, FillingConversation, conversation_of, filler_of
from lm.model import Model, build_model
from lm.ops.readout import Readout
from lm.preset import Preset
from lm.preset.generation import GenerationConfig
from tests.generation.test_chat import answered

TAUGHT = {"S": 900, "R": 500, "X": 100}
SURE = GenerationConfig(temperature=0, max_new_tokens=12, repetition_penalty=1)


@pytest.fixture
def gapped(tokenizer: Any) -> Any:
    return with_objective_tokens(copy.deepcopy(tokenizer))


@pytest.fixture
def random_model(preset: Preset, gapped: Any) -> Model:
    torch.manual_seed(5)
    model = build_model(preset, len(gapped)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


class Scripted(torch.nn.Module):
    """Says what its script has after what it has read, and notes all that it reads."""

    def __init__(self, model: Model, script: dict[int, list[int]], size: int) -> None:
        super().__init__()
        self.model, self.script, self.size, self.read = model, script, size, []
        self.coming: list[int] = []

    def initial_state(self, batch_size: int) -> Any:
        return self.model.initial_state(batch_size)

    def forward(self, tokens: Any, state: Any, context: Any) -> Any:
        out = self.model(tokens, state, context)
        self.read += tokens[0].tolist()
        if self.read[-1] in self.script:
            self.coming = list(self.script[self.read[-1]])
        said = [1] * (tokens.shape[1] - 1) + [self.coming.pop(0) if self.coming else 1]
        out.hidden = torch.nn.functional.one_hot(torch.tensor([said]), self.size).double()
        return out

    @property
    def readout(self) -> Readout:
        return Readout(torch.eye(self.size, dtype=torch.float64))


def test_the_prompt_and_the_gaps_are_read_as_in_training(preset: Preset, gapped: Any, random_model: Model) -> None:
    tokens = ObjectiveTokens.of(gapped)
    ids = lambda text: gapped.encode(text, add_special_tokens=False)  # noqa: E731
    first, second, third = tokens.gaps[:3]
    script = {first: [*ids(" plant lives"), second], second: [*ids(" years"), gapped.eos_token_id]}
    scripted = Scripted(random_model, script, len(gapped))
    filling = filler_of(scripted, gapped, preset, TAUGHT).filling("The perennial ___ for ____; an annual one dies.", SURE)
    pieces = list(filling)
    assert "".join(pieces) == "The perennial plant lives for years; an annual one dies."
    assert filling.filled == [" plant lives", " years"] and filling.finished_by == "end"
    prompt = [tokens.modes["R"], gapped.bos_token_id, *ids("The perennial"), first, *ids(" for"), second, *ids("; an annual one dies.")]
    assert scripted.read == [*prompt, first, *ids(" plant lives"), second, *ids(" years")]
    assert pieces[0] == "The perennial" and pieces[-1] == "; an annual one dies.", "what was given comes at once"


def test_a_gap_that_does_not_end_is_cut(preset: Preset, gapped: Any, random_model: Model) -> None:
    word = gapped.encode("x", add_special_tokens=False)
    first, second = ObjectiveTokens.of(gapped).gaps[:2]
    scripted = Scripted(random_model, {first: word * 40, second: word * 3}, len(gapped))
    filling = filler_of(scripted, gapped, preset, TAUGHT).filling("a ___ b ___ c", SURE)
    assert "".join(filling) == f"a{'x' * 12} b{'x' * 3} c"


def test_a_gap_is_no_turn(preset: Preset, gapped: Any, random_model: Model) -> None:
    conversation = FillingConversation(filler_of(random_model, gapped, preset, TAUGHT), random_model, gapped, PLAIN, SURE)
    plain = Conversation(random_model, gapped, PLAIN, SURE)
    assert answered(conversation, "The plant") == answered(plain, "The plant")
    before = conversation.tokens
    assert answered(conversation, "An ___ dies.").startswith("An")
    assert conversation.tokens == before and len(conversation.turns) == 1
    assert answered(conversation, "and on") == answered(plain, "and on"), "it goes on as if nothing had been filled"
    assert "___ is filled in" in conversation.in_words


def test_a_gap_is_asked_for_as_it_was_taught(preset: Preset, gapped: Any, random_model: Model) -> None:
    modes = ObjectiveTokens.of(gapped).modes
    for taught, mode in (({"R": 3, "X": 9}, "R"), ({"S": 9, "X": 3}, "X")):
        scripted = Scripted(random_model, {}, len(gapped))
        "".join(filler_of(scripted, gapped, preset, taught).filling("a ___", SURE))
        assert scripted.read[0] == modes[mode]


@pytest.mark.parametrize("taught", [{}, {"S": 900}, {"S": 900, "R": 0}])
def test_gaps_are_not_offered_before_they_are_taught(taught: dict[str, int], preset: Preset, gapped: Any, random_model: Model) -> None:
    assert filler_of(random_model, gapped, preset, taught) is None
    conversation = conversation_of(random_model, gapped, preset, taught, PLAIN, SURE)
    assert conversation.in_words == PLAIN.in_words
    assert answered(conversation, "An ___ dies.") == NOT_YET and conversation.turns == []
    assert answered(conversation, "An") == answered(Conversation(random_model, gapped, PLAIN, SURE), "An")


def test_a_model_without_the_tokens_fills_nothing(preset: Preset, tokenizer: Any, model: Model) -> None:
    assert filler_of(model, tokenizer, preset, TAUGHT) is None


def test_more_gaps_than_tokens(preset: Preset, gapped: Any, random_model: Model) -> None:
    with pytest.raises(ValueError, match="101 gaps, and the model knows 100"):
        filler_of(random_model, gapped, preset, TAUGHT).filling("a ___ " * 101, SURE)

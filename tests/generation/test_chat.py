"""Conversations: frames, and a state that equals reading everything again."""

import pytest
import torch

from lm.generation.chat import PLAIN, Conversation, Frame, frame_from, frame_of
from lm.preset import preset_from_json
from lm.preset.generation import GenerationConfig

SHORT = GenerationConfig(temperature=0, max_new_tokens=9)


def answered(conversation, message):
    answer = conversation.say(message)
    text = "".join(answer)
    conversation.settle(answer)
    return text


def test_logits_equal_reading_the_whole_conversation_again(model, tokenizer):
    conversation = Conversation(model, tokenizer, Frame("Q: ", "\nA:"), SHORT)
    for message in ("What is a plant?", "And an annual one? 東京", "", "Why?"):
        answered(conversation, message)
        whole = model(torch.tensor([[*conversation.tokens, 7]])).logits[0, -1]
        carried = model(torch.tensor([[7]]), conversation.state).logits[0, -1]
        assert torch.allclose(carried, whole, atol=1e-9)
    assert tokenizer.decode(conversation.turns[0].read) == "<bos>Q: What is a plant?\nA:"
    assert tokenizer.decode(conversation.turns[1].read) == "\nQ: And an annual one? 東京\nA:"
    assert conversation.turns[2].read == ()


def test_a_broken_off_answer_stays_as_far_as_it_came(model, tokenizer):
    conversation = Conversation(model, tokenizer, PLAIN, SHORT)
    answer = conversation.say("The")
    next(answer)
    conversation.settle(answer)
    answered(conversation, "plant")
    whole = model(torch.tensor([[*conversation.tokens, 7]])).logits[0, -1]
    assert torch.allclose(model(torch.tensor([[7]]), conversation.state).logits[0, -1], whole, atol=1e-9)


def test_an_answer_never_begun_leaves_everything_as_it_was(model, tokenizer):
    conversation = Conversation(model, tokenizer, PLAIN, SHORT)
    conversation.settle(conversation.say("The"))
    assert conversation.turns == [] and conversation.state is None
    answered(conversation, "The")
    state = conversation.state
    conversation.settle(conversation.say("more"))
    assert conversation.state is state


def test_reset_forgets(model, tokenizer):
    conversation = Conversation(model, tokenizer, PLAIN, SHORT)
    first = answered(conversation, "The plant")
    answered(conversation, "and more")
    conversation.reset()
    assert conversation.state is None and answered(conversation, "The plant") == first


@pytest.mark.parametrize(
    ("template", "frame"),
    [
        ("Q: {question}\nA: {answer}", Frame("Q: ", "\nA:")),
        ("{a}\n{b}", Frame("", "\n")),
        ("{{x}} {a} -> {b} end", Frame("{x} ", " ->")),
    ],
)
def test_frames(template, frame):
    assert frame_from(template) == frame


@pytest.mark.parametrize(
    ("sources", "frame"),
    [
        ('["wikipedia", "natural_questions"]', Frame("Q: ", "\nA:")),
        ('["wikipedia"]', PLAIN),
        ('[{"type": "pdf", "path": "x"}, {"type": "files", "path": "y", "format": "{one} {two} {three}"}]', PLAIN),
        ('["natural_questions", {"type": "files", "path": "y", "format": "I: {i}\\nO: {o}"}], "source_weights": [1, 2]', Frame("I: ", "\nO:")),
    ],
)
def test_the_frame_is_the_heaviest_sources(sources, frame):
    assert frame_of(preset_from_json(f'{{"data": {{"sources": {sources}}}}}', "test")) == frame

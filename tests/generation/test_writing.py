"""Writing equals reading: the carried state, the pieces, the draws."""

import copy

import pytest
import torch

from lm.generation import generate
from lm.generation.pieces import Pieces
from lm.generation.writing import PREFILL
from lm.preset.generation import GenerationConfig

GREEDY = GenerationConfig(temperature=0, repetition_penalty=1.0, max_new_tokens=12)


def whole_reading(model, tokens):
    return model(torch.tensor([tokens])).logits[0]


def written(writing):
    return "".join(writing)


@pytest.mark.parametrize("prompt", ["", "T", "The perennial plant", "Über 東京 🌱 " * 200])
def test_greedy_tokens_are_the_likeliest_of_reading_the_whole(model, tokenizer, prompt):
    writing = generate(model, tokenizer, prompt, GREEDY)
    text = written(writing)
    tokens = [*writing.read, *writing.tokens]
    logits = whole_reading(model, tokens)
    likeliest = logits[len(writing.read) - 1 : -1].argmax(-1).tolist()
    assert list(writing.tokens) == likeliest
    assert text == tokenizer.decode(writing.tokens)
    assert writing.read[0] == tokenizer.bos_token_id


def test_prompts_longer_than_a_prefill_are_read_in_pieces(model, tokenizer):
    writing = generate(model, tokenizer, "plant " * PREFILL, GREEDY)
    assert len(writing.read) > 2 * PREFILL
    next(writing)
    after = model(torch.tensor([[*writing.read, *writing.tokens]]), model.initial_state(1)).state
    assert torch.allclose(writing.state.layers[0][0].key, after.layers[0][0].key, atol=1e-9)


def test_a_state_goes_on_without_reading_again_and_is_not_written_in_place(model, tokenizer):
    first = generate(model, tokenizer, "The plant", GREEDY)
    written(first)
    kept = copy.deepcopy(first.state)
    seen = []
    forward = model.forward
    model.forward = lambda tokens, *rest: seen.append(tokens.shape[1]) or forward(tokens, *rest)
    second = generate(model, tokenizer, " lives on", GREEDY, first.state)
    written(second)
    assert int(second.state.position) == int(first.state.position) + len(second.read) + len(second.tokens)
    assert sum(seen) == len(second.read) + len(second.tokens)
    del model.forward
    tokens = [*first.read, *first.tokens, *second.read, *second.tokens]
    logits = model(torch.tensor([[5]]), second.state).logits[0, -1]
    assert torch.allclose(logits, whole_reading(model, [*tokens, 5])[-1], atol=1e-9)
    for old, now in zip(torch.utils._pytree.tree_leaves(kept), torch.utils._pytree.tree_leaves(first.state), strict=True):
        assert torch.equal(old, now)


def test_going_on_writes_what_one_longer_writing_would_have_written(model, tokenizer):
    long = generate(model, tokenizer, "The", GREEDY.model_copy(update={"max_new_tokens": 24}))
    written(long)
    short = generate(model, tokenizer, "The", GREEDY)
    written(short)
    more = short.going_on(GREEDY)
    written(more)
    assert short.tokens + more.tokens == long.tokens and more.read == ()


def test_broken_off_it_holds_exactly_what_was_written(model, tokenizer):
    writing = generate(model, tokenizer, "The", GREEDY)
    pieces = [next(writing), next(writing)]
    assert writing.finished_by == "stopped"
    assert tokenizer.decode(writing.tokens).startswith("".join(pieces))
    assert int(writing.state.position) == len(writing.read) + len(writing.tokens)


def test_the_end_of_the_document_ends_it_and_is_not_read(model, tokenizer):
    model.output_weight.data[tokenizer.eos_token_id] = 0
    sure = GREEDY.model_copy(update={"max_new_tokens": 400})
    state = model.initial_state(1)
    hidden = model(torch.tensor([[tokenizer.bos_token_id, 40]]), state).hidden[0, -1]
    model.output_weight.data[tokenizer.eos_token_id] = 100 * hidden.detach()
    writing = generate(model, tokenizer, tokenizer.decode([40]), sure)
    assert written(writing) == "" and writing.finished_by == "end"
    assert int(writing.state.position) == 2
    assert generate(model, tokenizer, "The", GREEDY).finished_by == "stopped"


def test_length(model, tokenizer):
    writing = generate(model, tokenizer, "The", GREEDY)
    written(writing)
    assert writing.finished_by == "length" and len(writing.tokens) == 12


def test_typed_special_tokens_are_only_text(model, tokenizer):
    writing = generate(model, tokenizer, "a<eos><bos>b", GREEDY)
    assert writing.read.count(tokenizer.bos_token_id) == 1 and tokenizer.eos_token_id not in writing.read
    assert tokenizer.decode(writing.read[1:]) == "a<eos><bos>b"


def test_draws_repeat_with_a_seed_and_touch_nobody_elses(model, tokenizer):
    drawn = GenerationConfig(temperature=1.3, max_new_tokens=20)
    before = torch.get_rng_state()
    texts = [written(generate(model, tokenizer, "The", drawn, seed=seed)) for seed in (7, 7, 8)]
    written(generate(model, tokenizer, "The", drawn))
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.get_rng_state())


def test_the_model_is_left_as_it_was(model, tokenizer):
    model.train()
    model.layers[0].eval()
    model(torch.tensor([[1, 2]])).logits.sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    writing = generate(model, tokenizer, "The", GREEDY)
    next(writing)
    assert modes == [module.training for module in model.modules()]
    assert torch.is_grad_enabled()
    assert all(torch.equal(a, b.grad) and b.requires_grad for a, b in zip(gradients, model.parameters(), strict=True))


def test_no_ngram_comes_twice_and_penalties_see_the_prompt(model, tokenizer):
    blocked = GenerationConfig(temperature=0, repetition_penalty=1.0, no_repeat_ngram=2, max_new_tokens=60)
    writing = generate(model, tokenizer, "The plant", blocked)
    written(writing)
    tokens = [*writing.read[1:], *writing.tokens]
    pairs = list(zip(tokens, tokens[1:], strict=False))
    assert len(pairs) == len(set(pairs))
    free = generate(model, tokenizer, "The plant", blocked.model_copy(update={"no_repeat_ngram": 0}))
    written(free)
    assert free.tokens != writing.tokens


def test_all_tokens_banned_ends_it(model, tokenizer):
    every = GenerationConfig(temperature=0, no_repeat_ngram=1, max_new_tokens=1000)
    writing = generate(model, tokenizer, "The", every)
    written(writing)
    assert writing.finished_by == "end" and len(writing.tokens) < len(tokenizer)


@pytest.mark.parametrize("text", ["naïve 東京 🌱🌿 é", "plain words only, and many of them " * 9, "🌱" * 60])
def test_pieces_are_whole_characters(tokenizer, text):
    pieces, stream = [], Pieces(tokenizer)
    tokens = tokenizer.encode(text)
    assert len(tokens) > 12
    for token in tokens:
        pieces.append(stream.add(token))
    assert "".join(pieces) + stream.rest() == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert sum(1 for piece in pieces if piece) > 5


def test_bytes_that_are_no_text_come_out_as_the_decoder_shows_them(tokenizer):
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        tokens = torch.randint(3, len(tokenizer), (80,), generator=generator).tolist()
        stream = Pieces(tokenizer)
        assert "".join(map(stream.add, tokens)) + stream.rest() == tokenizer.decode(tokens)

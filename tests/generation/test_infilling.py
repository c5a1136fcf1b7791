"""Gaps in a prompt: read as training reads them, filled one after the other, and no turn of the conversation."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_sources.special_tokens import ObjectiveTokens, with_objective_tokens
from lm.generation.chat import PLAIN, Conversation
from lm.generation.infilling import GAP, LONGEST, NOT_YET, FillingConversation, MaskedFiller, conversation_of, filler_of, nearest
from lm.model import Context, Model, build_model
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
    pieces, marked = zip(*((piece, filling.fills) for piece in filling), strict=True)
    assert "".join(pieces) == f"a{'x' * 12} b{'x' * 3} c" and filling.finished_by == "length"
    assert "".join(piece for piece, fills in zip(pieces, marked, strict=True) if fills) == "x" * 15 and not filling.fills


GAPS_IN = {
    "def f(x):\n    ___\n": ["def f(x):\n   ", "\n"],
    "x:\n\t\t___": ["x:\n\t\t", ""],
    "a ___ b": ["a", " b"],
    "a ___ ___ b": ["a", " b"],
    "___\t ___": ["", ""],
    "a______b": ["a", "b"],
    "___, ___": ["", ",", ""],
    "___\n___": ["", "\n", ""],
    "__init__ x __": ["__init__ x __"],
}


@pytest.mark.parametrize(("message", "texts"), GAPS_IN.items())
def test_what_stands_around_gaps(message: str, texts: list[str]) -> None:
    """One blank is the first word's, indentation is the text's, and gaps with nothing but blanks between them are one."""
    assert GAP.split(message) == texts


def test_every_gap_is_written_by_the_rules_of_the_text_before_it(preset: Preset, gapped: Any, random_model: Model) -> None:
    """What stands behind a gap may stand in it, too; what stands before it, or was filled in there, is not said again."""
    first, second = ObjectiveTokens.of(gapped).gaps[:2]
    said = gapped.encode(" y", add_special_tokens=False)
    scripted = Scripted(random_model, {first: [*said, second], second: said}, len(gapped))
    filling = filler_of(scripted, gapped, preset, TAUGHT).filling("x ___ y ___ z", SURE.model_copy(update={"no_repeat_ngram": len(said)}))
    assert "".join(filling).startswith("x y y") and filling.filled[0] == " y" and not filling.filled[1].strip()


class Even(Scripted):
    """Finds every token equally likely."""

    def forward(self, tokens: Any, state: Any, context: Any) -> Any:
        out = super().forward(tokens, state, context)
        out.hidden = out.hidden * 0
        return out


def test_no_two_gaps_draw_alike(preset: Preset, gapped: Any, random_model: Model) -> None:
    drawn = []
    for seed in (3, 3, 4):
        filler = filler_of(Even(random_model, {}, len(gapped)), gapped, preset, TAUGHT)
        filling = filler.filling("___, ___, ___, ___.", GenerationConfig(temperature=1, top_p=1, max_new_tokens=2, repetition_penalty=1), seed)
        list(filling)
        drawn.append(filling.filled)
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > 2


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


class Known(torch.nn.Module):
    """A model that reads from both ends, and finds likely at each place of a row what `says` of it: {token: logit}. Notes the rows it reads."""

    def __init__(self, size: int, says: Callable[[list[int], int], dict[int, float]]) -> None:
        super().__init__()
        self.says, self.rows, self.passes = says, [], 0
        self.embedding, self.readout = torch.nn.Embedding(1, 1), Readout(torch.eye(size))

    def forward(self, tokens: torch.Tensor, context: Context) -> Any:
        self.passes += 1
        hidden = torch.zeros(*tokens.shape, len(self.readout.weight))
        for number, (row, restart) in enumerate(zip(tokens.tolist(), context.restart.tolist(), strict=True)):
            own = row[: restart.index(True)] if True in restart else row
            self.rows.append(own)
            for place in range(len(own)):
                for token, score in self.says(own, place).items():
                    hidden[number, place, token] = score
        return SimpleNamespace(hidden=hidden)


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def known(gapped: Any, length: int, others: int, says: Callable[[list[int], int], dict[int, float]], row: int = 64) -> MaskedFiller:
    """What fills gaps with a model that `says` what stands in them, and is less sure of it unless a gap has `length` tokens beside `others`."""

    def says_of_all(row: list[int], place: int) -> dict[int, float]:
        return {token: score if len(row) == others + length else score / 10 for token, score in says(row, place).items()}

    return MaskedFiller(Known(len(gapped), says_of_all), gapped, ObjectiveTokens.of(gapped).mask, row)


@pytest.mark.parametrize("length", range(1, LONGEST + 1))
def test_a_gap_is_as_long_as_is_likeliest(length: int, gapped: Any) -> None:
    (word,) = ids(gapped, "w")
    filling = known(gapped, length, 3, lambda row, place: {word: 3.0}).filling("x___y", SURE)
    assert "".join(filling) == f"x{'w' * length}y" and filling.finished_by == "end"


def test_the_surest_word_is_put_in_first_and_is_seen_by_the_rest(gapped: Any) -> None:
    mask, (a, b, c, d) = ObjectiveTokens.of(gapped).mask, ids(gapped, "abcd")

    def says(row: list[int], place: int) -> dict[int, float]:
        if row.count(mask) == 2:
            return {a: 2.0, b: 1.0} if row[place - 1] != mask else {c: 3.0}
        return {d: 2.0} if row[place + 1 : place + 2] == [c] else {b: 9.0}

    assert "".join(known(gapped, 2, 3, says).filling("x___y", SURE)) == "xdcy"


def test_tokens_that_stand_for_no_text_fill_no_gap(gapped: Any) -> None:
    tokens, (word,) = ObjectiveTokens.of(gapped), ids(gapped, "w")
    likelier = dict.fromkeys([tokens.mask, gapped.eos_token_id, tokens.gaps[3], *tokens.modes.values()], 4.0)
    filling = known(gapped, 1, 3, lambda row, place: {**likelier, word: 3.0}).filling("x___y", SURE)
    assert "".join(filling) == "xwy"


def test_later_gaps_are_masks_until_they_are_filled(gapped: Any) -> None:
    mask, (word,) = ObjectiveTokens.of(gapped).mask, ids(gapped, "w")
    before, between, behind = [gapped.bos_token_id, *ids(gapped, "x")], ids(gapped, ",y"), ids(gapped, "z")
    filler = known(gapped, 1, 6, lambda row, place: {word: 3.0})
    filling = filler.filling("x___,y___z", SURE)
    assert next(piece for piece in filling if filling.fills) == "w"
    assert filler.model.rows[0] == [*before, mask, *between, mask, *behind]
    assert all(row[-2:] == [mask, *behind] and mask not in row[-4:-2] for row in filler.model.rows)
    filler.model.rows.clear()
    assert "".join(filling) == ",ywz"
    assert filler.model.rows[0] == [*before, word, *between, mask, *behind]


def test_what_is_read_of_a_long_text_is_a_row_around_the_gap_with_all_lengths_at_once(gapped: Any) -> None:
    (word,) = ids(gapped, "w")
    filler = known(gapped, 3, 20, lambda row, place: {word: 3.0}, row=24)
    text = "".join(filler.filling(f"{'x' * 300}___{'y' * 300}", SURE))
    assert text == f"{'x' * 300}www{'y' * 300}"
    assert filler.model.passes == LONGEST and {len(row) for row in filler.model.rows} == {21, 22, 23, 24}


@pytest.mark.parametrize("room", [0, 1, 5, 8, 30])
@pytest.mark.parametrize(("left", "right"), [(0, 0), (3, 20), (20, 3), (12, 12), (2, 2)])
def test_the_nearest_tokens_are_kept(left: int, right: int, room: int) -> None:
    before, behind = list(range(left)), list(range(100, 100 + right))
    kept = nearest(before, behind, room)
    assert kept[0] == before[left - len(kept[0]) :] and kept[1] == behind[: len(kept[1])]
    assert len(kept[0]) + len(kept[1]) == min(room, left + right)
    assert abs(len(kept[0]) - len(kept[1])) <= 1 or len(kept[0]) == left or len(kept[1]) == right


def test_rows_of_different_length_are_read_as_each_alone(preset: Preset, gapped: Any) -> None:
    torch.manual_seed(3)
    both = preset.model_copy(update={"model": preset.model.model_copy(update={"bidirectional": "own"})})
    model = build_model(both, len(gapped)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    filler = filler_of(model, gapped, both, {"mask": 9})
    rows = [[5, 6, 7, 8], [9, 8, 7, 6, 5, 4, 3], [30, 31, 32, 33, 34]]
    for row, found in zip(rows, filler._scores(rows, 1), strict=True):
        alone = model(torch.tensor([row])).logits[0, 1 : 1 + LONGEST].float().log_softmax(-1)
        torch.testing.assert_close(found[: len(alone)], alone, rtol=1e-5, atol=1e-5)

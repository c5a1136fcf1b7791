"""Filling gaps: a text with ___ in it, and what the model puts there.

A model that was trained with gaps (lm/objectives/ul2.py) reads the text as it read them in training, and writes each gap behind its token:

    <R> the quick <gap_0> over the <gap_1> dog <gap_0> brown fox jumps <gap_1> lazy

Each ends where the model writes the next gap's token, or any other that stands for no text; the next gap is asked for by its token, and not by
what the model would have gone on with, so that every gap gets something.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data_sources.special_tokens import MODES, ObjectiveTokens, special_ids
from lm.generation.chat import Conversation
from lm.generation.drafting import Paces
from lm.generation.writing import Writing, at_rest, beginning, prompt_tokens
from lm.model import Context, Model
from lm.preset import Preset
from lm.preset.generation import GenerationConfig

# A blank before it belongs to its first word, as in training, where two gaps never touch: with nothing but blanks between they are one.
GAP = re.compile(r" ?_{3,}(?:[ \t]+_{3,})*")
SHOWN = "___"
OF_THE_MODEL_ALONE = ("temperature", "top_p", "no_repeat_ngram", "repetition_penalty", "max_new_tokens")  # no heads look at a gap
LONGEST = 4  # tokens that a masked model puts into a gap
WHAT_INSTEAD = (
    "This model reads a text from both ends at once, so it can't go on from where your words stop. "
    f"It can tell what is missing: write a sentence with {SHOWN} in it, and it fills the gap."
)

NOT_YET = f"This model has not been taught gaps yet, so it can't fill {SHOWN}; it goes on from text without them."


class Piece(NamedTuple):
    """Of what is written in a gap."""

    gap: int  # its number
    text: str
    is_cut: bool = False  # max_new_tokens was reached


class Filling(Iterator[str]):
    """The whole text in pieces, gaps as they are written. `filled`: what stands in each gap so far; `fills`: whether the newest piece is of that.
    It is no turn of a conversation: nothing is remembered of it (`begun`)."""

    begun = False
    paces = Paces()  # nothing is drafted

    def __init__(self, texts: Sequence[str], gaps: Iterator[Piece]) -> None:
        """texts: around the gaps, one more than these. gaps: pieces of each, in order."""
        self.filled, self.fills = [""] * (len(texts) - 1), False
        self.finished_by: Literal["end", "length", "stopped"] = "stopped"
        self._texts, self._gaps = texts, gaps
        self._flow = self._pieces()

    def __next__(self) -> str:
        return next(self._flow)

    def _pieces(self) -> Iterator[str]:
        shown, is_cut = 0, False  # texts that went out, whether a gap has no end
        for piece in self._gaps:
            while shown <= piece.gap:
                yield self._texts[shown]
                shown += 1
            self.filled[piece.gap] += piece.text
            is_cut, self.fills = is_cut or piece.is_cut, True
            yield piece.text
            self.fills = False
        yield from self._texts[shown:]
        self.finished_by = "length" if is_cut else "end"


class InGap(Writing):
    """What is written in a gap: penalties fall on what stands before it in the text, and not on all that was read by then."""

    def comes_after(self, words: Sequence[int]) -> None:
        """`words`: of the text before the gap, as it is filled so far."""
        self._history, self._before = [*words], len(words)


def seed_of(seed: int | None, number: int) -> int | None:
    """Of a gap, so that no two draw alike; None where nothing is to be repeated."""
    return None if seed is None else random.Random(f"{seed} {number}").getrandbits(63)


class Filler(NamedTuple):
    """A causal model that was trained with gaps."""

    model: Model
    tokenizer: PreTrainedTokenizerBase
    tokens: ObjectiveTokens
    mode: str  # "R" or "X"

    def filling(self, text: str, settings: GenerationConfig, seed: int | None = None) -> Filling:
        """`text` with its gaps filled. ValueError, in one line, where there are more gaps than tokens for them."""
        texts = GAP.split(text)
        if len(texts) - 1 > len(self.tokens.gaps):
            raise ValueError(f"{len(texts) - 1} gaps, and the model knows {len(self.tokens.gaps)}; leave fewer")
        return Filling(texts, self._written(texts, settings, seed))

    def _written(self, texts: Sequence[str], settings: GenerationConfig, seed: int | None) -> Iterator[Piece]:
        names, parts = self.tokens.gaps[: len(texts) - 1], [prompt_tokens(self.tokenizer, text) for text in texts]
        prompt = [self.tokens.modes[self.mode], beginning(self.tokenizer)]
        for number, part in enumerate(parts):
            prompt += [*part, *names[number : number + 1]]
        state, alone = None, GenerationConfig(**{name: getattr(settings, name) for name in OF_THE_MODEL_ALONE})
        before = parts[0]
        for number, name in enumerate(names):
            writing = InGap(self.model, self.tokenizer, [*prompt, name], alone, state, seed_of(seed, number))
            writing.comes_after(before)
            for text in writing:
                yield Piece(number, text)
            yield Piece(number, "", is_cut=writing.finished_by == "length")
            before = [*before, *writing.tokens, *parts[number + 1]]
            state, prompt = writing.state, []


class MaskedFiller(NamedTuple):
    """A model that reads from both ends, trained with masks: each gap gets the number of tokens, up to LONGEST, that the model finds likeliest.

    Of the tokens of a gap the surest is put in first, and the rest is predicted again (as mask-predict does, Ghazvininejad et al. 2019). No more
    is read at a time than a row of training holds: what stands nearest to the gap.
    """

    model: Model
    tokenizer: PreTrainedTokenizerBase
    mask: int
    row: int  # tokens of a row of training

    def filling(self, text: str, settings: GenerationConfig, seed: int | None = None) -> Filling:
        """`text` with its gaps filled, always in the likeliest way."""
        texts = GAP.split(text)
        return Filling(texts, self._filled(texts))

    def _filled(self, texts: Sequence[str]) -> Iterator[Piece]:
        parts = [prompt_tokens(self.tokenizer, text) for text in texts]
        before = [beginning(self.tokenizer), *parts[0]]
        for number, part in enumerate(parts[1:]):
            behind = [token for later in parts[number + 2 :] for token in (self.mask, *later)]
            words = self._likeliest(*nearest(before, [*part, *behind], self.row - LONGEST))
            yield Piece(number, self.tokenizer.decode(words, clean_up_tokenization_spaces=False))
            before += [*words, *part]

    def _likeliest(self, before: Sequence[int], behind: Sequence[int]) -> list[int]:
        """The tokens of a gap: of the number whose log-likelihoods, each as it was when it was put in, have the highest mean."""
        tries, totals = [[self.mask] * length for length in range(1, LONGEST + 1)], [0.0] * LONGEST
        while unfinished := [number for number, words in enumerate(tries) if self.mask in words]:
            scores = self._scores([[*before, *tries[number], *behind] for number in unfinished], len(before))
            scores[..., sorted(special_ids(self.tokenizer))] = -torch.inf
            for number, likely in zip(unfinished, scores, strict=True):
                words = tries[number]
                likely[[place for place in range(LONGEST) if words[place : place + 1] != [self.mask]]] = -torch.inf
                place, word = divmod(int(likely.argmax()), likely.shape[1])
                words[place], totals[number] = word, totals[number] + float(likely[place, word])
        return max(zip(tries, totals, strict=True), key=lambda found: found[1] / len(found[0]))[0]

    def _scores(self, rows: Sequence[list[int]], start: int) -> Tensor:
        """Log-likelihoods (R, LONGEST, V) of what stands from `start` on in each of `rows`, read at once: where one ends, filling begins anew."""
        longest = max(map(len, rows))
        device, fill = self.model.embedding.weight.device, self.tokenizer.pad_token_id
        tokens = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], device=device)
        ends = torch.tensor([len(row) for row in rows], device=device)
        restart = torch.arange(longest, device=device) == ends[:, None]
        with torch.no_grad(), at_rest(self.model):
            hidden = self.model(tokens, context=Context(restart=restart)).hidden[:, start : start + LONGEST]
            return self.model.readout.logits(hidden).float().log_softmax(-1)


def nearest(before: Sequence[int], behind: Sequence[int], room: int) -> tuple[Sequence[int], Sequence[int]]:
    """Of what stands before a gap and behind it the tokens next to it, `room` in all: half on each side, or more where the other has less."""
    left = min(len(before), max(room - len(behind), room // 2))
    return before[len(before) - left :], behind[: room - left]


class FillingOnly(Conversation):
    """A conversation with a model that can't write from left to right: it fills gaps, and says so where there are none."""

    def __init__(self, filler: MaskedFiller, *terms: Any) -> None:
        """terms: of any conversation."""
        super().__init__(*terms)
        self._filler = filler

    def say(self, message: str) -> Filling:
        """The message with its gaps filled, or what can be done instead. Neither is a turn."""
        return self._filler.filling(message, self.settings) if GAP.search(message) else Filling([WHAT_INSTEAD], iter(()))

    @property
    def in_words(self) -> str:
        return f"a sentence with {SHOWN} where something is missing"


class FillingConversation(Conversation):
    """A conversation in which a message with gaps is completed, and any other is answered."""

    def __init__(self, filler: Filler | None, *terms: Any) -> None:
        """filler: None for a model that will be taught gaps, and was taught none. terms: of any conversation."""
        super().__init__(*terms)
        self._filler = filler

    def say(self, message: str) -> Writing | Filling:
        """As for any conversation; and a message with ___ in it is given back with its gaps filled."""
        if not GAP.search(message):
            return super().say(message)
        return self._filler.filling(message, self.settings, self._seed) if self._filler else Filling([NOT_YET], iter(()))

    @property
    def in_words(self) -> str:
        return f"{super().in_words}; {SHOWN} is filled in" if self._filler else super().in_words


def conversation_of(model: Model, tokenizer: PreTrainedTokenizerBase, preset: Preset, taught: Mapping[str, int], *terms: Any) -> Conversation:
    """A conversation with a model in the way that it was taught. taught: tokens by denoiser. terms: of any conversation, after model and tokenizer."""
    filler, own = filler_of(model, tokenizer, preset, taught), (model, tokenizer, *terms)
    if ObjectiveTokens.of(tokenizer) is None:
        return Conversation(*own)
    return FillingOnly(filler, *own) if preset.model.bidirectional != "off" else FillingConversation(filler, *own)


def with_a_gap(words: Sequence[str]) -> str:
    """A sentence of which the middle is left out."""
    return " ".join([*words[: len(words) // 2], SHOWN, *words[len(words) // 2 + 2 :]])


def filler_of(model: Model, tokenizer: PreTrainedTokenizerBase, preset: Preset, taught: Mapping[str, int]) -> Filler | MaskedFiller | None:
    """What fills gaps with a model, None where it was never taught to. taught: tokens by denoiser; gaps are asked for in a mode that has some."""
    tokens = ObjectiveTokens.of(tokenizer)
    if tokens and preset.model.bidirectional != "off":
        return MaskedFiller(model, tokenizer, tokens.mask, preset.model.seq_length)
    mode = next((mode for mode in MODES if taught.get(mode)), None)
    return Filler(model, tokenizer, tokens, mode) if tokens and mode else None

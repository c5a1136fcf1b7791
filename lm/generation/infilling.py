"""Filling gaps: a text with ___ in it, and what the model puts there.

A model that was trained with gaps (lm/objectives/ul2.py) reads the text as it read them in training, and writes each gap behind its token:

    <R> the quick <gap_0> over the <gap_1> dog <gap_0> brown fox jumps <gap_1> lazy

Each ends where the model writes the next gap's token, or any other that stands for no text; the next gap is asked for by its token, and not by
what the model would have gone on with, so that every gap gets something.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from data_sources.special_tokens import MODES, ObjectiveTokens, special_ids
from lm.generation.chat import Conversation
from lm.generation.drafting import Paces
from lm.generation.writing import Writing, at_rest, beginning, prompt_tokens
from lm.model import Model
from lm.preset import Preset
from lm.preset.generation import GenerationConfig

GAP = re.compile(r"[ \t]*_{3,}")  # blanks before it belong to its first word, as they do in training
SHOWN = "___"
OF_THE_MODEL_ALONE = ("temperature", "top_p", "no_repeat_ngram", "repetition_penalty", "max_new_tokens")  # no heads look at a gap
LONGEST = 4  # tokens that a masked model puts into a gap
WHAT_INSTEAD = (
    "This model reads a text from both ends at once, so it can't go on from where your words stop. "
    f"It can tell what is missing: write a sentence with {SHOWN} in it, and it fills the gap."
)

NOT_YET = f"This model has not been taught gaps yet, so it can't fill {SHOWN}; it goes on from text without them."


class Filling(Iterator[str]):
    """The whole text in pieces, gaps as they are written. `filled`: what stands in each gap so far. It is no turn of a conversation: nothing
    is remembered of it (`begun`)."""

    begun = False
    paces = Paces()  # nothing is drafted

    def __init__(self, texts: Sequence[str], gaps: Iterator[tuple[int, str]]) -> None:
        """texts: around the gaps, one more than these. gaps: pieces of each, in order, with its number."""
        self.filled = [""] * (len(texts) - 1)
        self.finished_by: Literal["end", "stopped"] = "stopped"
        self._texts, self._gaps = texts, gaps
        self._flow = self._pieces()

    def __next__(self) -> str:
        return next(self._flow)

    def _pieces(self) -> Iterator[str]:
        shown = 0  # texts that went out
        for number, piece in self._gaps:
            while shown <= number:
                yield self._texts[shown]
                shown += 1
            self.filled[number] += piece
            yield piece
        yield from self._texts[shown:]
        self.finished_by = "end"


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

    def _written(self, texts: Sequence[str], settings: GenerationConfig, seed: int | None) -> Iterator[tuple[int, str]]:
        names = self.tokens.gaps[: len(texts) - 1]
        prompt = [self.tokens.modes[self.mode], beginning(self.tokenizer)]
        for number, text in enumerate(texts):
            prompt += [*prompt_tokens(self.tokenizer, text), *names[number : number + 1]]
        state, alone = None, GenerationConfig(**{name: getattr(settings, name) for name in OF_THE_MODEL_ALONE})
        for number, name in enumerate(names):
            writing = Writing(self.model, self.tokenizer, [*prompt, name], alone, state, seed)
            for piece in writing:
                yield number, piece
            state, prompt = writing.state, []


class MaskedFiller(NamedTuple):
    """A model that reads from both ends, trained with masks: each gap gets the number of words, up to LONGEST, that the model finds likeliest.

    Of the words of a gap the surest is put in first, and the rest is predicted again (as mask-predict does, Ghazvininejad et al. 2019).
    """

    model: Model
    tokenizer: PreTrainedTokenizerBase
    mask: int

    def filling(self, text: str, settings: GenerationConfig, seed: int | None = None) -> Filling:
        """`text` with its gaps filled, always in the likeliest way."""
        texts = GAP.split(text)
        return Filling(texts, self._filled(texts))

    def _filled(self, texts: Sequence[str]) -> Iterator[tuple[int, str]]:
        parts = [prompt_tokens(self.tokenizer, text) for text in texts]
        before = [beginning(self.tokenizer), *parts[0]]
        for number, part in enumerate(parts[1:]):
            behind = [token for later in parts[number + 2 :] for token in (self.mask, *later)]
            tries = (self._best(before, length, [*part, *behind]) for length in range(1, LONGEST + 1))
            words, _ = max(tries, key=lambda found: found[1])
            yield number, self.tokenizer.decode(words, clean_up_tokenization_spaces=False)
            before += [*words, *part]

    def _best(self, before: Sequence[int], length: int, behind: Sequence[int]) -> tuple[list[int], float]:
        """The words of a gap of `length` tokens, and the mean of their log-likelihoods, each as it was when it was put in."""
        words, start, total = [self.mask] * length, len(before), 0.0
        specials = sorted(special_ids(self.tokenizer))
        for _ in range(length):
            row = torch.tensor([[*before, *words, *behind]], device=self.model.embedding.weight.device)
            with torch.no_grad(), at_rest(self.model):
                scores = self.model(row).logits[0, start : start + length].log_softmax(-1)
            scores[:, specials] = -torch.inf
            scores[[place for place, word in enumerate(words) if word != self.mask]] = -torch.inf
            place, word = divmod(int(scores.argmax()), scores.shape[1])
            words[place], total = word, total + float(scores[place, word])
        return words, total / length


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
        return MaskedFiller(model, tokenizer, tokens.mask)
    mode = next((mode for mode in MODES if taught.get(mode)), None)
    return Filler(model, tokenizer, tokens, mode) if tokens and mode else None

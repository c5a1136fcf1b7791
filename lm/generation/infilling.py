"""Filling gaps: a text with ___ in it, and what the model puts there.

A model that was trained with gaps (lm/objectives/ul2.py) reads the text as it read them in training, and writes each gap behind its token:

    <R> the quick <gap_0> over the <gap_1> dog <gap_0> brown fox jumps <gap_1> lazy

Each ends where the model writes the next gap's token, or any other that stands for no text; the next gap is asked for by its token, and not by
what the model would have gone on with, so that every gap gets something.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from data_sources.special_tokens import ObjectiveTokens
from lm.generation.chat import Conversation
from lm.generation.writing import Writing, beginning, prompt_tokens
from lm.model import Model
from lm.preset import Preset
from lm.preset.switches import GenerationConfig

GAP = re.compile(r"[ \t]*_{3,}")  # blanks before it belong to its first word, as they do in training
SHOWN = "___"


class Filling(Iterator[str]):
    """The whole text in pieces, gaps as they are written. `filled`: what stands in each gap so far. It is no turn of a conversation: nothing
    is remembered of it (`begun`)."""

    begun = False

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
        state = None
        for number, name in enumerate(names):
            writing = Writing(self.model, self.tokenizer, [*prompt, name], settings, state, seed)
            for piece in writing:
                yield number, piece
            state, prompt = writing.state, []


class FillingConversation(Conversation):
    """A conversation in which a message with gaps is completed, and any other is answered."""

    def __init__(self, filler: Filler, *terms: Any) -> None:
        """terms: of any conversation."""
        super().__init__(*terms)
        self._filler = filler

    def say(self, message: str) -> Writing | Filling:
        """As for any conversation; and a message with ___ in it is given back with its gaps filled."""
        if GAP.search(message):
            return self._filler.filling(message, self.settings, self._seed)
        return super().say(message)

    @property
    def in_words(self) -> str:
        return f"{super().in_words}; {SHOWN} is filled in"


def filler_of(model: Model, tokenizer: PreTrainedTokenizerBase, preset: Preset) -> Filler | None:
    """What fills gaps with a model, None where it was never taught to."""
    tokens = ObjectiveTokens.of(tokenizer)
    return Filler(model, tokenizer, tokens, "R" if preset.ul2.shares()[0] else "X") if tokens else None

"""Passages of a memory as text, for a model that attends to no neighbours (Ram et al. 2023, "In-context retrieval-augmented language models").

    what was said  passage  passage  "Q: ...\\nA:"  answer

They stand before the turn that they were found by, outside of its frame, so that the turn itself looks as it does in training. What a turn
finds again stays where it is, and what is new comes behind. Once one that is held is not found any more, the model goes back to where it stood
before them all, and reads what was said since without them: so none is read twice as long as it is wanted, none stays that is not, and what
was said is read once more at most.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from data_sources.special_tokens import special_ids
from lm.generation.writing import prompt_tokens
from lm.memory.memory import Passage
from lm.model import ModelState

LEAST = 4  # a part of a passage that is read is at least such a part


class Held(NamedTuple):
    """Passages that a state holds, and how it stood before them."""

    passages: tuple[Passage, ...] = ()
    state: ModelState | None = None  # None while they are yet to be read
    document: tuple[int, ...] = ()  # tokens of that state
    turns: int = 0  # that it holds


class Library(NamedTuple):
    """Where passages are from, and how many a model can take."""

    find: Callable[[str], Sequence[Passage]]  # by words, nearest first
    room: int  # tokens that the model was taught to read in one
    tokenizer: PreTrainedTokenizerBase

    def fitting(self, words: str, prompt: int, answer: int) -> tuple[Passage, ...]:
        """The nearest to `words` that there is room for, beside a prompt and an answer of so many tokens: up to half of it all. What was said
        before is not counted: a long conversation leaves the room whether or not there are passages."""
        return tuple(self._while_there_is(min(self.room // 2, self.room - prompt - min(answer, self.room // 4)), self.find(words)))

    def _while_there_is(self, room: int, found: Sequence[Passage]) -> Iterator[Passage]:
        """Whole ones, but the first, of which a part is better than nothing."""
        for number, passage in enumerate(found):
            beyond = len(self.as_read(passage)) - room
            if beyond > 0 and (number or LEAST * (len(passage.tokens) - beyond) < len(passage.tokens)):
                return
            cut = passage._replace(tokens=passage.tokens[: len(passage.tokens) - max(beyond, 0)])
            room -= len(self.as_read(cut))
            yield cut

    def as_read(self, passage: Passage) -> tuple[int, ...]:
        """Its own tokens, and a blank line behind them."""
        specials = special_ids(self.tokenizer)
        return (*(token for token in passage.tokens.tolist() if token not in specials), *prompt_tokens(self.tokenizer, "\n\n"))


def missing(passages: Sequence[Passage], others: Sequence[Passage]) -> tuple[Passage, ...]:
    """Those of `passages` that are not among `others`."""
    there = {tuple(other.tokens.tolist()) for other in others}
    return tuple(passage for passage in passages if tuple(passage.tokens.tolist()) not in there)

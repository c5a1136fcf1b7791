"""A conversation: turns in the words that the model knows from its sources, and the state carried from each turn to the next.

A source with a format of two fields, such as "Q: {question}\\nA: {answer}", frames the turns: the person's words stand in the first
field and the model writes the second, until it ends the document. Without such a source the model goes on from the text as it stands.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from data_sources.config import format_fields
from lm.generation.passages import Held, Library, missing
from lm.generation.recollection import Recall
from lm.generation.writing import Aside, Writing, beginning, prompt_tokens
from lm.memory.finder import Finder
from lm.memory.memory import Passage
from lm.model import Model, ModelState
from lm.preset import Preset
from lm.preset.generation import GenerationConfig


class Frame(NamedTuple):
    """What stands before and after the person's words."""

    before: str = ""
    after: str = ""

    def around(self, message: str) -> str:
        return f"{self.before}{message}{self.after}"

    @property
    def in_words(self) -> str:
        """How a turn looks, for a person."""
        return f"{self.around('...')} ...".replace("\n", "  ") if self != PLAIN else "the model goes on from your words"


PLAIN = Frame()


def frame_of(preset: Preset) -> Frame:
    """The frame of the heaviest source that has a format of two fields; else the plain one."""
    by_weight = sorted(zip(preset.data.weights, preset.data.sources, strict=True), key=lambda pair: -pair[0])
    templates = [source.format for _, source in by_weight if source.type in ("hf", "files") and source.format]
    return next((frame_from(template) for template in templates if len(set(format_fields(template))) == 2), PLAIN)


def frame_from(template: str) -> Frame:
    """The frame in a format of two fields. Blanks before the answer belong to its first token, so they are left to the model."""
    question, answer = dict.fromkeys(format_fields(template))
    before, _, rest = template.partition(f"{{{question}}}")
    between = rest.partition(f"{{{answer}}}")[0]
    return Frame(*(part.replace("{{", "{").replace("}}", "}") for part in (before, between.rstrip(" "))))


@dataclass(frozen=True)
class Turn:
    """One exchange: the tokens that were read for it, and those that were written."""

    message: str
    read: tuple[int, ...]
    written: tuple[int, ...]


class Before(NamedTuple):
    """How a conversation stood before a message. None of its states is written in, so that it may go on from there again."""

    message: str
    writing: Writing | None
    held: Held
    turns: int


class Asked(NamedTuple):
    """A turn that is not settled."""

    message: str = ""
    read: tuple[int, ...] = ()
    held: Held = Held()
    replaces: int | None = None  # the turns from this one on


class Conversation:
    """Turns with one model. `state` holds all of them, and none is read again but to be rid of passages."""

    def __init__(
        self,
        model: Model,
        tokenizer: PreTrainedTokenizerBase,
        frame: Frame,
        settings: GenerationConfig,
        seed: int | None = None,
        find: Finder | None = None,
        library: Library | None = None,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """find: a memory that the model attends to, asked on the way. library: passages to be read, for a model that attends to none. heads: those
        that were trained with the model, for settings that ask for some."""
        self.frame = frame
        self._find, self._library = find, library
        self.settings = settings
        self.turns: list[Turn] = []
        self._model, self._heads = model, heads
        self._tokenizer = tokenizer
        self._seed = seed
        self._writing: Writing | None = None
        self._held, self._asked = Held(), Asked()
        self._before: Before | None = None  # the last message that was not empty

    @property
    def in_words(self) -> str:
        """What a turn is, for a person."""
        return self.frame.in_words

    @property
    def state(self) -> ModelState | None:
        """The model's state after the turns so far. None before the first."""
        return self._writing.state if self._writing else None

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens that the state holds, in order."""
        return self._writing.document if self._writing else ()

    @property
    def passages(self) -> tuple[Passage, ...]:
        """Those that the state holds as text, in the order in which they were read."""
        return self._held.passages

    def say(self, message: str) -> Writing:
        """The answer to `message`, to be iterated over. An empty message lets the model go on with what it was writing.

        The turn counts once `settle` is called; an answer dropped before the whole message was read leaves everything as it was.
        """
        if not message.strip() and self._writing:
            self._asked = Asked(message, (), self._held)
            return self._writing.going_on(self.settings, self._seed)
        words = message.strip()
        own = prompt_tokens(self._tokenizer, self.frame.around(words))
        start = prompt_tokens(self._tokenizer, "\n") if self._writing else [beginning(self._tokenizer)]
        found = self._library.fitting(words, len(own), self.settings.max_new_tokens) if self._library else ()
        return self._answer(message, found, tuple(start), tuple(own))

    def _answer(self, message: str, found: tuple[Passage, ...], start: tuple[int, ...], own: tuple[int, ...]) -> Writing:
        """To the prompt `own`; `start` and what is new of `found` come before it."""
        held = self._held
        stale = bool(missing(held.passages, found))
        state, document = (held.state, held.document) if stale else (self.state, self.tokens)
        again = tuple(token for turn in self.turns[held.turns :] for token in (*turn.read, *turn.written)) if stale else ()
        new = found if stale else missing(found, held.passages)
        stays = bool(held.passages) and not stale
        kept = held._replace(passages=(*held.passages, *new)) if stays else Held(new, None, (*document, *again), len(self.turns))
        self._asked = Asked(message, start + own, kept)
        read = tuple(token for passage in new for token in self._library.as_read(passage)) if self._library else ()
        prompt, aside = (own, Aside(again, start + read)) if read else (start + own, Aside(again))
        recall = Recall(self._find, document, asks=True)
        return Writing(self._model, self._tokenizer, prompt, self.settings, state, self._seed, recall, aside, self._heads)

    def again(self) -> Writing | None:
        """Another answer to the last message that was not empty, from before it; None where there was none. Settled, it takes the place of the one
        that there was; dropped before the whole message was read, it leaves everything as it was."""
        if self._before is None:
            return None
        now, (message, self._writing, self._held, turns) = (self._writing, self._held, self.turns), self._before
        self.turns = self.turns[:turns]
        try:
            answer = self.say(message)
        finally:  # an interrupt, too, leaves everything as it was
            self._writing, self._held, self.turns = now
        self._asked = self._asked._replace(replaces=turns)
        return answer

    def settle(self, answer: Writing) -> None:
        """Keep `answer`, whole or broken off, as the newest turn."""
        if answer.begun:
            held, replaces = self._asked.held, self._asked.replaces
            if replaces is not None:
                del self.turns[replaces:]
            elif self._asked.message.strip():
                self._before = Before(self._asked.message, self._writing, self._held, len(self.turns))
            self._held = held if held.state is not None else held._replace(state=answer.before_passages)
            self._writing = answer
            self.turns.append(Turn(self._asked.message, self._asked.read, answer.tokens))

    def reset(self) -> None:
        """Forget all turns."""
        self.turns.clear()
        self._writing, self._held, self._before = None, Held(), None

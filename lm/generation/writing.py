"""Writing: the model reads a prompt once, then writes token by token and reads each of its own.

    state, scores = read(prompt);  repeat: token = pick(scores);  state, scores = read(token)

What was read is never read again: the state carries it. A state is never written in place, so an older one is still good, and
going back is keeping it.

Sizes: V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data_sources.special_tokens import special_ids
from lm.generation.pieces import Pieces
from lm.generation.recollection import Recall
from lm.generation.sampling import Sampler
from lm.model import Context, Model, ModelState
from lm.preset.switches import GenerationConfig
from lm.units.neighbours import Neighbours

PREFILL = 512  # tokens of a prompt read at once


class Aside(NamedTuple):
    """What is read before a prompt and was not said now: no penalty falls on its words."""

    again: tuple[int, ...] = ()  # said since the state that is gone on from, and read once more
    passages: tuple[int, ...] = ()  # from a memory, for a model that attends to none


class Read(NamedTuple):
    """Where the model stands after what it read."""

    state: ModelState
    scores: Tensor  # (V,): what comes next
    written: int  # how many tokens it wrote


def generate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    settings: GenerationConfig,
    state: ModelState | None = None,
    seed: int | None = None,
    recall: Recall = Recall(),  # noqa: B008 - it can't be changed
) -> "Writing":
    """Text that goes on from `prompt`, piece by piece: iterate over what this returns.

    Without a `state` a new document begins (the prompt follows the tokenizer's bos); with one the prompt goes on from there. An
    empty prompt has nothing to predict from, so it begins a document in either case. A `seed` makes the draws repeatable.
    """
    tokens = prompt_tokens(tokenizer, prompt)
    start = [] if state is not None and tokens else [beginning(tokenizer)]
    return Writing(model, tokenizer, start + tokens, settings, state, seed, recall)


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of `text` alone, without bos or eos; a special token typed out is only text."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def beginning(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that begins a document."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


class Writing(Iterator[str]):
    """An iterator of text pieces, each of whole characters.

    At any moment between two pieces, also when nobody asks for the next one:
    `state` is the model's after everything read and written, `read` the prompt's tokens, `tokens` the written ones, `before_passages` the
    state before the passages of `aside`, and `finished_by` "end" (the model ended the document; that token is neither read nor written, so
    that a conversation can go on), "length" (max_new_tokens), or "stopped" (not finished).
    """

    def __init__(
        self,
        model: Model,
        tokenizer: PreTrainedTokenizerBase,
        tokens: Sequence[int],
        settings: GenerationConfig,
        state: ModelState | None = None,
        seed: int | None = None,
        recall: Recall = Recall(),  # noqa: B008 - it can't be changed
        aside: Aside = Aside(),  # noqa: B008 - it can't be changed
    ) -> None:
        """recall: a memory that is asked on the way, and the tokens that `state` holds."""
        self._recall, self._aside = recall, aside
        self.read = tuple(tokens)
        self.before_passages = state
        self.finished_by: Literal["end", "length", "stopped"] = "stopped"
        self._model = model
        self._tokenizer = tokenizer
        self._settings = settings
        self._start = state
        self._now: Read | None = None
        self._sampler = Sampler(settings, seed)
        self._specials = special_ids(tokenizer)
        self._history = [token for token in self.read if token not in self._specials]
        self._before = len(self._history)
        self._flow = self._pieces_written()

    @property
    def state(self) -> ModelState | None:
        """The model's state after everything read and written; the state given, until the whole prompt is read."""
        return self._now.state if self._now else self._start

    @property
    def begun(self) -> bool:
        """Whether the whole prompt is read."""
        return self._now is not None

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens written so far."""
        written = self._now.written if self._now else 0
        return tuple(self._history[self._before : self._before + written])

    @property
    def document(self) -> tuple[int, ...]:
        """All tokens that `state` holds, once the prompt is read."""
        return (*self._recall.document, *self._prompt, *self.tokens)

    @property
    def _prompt(self) -> tuple[int, ...]:
        """All that is read before the first token is written."""
        return (*self._aside.again, *self._aside.passages, *self.read)

    def __next__(self) -> str:
        return next(self._flow)

    def going_on(self, settings: GenerationConfig, seed: int | None = None) -> "Writing":
        """A writing that goes on where this one is, with nothing new to read."""
        more = Writing(self._model, self._tokenizer, (), settings, self.state, seed, self._recall._replace(document=self.document))
        more._history = [*self._history[: self._before], *self.tokens]
        more._before = len(more._history)
        more._now = self._now and self._now._replace(written=0)
        return more

    def _pieces_written(self) -> Iterator[str]:
        pieces = Pieces(self._tokenizer)
        self._now = self._now or self._prompt_read()
        while self._now.written < self._settings.max_new_tokens:
            token = self._sampler.pick(self._now.scores, self._history)
            if token is None or token in self._specials:
                break
            self._write(token, self._now)
            if piece := pieces.add(token):
                yield piece
        self.finished_by = "length" if self._now.written == self._settings.max_new_tokens else "end"
        if rest := pieces.rest():
            yield rest

    def _prompt_read(self) -> Read:
        """All but the last token without ever computing scores, then the last."""
        prompt, again = self._prompt, len(self._aside.again)
        self.before_passages = self._taken_in(prompt[:again], 0, self._start or self._model.initial_state(1))
        state = self._taken_in(prompt[:-1], again, self.before_passages)
        return Read(*self._step(prompt[-1:], state, self._recall.asked(prompt)), 0)

    def _taken_in(self, tokens: Sequence[int], start: int, state: ModelState) -> ModelState:
        """The state after `tokens` from `start` on, read after what the state given at first holds."""
        for begin in range(start, len(tokens), PREFILL):
            upto = tokens[: begin + PREFILL]
            state, _ = self._step(upto[begin:], state, self._recall.neighbours(upto, begin), scored=False)
        return state

    def _write(self, token: int, before: Read) -> None:
        """The model reads its own `token`. Whenever an interrupt comes, state and tokens belong together: one assignment counts."""
        written = (*self._prompt, *self.tokens, token)
        neighbours = self._recall.neighbours(written, len(written) - 1)
        after = Read(*self._step((token,), before.state, neighbours), before.written + 1)
        del self._history[self._before + before.written :]
        self._history.append(token)
        self._now = after

    def _step(self, tokens: Sequence[int], state: ModelState, memory: Neighbours | None, scored: bool = True) -> tuple[ModelState, Tensor | None]:
        """Read `tokens` with what is handed in."""
        with torch.no_grad(), at_rest(self._model):
            out = self._model(torch.tensor([tokens], dtype=torch.int64, device=state.position.device), state, Context(memory=memory))
            return out.state, out.logits[0, -1] if scored else None


@contextmanager
def at_rest(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and afterwards every module as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True

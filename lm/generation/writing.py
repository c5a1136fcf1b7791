"""Writing: the model reads a prompt once, then writes token by token and reads each of its own.

    state, scores = read(prompt);  repeat: token = pick(scores);  state, scores = read(token)

With drafts (lm/generation/drafting.py) a pass reads a token and a few that may come after it, and more than one may be picked of what it says:

    state', scores... = read(token, drafts);  repeat: pick by scores, while what is picked is the draft;  all of them were: state = state'

What was read is never read again: the state carries it; but for the few tokens of a pass whose drafts were not all kept. A state is never written
in place, so an older one is still good, and going back is keeping it.

Sizes: K drafts, V vocabulary, D hidden.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from data_sources.special_tokens import special_ids
from lm.generation.choosing import Chooser, Chosen
from lm.generation.drafting import PENDING, SOUNDED, Ahead, Draft, Pace, Paces, Rows
from lm.generation.pieces import Pieces
from lm.generation.recollection import Recall
from lm.model import Context, Model, ModelState
from lm.preset.generation import GenerationConfig
from lm.units.neighbours import Neighbours

PREFILL = 512  # tokens of a prompt read at once


class Aside(NamedTuple):
    """What is read before a prompt and was not said now: no penalty falls on its words."""

    again: tuple[int, ...] = ()  # said since the state that is gone on from, and read once more
    passages: tuple[int, ...] = ()  # from a memory, for a model that attends to none


class Read(NamedTuple):
    """Where the model stands."""

    state: ModelState  # after what it read of what it wrote
    written: int  # how many tokens it wrote
    unread: tuple[int, ...]  # the last of them, which `state` does not hold yet
    latent: Tensor  # (D,): before the last token written, where a pass is due
    ahead: Ahead | None  # None: a pass is due
    rows: Rows | None = None  # where a pass is due, but nothing is unread: after the last token written
    planned: tuple[int, ...] = ()  # what will be written, come what may
    waiting: int = 0  # tokens since the last pass that was kept whole. Unlike `unread` it stays when somebody asks for the state: asking changes no draw


def generate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    settings: GenerationConfig,
    state: ModelState | None = None,
    seed: int | None = None,
    recall: Recall = Recall(),  # noqa: B008 - it can't be changed
    heads: Mapping[str, nn.Module] | None = None,
) -> "Writing":
    """Text that goes on from `prompt`, piece by piece: iterate over what this returns.

    Without a `state` a new document begins (the prompt follows the tokenizer's bos); with one the prompt goes on from there. An
    empty prompt has nothing to predict from, so it begins a document in either case. A `seed` makes the draws repeatable. `heads`: those that
    were trained with the model, for settings that ask for some; ValueError, one line, where one is missing.
    """
    tokens = prompt_tokens(tokenizer, prompt)
    start = [] if state is not None and tokens else [beginning(tokenizer)]
    return Writing(model, tokenizer, start + tokens, settings, state, seed, recall, heads=heads)


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of `text` alone, without bos or eos; a special token typed out is only text."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def beginning(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that begins a document."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


class Writing(Iterator[str]):
    """An iterator of text pieces, each of whole characters.

    At any moment between two pieces, also when nobody asks for the next one:
    `state` is the model's after everything read and written (the newest tokens are read when it is asked for), `read` the prompt's tokens,
    `tokens` the written ones, `before_passages` the state before the passages of `aside`, `paces` how fast it was, and `finished_by` "end" (the
    model ended the document; that token is neither read nor written, so that a conversation can go on), "length" (max_new_tokens), or "stopped"
    (not finished).
    """

    fills = False  # whether the newest piece stands in a gap of a text that was given

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
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """recall: a memory that is asked on the way, and the tokens that `state` holds; heads: trained with the model. ValueError where one is
        missing that the settings ask for."""
        self._recall, self._aside = recall, aside
        self.read = tuple(tokens)
        self.before_passages = state
        self.finished_by: Literal["end", "length", "stopped"] = "stopped"
        self._model = model
        self._tokenizer = tokenizer
        self._settings = settings
        self._start = state
        self._now: Read | None = None
        self._heads = heads or {}
        self._specials = special_ids(tokenizer)
        self._chooser = Chooser(settings, seed, model, self._heads, self._specials)
        self._paces, self._pace, self._sounded = Paces(), Pace(), 0
        self._history = [token for token in self.read if token not in self._specials]
        self._before = len(self._history)
        self._flow = self._pieces_written()

    @property
    def state(self) -> ModelState | None:
        """The model's state after everything read and written; the state given, until the whole prompt is read."""
        if self._now and self._now.unread:
            self._now = self._settled(self._now)
        return self._now.state if self._now else self._start

    @property
    def paces(self) -> Paces:
        """How fast tokens were written, with drafts and without."""
        return self._paces.noted(self._pace) if self._pace.passes else self._paces

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
        recall = self._recall._replace(document=self.document)
        more = Writing(self._model, self._tokenizer, (), settings, self.state, seed, recall, heads=self._heads)
        more._history = [*self._history[: self._before], *self.tokens]
        more._before = len(more._history)
        more._now = self._now and self._now._replace(written=0)
        return more

    def _pieces_written(self) -> Iterator[str]:
        pieces = Pieces(self._tokenizer)
        self._now = self._now or self._prompt_read()
        while self._now.written < self._settings.max_new_tokens:
            token = self._token_written()
            if token is None:
                break
            if piece := pieces.add(token):
                yield piece
        self.finished_by = "length" if self._now.written == self._settings.max_new_tokens else "end"
        if rest := pieces.rest():
            yield rest

    def _token_written(self) -> int | None:
        """The next token. None where the document ends.

        Whenever an interrupt comes, what is told belongs together: one assignment counts.
        """
        began = time.perf_counter()
        now = self._now = self._now if self._now.ahead or self._now.planned else self._read_on(self._now)
        history = self._history[: self._before + now.written]
        with torch.no_grad():
            chosen = Chosen(now.planned[0], planned=now.planned[1:]) if now.planned else self._chooser.chosen(now.ahead, history)
        if chosen is None or chosen.token in self._specials:
            self._now = undecided(now)
            return None
        self._history[:] = [*history, chosen.token]
        self._now = after(now, chosen)
        self._pace = self._pace.plus(Pace(tokens=1, seconds=time.perf_counter() - began, kept=int(chosen.is_draft)))
        return chosen.token

    def _read_on(self, now: Read) -> Read:
        """What was written is read, and drafts behind it."""
        room = self._room(now)
        self._sounded += self._is_sounding(now)
        with torch.no_grad():
            drafts = self._chooser.drafts(now.latent, self._history[: self._before + now.written], room)
        burdened = self._settings.draft_length and (room or len(now.unread) != 1)
        self._paces, self._pace = self.paces, Pace(passes=1, drafts=len(drafts), burdened=int(bool(burdened)))
        state, rows = self._further(now, drafts)
        ahead = Ahead(rows.after(now.rows), drafts, state)
        return now._replace(ahead=ahead, rows=None) if drafts else now._replace(state=state, unread=(), ahead=ahead, rows=None, waiting=0)

    def _is_sounding(self, now: Read) -> bool:
        """Whether the pass that is due has no drafts, to tell what one costs without."""
        return now.waiting == 1 and sum(pace.passes for pace in self.paces) >= SOUNDED * self._sounded + SOUNDED // 2

    def _room(self, now: Read) -> int:
        """For how many drafts there is room in the pass that is due."""
        if now.waiting > PENDING or self._is_sounding(now):
            return 0
        asked = self._recall.before_next(len(self._prompt) + now.written)
        return min(asked, self._settings.max_new_tokens - now.written - 1)

    def _settled(self, now: Read) -> Read:
        """With all read that is written."""
        state, rows = self._further(now, ())
        return now._replace(state=state, unread=(), rows=None if now.ahead else rows)

    def _further(self, now: Read, drafts: Sequence[Draft]) -> tuple[ModelState, Rows]:
        """Read what is not read yet, and `drafts`: the state after them, and what is said after the last token written, if it was read here, and
        after each draft."""
        tokens = (*now.unread, *(draft.token for draft in drafts))
        if not tokens:
            return now.state, Rows(*(part[:0] for part in now.rows))
        return self._step(tokens, now.state, self._neighbours(now, tokens), len(drafts) + bool(now.unread))

    def _neighbours(self, now: Read, tokens: Sequence[int]) -> Neighbours | None:
        """What is handed in with `tokens`, the first of which is the first that is not read yet. Only where a chunk ends among them is all that
        was read gone through."""
        place = sum(map(len, (*self._aside, self.read))) + now.written - len(now.unread)
        if not self._recall.asks_within(place, len(tokens)):
            return None
        told = self._history[self._before : self._before + now.written - len(now.unread)]
        return self._recall.neighbours((*self._prompt, *told, *tokens), place)

    def _prompt_read(self) -> Read:
        """All but the last token without ever computing scores, then the last."""
        prompt, again = self._prompt, len(self._aside.again)
        self.before_passages = self._taken_in(prompt[:again], 0, self._start or self._model.initial_state(1))
        state = self._taken_in(prompt[:-1], again, self.before_passages)
        state, rows = self._step(prompt[-1:], state, self._recall.asked(prompt), 1)
        return Read(state, 0, (), rows.latent[0], Ahead(rows, (), state))

    def _taken_in(self, tokens: Sequence[int], start: int, state: ModelState) -> ModelState:
        """The state after `tokens` from `start` on, read after what the state given at first holds."""
        for begin in range(start, len(tokens), PREFILL):
            upto = tokens[: begin + PREFILL]
            state, _ = self._step(upto[begin:], state, self._recall.neighbours(upto, begin))
        return state

    def _step(self, tokens: Sequence[int], state: ModelState, memory: Neighbours | None, rows: int = 0) -> tuple[ModelState, Rows]:
        """Read `tokens` with what is handed in: the state after them, and what is said after the last `rows` of them."""
        with torch.no_grad(), at_rest(self._model):
            out = self._model(torch.tensor([tokens], dtype=torch.int64, device=state.position.device), state, Context(memory=memory))
            latent, readout = out.hidden[0, len(tokens) - rows :], self._model.readout
            # This way round it takes half the time of F.linear for a few rows on a CPU.
            return out.state, Rows(readout.capped((readout.weight @ latent.T).T.contiguous()), latent)


def after(now: Read, chosen: Chosen) -> Read:
    """Once what was chosen is written."""
    written, unread = now.written + 1, (*now.unread, chosen.token)
    if not chosen.is_draft:
        latent = now.ahead.rows.latent[0] if now.ahead else now.latent
        return Read(now.state, written, unread, latent, None, planned=chosen.planned, waiting=now.waiting + 1)
    rest = now.ahead.rest()
    left = {"unread": unread, "waiting": now.waiting + 1} if rest.drafts else {"state": rest.state, "unread": (), "waiting": 0}
    return now._replace(written=written, ahead=rest, **left)


def undecided(now: Read) -> Read:
    """Where a document ended: should it go on, nothing that led to its end counts, neither a draft that was looked at nor the rest of a plan."""
    return now._replace(ahead=now.ahead and now.ahead._replace(drafts=()), planned=())


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

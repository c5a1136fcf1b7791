"""How well the model predicts text that it never trained on: cross entropy, perplexity and bits per byte, by source.

    cross entropy = mean nats a token;  perplexity = exp(cross entropy);  bits per byte = nats of all text tokens / ln 2 / bytes of the text

Bits per byte does not depend on the tokenizer. Of a text of which a part alone is learned that part is measured, and its bytes are counted. As in
training, each row of seq_length tokens is read afresh; where states are carried (train.long_context), each document is read from its first token to
its last. A model that reads from both ends predicts each token from those on both sides of it: its measures are pseudo-perplexity and the bits of
that, and no causal model's can be held against them.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from data_sources.batch import Arrivals
from data_sources.documents import Stopped
from data_sources.encoder import marked, pieces_of
from data_sources.held_out import Held
from data_sources.rewriting import Source
from lm.memory.finder import Finder
from lm.memory.lookup import Questions, overlaps_in, questions_in
from lm.model import Context, Model, ModelState
from lm.ops.cross_entropy import IGNORED, linear_cross_entropy
from lm.preset import Preset
from lm.preset.training import LongContextConfig
from lm.training.corrupted import Corrupted, denoisers_of, each_masked_once, with_gaps
from lm.units.neighbours import Neighbours

HELD_OUT = "held_out"
ROWS_AT_ONCE, TOKENS_AT_ONCE = 8, 16_384  # at most: long rows fewer at a time
BRIEF_TOKENS, LEAST_TOKENS = 8_192, 1_024  # read from each source in the evaluations along the way, of few and of many sources; all of it at the end
BRIEF_TOKENS_IN_ALL = 65_536  # so that a life of many sources is not measured for longer and longer
DENOISED_TOKENS = 16_384  # read again with the gaps of each denoiser, of all sources together


class Tally(NamedTuple):
    """Sums that evaluations of several ranks can be added up from."""

    nats: float = 0.0
    tokens: float = 0.0
    text_nats: float = 0.0  # without the ends of documents
    bytes: float = 0.0

    def plus(self, other: "Tally") -> "Tally":
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))

    def measures(self) -> dict[str, float]:
        cross_entropy = self.nats / self.tokens
        bits = self.text_nats / math.log(2) / self.bytes
        return {
            "cross_entropy": cross_entropy,
            "perplexity": math.exp(min(cross_entropy, 700.0)),
            "bits_per_byte": bits,
            "tokens": int(self.tokens),
        }


class Place(NamedTuple):
    """This process among those that share the work."""

    rank: int
    world_size: int


ALONE = Place(0, 1)


class Rows(NamedTuple):
    """Held-out text in rows: each (R, T)."""

    tokens: Tensor
    targets: Tensor
    restart: Tensor
    questions: Questions | None = None  # that a memory is asked
    arrivals: Arrivals | None = None  # what it answered
    overlap: Tensor | None = None  # how much of what stands there was in it, where that was asked for

    def part(self, rows: slice, time: slice) -> "Rows":
        """Some rows, and some positions of them."""
        asked = (each.part(rows, time, self.tokens.shape) if each else None for each in (self.questions, self.arrivals))
        overlap = self.overlap[rows, time] if self.overlap is not None else None
        return Rows(*(each[rows, time] for each in self[:3]), *asked, overlap)

    def pieces(self, time: int) -> "list[Rows]":
        """In pieces of up to `time` positions, one after the other."""
        return [self.part(slice(None), slice(start, start + time)) for start in range(0, self.tokens.shape[1], time)]

    def asking(self, find: Finder | None) -> "Rows":
        """With the questions that `answered` asks later, of all or a part of them."""
        return self._replace(questions=questions_in(self.tokens, self.restart, find.chunk_size) if find else None)

    def answered(self, find: Finder | None) -> "Rows":
        """With what a memory answers."""
        return self._replace(arrivals=self.questions.answered(find)) if find and self.questions else self

    def compared(self, find: Finder) -> "Rows":
        """With what a memory answers, and the overlap."""
        rows = self.asking(find).answered(find)
        assert rows.arrivals is not None
        return rows._replace(overlap=overlaps_in(self.targets, self.restart, rows.arrivals))


Prepared = Callable[[Rows], Rows]  # what is done with rows before they are cut into pieces


def as_they_are(rows: Rows) -> Rows:
    return rows


def packed(texts: Sequence[str], tokenizer: Any, seq_length: int) -> Rows:
    """Whole texts one after the other, cut into rows; the last is filled up with what is not scored, as is what a text does not teach (Held)."""
    tokens, targets, restart = [], [], []
    for document in (document_of(text, tokenizer) for text in texts):
        tokens += document.tokens.tolist()
        targets += document.targets.tolist()
        restart += [True, *[False] * (len(document.tokens) - 1)]
    missing = -len(tokens) % seq_length
    columns = (tokens + [tokenizer.eos_token_id] * missing, targets + [IGNORED] * missing, restart + [bool(missing)] + [False] * (missing - 1))
    return Rows(*(torch.tensor(column[: len(tokens) + missing]).view(-1, seq_length) for column in columns))


def document_of(text: str, tokenizer: Any) -> Source:
    """A held-out text as training reads it: what is scored of it is what is learned (data_sources/encoder.py)."""
    learned = Held.of(text).learned
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    found = None if learned is None else tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    ids = encoded(tokenizer, text) if found is None else found["input_ids"]
    scored = None if found is None else np.array([False, *marked(found["offset_mapping"], learned), True])
    return Source.of(np.array([bos, *ids, tokenizer.eos_token_id]), scored)


def laid_out(texts: Sequence[str], tokenizer: Any, preset: Preset, prepared: Prepared = as_they_are) -> list[list[Rows]]:
    """Groups of rows as the model was taught to read: each begins afresh, and is read piece after piece."""
    long = preset.train.long_context
    if preset.model.bidirectional != "off":
        rows = Corrupted(*packed(texts, tokenizer, preset.model.seq_length)[:3])
        return [group for masked in each_masked_once(rows, tokenizer, preset) for group in in_groups(Rows(*masked))]
    if long.enabled:
        return whole(texts, tokenizer, long, prepared)
    return grouped(texts, tokenizer, preset.model.seq_length, prepared)


def grouped(texts: Sequence[str], tokenizer: Any, seq_length: int, prepared: Prepared = as_they_are) -> list[list[Rows]]:
    """Packed rows, some at a time: each group is one piece that is read afresh."""
    rows = packed(texts, tokenizer, seq_length)
    if not len(rows.tokens):
        return []
    return in_groups(prepared(rows))


def in_groups(rows: Rows) -> list[list[Rows]]:
    """Some rows at a time, each group in one piece."""
    at_once = rows_at_once(rows.tokens.shape[1])
    return [[rows.part(slice(start, start + at_once), slice(None))] for start in range(0, len(rows.tokens), at_once)]


def rows_at_once(length: int) -> int:
    """Of so many tokens each."""
    return max(1, min(ROWS_AT_ONCE, TOKENS_AT_ONCE // length))


def whole(texts: Sequence[str], tokenizer: Any, config: LongContextConfig, prepared: Prepared = as_they_are) -> list[list[Rows]]:
    """A row for each text, those of about a length together: each group in chunks, to be read one after the other. Rows that have ended
    are in no later chunk; they are the first, since a group goes from short to long."""
    alone = (Rows(*(part.view(1, -1) for part in packed([text], tokenizer, 1)[:3])) for text in texts)
    documents = sorted(alone, key=lambda rows: rows.tokens.shape[1])
    at_once = rows_at_once(config.chunk_length)
    groups = [documents[start : start + at_once] for start in range(0, len(documents), at_once)]
    return [_in_chunks(group, config, prepared) for group in groups]


def _in_chunks(documents: Sequence[Rows], config: LongContextConfig, prepared: Prepared) -> list[Rows]:
    """Each without the rows that have ended before it."""
    pieces = prepared(_side_by_side(documents, config)).pieces(config.chunk_length)
    ended = [sum(each.tokens.shape[1] <= number * config.chunk_length for each in documents) for number in range(len(pieces))]
    return [piece.part(slice(first, None), slice(None)) for first, piece in zip(ended, pieces, strict=True)]


def _side_by_side(documents: Sequence[Rows], config: LongContextConfig) -> Rows:
    """Documents of one row each as the rows of one, filled up with what is not scored; they begin anew where they do in training."""
    length = documents[-1].tokens.shape[1]
    fills = (0, IGNORED, False)
    tokens, targets, restart = (
        torch.cat([F.pad(part, (0, length - part.shape[1]), value=fill) for part in parts])
        for parts, fill in zip(zip(*(document[:3] for document in documents), strict=True), fills, strict=True)
    )
    restart[:, :: config.context_length] = True
    return Rows(tokens, targets, restart)


def encoded(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text as training reads it: piece by piece, and what looks like a special token in it is plain text."""
    return [token for piece in pieces_of(text) for token in tokenizer.encode(piece, add_special_tokens=False, split_special_tokens=True)]


def tally_of(
    model: Model, texts: Sequence[str], tokenizer: Any, preset: Preset, place: Place, stopped: Callable[[], bool], find: Finder | None = None
) -> Tally:
    """Read this rank's share of `texts`, with what `find` hands in, asked for it piece after piece. The first rank counts the bytes, so that shares add up.

    `stopped` is asked equally often on every rank, so that it may be agreed on among them. Stopped when it says so.
    """
    total = Tally(bytes=0 if place.rank else sum(Held.of(text).learned_bytes for text in texts))
    groups = laid_out(texts, tokenizer, preset, lambda rows: rows.asking(find))
    return total.plus(tally_of_groups(model, groups, tokenizer.eos_token_id, preset, place, stopped, find))


def tally_of_groups(
    model: Model, groups: list[list[Rows]], eos: int, preset: Preset, place: Place, stopped: Callable[[], bool], find: Finder | None = None
) -> Tally:
    """The same of groups of rows, without bytes."""
    total = Tally()
    for start in range(0, len(groups), place.world_size):
        own = groups[start + place.rank] if start + place.rank < len(groups) else []
        state = first_state(model, own, preset) if own else None
        pieces = max(map(len, groups[start : start + place.world_size]))  # of the rank that has most
        for number in range(pieces):
            if stopped():
                raise Stopped
            if number < len(own):
                nats, state = nats_of(model, own[number].answered(find), state)
                total = total.plus(_tally(nats, own[number].targets.to(nats.device), eos))
    return total


def first_state(model: Model, pieces: Sequence[Rows], preset: Preset) -> ModelState | None:
    """What the first of them is read with: None where nothing is carried from one to the next."""
    return model.initial_state(len(pieces[0].tokens)) if preset.train.long_context.enabled else None


def _tally(nats: Tensor, targets: Tensor, eos: int) -> Tally:
    total = nats.sum(dtype=torch.float32)
    return Tally(float(total), float((targets != IGNORED).sum()), float(total - nats[targets == eos].sum(dtype=torch.float32)))


def nats_of(model: Model, rows: Rows, state: ModelState | None) -> tuple[Tensor, ModelState | None]:
    """Of each target (R, T), 0 where none is scored, and the state after the next piece of rows, of which the first may have ended since the last."""
    tokens, targets, restart = (part.to(model.embedding.weight.device) for part in rows[:3])
    if state is not None:
        state = tree_map(lambda leaf: leaf[len(leaf) - len(tokens) :], state)
    out = model(tokens, state, Context(restart=restart, memory=Neighbours(*rows.arrivals) if rows.arrivals else None))
    _, nats = linear_cross_entropy(out.hidden.flatten(0, 1), model.readout, targets.flatten())
    return nats.view(targets.shape), out.state


def evaluate(
    model: Model,
    tokenizer: Any,
    texts: Mapping[str, Sequence[str]],
    preset: Preset,
    place: Place = ALONE,
    summed: Callable[[list[float]], list[float]] = lambda values: values,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    stopped: Callable[[], bool] = lambda: False,
    mix: Collection[str] | None = None,
    find: Finder | None = None,
) -> dict[str, Any]:
    """Measures by source, and over those in `mix` (all when None); ranks share the rows. An empty dictionary when there is no text.
    find: hands in neighbours from a memory, where the model attends to them.

    Stopped, on every rank, once `stopped` says so; it is asked by all ranks together.
    """
    was_training = model.training
    model.eval()
    with torch.inference_mode(), autocast():
        try:
            own = {name: tally_of(model, kept, tokenizer, preset, place, stopped, find) for name, kept in texts.items() if kept}
            mixed = [kept for name, kept in texts.items() if kept and (mix is None or name in mix)]
            share = min(brief_tokens(len(texts)), DENOISED_TOKENS // max(len(mixed), 1))
            denoised = tallies_by_denoiser(model, mixed, tokenizer, preset, share, place, stopped)
        finally:
            model.train(was_training)
    everywhere = iter(summed([number for tally in (*own.values(), *denoised.values()) for number in tally]))
    tallies, by_denoiser = ({name: Tally(*(next(everywhere) for _ in Tally._fields)) for name in each} for each in (own, denoised))
    tallies = {name: tally for name, tally in tallies.items() if tally.tokens and tally.bytes}
    if not tallies:
        return {}
    total = Tally()
    for name, tally in tallies.items():
        total = total.plus(tally) if mix is None or name in mix else total
    if not total.tokens:
        return {}
    pseudo = {"pseudo": True} if preset.model.bidirectional != "off" else {}
    told = {"denoisers": {kind: tally.nats / tally.tokens for kind, tally in by_denoiser.items() if tally.tokens}} if by_denoiser else {}
    return {**total.measures(), **pseudo, **told, "sources": {name: {**tally.measures(), **pseudo} for name, tally in tallies.items()}}


def in_all(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Measures without those by source."""
    return {name: value for name, value in measures.items() if name != "sources"}


def tallies_by_denoiser(
    model: Model, texts: Sequence[Sequence[str]], tokenizer: Any, preset: Preset, share: int, place: Place, stopped: Callable[[], bool]
) -> dict[str, Tally]:
    """The first texts of each source again, about `share` tokens of each, with the gaps of each denoiser that the model is trained with, and what
    stood in them predicted.

    As much of each source, each by itself, and no more than a brief evaluation knows: the measure is the same in brief and in full, and in any order.
    """
    kinds = denoisers_of(preset)
    sources = [[document_of(text, tokenizer) for text in first_texts(kept, tokenizer, share)] for kept in (texts if kinds else ())]
    found = {}
    for kind in kinds:
        rows = [with_gaps(kind, documents, tokenizer, preset) for documents in sources]
        groups = [group for each in rows if each for group in in_groups(Rows(*each))]
        found[kind] = tally_of_groups(model, groups, tokenizer.eos_token_id, preset, place, stopped)
    return found


def brief_tokens(sources: int) -> int:
    """Read from each of so many sources in the evaluations along the way."""
    return min(BRIEF_TOKENS, max(LEAST_TOKENS, BRIEF_TOKENS_IN_ALL // max(sources, 1)))


def first_texts(texts: Sequence[str], tokenizer: Any, limit: int) -> list[str]:
    """The first texts that together hold about `limit` tokens."""
    return list(_until(texts, tokenizer, limit))


def _until(texts: Sequence[str], tokenizer: Any, limit: int) -> Iterator[str]:
    for text in texts:
        if limit <= 0:
            return
        text = Held.of(text).beginning(8 * limit)  # one long text must not take the time of all
        limit -= len(encoded(tokenizer, text)) + 1
        yield text

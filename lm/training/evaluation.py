"""How well the model predicts text that it never trained on: cross entropy, perplexity and bits per byte, by source.

    cross entropy = mean nats a token;  perplexity = exp(cross entropy);  bits per byte = nats of all text tokens / ln 2 / bytes of the text

Bits per byte does not depend on the tokenizer. Each row of seq_length tokens is read afresh, as in training.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_sources.documents import Stopped
from data_sources.held_out import HeldOutStore
from data_sources.tokenizer import tokenizer_from_json
from lm.model import Context, build_model
from lm.ops.cross_entropy import IGNORED, linear_cross_entropy
from lm.training.snapshots import Snapshot, Snapshots, read_snapshot

HELD_OUT = "held_out"
ROWS_AT_ONCE = 8


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


def packed(texts: Sequence[str], tokenizer: Any, seq_length: int) -> Rows:
    """Whole texts one after the other, cut into rows; the last is filled up with what is not scored."""
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    tokens, targets, restart = [], [], []
    for text in texts:
        ids = encoded(tokenizer, text)
        tokens += [bos, *ids]
        targets += [*ids, tokenizer.eos_token_id]
        restart += [True, *[False] * len(ids)]
    missing = -len(tokens) % seq_length
    columns = (tokens + [tokenizer.eos_token_id] * missing, targets + [IGNORED] * missing, restart + [bool(missing)] + [False] * (missing - 1))
    return Rows(*(torch.tensor(column[: len(tokens) + missing]).view(-1, seq_length) for column in columns))


def encoded(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text as training reads it: what looks like a special token in it is plain text."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def tally_of(model: nn.Module, texts: Sequence[str], tokenizer: Any, seq_length: int, place: Place, stopped: Callable[[], bool]) -> Tally:
    """Read this rank's share of the rows of `texts`. The first rank counts the bytes, so that shares add up.

    `stopped` is asked equally often on every rank, so that it may be agreed on among them. Stopped when it says so.
    """
    rows = packed(texts, tokenizer, seq_length)
    total = Tally(bytes=0 if place.rank else sum(len(text.encode()) for text in texts))
    device = model.embedding.weight.device
    for start in range(0, len(rows.tokens), ROWS_AT_ONCE * place.world_size):
        if stopped():
            raise Stopped
        own = slice(start + place.rank, start + ROWS_AT_ONCE * place.world_size, place.world_size)
        tokens, targets, restart = (part[own].to(device) for part in rows)
        if not len(tokens):
            continue
        hidden = model(tokens, context=Context(restart=restart)).hidden
        total_nats, nll = linear_cross_entropy(hidden.flatten(0, 1), model.output_weight, targets.flatten())
        ends = nll[targets.flatten() == tokenizer.eos_token_id].sum()
        total = total.plus(Tally(float(total_nats), float((targets != IGNORED).sum()), float(total_nats - ends)))
    return total


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    texts: Mapping[str, Sequence[str]],
    seq_length: int,
    place: Place = ALONE,
    summed: Callable[[list[float]], list[float]] = lambda values: values,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    stopped: Callable[[], bool] = lambda: False,
    mix: Collection[str] | None = None,
) -> dict[str, Any]:
    """Measures by source, and over those in `mix` (all when None); ranks share the rows. An empty dictionary when there is no text.

    Stopped, on every rank, once `stopped` says so; it is asked by all ranks together.
    """
    was_training = model.training
    model.eval()
    with torch.inference_mode(), autocast():
        try:
            own = {name: tally_of(model, kept, tokenizer, seq_length, place, stopped) for name, kept in texts.items() if kept}
        finally:
            model.train(was_training)
    everywhere = iter(summed([number for tally in own.values() for number in tally]))
    tallies = {name: Tally(*(next(everywhere) for _ in Tally._fields)) for name in own}
    tallies = {name: tally for name, tally in tallies.items() if tally.tokens and tally.bytes}
    if not tallies:
        return {}
    total = Tally()
    for name, tally in tallies.items():
        total = total.plus(tally) if mix is None or name in mix else total
    if not total.tokens:
        return {}
    return {**total.measures(), "sources": {name: tally.measures() for name, tally in tallies.items()}}


def first_texts(texts: Sequence[str], tokenizer: Any, limit: int) -> list[str]:
    """The first texts that together hold about `limit` tokens."""
    return list(_until(texts, tokenizer, limit))


def _until(texts: Sequence[str], tokenizer: Any, limit: int) -> Iterator[str]:
    for text in texts:
        if limit <= 0:
            return
        text = text[: 8 * limit]  # one long text must not take the time of all
        limit -= len(encoded(tokenizer, text)) + 1
        yield text


def evaluate_snapshot(checkpoint_dir: str | Path, which: str = "current") -> dict[str, Any]:
    """The evaluation event of a snapshot on all text that was held out for it. SnapshotError when there is no snapshot."""
    return evaluate_file(Snapshots(checkpoint_dir).path_of(which), held_out_texts(checkpoint_dir))


def held_out_texts(checkpoint_dir: str | Path) -> dict[str, list[str]]:
    """All text that was held out, by source."""
    store = HeldOutStore(Path(checkpoint_dir) / HELD_OUT, limit_tokens=0)
    return {name: store.texts(name) for name in store.sources()}


def evaluate_file(path: Path, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The same for the snapshot at `path`, on `texts`."""
    return evaluation_of(read_snapshot(path), texts)


def evaluation_of(snapshot: Snapshot, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The same for one that was read."""
    tokenizer = tokenizer_from_json(snapshot.tokenizer)
    model = build_model(snapshot.preset, len(tokenizer))
    model.load_state_dict(snapshot.model_weights)
    measures = evaluate(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, texts, snapshot.preset.model.seq_length)
    return {"event": "evaluation", **measures, "tokens": snapshot.run["tokens"]}

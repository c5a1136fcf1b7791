"""What a memory is worth: held-out text read with what it hands in, with nothing, and with chunks drawn by lot.

Told by how much of the text stood in what was handed in (lm.memory.lookup.overlaps_in): where that is much the model may have copied it,
and where it is little what is gained was learned from likeness (Borgeaud et al. 2022, section 2.6). Chunks drawn by lot are the honest
control: what they bring as well is no gain of finding.

Sizes: R rows, T tokens.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_sources.tokenizer import token_bytes
from lm.memory.lookup import NOT_HANDED, Chance, Lookup
from lm.model import Model
from lm.preset import Preset
from lm.training.evaluation import Rows, first_state, laid_out, nats_of

BOUNDS = (0.125, 0.25, 0.5)  # of the overlap
WAYS = ("on", "off", "chance")


class Worth(NamedTuple):
    """Held-out text of one degree of overlap, or all of it."""

    overlap: str  # in words
    bytes: int
    bits: dict[str, float]  # a byte, by way of reading: on, off, chance


def worth_of(model: Model, tokenizer: Any, texts: Mapping[str, Sequence[str]], preset: Preset, lookup: Lookup) -> list[dict[str, Any]]:
    """A `Worth` for each degree of overlap of which there is text, and last for all together, as plain dictionaries."""
    every = [text for kept in texts.values() for text in kept]
    compared, by_lot = (laid_out(every, tokenizer, preset, partial(Rows.compared, find=find)) for find in (lookup, Chance(lookup)))
    ways = {"on": compared, "off": laid_out(every, tokenizer, preset), "chance": by_lot}
    sizes = torch.tensor(token_bytes(tokenizer))
    places = [(_degree(rows), sizes[rows.targets.clamp(min=0)] * (rows.targets >= 0)) for group in compared for rows in group]
    bytes_read = _summed([(degree, size) for degree, size in places])
    bits = {}
    for way, groups in ways.items():
        nats = _nats(model, groups, preset)
        text = [torch.where(size > 0, each, 0) for each, (_, size) in zip(nats, places, strict=True)]  # without the ends of documents
        bits[way] = _summed([(degree, each) for each, (degree, _) in zip(text, places, strict=True)]) / log(2)
    return [each._asdict() for each in _told(bytes_read, bits)]


def _degree(rows: Rows) -> Tensor:
    """(R, T) 0 where nothing was handed in, then by BOUNDS."""
    assert rows.overlap is not None
    return torch.where(rows.overlap == NOT_HANDED, 0, 1 + torch.bucketize(rows.overlap, torch.tensor(BOUNDS)))


def _nats(model: Model, groups: list[list[Rows]], preset: Preset) -> list[Tensor]:
    was_training, found = model.training, []
    model.eval()
    with torch.inference_mode():
        for pieces in groups:
            state = first_state(model, pieces, preset)
            for rows in pieces:
                nats, state = nats_of(model, rows, state)
                found.append(nats.cpu())
    model.train(was_training)
    return found


def _summed(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Values (R, T) added up by degree (R, T)."""
    total = torch.zeros(len(BOUNDS) + 2, dtype=torch.float64)
    for degree, values in pairs:
        total.index_add_(0, degree.flatten(), values.flatten().double())
    return total


def _told(bytes_read: Tensor, bits: Mapping[str, Tensor]) -> list[Worth]:
    words = ["nothing handed in", *(f"{low:g} to {high:g}" for low, high in pairwise((0.0, *BOUNDS, 1.0)))]
    by_degree = [
        Worth(name, int(size), {way: float(each[number] / size) for way, each in bits.items()})
        for number, (name, size) in enumerate(zip(words, bytes_read, strict=True))
        if size
    ]
    size = bytes_read.sum()
    return [*by_degree, Worth("all", int(size), {way: float(each.sum() / size) for way, each in bits.items()})] if size else []

"""Held-out text as objectives present it: with the gaps of one denoiser, or with each token masked once.

Sizes: R rows, T tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_sources.packed import Rows
from data_sources.rewriting import NOT_SCORED, Rewriter, Source
from lm.objectives.table import tokens_of, ul2_of
from lm.objectives.ul2 import KINDS
from lm.preset import Preset
from lm.preset.learned import objective_after

SEED = 0  # of the gaps: the same in every evaluation of a life


class Corrupted(NamedTuple):
    """Each (R, T)."""

    tokens: Tensor
    targets: Tensor
    restart: Tensor


def denoisers_of(preset: Preset) -> list[str]:
    """The denoisers that a model is trained with at some time: in a stage of train.objectives, or after the last."""
    asked = [stage.probabilities for stage in preset.train.objectives if stage.objective == "ul2"]
    asked += [None] * (objective_after(preset) == "ul2")
    return [kind for number, kind in enumerate(KINDS) if any(preset.ul2.shares(probabilities)[number] for probabilities in asked)]


def with_gaps(kind: str, documents: Sequence[Source], tokenizer: Any, preset: Preset) -> Corrupted | None:
    """Documents as one denoiser presents them, one after the other in rows; None where there are none. What is too short for it is not scored."""
    rewriter = replace(ul2_of(preset, tokenizer), shares=tuple(float(other == kind) for other in KINDS))
    rows = list(_filled(documents, rewriter, preset.model.seq_length, tokenizer.pad_token_id))
    if not rows:
        return None
    for row in rows:
        row.finish(rewriter)
        row.targets[row.kind != KINDS.index(kind)] = NOT_SCORED
    return Corrupted(*(torch.from_numpy(np.concatenate([getattr(row, name) for row in rows])) for name in Corrupted._fields))


def _filled(documents: Sequence[Source], rewriter: Rewriter, seq_length: int, pad: int) -> Iterator[Rows]:
    """Rows of one each, examples in them planned or written."""
    row, position = Rows.blank([0], seq_length, pad, has_kinds=True), 0
    for source in documents:
        while source.offset < len(source.tokens):
            number = int(row.row[0])
            if seq_length - position < rewriter.least_room(number):
                row.view(0).end(position)
                yield row
                number += 1
                row, position = Rows.blank([number], seq_length, pad, has_kinds=True), 0
            example = rewriter.planned(SEED, number, position, source, seq_length - position)
            row.view(0).write(position, example)
            source, position = source._replace(offset=source.offset + example.taken), position + example.size
    if position:
        row.view(0).end(position)
        yield row


def each_masked_once(rows: Corrupted, tokenizer: Any, preset: Preset) -> Iterator[Corrupted]:
    """Rows of text, as often as it takes for each token that is learned to be masked once, and predicted, while about as many are masked as in training.

    Masking one token at a time (Salazar et al. 2020, pseudo-log-likelihood) would take T readings of a row; here it is one in `1 / mlm.rate`,
    evenly spaced, each time.
    """
    ways, mask = max(2, round(1 / preset.mlm.rate)), tokens_of(tokenizer).mask
    follows = (rows.targets.flatten() != NOT_SCORED).roll(1).view_as(rows.targets)  # what is learned of a token stands where the one before it is read
    is_text = follows & (rows.tokens != tokenizer.bos_token_id) & (rows.tokens != tokenizer.eos_token_id)
    places = torch.arange(rows.tokens.shape[1])
    for way in range(ways):
        chosen = is_text & (places % ways == way)
        yield Corrupted(rows.tokens.masked_fill(chosen, mask), rows.tokens.masked_fill(~chosen, NOT_SCORED), rows.restart)

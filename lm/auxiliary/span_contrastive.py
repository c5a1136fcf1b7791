"""Span contrastive: spans are masked before the trunk reads them, and from what stands before it must be known which span it was.

    q = norm(Q mean h'_{s-1}),  k = norm(K mean e_s),   loss: -log exp(q k / tau) / (exp(q k / tau) + sum_j exp(q k_j / tau))

h'_{s-1} are the trunk's latents on the masked row, each before a token of the span, e_s the embeddings of what it holds, which learn nothing
of it (InfoNCE, van den Oord et al. 2018; masking as in Baevski et al. 2020, "wav2vec 2.0"; norm: L2, where span_l2_normalize is on). No key
knows what stood before its span: latents of the row as it is would be known again by that alone, whatever the span holds. Q and K begin
alike, since a latent lies near the embeddings of what follows it, where the tables are one.

The negatives k_j are of spans of other lanes, so of other documents, that rows of the optimizer steps before left in a queue (as in He et al.
2020, "Momentum contrast"): the same for every row of a step, however it is cut into micro-batches and ranks. The queue holds their tokens, of
which keys are made anew each time: keys of earlier weights would be known by their age.

The mask is the tokenizer's padding, which no text holds.

Sizes: B batch, T time, D hidden, L tokens of a span, N spans, P width in which they are compared, S slots.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_sources.order import LANES
from lm.auxiliary.choice import after_first
from lm.auxiliary.head import Head, Reading, Taught, at_least_float32
from lm.ops.picking import index_of
from lm.preset import Preset

LEFT_BY_A_ROW = 4  # spans that are negatives in the next steps


class Spans(NamedTuple):
    """Spans of a reading that are masked."""

    place: Tensor  # (N, L) int64 in the flattened B * T
    row: Tensor  # (N,) int64: index in the batch
    number: Tensor  # (N,) int64: counted from the first place of a span in the row


class SpanContrastive(Head):
    """Tells masked spans from those of other documents."""

    def __init__(self, preset: Preset, pad: int) -> None:
        super().__init__("span_contrastive", preset)
        size, config = preset.model.hidden_size, preset.auxiliary
        self.length, self.temperature, self.normalises = config.span_length, config.span_contrastive_temperature, config.span_l2_normalize
        self.stride = max(round(config.span_length / config.span_mask_fraction), config.span_length + 1)
        self.mask = pad
        self.query, self.key = nn.Linear(size, config.span_size, bias=False), nn.Linear(size, config.span_size, bias=False)
        self.key.weight.data.copy_(self.query.weight.data)
        self.rows = LANES * -(-config.span_negatives // (LEFT_BY_A_ROW * LANES))  # rows that far apart share slots, and are of one lane
        self.register_buffer("left", torch.zeros(self.rows * LEFT_BY_A_ROW, self.length, dtype=torch.int64))  # tokens of spans
        self.register_buffer("lane", torch.full((self.rows * LEFT_BY_A_ROW,), -1))  # of each; -1: there is none
        self.register_buffer("rounds", torch.ones((), dtype=torch.int64))  # times that a step goes round the slots: only one round's rows leave spans

    def spans(self, reading: Reading) -> Spans:
        """Every stride-th place begins a span, where L scored tokens of one document follow one that is seen."""
        columns, length = after_first(self.stride, self.seed, "spans", reading.row, reading.start, reading.targets), self.length
        time = columns.shape[1]
        whole = ((reading.targets >= 0) & ~reading.restart).long().cumsum(1)
        inside = F.pad(whole, (1, 0))[:, length:] - F.pad(whole, (1, 0))[:, : max(time + 1 - length, 0)]  # (B, T + 1 - L)
        fits = F.pad(inside == length, (0, time - inside.shape[1]))
        fits[:, :1] = False  # what is seen before it is not here, also where a document goes on
        first = index_of(fits & (columns >= 0) & (columns % self.stride == 0))
        return Spans(first[:, None] + torch.arange(length, device=first.device), first // max(time, 1), columns.flatten()[first] // self.stride)

    def masked(self, reading: Reading, spans: Spans) -> Tensor:
        """The rows (B, T) without what the spans hold."""
        return reading.tokens.flatten().index_fill(0, spans.place.flatten(), self.mask).view_as(reading.tokens)

    def compared(self, mean: Tensor, to: nn.Linear) -> Tensor:
        """Mean vectors (N, D) of spans as they are compared: (N, P)."""
        projected = at_least_float32(to(mean))
        return F.normalize(projected, dim=-1) if self.normalises else projected

    def keys(self, tokens: Tensor, reading: Reading) -> Tensor:
        """Of spans by what they hold: (N, L) int64 -> (N, P)."""
        return self.compared(F.embedding(tokens, reading.embedding.detach()).mean(1), self.key)

    def taught(self, reading: Reading) -> Taught:
        spans = self.spans(reading)
        held = reading.tokens.flatten()[spans.place]
        before = reading.again(self.masked(reading, spans)).flatten(0, 1)[spans.place - 1]
        query = self.compared(before.mean(1), self.query)
        lane = reading.lane.to(query.device)[spans.row]
        total = self.losses(query, self.keys(held, reading), self.keys(self.left, reading), lane).sum()
        count = total.new_tensor(len(query) * self.stride)
        return Taught({"span_contrastive": total * self.stride}, {"span_contrastive": count}, self.leaves(held, lane, spans, reading))

    def losses(self, query: Tensor, key: Tensor, others: Tensor, lane: Tensor) -> Tensor:
        """InfoNCE of each span (N,), told from those `others` (S, P) that are of other lanes."""
        with torch.autocast(query.device.type, enabled=False):  # one pair has one score, on whichever side of the comparison
            products = query @ others.T
        other = (products / self.temperature).masked_fill((self.lane < 0) | (self.lane == lane[:, None]), -torch.inf)
        own = (query * key).sum(-1, keepdim=True) / self.temperature
        return torch.cat([own, other], 1).logsumexp(1) - own[:, 0]

    def leaves(self, held: Tensor, lane: Tensor, spans: Spans, reading: Reading) -> dict[str, Tensor]:
        """What this reading leaves for the next steps: sums by slot, and how many rows begin here."""
        row = reading.row.to(held.device)[spans.row]
        kept = index_of(((spans.number < LEFT_BY_A_ROW) & (row // self.rows % self.rounds == 0))[None])
        slot = row[kept] % self.rows * LEFT_BY_A_ROW + spans.number[kept]
        tokens = torch.zeros_like(self.left).index_add(0, slot, held[kept])
        lanes, count = (torch.zeros_like(self.lane).index_add(0, slot, values) for values in (lane[kept], torch.ones_like(slot)))
        return {"tokens": tokens, "lanes": lanes, "count": count, "rows": count.new_tensor(len(reading.row) * (reading.start == 0))}

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        written = (stats["count"] == 1).to(self.lane.device)  # two rows in one slot: the step has more rows than were expected
        self.left.copy_(torch.where(written[:, None], stats["tokens"].to(self.left), self.left))
        self.lane.copy_(torch.where(written, stats["lanes"].to(self.lane), self.lane))
        self.rounds.fill_(max(1, -(-int(stats["rows"]) // self.rows)))

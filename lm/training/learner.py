"""What is wrapped for training: trunk, output loss and auxiliary heads in one module, from a batch to named losses."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data_sources import Batch
from lm.auxiliary.head import Reading
from lm.model import Context, Model, ModelState
from lm.ops.cross_entropy import linear_cross_entropy
from lm.training.headers import OF_HEADS
from lm.units.neighbours import Neighbours


class Learned(NamedTuple):
    """What some rows taught."""

    losses: Mapping[str, Tensor]  # unweighted means over the scored tokens, or over all that is text (`of_text`); 0 when there are none
    counts: Mapping[str, Tensor]  # of losses that are of some of these only, how many they stand for: what they come to there is told by it
    nll: Tensor  # (B, T) detached, nats, 0 where not scored
    stats: Mapping[str, Tensor]  # of the units, detached sums over the text, and of the heads, over the scored tokens
    state: ModelState | None  # after the last token, where one was given
    of_text: frozenset[str]  # names of the losses that the units have: experts are evened over all tokens that are read


class Learner(nn.Module):
    """Rows, piece after piece -> losses. DDP, FSDP and compile wrap this, so that nothing they must see happens outside."""

    def __init__(self, model: Model, heads: nn.ModuleDict | None = None) -> None:
        super().__init__()
        self.model = model
        self.heads = heads or nn.ModuleDict()

    def forward(self, pieces: Sequence[Batch], state: ModelState | None = None, recompute: bool = False) -> Learned:
        """Read rows that are cut into `pieces` of time, each after what the one before left; a single one where no state is given.

        Gradients flow through all of them. recompute: keep the states between pieces alone, and read each again on the way back, so
        that memory does not grow with their number.
        """
        scored, text = max(sum(piece.valid for piece in pieces), 1), sum(piece.is_text.sum() for piece in pieces).clamp(min=1)
        losses: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        nll = []
        for piece in pieces:
            learned: Learned = checkpoint(self._read, piece, state, use_reentrant=False) if recompute else self._read(piece, state)
            state = learned.state
            nll.append(learned.nll)
            parts = {True: piece.is_text.sum() / text, False: piece.valid / scored}
            losses |= {name: losses.get(name, 0.0) + loss * parts[name in learned.of_text] for name, loss in learned.losses.items()}
            counts |= {name: counts.get(name, 0) + count for name, count in learned.counts.items()}
            stats |= {name: stats.get(name, 0) + value for name, value in learned.stats.items()}
        return Learned(losses, counts, torch.cat(nll, 1), stats, state, learned.of_text)

    def _read(self, piece: Batch, state: ModelState | None) -> Learned:
        any_restart = piece.any_restart if state is None else piece.restarts > 0
        neighbours = Neighbours(*piece.answers) if piece.answers else None
        context = Context(restart=piece.restart, memory=neighbours, cu_seqlens=piece.cu_seqlens, any_restart=any_restart, is_text=piece.is_text)
        out = self.model(piece.tokens, state, context)
        total, nll = linear_cross_entropy(out.hidden.flatten(0, 1), self.model.readout, piece.targets.flatten())
        losses, stats, nll = {"next_token": total / max(piece.valid, 1), **out.losses}, dict(out.stats), nll.view_as(piece.targets)
        counts: dict[str, Tensor] = {}
        if self.heads:
            begins = piece.restart | ~piece.is_text  # padding goes on with nothing, though the trunk reads it as what comes next
            about = (piece.tokens, piece.targets, begins, nll, piece.row, piece.lane, piece.column)
            tables = (self.model.embedding.weight, self.model.readout)
            blind = replace(context, memory=None)  # neighbours were found by the very words that a head takes away
            reading = Reading(out.hidden, *about, *tables, lambda tokens: self.model(tokens, state, blind).hidden, self.heads)
            for name, head in self.heads.items():
                taught = head(reading)
                losses |= {loss: value / max(piece.valid, 1) for loss, value in taught.sums.items()}
                counts |= taught.counts
                stats |= {f"{OF_HEADS}{name}.{key}": value for key, value in taught.stats.items()}
        return Learned(losses, counts, nll, stats, out.state, frozenset(out.losses))

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        """Tell units and heads what their stats came to over an optimizer step of all ranks; every rank does so with the same numbers."""
        self.model.after_step({path: value for path, value in stats.items() if not path.startswith(OF_HEADS)})
        for name, head in self.heads.items():
            own = {path.removeprefix(f"{OF_HEADS}{name}."): value for path, value in stats.items() if path.startswith(f"{OF_HEADS}{name}.")}
            if own:
                head.after_step(own)


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The one sum in which every named loss has its weight; a loss without one counts once."""
    return torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()

"""One optimizer step: read the step's rows in micro-batches that fit the memory, agree that it is sound, sum, clip, update.

Each micro-batch's losses are means over its scored tokens; weighted by its share of all scored tokens of all ranks, they add up
to the mean over the whole step, whatever the number of ranks and of micro-batches. So are those of experts' routers over its text, scored or not.

Where states are carried (train.long_context), the rows of a micro-batch are read in windows of some chunks, from the state that their
lanes were left in; each window is back-propagated when it is read, so that memory does not grow with the length of rows.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from data_sources import Batch
from data_sources.order import LANES
from lm.objectives.ul2 import KINDS
from lm.ops.cross_entropy import CHUNK_ELEMENTS, DEVICE_FACTOR
from lm.preset.training import TrainConfig
from lm.training.averaging import Average
from lm.training.carried import Carried, detached
from lm.training.compiling import Compiled, compiles
from lm.training.distribution import Ranks, is_out_of_memory
from lm.training.forecast import PROBE, Need, copy_bytes, kept_bytes, lasting_bytes, memory_of, slack
from lm.training.learner import Learner, weighted_sum
from lm.training.optimizer import Optimizer, learning_rate
from lm.training.shares import SHARE_ROWS, Window, gradient_shares


class Step(NamedTuple):
    """What a step did, over all ranks."""

    sound: bool  # whether the weights were changed
    tokens: int  # read: padding is none
    loss: float  # nats a scored token; not a number when none was
    losses: dict[str, float]  # means over the tokens that each was taken at
    nats: list[float]  # by source
    scored: list[float]  # tokens by source
    read: list[float]  # tokens by source
    gradient_norm: float
    learning_rate: float
    stats: dict[str, Tensor]  # of the units and heads
    shares: dict[str, float] | None  # of the trunk's gradient, by loss (lm/training/shares.py); empty in most steps, None where memory was short
    taught: dict[str, int]  # scored tokens by denoiser, where there are some


class TooLarge(Exception):
    """The model can't be trained on this machine. The message is one line."""


class Total(NamedTuple):
    """Tokens of a step, over all ranks."""

    scored: int
    text: int

    def shares(self, window: Batch) -> dict[bool, float]:
        """What rows have of them: of the text, and of what is scored of it."""
        return {True: int(window.is_text.sum()) / max(self.text, 1), False: window.valid / max(self.scored, 1)}


class Found(NamedTuple):
    """What rows came to, on the device that read them."""

    sums: Tensor  # float64: nats, scored tokens and read tokens, by source; then nats and scored tokens by denoiser, where there are some
    losses: dict[str, Tensor]  # each named loss's part of the mean over the step
    counts: dict[str, Tensor]  # of those that are of some tokens only, how many they stand for
    stats: dict[str, Tensor]

    @property
    def names(self) -> "Names":
        return Names(list(self.losses), list(self.counts), {name: value.shape for name, value in self.stats.items()})


class Names(NamedTuple):
    """What is found, beside the sums. A rank without rows finds nothing more."""

    losses: list[str]
    counts: list[str]
    stats: dict[str, torch.Size]

    @classmethod
    def of_all(cls, ranks: Sequence["Names"]) -> "Names":
        """Those of several ranks, in an order that all of them have."""
        losses, counts = (sorted({name for names in of_ranks for name in names}) for of_ranks in list(zip(*ranks, strict=True))[:2])
        return cls(losses, counts, {name: shape for names in ranks for name, shape in sorted(names.stats.items())})


class Told(NamedTuple):
    """What the rows of all ranks came to, on the host."""

    norm: float  # of the gradient
    sums: list[float]
    losses: dict[str, float]
    counts: dict[str, float]
    stats: dict[str, Tensor]


class Cut(NamedTuple):
    """How rows are read: windows that gradients flow back through, each in chunks."""

    window: int = sys.maxsize  # tokens
    chunk: int = sys.maxsize
    recompute: bool = False  # whether chunks are read again on the way back


class Teacher:
    """Takes steps on one learner. Holds nothing that a snapshot must hold: how much fits the memory is the machine's."""

    def __init__(
        self,
        ranks: Ranks,
        learner: Learner,
        optimizer: Optimizer,
        config: TrainConfig,
        weights: Mapping[str, float],
        carried: Carried | None = None,
        share_every: int = 0,
        average: Average | None = None,
    ) -> None:
        """carried: the states of this rank's lanes, where rows go on from one another. share_every: steps between looks at the losses' shares
        of the gradient, where there are heads; 0: never. average: of the learner's weights, which follows them."""
        self.ranks, self.optimizer, self.config, self.weights, self.carried = ranks, optimizer, config, weights, carried
        self.alone, self.learner, self.share_every, self.average = learner, ranks.wrapped(learner), share_every, average
        self.compiled = Compiled(learner.model, compiles(config.compile, ranks.device))
        self.parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        self.own_names: Names | None = None  # as the ranks last told each other
        self.names = Names([], [], {})  # of all of them
        self.micro_rows = config.per_gpu_batch_size
        if carried:  # no lane twice, since its second row goes on from its first
            self.micro_rows = min(self.micro_rows, LANES // ranks.size)

    def fit_memory(self, batch: Batch) -> Need:
        """Count what a step with rows like those of `batch` needs, and read fewer at a time where that is too much for what is free, on all
        ranks alike. TooLarge when a single one is too much for all there is."""
        cut = self._cut(0)
        at_once = min(cut.chunk if cut.recompute else cut.window, batch.tokens.shape[1])
        (free, total), lasting = memory_of(self.ranks.device), self._lasting()
        try:
            copies, row = self._rows(batch, at_once)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            copies, row = 0, max(1, min(free, total - lasting))  # other programs may let go of some: one row is tried
        need = Need(lasting + copies, row, free, total)
        worst = [float(-need.rows(self.micro_rows)), float(need.is_hopeless)]
        fewest, hopeless = self.ranks.highest(worst)
        if hopeless:
            what, remedy = self._least
            raise TooLarge(
                f"a step with {what} needs {need.of(1) / 1e9:.1f} GB, and there are {total / 1e9:.1f} GB in all: lower {remedy} or model.hidden_size"
            )
        self.micro_rows = int(-fewest)
        return need

    def _lasting(self) -> int:
        """Bytes that come with the first step and stay."""
        readout = self.alone.model.readout
        of_a_chunk = 3 + (readout.soft_cap is not None)  # matrices
        of_loss = readout.weight.nbytes + of_a_chunk * 4 * CHUNK_ELEMENTS * (1 if self.ranks.device.type == "cpu" else DEVICE_FACTOR)
        trunk = sum(parameter.nbytes for parameter in self.alone.model.parameters() if parameter.requires_grad)
        of_shares = 2 * trunk if self.alone.heads and self.share_every else 0  # a loss's gradient, and the sum over the rows
        of_copy = copy_bytes(self.alone, self.optimizer.wanted, bool(self.average), self.ranks.device)
        return lasting_bytes(self.alone, self.optimizer.missing) + of_loss + of_shares + of_copy

    def _rows(self, batch: Batch, at_once: int) -> tuple[int, int]:
        """Bytes that reading `at_once` tokens of rows keeps: autocast's copies of the weights, once for all rows, and the rest, for each row; none
        where this rank has no row."""
        if not len(batch.lane) or not batch.tokens.shape[1]:
            return 0, 0
        tokens = min(at_once, PROBE)
        half = tokens // 2
        kept, of_half = self._kept(batch, tokens), self._kept(batch, half) if half else 0
        of_none = (tokens * of_half - half * kept) / (tokens - half)  # on the line through both; what is no copy of a weight there is a row's own
        copies = max(0.0, min(of_none, self._most_copies))
        return int(slack(self.ranks.device) * copies), int(slack(self.ranks.device) * (kept - copies) * at_once / tokens)

    @property
    def _most_copies(self) -> int:
        """Bytes of all weights, were all of them copied by autocast."""
        return sum(torch.bfloat16.itemsize * parameter.numel() for parameter in self.parameters) if self.ranks.precision == "bfloat16" else 0

    def _kept(self, batch: Batch, tokens: int) -> int:
        """Bytes that reading the first `tokens` of a row keeps: as they are, or as one document, which may keep more and comes some day."""
        piece = batch.split(1)[0].pieces(tokens)[0]
        readings = [each.to(self.ranks.device) for each in (piece, piece.undivided())]
        state = self.alone.model.initial_state(1) if self.carried else None
        aside = [*self.learner.parameters(), *self.learner.buffers()]
        with self.ranks.without_reduction(self.learner):
            return max(kept_bytes(lambda piece=piece: self.learner([piece], state), aside) for piece in readings)

    @property
    def _least(self) -> tuple[str, str]:
        """The least that is read at once, and the switch that makes it less."""
        return ("a window of a row", "train.long_context.chunk_length") if self.carried else ("a single row", "model.seq_length")

    def step(self, batch: Batch, num_sources: int, read: int, budget: int, number: int = 0) -> Step:
        """Learn from this rank's rows of step `number` of the model's life, when the run has read `read` of `budget` tokens."""
        n = num_sources
        scored, tokens = (int(count) for count in self.ranks.summed([float(batch.valid), float(batch.is_text.sum())]))
        rate = learning_rate(self.config, (read + tokens) / budget)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        cut = self._cut(number)
        looks = self.alone.heads and self.share_every and number % self.share_every == 0
        shares = gradient_shares(self.alone, self._first_windows(batch, cut), self.weights, self.ranks) if looks else {}
        found = self._gradients_in_memory(batch, Total(scored, tokens), num_sources, cut)
        self.ranks.sum_gradients(self.parameters)
        norm, sums, losses, counts, stats = self._over_ranks(found, torch.nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip))
        nats, by_source, read_now = sums[:n], sums[n : 2 * n], sums[2 * n : 3 * n]
        sound = all(map(math.isfinite, [norm, *sums, *losses.values()]))
        if sound and scored:
            self._update(tokens)
            self.alone.after_step(stats)
        self.optimizer.zero_grad(set_to_none=True)
        if self.carried:
            self.carried.settle(sound)
        loss = sum(nats) / scored if scored else math.nan
        told = by_themselves(losses, counts, scored) | by_denoiser(sums[3 * n :])
        return Step(sound, tokens, loss, told, nats, by_source, read_now, norm, rate, stats, shares, scored_by_denoiser(sums[3 * n :]))

    def nats_of(self, batch: Batch) -> tuple[float, float]:
        """Nats and scored tokens of all ranks in the first chunks of rows that were learned from before, read without gradients and from fresh
        states; nothing where a rank has no memory for that."""
        cut, found, fits = self._cut(0), torch.zeros(2, dtype=torch.float64), True
        try:
            for rows in batch.split(self.micro_rows):
                piece = rows.pieces(min(cut.window, cut.chunk))[0].to(self.ranks.device)
                with torch.no_grad(), self.ranks.accelerator.autocast():
                    nll = self.alone([piece]).nll
                found += torch.stack([torch.where(piece.targets >= 0, nll, 0).double().sum().cpu(), torch.tensor(piece.valid)])
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        nats, scored, short = self.ranks.summed([*found.tolist(), float(not fits)])
        return (0.0, 0.0) if short else (nats, scored)

    def _update(self, tokens: int) -> None:
        """Change the weights. TooLarge where there is no room for the moments, which come with the first step: fewer rows at a time would make none."""
        try:
            self.optimizer.step()
            if self.average:
                self.average.follow(tokens)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise TooLarge("the optimizer's moments do not fit into memory: lower model.hidden_size or model.num_layers") from None

    def _over_ranks(self, own: Found, norm: Tensor) -> Told:
        """Everything added up over the ranks. A rank without rows has no losses and no stats."""
        names, nothing = self.names, own.sums.new_zeros(())
        stats = [own.stats.get(name, nothing.expand(shape)) for name, shape in names.stats.items()]
        parts = [*(own.losses.get(name, nothing) for name in names.losses), *(own.counts.get(name, nothing) for name in names.counts), *stats]
        numbers = torch.cat([own.sums, *(part.to(own.sums).flatten() for part in parts)])
        self.ranks.sum_tensors([numbers])
        host = torch.cat([norm.to(numbers).view(1), numbers]).cpu()  # the host waits for the device here, and in units that look at what they read
        sizes = [1, len(own.sums), len(names.losses), len(names.counts), *(shape.numel() for shape in names.stats.values())]
        length, sums, losses, counts, *rest = host.split(sizes)
        told = {name: part.float().view(shape) for (name, shape), part in zip(names.stats.items(), rest, strict=True)}
        of_losses, of_counts = (dict(zip(of, part.tolist(), strict=True)) for of, part in ((names.losses, losses), (names.counts, counts)))
        return Told(length.item(), sums.tolist(), of_losses, of_counts, told)

    def _cut(self, number: int) -> Cut:
        """How the rows of a step are read."""
        if not self.carried:
            return Cut()
        config = self.config.long_context
        chunks = config.chunks_of(number)
        return Cut(chunks * config.chunk_length, config.chunk_length, recompute=chunks > config.backprop_chunks)

    def _gradients_in_memory(self, batch: Batch, total: Total, num_sources: int, cut: Cut) -> Found:
        """Gradients of all micro-batches; when a rank runs out of memory all of them halve their micro-batch and begin again."""
        while True:
            fits = True
            try:
                found = self.compiled.done(partial(self._gradients, batch, total, num_sources, cut), self._begin_again)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                fits = False
            own = found.names if fits else None
            is_short, is_new = self.ranks.highest([float(not fits), float(own != self.own_names)])
            if not is_short:
                if is_new:
                    self.own_names, self.names = own, Names.of_all(self.ranks.gathered(own))
                return found
            if self.micro_rows == 1:  # said by all ranks together, so that none is left waiting
                what, remedy = self._least
                raise TooLarge(f"{what} does not fit into memory: lower {remedy} or model.hidden_size")
            self._begin_again()
            self.micro_rows = max(1, self.micro_rows // 2)
            if self.ranks.device.type == "cuda":
                torch.cuda.empty_cache()

    def _begin_again(self) -> None:
        """Forget what the step under way has found."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.carried:
            self.carried.take_back()

    def _first_windows(self, batch: Batch, cut: Cut) -> list[Window]:
        """The beginnings of this rank's first rows, as many at a time as fit the memory."""
        own = max(1, SHARE_ROWS // self.ranks.size)
        parts = [rows for first in batch.split(own)[:1] for rows in first.split(self.micro_rows)]
        states = [self.carried.of(rows.lane.tolist()) if self.carried else None for rows in parts]
        first = [[piece.to(self.ranks.device) for piece in rows.pieces(cut.window)[0].pieces(cut.chunk)] for rows in parts]
        return [Window(pieces, state, cut.recompute) for pieces, state in zip(first, states, strict=True)]

    def _gradients(self, batch: Batch, total: Total, num_sources: int, cut: Cut) -> Found:
        """Back-propagate this rank's rows."""
        by_source = torch.zeros(3, num_sources, dtype=torch.float64, device=self.ranks.device)
        by_kind = torch.zeros(2, len(KINDS) * (batch.kind is not None), dtype=torch.float64, device=self.ranks.device)
        parts: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        for rows in batch.split(self.micro_rows):
            lanes = rows.lane.tolist()
            state = self.carried.of(lanes) if self.carried else None
            for window in rows.pieces(cut.window):
                shares = total.shares(window)
                pieces = [piece.to(self.ranks.device) for piece in window.pieces(cut.chunk)]
                with self.ranks.without_reduction(self.learner):
                    learned = self.learner(pieces, state, cut.recompute)
                    own = {name: loss * shares[name in learned.of_text] for name, loss in learned.losses.items()}
                    weighted_sum(own, self.weights).backward()
                state = detached(learned.state) if self.carried else None
                parts |= {name: parts.get(name, 0.0) + loss.detach() for name, loss in own.items()}
                counts |= {name: counts.get(name, 0) + count for name, count in learned.counts.items()}
                stats |= {name: stats.get(name, 0) + value for name, value in learned.stats.items()}
                for piece, nll in zip(pieces, learned.nll.split([piece.tokens.shape[1] for piece in pieces], 1), strict=True):
                    self._count(by_source, by_kind, piece, nll)
            if self.carried:
                self.carried.move(lanes, state)
        return Found(torch.cat([by_source.flatten(), by_kind.flatten()]), parts, counts, stats)

    @staticmethod
    def _count(by_source: Tensor, by_kind: Tensor, read: Batch, nll: Tensor) -> None:
        """Add nats, scored tokens and tokens read to `by_source` (3, sources), and the first two to `by_kind` (2, denoisers).

        What does not count adds zero to the first: to pick what does, the host would have to wait for the device in each micro-batch.
        """
        is_scored, is_read = read.targets >= 0, read.is_text
        nats = torch.where(is_scored, nll, 0).double()
        source = read.source.clamp(min=0).flatten()
        for row, values in zip(by_source, (nats, is_scored, is_read), strict=True):
            row.index_add_(0, source, values.flatten().double())
        if read.kind is not None:
            is_told, kind = is_scored & (read.kind >= 0), read.kind.clamp(min=0).flatten().long()
            for row, values in zip(by_kind, (torch.where(is_told, nats, 0), is_told), strict=True):
                row.index_add_(0, kind, values.flatten().double())


def by_themselves(losses: Mapping[str, float], counts: Mapping[str, float], scored: int) -> dict[str, float]:
    """Losses that are means over `scored` tokens as means over their own `counts`, where they have one; none of a loss that was taken nowhere."""
    return {name: loss * scored / counts[name] if name in counts else loss for name, loss in losses.items() if counts.get(name, 1)}


def by_denoiser(sums: Sequence[float]) -> dict[str, float]:
    """Mean losses by denoiser, "ul2_R", of those that were scored; `sums`: nats of each, then scored tokens of each, or nothing."""
    kinds = KINDS[: len(sums) // 2]
    pairs = zip(kinds, sums[: len(kinds)], sums[len(kinds) :], strict=True)
    return {f"ul2_{kind}": nats / scored for kind, nats, scored in pairs if scored}


def scored_by_denoiser(sums: Sequence[float]) -> dict[str, int]:
    """Scored tokens of those denoisers that have some, of the same sums."""
    return {kind: int(scored) for kind, scored in zip(KINDS, sums[len(sums) // 2 :], strict=False) if scored}

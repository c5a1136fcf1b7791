"""The model: embed -> layers of residual units -> norm -> logits.

    x = embedding[tokens];  for each unit of each layer: x = x + unit(norm(x));  logits = norm(x) @ output.T, within a soft cap if one is set

A layer may be for some tokens only (lm/units/mixture_of_depths.py), and may attend to neighbours (lm/units/neighbours.py).

Sizes: B batch, T time, D hidden, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lm.ops.readout import Readout
from lm.preset import Options, Preset, at_layer, depths_layers, layer_options, layer_plan
from lm.units import UNITS, Context, Mixed, State, Unit
from lm.units.bidirectional import two_way
from lm.units.mixture_of_depths import WRITTEN, MixtureOfDepths
from lm.units.neighbours import NeighbourEncoder
from lm.units.options import feed_forward, with_gates, with_values

__all__ = ["Context", "Model", "ModelState", "Output", "build_model"]


class ModelState(NamedTuple):
    """What the model carries from one piece of text to the next."""

    position: Tensor  # (B,) int64: tokens of the document read so far
    layers: tuple[State, ...]  # by layer: one state a unit, or a DepthsState that holds them


class Output:
    """What one reading gives. `logits` (B, T, V) is computed when it is first read."""

    def __init__(self, hidden: Tensor, state: ModelState | None, losses: Mapping[str, Tensor], stats: Mapping[str, Tensor], readout: Readout) -> None:
        self.hidden = hidden  # (B, T, D), after the last norm
        self.state = state  # None when none was given
        self.losses = losses  # named scalars of the units, summed over layers
        self.stats = stats  # by layer and unit, "3.moe.load"
        self._readout = readout
        self._logits: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """Scores of every entry of the vocabulary as the next token."""
        if self._logits is None:
            self._logits = self._readout.logits(self.hidden)
        return self._logits


class Residual(nn.Module):
    """x + unit(norm(x))."""

    def __init__(self, unit: Unit, size: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(size, eps=eps)
        self.unit = unit

    def forward(self, x: Tensor, state: State, context: Context) -> Mixed:
        mixed = self.unit(self.norm(x), state, context)
        return mixed._replace(y=x + mixed.y)


class Layer(nn.ModuleList):
    """Residual units, one after the other. A reader of texts like each of them; its state has one state a unit."""

    def __init__(self, names: Sequence[str], units: Sequence[Unit], size: int, eps: float, tells: bool) -> None:
        """tells: whether it shares what its last unit writes into the residual stream."""
        super().__init__(Residual(unit, size, eps) for unit in units)
        self.names, self.tells = names, tells

    def initial_state(self, batch_size: int) -> tuple[State, ...]:
        return tuple(residual.unit.initial_state(batch_size) for residual in self)

    def forward(self, x: Tensor, state: tuple[State, ...], context: Context) -> Mixed:
        losses: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        shared: dict[str, Tensor] = {}
        after = []
        for name, residual, unit_state in zip(self.names, self, state, strict=True):
            before = x
            mixed: Mixed = residual(x, unit_state, replace(context, shared={**context.shared, **shared}))
            x = mixed.y
            after.append(mixed.state)
            losses |= {key: losses.get(key, 0) + loss for key, loss in mixed.losses.items()}
            stats |= {f"{name}.{key}": value for key, value in mixed.stats.items()}
            shared |= mixed.shared
        if self.tells:
            shared[WRITTEN] = x - before
        return Mixed(x, tuple(after), losses, shared, stats)


class Model(nn.Module):
    """A decoder whose layers are what the plan says. `model.plan`: the unit names of each layer."""

    def __init__(self, preset: Preset, vocab_size: int) -> None:
        super().__init__()
        config = preset.model
        self.plan = layer_plan(preset)
        self.embedding = nn.Embedding(vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.seq_length, config.hidden_size) if config.position == "learned" else None
        options = layer_options(preset)
        shared_width = max(option.shared_width for option in options)
        self.shared_ffn = UNITS[config.activation](preset, shared_width) if shared_width else None
        self.depths = nn.ModuleDict({str(depth): MixtureOfDepths(preset) for depth in depths_layers(preset)})  # of layers that only some tokens read
        asked = {int(depth) - 1 for depth, router in self.depths.items() if router.by_previous}
        self.neighbour_encoder = NeighbourEncoder(preset) if any("retro" in names for names in self.plan) else None
        self.layers = nn.ModuleList(
            Layer(names, [*self._units(at_layer(preset, depth), names, options[depth])], config.hidden_size, config.norm_eps, tells=depth in asked)
            for depth, names in enumerate(self.plan)
        )
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.logit_soft_cap = config.logit_soft_cap
        self.output = None if config.tie_embeddings else nn.Linear(config.hidden_size, vocab_size, bias=False)

    def _units(self, preset: Preset, names: Sequence[str], options: Options) -> Iterator[Unit]:
        """The units of one layer; `preset` as it is there."""
        for name, gates, values in zip(names, options.gates, options.values, strict=True):
            shares = options.shared_width and name == preset.model.activation
            made = partial(feed_forward, preset, self.shared_ffn) if shares else partial(UNITS[name], preset)
            yield with_values(with_gates(two_way(name, made, preset.model.bidirectional), gates), values)

    @property
    def output_weight(self) -> Tensor:
        """(V, D): a row for each entry of the vocabulary."""
        return self.embedding.weight if self.output is None else self.output.weight

    @property
    def readout(self) -> Readout:
        """What makes scores of the vocabulary out of the last latents."""
        return Readout(self.output_weight, self.logit_soft_cap)

    def initial_state(self, batch_size: int) -> ModelState:
        """The state before the first token."""
        position = torch.zeros(batch_size, dtype=torch.int64, device=self.embedding.weight.device)
        return ModelState(position, tuple(self._first(depth, batch_size) for depth in range(len(self.layers))))

    def _first(self, depth: int, batch_size: int) -> State:
        layer, key = self.layers[depth], str(depth)
        return self.depths[key].initial_state(layer, batch_size) if key in self.depths else layer.initial_state(batch_size)

    def _read(self, depth: int, x: Tensor, state: State, context: Context) -> Mixed:
        layer, key = self.layers[depth], str(depth)
        return self.depths[key](layer, x, state, context) if key in self.depths else layer(x, state, context)

    def forward(self, tokens: Tensor, state: ModelState | None = None, context: Context | None = None) -> Output:
        """Read `tokens` (B, T) int64, any T >= 0, after what `state` holds; a model that reads from both ends takes none.

        Without a state every row starts fresh, and none is given back. Without a context no document begins and positions go on.
        ValueError for neighbours (context.memory) that no layer attends to, or for which there is no room.
        """
        before = state or self.initial_state(len(tokens))
        context = self._with_neighbours((context or Context()).derived(tokens, before.position, carry=state is not None))
        x = self.embedding(tokens)
        if self.positions is not None:
            # Past the last learned place the last one is repeated; extend_max_seq_len adds places.
            x = x + self.positions(context.position.clamp(max=self.positions.num_embeddings - 1))
        losses: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        after = []
        for depth, layer_state in enumerate(before.layers):
            mixed = self._read(depth, x, layer_state, context)
            x = mixed.y
            after.append(mixed.state)
            losses |= {key: losses.get(key, 0) + loss for key, loss in mixed.losses.items()}
            stats |= {f"{depth}.{key}": value for key, value in mixed.stats.items()}
            if mixed.shared:
                context = replace(context, shared={**context.shared, **mixed.shared})
        position = context.position[:, -1] + 1 if tokens.shape[1] else before.position
        return Output(self.norm(x), ModelState(position, tuple(after)) if state else None, losses, stats, self.readout)

    def _with_neighbours(self, context: Context) -> Context:
        """`context` with what was handed in encoded, for the layers that attend to it."""
        if self.neighbour_encoder is not None:
            return replace(context, shared={**context.shared, **self.neighbour_encoder.read(context.memory, self.embedding)})
        if context.memory is not None:
            raise ValueError("neighbours are handed in, but no layer of this model attends to them (retro.enabled, retro.add_cross_attention)")
        return context

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        """Tell each unit and router what its stats came to over an optimizer step of all ranks; every rank does so with the same numbers."""
        of_units: dict[tuple[int, str], dict[str, Tensor]] = {}
        for path, value in stats.items():
            depth, name, key = path.split(".")
            of_units.setdefault((int(depth), name), {})[key] = value
        for (depth, name), own in of_units.items():
            told = self.depths[str(depth)] if name == "depths" else self.layers[depth][self.plan[depth].index(name)].unit
            told.after_step(own)

    def extend_max_seq_len(self, length: int) -> None:
        """Give learned positions `length` places; new ones begin as copies of the old, in order. Rotary positions need nothing."""
        if self.positions is None or length <= self.positions.num_embeddings:
            return
        self.positions = nn.Embedding.from_pretrained(more_places(self.positions.weight.data, length), freeze=False)


def more_places(places: Tensor, length: int) -> Tensor:
    """Learned places (N, D) as `length` of them: their own again, since what lies past the last is most like what lies before it."""
    return places[torch.arange(length) % len(places)]


def build_model(preset: Preset, vocab_size: int) -> Model:
    """A model with first weights, drawn from torch's random state. Every layer begins as the identity (see Unit.initialise)."""
    model = Model(preset, vocab_size)
    for table in filter(None, (model.embedding, model.positions, model.output)):
        nn.init.normal_(table.weight, std=0.02)
    for unit in filter(None, (model.shared_ffn, *(residual.unit for layer in model.layers for residual in layer))):
        unit.initialise()
    for part in (*model.depths.values(), *filter(None, [model.neighbour_encoder])):
        part.initialise()
    return model

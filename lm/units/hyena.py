"""Hyena (Poli et al. 2023): attention's two products, query with key and weights with value, become gates and long convolutions.

    v, x^1 .. x^N = short convolution (W u)
    z^1 = v;   z^{n+1}_t = x^n_t ((h^n * z^n)_t + d^n z^n_t);   y = W' z^{N+1}
    h^n_j = MLP(features(j))^n (e^{-a j} + shift),   0 <= j < F

A filter is not stored but made: an MLP of sines reads features of a place, and a window lets each channel forget at its own rate. Filters
end after F places, so that the state is bounded: of each order the last F - 1 values of z^n, and the last inputs of the short
convolution. Zeros are what lies before a document.

Sizes: B batch (or documents of it), T time, D hidden, N order, S = (N + 1) D streams, F filter length, K kernel of the short convolution.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.ops.documents import documents_of, groups_of, joined_rows, split_rows
from lm.ops.long_convolution import latest, long_convolution
from lm.ops.short_convolution import remembered, short_convolution, short_convolution_of_pieces
from lm.preset.switches import Preset
from lm.units.joined import Joined
from lm.units.unit import Context, Mixed, Unit

FREQUENCY = 14.0  # of the sines, as for the paper's language models: it makes filters rough enough
HIDDEN_LAYERS = 3
# A window is an exponential, which falls to FADED within FASTEST filter lengths in the first channel and SLOWEST in the last, and SHIFT.
FASTEST, SLOWEST, FADED, SHIFT = 0.3, 1.5, 0.01, 0.05


class HyenaState(NamedTuple):
    short: Tensor  # (B, S, K - 1): inputs of the short convolution, oldest first
    long: Tensor  # (B, N, D, F - 1): inputs of the long ones


class Filters(NamedTuple):
    """What the streams are filtered with."""

    kernel: Tensor  # (S, K), oldest first
    taps: Tensor  # (N, D, F), newest first
    skip: Tensor  # (N, D)


def hyena_step(stream: Tensor, filters: Filters, state: HyenaState, restart: Tensor | None = None) -> tuple[Tensor, HyenaState]:
    """The definition, for one token: stream (B, S), restart (B,): forget first -> z^{N+1} (B, D)."""
    short, long = state
    if restart is not None:
        short, long = short.where(~restart[:, None, None], 0), long.where(~restart[:, None, None, None], 0)
    short = torch.cat([short, stream[..., None]], -1)
    z, *gates = (short * filters.kernel).sum(-1).chunk(1 + len(filters.taps), 1)
    longs = []
    for past, gate, taps, skip in zip(long.unbind(1), gates, filters.taps.flip(-1), filters.skip, strict=True):
        past = torch.cat([past, z[..., None]], -1)
        z = gate * ((past * taps).sum(-1) + skip * z)
        longs.append(past[..., 1:])
    return z, HyenaState(short[..., 1:].clone(), torch.stack(longs, 1))


def hyena_parallel(streams: Tensor, filters: Filters, state: HyenaState, context: Context) -> tuple[Tensor, HyenaState]:
    """All tokens at once: streams (B, S, T) -> (B, D, T)."""
    if not streams.shape[-1]:
        return streams.chunk(1 + len(filters.taps), 1)[0], state
    taps = filters.taps + F.pad(filters.skip[..., None], (0, filters.taps.shape[-1] - 1))  # d^n z^n is one more tap at place 0
    if context.any_restart:
        return _by_document(streams, filters.kernel, taps, state, context)
    z, inputs = _recurrence(short_convolution(streams, filters.kernel, state.short), taps, state.long)
    return z, HyenaState(remembered(streams, state.short), _after(inputs, state.long)) if context.carry else state


def _recurrence(streams: Tensor, taps: Tensor, history: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """Gates and convolutions where no document begins inside: streams (B, S, T) -> z^{N+1} (B, D, T), and z^1 .. z^N."""
    z, *gates = streams.chunk(1 + len(taps), 1)
    inputs = []
    for order, gate in enumerate(gates):
        inputs.append(z)
        z = gate * long_convolution(z, taps[order], None if history is None else history[:, order])
    return z, inputs


def _after(inputs: list[Tensor], history: Tensor) -> Tensor:
    """The history (..., N, D, F - 1) after inputs z^1 .. z^N (..., D, T)."""
    return torch.stack([latest(z, past) for z, past in zip(inputs, history.unbind(-3), strict=True)], -3)


def _by_document(streams: Tensor, kernel: Tensor, taps: Tensor, state: HyenaState, context: Context) -> tuple[Tensor, HyenaState]:
    """The same where documents begin inside rows: those of about one length are read together, each from its own beginning."""
    documents = documents_of(context.cu_seqlens, context.restart)
    fresh = HyenaState(*(torch.zeros_like(past[0]) for past in state))
    shorts = [state.short[document.row] if document.goes_on else fresh.short for document in documents]
    pieces = short_convolution_of_pieces(split_rows(streams, documents), kernel, shorts)
    read, after = list(pieces), list(state.long.unbind(0))
    for group in groups_of(documents):
        past = state.long[[document.row for document in group.members]] if group.goes_on else None
        z, inputs = _recurrence(group.together(pieces), taps, past)
        for place, (document, piece) in enumerate(zip(group.members, group.apart(z), strict=True)):
            read[document.number] = piece
            if document.is_last and context.carry:
                after[document.row] = _after([z[place] for z in inputs], fresh.long if past is None else past[place])
    y = joined_rows(read, documents)
    return y, HyenaState(remembered(streams, state.short, context.position), torch.stack(after)) if context.carry else state


class Made(NamedTuple):
    """Taps, and the values of the parameters that they were made from."""

    values: Tensor
    taps: Tensor


class ImplicitFilter(nn.Module):
    """The taps of all orders and channels, from a network that reads places."""

    def __init__(self, features: int, width: int, order: int, channels: int, length: int) -> None:
        super().__init__()
        self.features, self.order, self.channels, self.length = features, order, channels, length
        sizes = [features] + [width] * HIDDEN_LAYERS
        self.hidden = nn.ModuleList(nn.Linear(inner, outer) for inner, outer in zip(sizes[:-1], sizes[1:], strict=True))
        self.taps = Joined(width, *[channels] * order)
        self._made: Made | None = None

    def reset_parameters(self) -> None:
        """First weights of the usual size for a linear layer, since the taps must not all be near zero."""
        for layer in (*self.hidden, self.taps):
            layer.reset_parameters()

    def forward(self, dtype: torch.dtype) -> Tensor:
        """(N, D, F) in `dtype`. Without gradients, on the CPU, made again only when a parameter has another value: a token alone costs far less."""
        if torch.is_grad_enabled() or self.taps.weight.device.type != "cpu":
            return self._make(dtype)
        values, made = torch.cat([parameter.flatten() for parameter in self.parameters()]), self._made
        if made is None or made.taps.dtype != dtype or made.values.dtype != values.dtype or not torch.equal(made.values, values):
            self._made = made = Made(values, self._make(dtype))
        return made.taps

    def _make(self, dtype: torch.dtype) -> Tensor:
        place = torch.arange(self.length, device=self.taps.weight.device, dtype=dtype) / self.length
        turns = place[:, None] * torch.arange(1, self.features // 2 + 1, device=place.device) * (2 * math.pi)
        x = torch.cat([place[:, None], turns.cos(), turns.sin()], 1)
        for layer in self.hidden:
            x = torch.sin(FREQUENCY * F.linear(x, layer.weight.to(dtype), layer.bias.to(dtype)))
        rates = torch.linspace(-math.log(FADED) / FASTEST, -math.log(FADED) / SLOWEST, self.channels, device=place.device, dtype=dtype)
        window = torch.exp(-rates[:, None] * place) + SHIFT
        return (self.taps.weight.to(dtype) @ x.T).unflatten(0, (self.order, self.channels)) * window


class Hyena(Unit):
    """Gated long convolutions with implicit filters."""

    steady = ("kernel", "filter.")

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        size, config = preset.model.hidden_size, preset.hyena
        self.order, self.length = config.order, config.filter_length or preset.model.seq_length
        self.streams = Joined(size, *[size] * (self.order + 1))
        self.kernel = nn.Parameter(torch.empty((self.order + 1) * size, config.kernel_size))
        self.filter = ImplicitFilter(config.embedding_dim, config.filter_order, self.order, size, self.length)
        self.skip = nn.Parameter(torch.empty(self.order * size))
        self.output = nn.Linear(size, size, bias=False)
        self._reset_filters()

    def initialise(self) -> None:
        super().initialise()
        self._reset_filters()

    def _reset_filters(self) -> None:
        """As in the paper's own code: what filters isn't near zero at first, long or short, since a product of N + 1 streams would vanish."""
        self.filter.reset_parameters()
        nn.init.uniform_(self.kernel, -(self.kernel.shape[1] ** -0.5), self.kernel.shape[1] ** -0.5)
        nn.init.normal_(self.skip)

    def initial_state(self, batch_size: int) -> HyenaState:
        weight, size = self.output.weight, len(self.output.weight)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        short = weight.new_zeros(batch_size, *self.kernel.shape, dtype=dtype)[..., 1:].clone()
        return HyenaState(short, weight.new_zeros(batch_size, self.order, size, self.length - 1, dtype=dtype))

    def forward(self, x: Tensor, state: HyenaState, context: Context) -> Mixed:
        dtype = torch.promote_types(x.dtype, torch.float32)
        streams = self.streams(x).mT  # time last, as the filters want it
        with torch.autocast(x.device.type, enabled=False):
            filters = Filters(self.kernel.to(dtype), self.filter(dtype), self.skip.to(dtype).unflatten(0, (self.order, -1)))
            streams = streams.to(dtype)
            if x.shape[1] == 1:
                z, state = hyena_step(streams[..., 0], filters, state, context.restart[:, 0] if context.any_restart else None)
                z = z[..., None]
            else:
                z, state = hyena_parallel(streams, filters, state, context)
        return Mixed(self.output(z.mT.to(x.dtype)), state)

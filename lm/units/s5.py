"""S5, a diagonal state space with many inputs and outputs (Smith, Warrington and Linderman 2023, "Simplified State Space Layers for
Sequence Modeling").

A linear system h' = Lambda h + B u, y = C h + D u, held constant over steps of learned lengths dt (zero-order hold):
    h_t = a h_{t-1} + (a - 1) / Lambda B u_t,    a = exp(Lambda dt),    y_t = 2 Re(C h_t) + D u_t
The eigenvalues come in conjugate pairs, of which one each is kept: hence twice the real part. They begin as those of the normal part of
the HiPPO-LegS matrix, which keeps a history in Legendre polynomials (Gu et al. 2020), and B and C as real matrices in its eigenbasis.
Re(Lambda) = -exp(log_rate), so |a| <= 1 whatever is learned. As in the paper the output is gated, g * sigmoid(W g) with g = gelu(y).

The state is h.

Sizes: B batch, T time, D hidden, N kept states (half of state_size), R states of a HiPPO matrix.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.ops.scan import decay_scan
from lm.preset.switches import Preset
from lm.units.unit import Context, Mixed, Unit


class S5State(NamedTuple):
    hidden: Tensor  # (B, N, 2), real and imaginary parts


class System(NamedTuple):
    """The system in continuous time. Eigenvalues and steps are float64, in which their powers over long times stay exact."""

    eigenvalue: Tensor  # (N,) complex128
    step: Tensor  # (N,) float64
    input: Tensor  # (N, D) complex
    readout: Tensor  # (D, N) complex
    skip: Tensor  # (D,)


def s5_step(u: Tensor, state: S5State, system: System, restart: Tensor) -> tuple[Tensor, S5State]:
    """The definition, for one token: u (B, D), restart (B,) -> (B, D)."""
    decay = torch.exp(system.eigenvalue * system.step)
    input_weight = ((decay - 1) / system.eigenvalue)[:, None] * system.input
    before = torch.view_as_complex(state.hidden).masked_fill(restart[:, None], 0)
    hidden = decay * before + u.to(input_weight.dtype) @ input_weight.T
    y = 2 * (hidden @ system.readout.to(hidden.dtype).T).real + system.skip * u
    return y, S5State(torch.view_as_real(hidden))


def s5_parallel(u: Tensor, state: S5State, system: System, context: Context) -> tuple[Tensor, S5State]:
    """All tokens at once: u (B, T, D) -> (B, T, D). The products are real ones and may be autocast, the recurrence is not."""
    exact = torch.promote_types(u.dtype, torch.float32)
    log_decay = system.eigenvalue * system.step
    gain = (torch.expm1(log_decay) / system.eigenvalue).to(system.input.dtype)
    inputs = F.linear(u, torch.view_as_real(gain[:, None] * system.input).transpose(1, 2).flatten(0, 1).to(u.dtype))
    inputs = torch.view_as_complex(inputs.to(exact).unflatten(-1, (-1, 2)))
    before = torch.view_as_complex(state.hidden.to(exact))
    hidden = torch.view_as_real(decay_scan(log_decay, inputs, before, context.restart if context.any_restart else None))
    readout = 2 * torch.view_as_real(system.readout.conj_physical()).flatten(1)  # Re(c h) = Re c Re h - Im c Im h
    y = torch.addcmul(F.linear(hidden.flatten(2).to(u.dtype), readout.to(u.dtype)), system.skip, u)
    return y, S5State(hidden[:, -1].clone()) if context.carry and u.shape[1] else state


def hippo_normal(size: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (R / 2,) and eigenvectors (R, R / 2), complex128, of HiPPO-LegS's normal part of `size` R; one of each conjugate pair.

    The matrix is -1/2 plus an antisymmetric one, which is +-sqrt((n + 1/2) (k + 1/2)) off the diagonal.
    """
    root = (torch.arange(size, dtype=torch.float64, device="cpu") + 0.5).sqrt()
    product = torch.outer(root, root)
    turning, vectors = torch.linalg.eigh(-1j * (product.triu(1) - product.tril(-1)))
    kept = slice(size // 2, None)  # in ascending order, so the later half is positive
    return torch.complex(torch.full_like(turning[kept], -0.5), turning[kept]), vectors[:, kept]


class S5(Unit):
    """The state space, a gate and an output projection."""

    steady = ("readout",)

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        size, states = preset.model.hidden_size, preset.s5.state_size // 2
        self._blocks, self._first_steps = preset.s5.blocks, (math.log(preset.s5.dt_min), math.log(preset.s5.dt_max))
        self.log_rate = nn.Parameter(torch.zeros(states))
        self.frequency = nn.Parameter(torch.zeros(states))
        self.log_step = nn.Parameter(torch.zeros(states))
        self.input = nn.Parameter(torch.zeros(states, size, 2))  # the last dimension of these two: real and imaginary parts
        self.readout = nn.Parameter(torch.zeros(size, states, 2))
        self.skip = nn.Parameter(torch.zeros(size))
        self.gate = nn.Linear(size, size, bias=False)
        self.output = nn.Linear(size, size, bias=False)

    @torch.no_grad()
    def initialise(self) -> None:
        """The paper's: B and C real with variance 1 / fan-in, then taken to the eigenbasis; D normal; steps uniform in their logarithm."""
        super().initialise()
        states, size, _ = self.input.shape
        rows = 2 * states // self._blocks
        eigenvalue, vectors = hippo_normal(rows)
        input_weight = torch.randn(self._blocks, rows, size, dtype=torch.float64, device="cpu") / size**0.5
        readout = torch.randn(size, self._blocks, rows, dtype=torch.float64, device="cpu") / (2 * states) ** 0.5
        self.log_rate.copy_((-eigenvalue.real).log().repeat(self._blocks))
        self.frequency.copy_(eigenvalue.imag.repeat(self._blocks))
        self.input.copy_(torch.view_as_real((vectors.mH @ input_weight.to(vectors.dtype)).flatten(0, 1)))
        self.readout.copy_(torch.view_as_real((readout.to(vectors.dtype) @ vectors).flatten(1)))
        self.log_step.uniform_(*self._first_steps)
        self.skip.normal_()

    def initial_state(self, batch_size: int) -> S5State:
        return S5State(self.input.new_zeros(batch_size, len(self.log_rate), 2))

    def system(self) -> System:
        """The system as learned so far, in at least float32."""
        exact = torch.promote_types(self.input.dtype, torch.float32)
        eigenvalue = torch.complex(-self.log_rate.double().exp(), self.frequency.double())
        input_weight, readout = (torch.view_as_complex(parts.to(exact)) for parts in (self.input, self.readout))
        return System(eigenvalue, self.log_step.double().exp(), input_weight, readout, self.skip)

    def forward(self, x: Tensor, state: S5State, context: Context) -> Mixed:
        y, state = s5_parallel(x, state, self.system(), context)
        g = F.gelu(y)
        return Mixed(self.output(g * self.gate(g).sigmoid()), state)

"""AdamW (Loshchilov, Hutter 2019), or Muon (Jordan et al. 2024) for the matrices of the layers and AdamW for the rest; and the learning rate
as a function of how much of the run is done.

One learning rate serves both: Muon's step is made as long as AdamW's usually is (Liu et al. 2025, "Muon is scalable for LLM training").

Where train.base_width says at which width D_0 = hidden_size the rate was found, models of another width D learn with shares of it, so that what
layers write changes as much in a step (Yang et al. 2022, "Tensor programs V", table 8; Yang et al. 2023, "A spectral condition for feature learning"):

    a step dW changes an output by its norm times that of the input, so norm(dW) ~ sqrt(fan_out / fan_in) is to be kept
    AdamW: entries of dW ~ rate and aligned, norm ~ rate sqrt(fan_out fan_in):       share 1 / fan_in,        D_0 / D
    Muon:  norm of dW = 0.2 rate sqrt(max(fan_out, fan_in)), whatever W's gradient:  share 1 / sqrt(fan_in),  sqrt(D_0 / D)

Vectors, embeddings and maps whose fan-in is the same at any width (Unit.steady) keep the whole rate. An embedding that is also the readout is both,
and gets the geometric mean of 1 and D_0 / D; so do routers, whose products are divided by the root of their fan-in. First weights are left as they are:
those that write into the residual stream are zero, and queries, keys and what comes into a layer are normalised.

Decay takes rate x weight_decay of a weight in a step, by torch's AdamW that of its group. Divided by the share it forgets as slowly at any width
(Wang, Aitchison 2024, "How to set AdamW's weight decay as you scale model and dataset size").
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from lm.preset.training import TrainConfig
from lm.training.muon import Muon
from lm.units.joined import Joined, Matrices
from lm.units.router import Router
from lm.units.unit import Unit

NARROW = 16  # a map with fewer rows or columns chooses (a gate of each head, an expert) rather than carries
MOMENTS = {torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}, Muon: {"momentum_buffer"}}


class Optimizer:
    """The optimizers of one module, of which each parameter has exactly one."""

    def __init__(self, module: nn.Module, *parts: torch.optim.Optimizer) -> None:
        """parts: a group's "scale" is its share of the learning rate."""
        self.parts = parts
        self._of = {parameter: part for part in parts for group in part.param_groups for parameter in group["params"]}
        counted = sum(len(group["params"]) for group in self.param_groups)
        if not set(module.parameters()) == set(self._of) or counted != len(self._of):
            raise AssertionError("a parameter without an optimizer, or with two")

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What is remembered of a parameter; empty before the first step."""
        return self._of[parameter].state.get(parameter, {})

    def wanted(self, parameter: nn.Parameter) -> int:
        """How many numbers are remembered of each of a parameter's, once there was a step."""
        return len(MOMENTS[type(self._of[parameter])] - {"step"})

    def missing(self, parameter: nn.Parameter) -> int:
        """How many of them are not there yet."""
        return 0 if self.moments(parameter) else self.wanted(parameter)

    def remember(self, parameter: nn.Parameter, moments: dict[str, Tensor]) -> bool:
        """Go on from `moments`, if they are of the parameter's kind of optimizer, and fit it."""
        part = self._of[parameter]
        fits = set(moments) == MOMENTS[type(part)] and all(value.ndim == 0 or value.shape == parameter.shape for value in moments.values())
        if fits:  # fused AdamW keeps its step count beside the parameter
            part.state[parameter] = {key: value.to(parameter.device, copy=True) for key, value in moments.items()}
        return fits


def build_optimizer(module: nn.Module, config: TrainConfig, precision: str = "float32") -> Optimizer:
    """Matrices decay, vectors (norms, biases) don't. AdamW is fused where the device has it.

    precision: of the run's products (Ranks.precision), and so of Muon's."""
    carry = dict(layer_matrices(module)) if config.optimizer == "muon" else {}
    shares = rate_shares(module, config.base_width) if config.base_width else {}
    rest = [(parameter, shares.get(parameter, 1.0)) for parameter in module.parameters() if parameter not in carry]
    adamw = torch.optim.AdamW(_groups(rest, config), lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
    if not carry:
        return Optimizer(module, adamw)
    ordered = [(parameter, shares.get(parameter, 1.0) ** 0.5) for parameter in module.parameters() if parameter in carry]
    muon = Muon(_groups(ordered, config), config.momentum, carry, torch.bfloat16 if precision == "bfloat16" else None)
    return Optimizer(module, muon, adamw)


def _groups(shares: Iterable[tuple[nn.Parameter, float]], config: TrainConfig) -> list[dict]:
    """Parameters by their share of the learning rate ("scale", by which each step sets a group's rate) and by whether they decay."""
    alike: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for parameter, share in shares:
        alike.setdefault((share, parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": parameters, "scale": share, "lr": config.learning_rate * share, "weight_decay": config.weight_decay / share if decays else 0.0}
        for (share, decays), parameters in alike.items()
    ]


def rate_shares(learner: nn.Module, base_width: int) -> dict[nn.Parameter, float]:
    """What share of the learning rate AdamW takes for each matrix of a learner whose rate was found at `base_width`; a vector takes all of it."""
    share = base_width / learner.model.embedding.embedding_dim
    shares = {parameter: share for parameter in learner.parameters() if parameter.ndim >= 2}
    for part in learner.modules():
        if isinstance(part, nn.Embedding):
            shares[part.weight] = 1.0
        elif isinstance(part, Router):
            shares |= {parameter: share**0.5 for parameter in part.parameters() if parameter.ndim >= 2}
        elif isinstance(part, Unit):
            shares |= {parameter: 1.0 for name, parameter in part.named_parameters() if name.startswith(part.steady)}
    if learner.model.output is None:
        shares[learner.model.embedding.weight] = share**0.5
    return shares


def layer_matrices(module: nn.Module) -> Iterator[tuple[nn.Parameter, tuple[int, ...]]]:
    """The weights (..., O, I) of linear maps within layers, and how their rows are shared out among maps that are joined in one. Not what stands
    for words (embedding, output, heads), and not what chooses (routers, gates of heads). Maps that are joined count as one, so that a narrow one (the
    time steps of Mamba-2) goes with those beside it: a parameter has one optimizer."""
    for name, part in module.named_modules():
        inside = any(f".{room}" in f".{name}" for room in ("layers.", "shared_ffn.", "neighbour_encoder."))
        carries = inside and isinstance(part, nn.Linear | Matrices) and "router" not in name.split(".")
        if carries and min(part.weight.shape[-2:]) >= NARROW:
            yield part.weight, part.rows if isinstance(part, Joined | Matrices) else part.weight.shape[:1]


def learning_rate(config: TrainConfig, share: float) -> float:
    """Warm-up, stable, decay (Hu et al. 2024): the rate when `share` of the run's tokens will have been read after the step."""
    rise = share / config.warmup_share if config.warmup_share else 1.0
    left = max(1.0 - share, 0.0)
    fall = 0.1 + 0.9 * left / config.decay_share if config.decay_share else 1.0
    return config.learning_rate * min(1.0, rise, fall)


def optimizer_tensors(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: "model.norm.weight/exp_avg". Names outlive a change of the parameters' order."""
    return {f"{name}/{key}": value for name, parameter in module.named_parameters() for key, value in optimizer.moments(parameter).items()}


def load_optimizer_tensors(optimizer: Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> int:
    """Take over the state of every parameter that `tensors` knows in its shape and for its kind of optimizer. How many parameters that were."""
    known: dict[str, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        name, key = path.rsplit("/", 1)
        known.setdefault(name, {})[key] = value
    return sum(optimizer.remember(parameter, known[name]) for name, parameter in module.named_parameters() if name in known)

"""AdamW (Loshchilov, Hutter 2019), or Muon (Jordan et al. 2024) for the matrices of the layers and AdamW for the rest; and the learning rate
as a function of how much of the run is done.

One learning rate serves both: Muon's step is made as long as AdamW's usually is (Liu et al. 2025, "Muon is scalable for LLM training").
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lm.preset.training import TrainConfig

NARROW = 16  # a map with fewer rows or columns chooses (a gate of each head, an expert) rather than carries
MOMENTS = {torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}, torch.optim.Muon: {"momentum_buffer"}}


class Optimizer:
    """The optimizers of one module, of which each parameter has exactly one."""

    def __init__(self, module: nn.Module, *parts: torch.optim.Optimizer) -> None:
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

    def missing(self, parameter: nn.Parameter) -> int:
        """How many numbers will be remembered of each of a parameter's that are not there yet."""
        return 0 if self.moments(parameter) else len(MOMENTS[type(self._of[parameter])] - {"step"})

    def remember(self, parameter: nn.Parameter, moments: dict[str, Tensor]) -> bool:
        """Go on from `moments`, if they are of the parameter's kind of optimizer, and fit it."""
        part = self._of[parameter]
        fits = set(moments) == MOMENTS[type(part)] and all(value.ndim == 0 or value.shape == parameter.shape for value in moments.values())
        if fits:  # fused AdamW keeps its step count beside the parameter
            part.state[parameter] = {key: value.to(parameter.device, copy=True) for key, value in moments.items()}
        return fits


def build_optimizer(module: nn.Module, config: TrainConfig) -> Optimizer:
    """Matrices decay, vectors (norms, biases) don't. AdamW is fused where the device has it."""
    carry = set(layer_matrices(module)) if config.optimizer == "muon" else set()
    rest = [parameter for parameter in module.parameters() if parameter not in carry]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
    if not carry:
        return Optimizer(module, adamw)
    ordered = [parameter for parameter in module.parameters() if parameter in carry]
    muon = torch.optim.Muon(ordered, lr=config.learning_rate, weight_decay=config.weight_decay, momentum=config.momentum, adjust_lr_fn="match_rms_adamw")
    return Optimizer(module, muon, adamw)


def layer_matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of linear maps within layers. Not what stands for words (embedding, output, heads), and not what chooses (routers, gates of heads)."""
    for name, part in module.named_modules():
        inside = any(f".{room}" in f".{name}" for room in ("layers.", "shared_ffn.", "neighbour_encoder."))
        if inside and isinstance(part, nn.Linear) and "router" not in name.split(".") and min(part.weight.shape) >= NARROW:
            yield part.weight


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

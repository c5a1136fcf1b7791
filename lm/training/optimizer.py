"""AdamW (Loshchilov, Hutter 2019) over two groups, and the learning rate as a function of how much of the run is done."""

import torch
from torch import Tensor, nn

from lm.preset.training import TrainConfig


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over every parameter: matrices decay, vectors (norms, biases) don't. Fused where the device has it."""
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(config: TrainConfig, share: float) -> float:
    """Warm-up, stable, decay (Hu et al. 2024): the rate when `share` of the run's tokens will have been read after the step."""
    rise = share / config.warmup_share if config.warmup_share else 1.0
    left = max(1.0 - share, 0.0)
    fall = 0.1 + 0.9 * left / config.decay_share if config.decay_share else 1.0
    return config.learning_rate * min(1.0, rise, fall)


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: "model.norm.weight/exp_avg". Names outlive a change of the parameters' order."""
    return {f"{name}/{key}": value for name, parameter in module.named_parameters() for key, value in optimizer.state[parameter].items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> int:
    """Take over the state of every parameter that `tensors` knows in its shape. How many parameters that were."""
    known: dict[str, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        name, key = path.rsplit("/", 1)
        known.setdefault(name, {})[key] = value
    taken = 0
    for name, parameter in module.named_parameters():
        state = known.get(name, {})
        if state and all(value.ndim == 0 or value.shape == parameter.shape for value in state.values()):
            # Fused AdamW keeps its step count beside the parameter.
            optimizer.state[parameter] = {key: value.to(parameter.device, copy=True) for key, value in state.items()}
            taken += 1
    return taken

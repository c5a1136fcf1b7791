"""RWKV-6 in float64 numpy, token by token from the equations of Peng et al. 2024, sections 4.2 and 4.3; and Peng's own package on the same weights.

Weights are read from our modules by name; every formula stands here anew.
"""

import os
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

Weights = dict[str, np.ndarray]


def weights_of(module: nn.Module) -> Weights:
    return {name: parameter.detach().double().numpy() for name, parameter in module.named_parameters()}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lerp(now: np.ndarray, before: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The token itself where the share is 0, the one before it where it is 1."""
    return (1 - share) * now + share * before


def time_mix(w: Weights, x: np.ndarray, heads: int, before: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One document (T, D) after `before` (D,) and `memory` (H, K, K) -> (T, D), memory."""
    time, size = x.shape
    out, streams = np.empty_like(x), np.split(w["mix"], 5)
    down = np.split(w["mix_down.weight"], 5)
    for t in range(time):
        first = lerp(x[t], before, w["mix_all"])
        r, d, k, v, g = (lerp(x[t], before, streams[i] + np.tanh(down[i] @ first) @ w["mix_up"][i]) for i in range(5))
        decay = np.exp(-np.exp(w["decay"] + w["decay_up.weight"] @ np.tanh(w["decay_down.weight"] @ d)))
        gate = w["gate.weight"] @ g
        read = []
        for head, part in enumerate(np.split(np.arange(size), heads)):
            receptance, key, value = (w[f"{name}.weight"][part] @ stream for name, stream in (("receptance", r), ("key", k), ("value", v)))
            written = np.outer(key, value)
            seen = receptance @ (memory[head] + np.diag(w["bonus"][part]) @ written)
            memory = memory.copy()
            memory[head] = np.diag(decay[part]) @ memory[head] + written
            read.append((seen - seen.mean()) / np.sqrt(seen.var() + 64e-5))
        out[t] = w["output.weight"] @ (gate * sigmoid(gate) * (np.concatenate(read) * w["norm_weight"] + w["norm_bias"]))
        before = x[t]
    return out, memory


def channel_mix(w: Weights, x: np.ndarray, before: np.ndarray) -> np.ndarray:
    """One document (T, D) after `before` (D,)."""
    out = np.empty_like(x)
    for t in range(len(x)):
        key = np.maximum(w["key.weight"] @ lerp(x[t], before, w["mix_key"]), 0) ** 2
        out[t] = sigmoid(w["receptance.weight"] @ lerp(x[t], before, w["mix_receptance"])) * (w["output.weight"] @ key)
        before = x[t]
    return out


def package() -> ModuleType:
    """rwkv.model, which sets matrix precision for the whole process and reads its own switches from the environment."""
    settings = (torch.backends.cudnn, "benchmark"), (torch.backends.cudnn, "allow_tf32"), (torch.backends.cuda.matmul, "allow_tf32")
    kept = [getattr(*setting) for setting in settings]
    os.environ |= {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    try:
        import rwkv.model
    finally:
        for setting, value in zip(settings, kept, strict=True):
            setattr(*setting, value)
    return rwkv.model


def flat(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a norm that only normalises, which the package puts before each block."""
    return torch.ones(size), torch.zeros(size)


def package_time_mix(unit: Any, x: torch.Tensor, before: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One document (T, D), float32, that the package normalises and adds to itself -> what it adds, and the memory."""
    receptance, decay, key, value, gate = unit.mix.chunk(5)
    order = [1, 2, 3, 0, 4]  # theirs: decay, key, value, receptance, gate
    down = torch.cat([unit.mix_down.weight.chunk(5)[i] for i in order]).T
    matrices = [linear.weight.T for linear in (unit.key, unit.value, unit.receptance, unit.gate, unit.output)]
    y, _, memory = package().RWKV.att_seq_v6_0(
        None,
        *(x, before, memory, *flat(x.shape[1]), unit.norm_weight, unit.norm_bias),
        *(unit.mix_all, decay, key, value, receptance, gate, down, unit.mix_up[order]),
        *(unit.decay_down.weight.T, unit.decay_up.weight.T, unit.decay.view(unit.heads, -1, 1), unit.bonus.view(unit.heads, -1, 1)),
        *matrices,
        *[None] * 20,  # scales of quantised matrices
    )
    return y - x, memory


def package_channel_mix(unit: Any, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """One document (T, D), float32, that the package normalises and adds to itself -> what it adds."""
    matrices = [linear.weight.T for linear in (unit.key, unit.output, unit.receptance)]
    y, _ = package().RWKV.ffn_seq_v6(None, x, before, *flat(x.shape[1]), unit.mix_key, unit.mix_receptance, *matrices, *[None] * 12)
    return y - x

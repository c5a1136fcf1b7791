"""The resume certificate: what a snapshot says about the moment it was taken, so that the next start can prove it goes on from there.

It holds the loss of one fixed row of held-out tokens, the hashes of the batches that come next, and what the program ran on. On a
start the loss is computed again, the differences are named, and the first batches are held against the hashes as they come. Which sources
were changed since, the stream tells by the fingerprints in its cursor (data_sources/fingerprint.py).
"""

import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from lm.model import Model
from lm.ops.cross_entropy import linear_cross_entropy
from lm.preset import Preset
from lm.preset.compare import BESIDE_STEPS, changed_switches
from lm.training.distribution import Ranks, device_in_words

PROBE_TOKENS = 257  # 256 predictions
CLOSE = 1e-4  # relative: what another device or version may change by its order of sums
PACKAGES = ("torch", "tokenizers", "transformers", "pyarrow", "numpy")
WITHOUT_EFFECT = {"name", "about", "generation", "data.cache"}  # on what this run learns
WITHOUT_EFFECT |= {f"train.{switch}" for switch in BESIDE_STEPS | {"loader_processes", "average_tokens"}}


def environment(device: str) -> dict[str, str]:
    """What results depend on besides the snapshot: the device, threads, Python and libraries."""
    return {"device": device, "python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


@cache
def _version(name: str) -> str:
    """Looked up once: 12 ms each, while training waits for its snapshot."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def probe_loss(model: Model, tokens: Sequence[int]) -> float | None:
    """Mean nats of predicting each of `tokens` from those before it, None for fewer than two."""
    if len(tokens) < 2:
        return None
    was_training = model.training
    model.eval()
    with torch.no_grad():
        row = torch.tensor(tokens, device=model.embedding.weight.device)
        hidden = model(row[None, :-1]).hidden[0]
        total, _ = linear_cross_entropy(hidden, model.readout, row[1:])
    model.train(was_training)
    return float(total) / (len(tokens) - 1)


def certified(model: Model, probe: Sequence[int], ranks: Ranks) -> dict[str, Any]:
    """The certificate of this moment, without the batches to come."""
    with ranks.accelerator.autocast():
        loss = probe_loss(model, probe)
    return {"environment": environment(device_in_words(ranks)), "probe": list(probe), "probe_loss": loss}


def differences(then: Mapping[str, Any], now: Mapping[str, Any], before: Preset, preset: Preset) -> list[str]:
    """What is not as it was when the certificate was made, in words; empty when nothing is."""
    lines = [f"{name} {then['environment'][name]} is now {now['environment'].get(name)}" for name in then["environment"] if _differs(name, then, now)]
    lines += changed_switches(before, preset, WITHOUT_EFFECT)
    had, has = then["probe_loss"], now["probe_loss"]
    if had is not None and has is not None and had != has:
        near = abs(had - has) <= CLOSE * abs(had)
        lines.append(f"the loss of the fixed row was {had:.6f} and is {has:.6f}" + (", close enough for another device" if near else ""))
    return lines


def _differs(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return then["environment"][name] != now["environment"].get(name)

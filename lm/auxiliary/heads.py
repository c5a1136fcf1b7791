"""All heads, by the name of their switch. Adding one: a file here, its switches in lm/preset/auxiliary.py, a line in HEADS and in lm/preset/counting.py."""

from collections.abc import Callable

from torch import nn

from lm.auxiliary.dynamics import Dynamics
from lm.auxiliary.head import Head
from lm.auxiliary.latent_consistency import LatentConsistency
from lm.auxiliary.policy import Policy
from lm.auxiliary.reconstruction import Reconstruction
from lm.auxiliary.second_next import SecondNext
from lm.auxiliary.span_contrastive import SpanContrastive
from lm.auxiliary.value import Value
from lm.preset import Preset

HEADS: dict[str, Callable[..., Head]] = {
    "second_next": SecondNext,
    "reconstruction": Reconstruction,
    "value": Value,
    "dynamics": Dynamics,
    "policy": Policy,
    "latent_consistency": LatentConsistency,
    "span_contrastive": SpanContrastive,
}
MASK = {"span_contrastive"}


def build_heads(preset: Preset, pad: int) -> nn.ModuleDict:
    """The heads that `preset` switches on, by name, with first weights from torch's random state; empty when all are off.

    pad: the tokenizer's padding, which stands for what a head masks: no text holds it, and a tokenizer that gets tokens keeps its id.
    """
    return nn.ModuleDict({name: HEADS[name](preset, *[pad] * (name in MASK)) for name in preset.auxiliary.heads})

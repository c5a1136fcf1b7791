"""All heads, by the name of their switch. Adding one: a file here, its switches in lm/preset/auxiliary.py, a line in HEADS and in lm/preset/counting.py."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

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
MASKING = {"span_contrastive"}  # heads that hide tokens


def build_heads(preset: Preset, pad: int) -> nn.ModuleDict:
    """The heads that `preset` switches on, by name, with first weights from torch's random state; empty when all are off.

    pad: the tokenizer's padding, which stands for what a head masks: no text holds it, and a tokenizer that gets tokens keeps its id.
    """
    return nn.ModuleDict({name: HEADS[name](preset, *[pad] * (name in MASKING)) for name in preset.auxiliary.heads})


def load_heads(heads: nn.ModuleDict, weights: Mapping[str, Tensor]) -> None:
    """Give each of `heads` what `weights` has of it. A head whose tensors were others when they were saved stays as it is."""
    for name, head in heads.items():
        saved = {path.removeprefix(f"{name}."): tensor for path, tensor in weights.items() if path.startswith(f"{name}.")}
        if {path: tensor.shape for path, tensor in saved.items()} == {path: tensor.shape for path, tensor in head.state_dict().items()}:
            head.load_state_dict(saved)

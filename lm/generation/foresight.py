"""What the auxiliary heads foretell from a latent, while the model writes: the latent after one more token, what that says of the next one,
the nats to come, and the policy.

Sizes: V vocabulary, N first entries of it, D hidden.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from lm.model import Model
from lm.preset.generation import GenerationConfig


class Foresight(NamedTuple):
    """Heads that were trained with the model. Latents are as after its last norm."""

    model: Model
    heads: Mapping[str, nn.Module]

    def next(self, latent: Tensor, token: Tensor) -> Tensor:
        """The latent (..., D) after `token` (...)."""
        return self.heads["dynamics"].step(latent, self.model.embedding(token))

    def scores(self, latent: Tensor, vocabulary: int | None = None) -> Tensor:
        """Of the first entries of the vocabulary as the next token (..., N), or of all (..., V)."""
        readout = self.model.readout
        return (readout if vocabulary is None else readout.first(vocabulary)).logits(latent)

    def policy(self, latent: Tensor) -> Tensor:
        """Log-probabilities of the next token (..., V)."""
        return self.heads["policy"].scores(latent, self.model.readout).log_softmax(-1)

    def value(self, latent: Tensor) -> Tensor:
        """Nats a token that are expected (...)."""
        return self.heads["value"].estimate(latent)


def foresight(model: Model, heads: Mapping[str, nn.Module], settings: GenerationConfig) -> Foresight:
    """The `heads` of `model`. ValueError, one line, where one is missing that `settings` ask for."""
    if lacking := settings.without_head(set(heads)):
        raise ValueError(lacking)
    return Foresight(model, heads)

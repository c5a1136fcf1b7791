"""The switches of `auxiliary`: heads on the hidden states and what their losses count, and weights of sources that follow their losses."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from data_sources.config import Config
from lm.preset.fields import Share, Weight

HEAD_NAMES = ("second_next", "reconstruction", "value", "dynamics", "policy", "latent_consistency", "span_contrastive")
HeadName = Literal["second_next", "reconstruction", "value", "dynamics", "policy", "latent_consistency", "span_contrastive"]


class AuxiliaryConfig(Config):
    """Heads on the hidden states, their losses' weights, and adaptive source weights. All off unless enabled."""

    enable_second_next: bool = Field(False, description="Head that predicts the token after the next.")
    enable_reconstruction: bool = Field(False, description="Head that names the token just read.")
    enable_policy: bool = Field(False, description="Head that predicts the next-token distribution; KL to the model's own.")
    enable_value: bool = Field(False, description="Head that predicts the mean loss of the coming span.")
    enable_dynamics: bool = Field(False, description="Module that predicts the next latent from latent and token.")
    enable_latent_consistency: bool = Field(False, description="Head that foretells the latents that the model's own short rollouts lead to.")
    enable_span_contrastive: bool = Field(False, description="InfoNCE on spans masked before the trunk reads them.")
    second_next_weight: Weight = Field(0.05, description="Weight of the second-next-token loss.")
    reconstruction_weight: Weight = Field(0.05, description="Weight of the reconstruction loss.")
    policy_kl_weight: Weight = Field(0.05, description="Weight of the policy loss.")
    value_weight: Weight = Field(0.05, description="Weight of the value loss.")
    dynamics_weight: Weight = Field(0.05, description="Weight of the dynamics loss.")
    dynamics_kl_weight: Weight = Field(0.05, description="Weight of the KL between what the foretold latents and the trunk's own say of the next token.")
    dynamics_value_weight: Weight = Field(0.05, description="Weight of the value loss on foretold latents, where the value head is on.")
    latent_consistency_weight: Weight = Field(0.05, description="Weight of the latent consistency loss.")
    span_contrastive_weight: Weight = Field(0.05, description="Weight of the span contrastive loss.")
    stop_gradients: Annotated[tuple[HeadName, ...], Field(strict=False)] = Field((), description="Heads that learn without changing the trunk.")
    token_every: int = Field(2, ge=1, le=65_536, description="One in so many tokens counts in the losses of second_next and reconstruction.")
    latent_every: int = Field(4, ge=1, le=65_536, description="One in so many tokens begins a chain of the dynamics.")
    distribution_every: int = Field(16, ge=1, le=65_536, description="One in so many tokens counts where distributions over the vocabulary are compared.")
    value_span: int = Field(64, ge=1, le=65_536, description="Coming tokens whose mean loss the value head predicts.")
    value_size: int | None = Field(None, ge=1, le=65_536, description="Width of the value head; hidden_size when null.")
    policy_size: int | None = Field(None, ge=1, le=65_536, description="Width of the policy head; half of hidden_size when null.")
    dynamics_steps: int = Field(2, ge=1, le=16, description="Latents that a chain of the dynamics foretells, one after the other.")
    dynamics_size: int | None = Field(None, ge=1, le=65_536, description="Width of the dynamics module; twice hidden_size when null.")
    consistency_rollouts: int = Field(2, ge=1, le=64, description="Rollouts whose mean is the teacher of latent consistency; each reads the rows again.")
    consistency_depth: int = Field(1, ge=1, le=16, description="Tokens of a rollout; each is one more reading of the rows.")
    consistency_every: int = Field(16, ge=2, le=65_536, description="One in so many tokens begins a rollout.")
    span_length: int = Field(8, ge=1, le=4096, description="Tokens of a masked span.")
    span_mask_fraction: Share = Field(0.15, description="Share of tokens in masked spans.")
    span_size: int = Field(64, ge=1, le=4096, description="Width in which spans are compared.")
    span_negatives: int = Field(
        256, ge=1, le=65_536, description="Spans of the last rows, up to four of each, that a span is told from; rounded up to a multiple of 192."
    )
    span_contrastive_temperature: float = Field(0.07, gt=0, le=100, description="Temperature of InfoNCE.")
    span_l2_normalize: bool = Field(True, description="Compare directions only.")
    share_every: int = Field(200, ge=0, le=1_000_000_000, description="Steps between looks at each loss's share of the trunk's gradient; 0: never.")
    enable_adaptive_sources: bool = Field(False, description="Sources with higher loss get a higher weight.")
    adaptive_interval_tokens: int = Field(5_000_000, ge=1, le=10**15, description="Tokens between changes of the weights.")
    adaptive_min_weight: float = Field(0.5, gt=0, le=1, description="Lowest factor on a source's weight.")
    adaptive_max_weight: float = Field(3.0, ge=1, le=1000, description="Highest factor on a source's weight.")
    adaptive_smoothing: float = Field(0.9, ge=0, lt=1, description="Share of the losses before that each change keeps.")

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads that are on."""
        return tuple(name for name in HEAD_NAMES if getattr(self, f"enable_{name}"))

    @property
    def loss_weights(self) -> dict[str, float]:
        """What each named loss of the heads that are on counts."""
        return {loss: weight for head in self.heads for loss, weight in self._weights(head).items()}

    @property
    def weightless(self) -> tuple[str, ...]:
        """Names of the heads that are on and learn nothing, since none of their losses counts."""
        return tuple(head for head in self.heads if not any(self._weights(head).values()))

    @property
    def reach(self) -> dict[str, int]:
        """By switch, how many tokens the heads that are on look ahead within a row at the most."""
        reach = {"dynamics": "dynamics_steps", "latent_consistency": "consistency_depth", "span_contrastive": "span_length"}
        return {switch: getattr(self, switch) for head, switch in reach.items() if head in self.heads}

    def _weights(self, head: str) -> dict[str, float]:
        """Of its losses."""
        if head == "policy":
            return {"policy": self.policy_kl_weight}
        others = {"dynamics_kl": self.dynamics_kl_weight} | ({"dynamics_value": self.dynamics_value_weight} if self.enable_value else {})
        return {head: getattr(self, f"{head}_weight")} | (others if head == "dynamics" else {})

    @field_validator("stop_gradients")
    @classmethod
    def _each_once(cls, names: tuple[HeadName, ...]) -> tuple[HeadName, ...]:
        if twice := [name for number, name in enumerate(names) if name in names[:number]]:
            raise ValueError(f'"{twice[0]}" is there twice; name each head once')
        return names

    @model_validator(mode="after")
    def _rollouts_are_apart(self) -> "AuxiliaryConfig":
        if self.enable_latent_consistency and self.consistency_depth >= self.consistency_every:
            raise ValueError(
                f"rollouts of {self.consistency_depth} tokens (consistency_depth) begin every {self.consistency_every}; make consistency_every larger"
            )
        return self

    @model_validator(mode="after")
    def _spans_leave_some(self) -> "AuxiliaryConfig":
        if self.enable_span_contrastive and not 0 < self.span_mask_fraction <= 0.5:
            raise ValueError(f"span_mask_fraction {self.span_mask_fraction}: spans that are told from what stands before them are at most half of it; use 0.15")
        return self

"""The sections of a preset that switch mechanisms on: each with "enabled", most with the layers that they claim."""

from typing import Literal

from pydantic import Field, PrivateAttr, model_validator

from data_sources.config import Config
from lm.preset.fields import Layers, Weight


class Mechanism(Config):
    """A section that can be switched on."""

    enabled: bool = Field(False, description="Whether the mechanism is used.")


class LayerMechanism(Mechanism):
    """A mechanism that claims layers."""

    layers: Layers = Field(
        "all", description='Layers it claims: "all", "even", "odd", "first_half", "last_half", "every:N" (the Nth, 2Nth, ...), or indices from 0.'
    )


class LongformerConfig(LayerMechanism):
    """Sliding-window attention with global tokens."""

    window: int = Field(256, ge=1, le=1_048_576, description="Tokens that a token sees: itself and those just before it.")
    global_tokens: int = Field(0, ge=0, le=65_536, description="First tokens of a document, seen by all later ones.")


class StateSpace(LayerMechanism):
    """A mechanism that learns step sizes of its own."""

    dt_min: float = Field(0.001, gt=0, le=10, description="Shortest first step size.")
    dt_max: float = Field(0.1, gt=0, le=10, description="Longest first step size.")

    @model_validator(mode="after")
    def _steps_fit(self) -> "StateSpace":
        if self.dt_min > self.dt_max:
            raise ValueError(f"dt_min {self.dt_min} is more than dt_max {self.dt_max}")
        return self


class S5Config(StateSpace):
    """Diagonal state space."""

    state_size: int = Field(64, ge=2, multiple_of=2, le=65_536, description="Complex states, counted with their conjugates; even.")
    blocks: int = Field(1, ge=1, le=4096, description="HiPPO matrices that the first states are the eigenvalues of; must divide state_size / 2.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> "S5Config":
        if self.state_size // 2 % self.blocks:
            raise ValueError(f"blocks {self.blocks} must divide half of state_size {self.state_size}")
        return self


class HyenaConfig(LayerMechanism):
    """Gated long convolutions with implicit filters."""

    order: int = Field(2, ge=1, le=16, description="Gates, each with a long convolution.")
    filter_order: int = Field(64, ge=1, le=65_536, description="Width of the network that makes the filters.")
    embedding_dim: int = Field(33, ge=1, le=4097, description="Positional features that it reads: the place, then pairs of cosine and sine; odd.")
    kernel_size: int = Field(3, ge=1, le=1024, description="Length of the short convolution.")
    filter_length: int | None = Field(None, ge=1, le=1_048_576, description="Tokens that a filter reaches back; model.seq_length when null.")

    @model_validator(mode="after")
    def _features_come_in_pairs(self) -> "HyenaConfig":
        if self.embedding_dim % 2 == 0:
            raise ValueError(f"embedding_dim {self.embedding_dim} is even; the place and pairs of cosine and sine make an odd number")
        return self


class RwkvConfig(LayerMechanism):
    """RWKV-6 time mix. Heads are the model's (num_heads)."""

    mix_rank: int = Field(32, ge=1, le=65_536, description="Rank of the matrices that say how much of the token before is mixed in.")
    decay_rank: int = Field(64, ge=1, le=65_536, description="Rank of the matrices that say how fast each channel forgets.")


class RwkvChannelConfig(LayerMechanism):
    """RWKV-6 channel mix. Its width is the model's ffn_size; 3.5 of hidden_size, rounded up to 32, when null."""


class Mamba2Config(StateSpace):
    """Mamba-2 state space."""

    state_size: int = Field(64, ge=1, le=65_536, description="States of each channel.")
    expand: int = Field(2, ge=1, le=64, description="Channels for each of hidden_size.")
    head_size: int | None = Field(None, ge=1, le=65_536, description="Channels that forget alike; hidden_size / num_heads when null.")
    groups: int = Field(1, ge=1, le=1024, description="Sets of what is written and what is read, shared among the heads; must divide them.")
    kernel_size: int = Field(4, ge=1, le=1024, description="Length of the short convolution.")


class GlaConfig(LayerMechanism):
    """Gated linear attention. Heads are the model's (num_heads)."""

    key_size: int | None = Field(None, ge=1, le=65_536, description="Width of a head's keys; half of hidden_size / num_heads, rounded up, when null.")
    decay_rank: int = Field(16, ge=1, le=65_536, description="Rank of the matrices that say how fast each channel forgets.")
    decay_temperature: float = Field(16.0, gt=0, le=1e6, description="The logarithms of decays are divided by this; higher forgets more slowly.")


class DeltanetConfig(LayerMechanism):
    """Linear attention with the delta rule. Heads are the model's (num_heads)."""

    gated: bool = Field(True, description="Whether the memory decays, at a speed that every token sets (Gated DeltaNet).")
    output_gate: bool = Field(True, description="Whether what is read is gated by the token.")
    kernel_size: int = Field(4, ge=1, le=1024, description="Length of the short convolution.")
    key_size: int | None = Field(None, ge=1, le=65_536, description="Width of a head's queries and keys; hidden_size / num_heads when null.")
    value_size: int | None = Field(None, ge=1, le=65_536, description="Width of a head's values; hidden_size / num_heads when null.")


class SharedAttentionConfig(LayerMechanism):
    """Attention of all its layers to keys and values that the first of them makes (YOCO)."""

    _owns: bool = PrivateAttr(True)

    @property
    def owns(self) -> bool:
        """Whether the layer that this is for makes the keys and values (see lm.preset.plan.at_layer)."""
        return self._owns

    def reading(self) -> "SharedAttentionConfig":
        """This section as it is for the other layers."""
        copy = self.model_copy()
        copy._owns = False
        return copy


class RetroConfig(LayerMechanism):
    """A memory of what was read, and cross-attention to neighbours from it, between the mixers and the feed-forward of its layers."""

    layers: Layers = Field(
        "every:2",
        description='Layers that attend to neighbours, beside what else stands in them: "all", "even", "odd", "first_half", "last_half", '
        '"every:N" (the Nth, 2Nth, ...), or indices from 0. Deep models need fewer: the paper has every third from the sixth.',
    )
    num_neighbors: int = Field(2, ge=1, le=64, description="Neighbours of each chunk.")
    chunk_size: int = Field(64, ge=2, le=65_536, description="Tokens in a chunk.")
    retriever_type: Literal["faiss", "exact", "external_api"] = Field("faiss", description="Index of the memory.")
    add_cross_attention: bool = Field(True, description="Whether the layers attend to the neighbours; the memory is kept in either case.")
    encoder_layers: int = Field(2, ge=1, le=64, description="Layers of the network that reads the neighbours.")
    encoder_size: int | None = Field(
        None, ge=1, le=65_536, description="Its width, in whole heads of the model's; half of hidden_size, rounded up to them, when null."
    )
    index_path: str | None = Field(None, description="Folder of the memory; beside the snapshots when null.")
    memory_chunks: int = Field(1_000_000, ge=1, description="Chunks kept; the oldest leave.")
    embedder: str = Field("hashed", min_length=1, description='What finds neighbours: "hashed", or the name of a sentence model.')

    @model_validator(mode="after")
    def _memory_is_its_own(self) -> "RetroConfig":
        if self.retriever_type == "external_api":
            raise ValueError('retriever_type "external_api" is refused: no outside service takes part in training; use "faiss" or "exact"')
        return self


class MoeConfig(LayerMechanism):
    """Mixture of experts."""

    experts: int = Field(8, ge=1, le=4096, description="Experts of a layer.")
    experts_per_token: int = Field(2, ge=1, le=4096, description="Experts that each token uses.")
    shared_experts: int = Field(0, ge=0, le=4096, description="Experts that all tokens use beside those.")
    expert_size: int | None = Field(
        None, ge=1, le=1_048_576, description="Width of an expert; the feed-forward's, divided by the experts that a token uses, rounded up to 8, when null."
    )
    normalise: bool | None = Field(
        None, description="Whether the weights of a token's experts add up to 1, as in Mixtral; when null, where it uses more than one."
    )
    balance_weight: Weight = Field(0.01, description="Weight of the loss that evens the experts' loads; 0 switches it off.")
    z_weight: Weight = Field(0.001, description="Weight of the loss that keeps the router's scores small; 0 switches it off.")
    bias_rate: float = Field(
        0.001, ge=0, le=1, description="What each step adds to the chance of experts that got too little, and takes from others; 0 switches it off."
    )

    @model_validator(mode="after")
    def _enough_experts(self) -> "MoeConfig":
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} is more than the {self.experts} experts")
        if self.normalise and self.experts_per_token == 1:
            raise ValueError("normalise makes the weight of a token's only expert 1, from which the router learns nothing; leave it null")
        return self


class RoutedMechanism(LayerMechanism):
    """A mechanism that is for some tokens only: those whose score is above a threshold, which keeps to a budget."""

    routing_strategy: Literal["token_level", "sequence_level"] = Field(
        "token_level", description="What decides for a token: its own score, or the mean score of its document's tokens before it."
    )
    router_type: Literal["mlp", "threshold"] = Field("mlp", description="What gives scores: a small network, or one direction.")
    router_size: int | None = Field(None, ge=1, le=65_536, description="Width of that network; an eighth of hidden_size, and at least 8, when null.")
    threshold_rate: float = Field(
        0.5,
        ge=0,
        le=100,
        description="Standard deviations of the scores by which the threshold rises for each share that is picked beyond the budget; 0: none.",
    )


class Colt5Config(RoutedMechanism):
    """A light feed-forward for all tokens, a heavy one for some."""

    budget: float = Field(0.25, gt=0, le=1, description="Share of tokens that are heavy.")
    light_size: int | None = Field(None, ge=1, le=1_048_576, description="Width of the light branch; half of the model's feed-forward when null.")
    heavy_size: int | None = Field(None, ge=1, le=1_048_576, description="Width of the heavy branch; twice the model's feed-forward when null.")


class Colt5AttentionConfig(RoutedMechanism):
    """Attention within a window for all tokens, to all picked ones among those that are picked. Its heavy heads are the model's (num_heads)."""

    budget: float = Field(0.25, gt=0, le=1, description="Share of tokens that are heavy.")
    window: int = Field(64, ge=1, le=1_048_576, description="Tokens that the light branch sees: the token itself and those just before it.")
    light_heads: int | None = Field(None, ge=1, le=1024, description="Heads of the light branch; a quarter of num_heads, rounded up, when null.")


class MixtureOfDepthsConfig(RoutedMechanism):
    """Layers that only some tokens read; the others pass them by."""

    share: float = Field(0.5, gt=0, le=1, description="Share of tokens that read them.")
    select: Literal["router", "previous_ffn"] = Field(
        "router", description="What scores are made of: the residual stream before the layer, or what the feed-forward of the layer before wrote into it."
    )


class HeadGatingConfig(LayerMechanism):
    """A learned gate for each head of a mixer and for groups of a feed-forward's channels, before they are written into the residual stream."""

    mixers: bool = Field(True, description="Whether each head (num_heads of them) of the layers' mixers has a gate.")
    ffn_groups: int = Field(4, ge=0, le=65_536, description="Groups of a feed-forward's channels with a gate each; must divide them. 0: no gates there.")


class SharedFfnConfig(LayerMechanism):
    """Feed-forward weights that layers share, where no mechanism claims their feed-forward."""

    private_share: float = Field(0.125, ge=0, lt=1, description="Share of the feed-forward's width that each layer has for itself.")

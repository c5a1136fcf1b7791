"""Every switch of a preset: its type, its default, its bounds and one line of meaning.

A preset is `model`, `train`, `data`, `auxiliary`, `generation`, and one section for each mechanism, each with "enabled".
What no section says takes the default that stands here. The editor's schema, the menu and the errors are made from these lines.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_sources.config import Config, DataConfig
from lm.preset.fields import Layers, Share, Weight
from lm.preset.training import TrainConfig

RUN_TOKENS = 100_000_000  # what one run reads, whatever a preset says


class ModelConfig(Config):
    """The trunk: sizes, positions, and the attention and feed-forward that stand where no mechanism claims a layer."""

    hidden_size: int = Field(256, ge=2, le=65_536, description="Width of the residual stream.")
    num_layers: int = Field(4, ge=1, le=1024, description="Layers; each holds a mixer and a feed-forward, or what the mechanisms claim.")
    num_heads: int = Field(4, ge=1, le=1024, description="Attention heads; must divide hidden_size.")
    num_kv_heads: int | None = Field(None, ge=1, le=1024, description="Key and value heads that the heads share (grouped queries); as many as heads when null.")
    seq_length: int = Field(256, ge=1, le=1_048_576, description="Tokens in a row of a batch.")
    position: Literal["rope", "learned"] = Field("rope", description="How attention knows places: rotary, or a learned vector for each.")
    rope_theta: float = Field(10_000.0, gt=1, le=1e9, description="Base of the rotary frequencies.")
    position_interpolation: float = Field(
        1.0, ge=1, le=4096, description="Rotary positions are divided by this: longer texts within the angles once trained on."
    )
    position_interpolation_layers: Layers = Field("all", description="Layers in which they are; near and far heads then work side by side.")
    qk_norm: bool = Field(True, description="Normalise queries and keys, which keeps attention stable at high learning rates.")
    ffn_size: int | None = Field(None, ge=1, le=1_048_576, description="Width of the feed-forward; 8/3 of hidden_size, rounded up to 32, when null.")
    tie_embeddings: bool = Field(True, description="Use the token embedding as the output matrix too.")
    norm_eps: float = Field(1e-6, gt=0, le=0.1, description="Added under the root of the RMS norms.")

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def feed_forward_size(self) -> int:
        """Width of the feed-forward, resolved."""
        return self.ffn_size or -(-8 * self.hidden_size // (3 * 32)) * 32

    @property
    def channel_mix_size(self) -> int:
        """Width of RWKV's channel mix, resolved."""
        return self.ffn_size or -(-7 * self.hidden_size // (2 * 32)) * 32

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ModelConfig":
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} can't be divided among {self.num_heads} heads (num_heads)")
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads {self.num_heads} can't be divided among {self.kv_heads} key and value heads (num_kv_heads)")
        if self.position == "rope" and self.head_size % 2:
            raise ValueError(f'position "rope" turns pairs, but a head is {self.head_size} wide (hidden_size / num_heads); make it even or use "learned"')
        return self


class GenerationConfig(Config):
    """How the model writes in chat and in samples."""

    temperature: float = Field(0.8, ge=0, le=100, description="0 takes the likeliest token; higher is bolder.")
    top_p: float = Field(0.95, gt=0, le=1, description="Sample among the likeliest tokens that together hold this probability.")
    no_repeat_ngram: int = Field(0, ge=0, le=1000, description="Never write the same run of this many tokens twice; 0 allows it.")
    repetition_penalty: float = Field(1.1, ge=1, le=10, description="Lowers the score of tokens already written; 1 does nothing.")
    max_new_tokens: int = Field(200, ge=1, le=1_000_000, description="Longest answer.")


class AuxiliaryConfig(Config):
    """Heads on the hidden states, their losses' weights, and adaptive source weights. All off unless enabled."""

    enable_policy: bool = Field(False, description="Head that predicts the next-token distribution; KL to the model's own.")
    enable_value: bool = Field(False, description="Head that predicts the mean loss of the coming span.")
    enable_dynamics: bool = Field(False, description="Module that predicts the next latent from latent and token.")
    enable_span_contrastive: bool = Field(False, description="InfoNCE on spans masked before the trunk reads them.")
    policy_kl_weight: Weight = Field(0.05, description="Weight of the policy loss.")
    value_weight: Weight = Field(0.05, description="Weight of the value loss.")
    dynamics_weight: Weight = Field(0.05, description="Weight of the dynamics loss.")
    span_contrastive_weight: Weight = Field(0.05, description="Weight of the span contrastive loss.")
    span_mask_fraction: Share = Field(0.15, description="Share of tokens in masked spans.")
    span_contrastive_temperature: float = Field(0.07, gt=0, le=100, description="Temperature of InfoNCE.")
    span_l2_normalize: bool = Field(True, description="Compare directions only.")
    enable_adaptive_sources: bool = Field(False, description="Sources with higher loss get a higher weight.")
    adaptive_interval_tokens: int = Field(5_000_000, ge=1, description="Tokens between changes of the weights.")
    adaptive_min_weight: float = Field(0.5, gt=0, le=1, description="Lowest factor on a source's weight.")
    adaptive_max_weight: float = Field(3.0, ge=1, le=1000, description="Highest factor on a source's weight.")
    adaptive_smoothing: float = Field(0.9, ge=0, lt=1, description="Share of the losses before that each change keeps.")


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


class S5Config(LayerMechanism):
    """Diagonal state space."""

    state_size: int = Field(64, ge=2, multiple_of=2, le=65_536, description="Complex states, counted with their conjugates; even.")
    blocks: int = Field(1, ge=1, le=4096, description="HiPPO matrices that the first states are the eigenvalues of; must divide state_size / 2.")
    dt_min: float = Field(0.001, gt=0, le=10, description="Shortest first step size.")
    dt_max: float = Field(0.1, gt=0, le=10, description="Longest first step size.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> "S5Config":
        if self.state_size // 2 % self.blocks:
            raise ValueError(f"blocks {self.blocks} must divide half of state_size {self.state_size}")
        if self.dt_min > self.dt_max:
            raise ValueError(f"dt_min {self.dt_min} is more than dt_max {self.dt_max}")
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


class Mamba2Config(LayerMechanism):
    """Mamba-2 state space."""

    state_size: int = Field(64, ge=1, le=65_536, description="States of each channel.")
    expand: int = Field(2, ge=1, le=64, description="Channels for each of hidden_size.")
    head_size: int | None = Field(None, ge=1, le=65_536, description="Channels that forget alike; hidden_size / num_heads when null.")
    groups: int = Field(1, ge=1, le=1024, description="Sets of what is written and what is read, shared among the heads; must divide them.")
    kernel_size: int = Field(4, ge=1, le=1024, description="Length of the short convolution.")
    dt_min: float = Field(0.001, gt=0, le=10, description="Shortest first step size.")
    dt_max: float = Field(0.1, gt=0, le=10, description="Longest first step size.")

    @model_validator(mode="after")
    def _steps_fit(self) -> "Mamba2Config":
        if self.dt_min > self.dt_max:
            raise ValueError(f"dt_min {self.dt_min} is more than dt_max {self.dt_max}")
        return self


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
    """Attention to keys and values that an earlier layer shares."""


class RetroConfig(LayerMechanism):
    """Cross-attention to neighbours from the memory of what was read."""

    num_neighbors: int = Field(2, ge=1, le=64, description="Neighbours of each chunk.")
    chunk_size: int = Field(64, ge=2, description="Tokens in a chunk.")
    retriever_type: Literal["faiss", "exact", "external_api"] = Field("faiss", description="Index of the memory.")
    add_cross_attention: bool = Field(True, description="Whether the trunk attends to the neighbours.")
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

    @model_validator(mode="after")
    def _enough_experts(self) -> "MoeConfig":
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} is more than the {self.experts} experts")
        return self


class RoutedMechanism(LayerMechanism):
    """A mechanism that is for some tokens only: those whose score is above a threshold, which learns to keep to a budget."""

    routing_strategy: Literal["token_level", "sequence_level"] = Field(
        "token_level", description="What decides for a token: its own score, or the mean score of its document's tokens before it."
    )
    router_type: Literal["mlp", "threshold"] = Field("mlp", description="What gives scores: a small network, or one direction.")
    router_size: int | None = Field(None, ge=1, le=65_536, description="Width of that network; an eighth of hidden_size, and at least 8, when null.")
    budget_weight: Weight = Field(1.0, description="Weight of the loss by which the threshold learns; at 0 it stays where it is.")


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


class Ul2Config(Mechanism):
    """Mixture of denoisers."""

    denoiser_types: Annotated[tuple[Literal["R", "S", "X", "prefix", "suffix", "mask"], ...], Field(strict=False, min_length=1)] = Field(
        ("R", "S", "X"), description="R: short spans; X: long spans or many (mask); S: prefix to suffix (prefix, suffix)."
    )
    objective_probabilities: dict[str, Share] | None = Field(None, description="How often each is drawn; equal when null.")


class Preset(Config):
    """One file of configs/: the whole behaviour of a run."""

    name: str = Field("", max_length=80, description="Name on the screen; the file's own when empty.")
    about: str = Field("", max_length=400, description="One line for the menu.")
    model: ModelConfig = Field(default_factory=ModelConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    data: DataConfig
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    auxiliary: AuxiliaryConfig = Field(default_factory=AuxiliaryConfig)
    longformer: LongformerConfig = Field(default_factory=LongformerConfig)
    s5: S5Config = Field(default_factory=S5Config)
    hyena: HyenaConfig = Field(default_factory=HyenaConfig)
    rwkv: RwkvConfig = Field(default_factory=RwkvConfig)
    rwkv_channel: RwkvChannelConfig = Field(default_factory=RwkvChannelConfig)
    mamba2: Mamba2Config = Field(default_factory=Mamba2Config)
    gla: GlaConfig = Field(default_factory=GlaConfig)
    deltanet: DeltanetConfig = Field(default_factory=DeltanetConfig)
    shared_attention: SharedAttentionConfig = Field(default_factory=SharedAttentionConfig)
    retro: RetroConfig = Field(default_factory=RetroConfig)
    moe: MoeConfig = Field(default_factory=MoeConfig)
    colt5_attention: Colt5AttentionConfig = Field(default_factory=Colt5AttentionConfig)
    colt5: Colt5Config = Field(default_factory=Colt5Config)
    mixture_of_depths: MixtureOfDepthsConfig = Field(default_factory=MixtureOfDepthsConfig)
    ul2: Ul2Config = Field(default_factory=Ul2Config)

    @model_validator(mode="after")
    def _weights_can_adapt(self) -> "Preset":
        if self.auxiliary.enable_adaptive_sources and self.data.mix_strategy == "sequential":
            raise ValueError('enable_adaptive_sources weighs sources that are mixed, but mix_strategy is "sequential"; use "weighted" or "round_robin"')
        return self

    @model_validator(mode="after")
    def _mamba2_heads_fit(self) -> "Preset":
        config, channels = self.mamba2, self.mamba2.expand * self.model.hidden_size
        heads, beyond = divmod(channels, config.head_size or self.model.head_size)
        if config.enabled and beyond:
            raise ValueError(f"mamba2: {channels} channels (expand * hidden_size) can't be divided into heads of {config.head_size} (head_size)")
        if config.enabled and heads % config.groups:
            raise ValueError(f"mamba2: {heads} heads can't be divided among {config.groups} groups")
        return self

    @model_validator(mode="after")
    def _rows_fit(self) -> "Preset":
        config, length = self.train.long_context, self.model.seq_length
        longest = max((stage.seq_length for stage in self.train.seq_length_curriculum), default=0)
        if longest > length:  # learned positions and Hyena's filters are made for model.seq_length
            raise ValueError(f"train.seq_length_curriculum: a stage has rows of {longest} tokens, more than model.seq_length {length}; make that longer")
        if not config.enabled:
            return self
        named = {"backprop_chunks": config.backprop_chunks} | ({"long_unroll_chunks": config.long_unroll_chunks} if config.long_unroll_every else {})
        for name, chunks in named.items():
            if chunks * config.chunk_length > length:
                raise ValueError(
                    f"train.long_context: {name} {chunks} times chunk_length {config.chunk_length} is more than model.seq_length {length}, "
                    "and gradients end where a row does; make rows longer or chunks shorter"
                )
        if self.model.position == "learned":
            raise ValueError('train.long_context: learned positions end at model.seq_length; use model.position "rope"')
        return self

    @property
    def notices(self) -> list[str]:
        """Lines that a person should read before a run with this preset."""
        lines = []
        if self.train.train_tokens not in (None, RUN_TOKENS):
            lines.append(f"{self.name}: train_tokens {self.train.train_tokens:,} is overridden: every run reads {RUN_TOKENS:,} tokens")
        if self.auxiliary.enable_adaptive_sources and self.data.mix_strategy == "round_robin":
            lines.append(f"{self.name}: with enable_adaptive_sources sources are read by weights, equal ones at first, and not round_robin")
        return lines

    @property
    def loss_weights(self) -> dict[str, float]:
        """What each named loss of the units counts beside that of the next token, which counts once."""
        sections = {"colt5": self.colt5, "colt5_attention": self.colt5_attention, "depths": self.mixture_of_depths}
        return {f"{name}_budget": section.budget_weight for name, section in sections.items() if section.enabled}

    @property
    def step_rows(self) -> int:
        """Rows that one device reads for an optimizer step."""
        return self.train.per_gpu_batch_size * self.train.accumulation_steps

"""Every switch of a preset: its type, its default, its bounds and one line of meaning.

A preset is `model`, `train`, `data`, `auxiliary`, `generation`, and one section for each mechanism, each with "enabled".
What no section says takes the default that stands here. The editor's schema, the menu and the errors are made from these lines.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from data_sources.config import Config, DataConfig

RUN_TOKENS = 100_000_000  # what one run reads, whatever a preset says

LAYER_WORDS = ("all", "even", "odd", "first_half", "last_half", "ffn")


def _checked_layers(value: Any) -> Any:
    if isinstance(value, str) and value not in LAYER_WORDS and not re.fullmatch(r"every:[1-9]\d*", value):
        raise PydanticCustomError("unknown_choice", "no such layers", {"choices": [*LAYER_WORDS, "every:N", "[0, 2, ...]"]})
    return value


Layers = Annotated[
    Annotated[str, Field(pattern=r"^(all|even|odd|first_half|last_half|ffn|every:[1-9]\d*)$")]
    | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)],
    BeforeValidator(_checked_layers),
]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]


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


class LengthStage(Config):
    """A stage of the sequence-length curriculum."""

    until_tokens: int = Field(ge=1, description="Tokens of the model's life until which rows have this length.")
    seq_length: int = Field(ge=1, le=1_048_576, description="Tokens in a row of a batch in this stage.")


class LongContextConfig(Config):
    """Documents longer than a row: the model's state goes on from row to row. For plans whose state does not grow."""

    enabled: bool = Field(False, description="Whether states are carried from row to row, and from run to run.")
    context_length: int = Field(65_536, ge=1, le=2**40, description="Tokens of a document after which the model begins anew in it.")
    chunk_length: int = Field(256, ge=1, le=1_048_576, description="Tokens of a row that are read at once.")
    backprop_chunks: int = Field(1, ge=1, le=65_536, description="Chunks that gradients flow back through.")
    long_unroll_every: int = Field(0, ge=0, le=1_000_000_000, description="Every so many steps gradients flow back further; 0: never.")
    long_unroll_chunks: int = Field(8, ge=1, le=65_536, description="Chunks that they then flow back through, each computed twice to save memory.")

    def chunks_of(self, step: int) -> int:
        """How many chunks gradients flow back through in step `step` of the model's life, from 0."""
        is_long = self.long_unroll_every and step % self.long_unroll_every == self.long_unroll_every - 1
        return self.long_unroll_chunks if is_long else self.backprop_chunks

    @model_validator(mode="after")
    def _long_is_longer(self) -> "LongContextConfig":
        if self.long_unroll_every and self.long_unroll_chunks <= self.backprop_chunks:
            raise ValueError(f"long_unroll_chunks {self.long_unroll_chunks} must be more than backprop_chunks {self.backprop_chunks}")
        return self


class TrainConfig(Config):
    """How a run trains."""

    per_gpu_batch_size: int = Field(4, ge=1, le=65_536, description="Rows that one device reads at a time; made smaller by itself when memory is short.")
    accumulation_steps: int = Field(1, ge=1, le=65_536, description="How many times that for one optimizer step.")
    train_tokens: int | None = Field(None, ge=1, description="Overridden: every run reads 100,000,000 tokens.")
    eval_tokens: int = Field(200_000, ge=0, description="Held-out tokens kept for each source, up to 200,000.")
    evaluate_every_tokens: int = Field(2_000_000, ge=1, description="Tokens between evaluations on held-out text.")
    snapshot_every_minutes: float = Field(10.0, gt=0, le=100_000, description="Minutes between snapshots.")
    snapshot_every_tokens: int | None = Field(None, ge=1, description="Tokens between snapshots, beside the minutes.")
    sample_every_tokens: int = Field(250_000, ge=1, description="Tokens between samples of the model's writing.")
    loader_processes: int = Field(
        0, ge=0, le=48, description="Processes beside each trainer that read and tokenise; 0: a thread of it. Processes times loaders must divide 48."
    )
    tensorboard: bool = Field(False, description="Write curves for TensorBoard into checkpoints/tensorboard; needs the package tensorboard.")
    replay_share: float | None = Field(
        None,
        ge=0,
        le=0.5,
        description="Share of a run's tokens that is text of earlier runs, read again; nothing: 0.05 where the mix lacks sources that were read before.",
    )
    replay_megabytes: int = Field(
        32, ge=0, le=4096, description="Size of the sample that is kept of all that was read, in millions of bytes of its text; 0 keeps none."
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of the first weights and of the order of the data.")
    seq_length_curriculum: Annotated[tuple[LengthStage, ...], Field(strict=False)] = Field(
        (), description="Shorter rows early in the model's life, stage after stage; model.seq_length after the last."
    )
    long_context: LongContextConfig = Field(default_factory=LongContextConfig, description="States that go on from row to row.")
    objective: Literal["clm", "ul2", "mlm", "custom"] = Field("clm", description="What is predicted. clm: the next token.")
    optimizer: Literal["adamw"] = Field("adamw", description="Update rule.")
    learning_rate: float = Field(2e-3, gt=0, le=10, description="Highest learning rate of a run.")
    warmup_share: Share = Field(0.001, description="Share of the run's tokens over which the learning rate rises.")
    decay_share: Share = Field(0.2, description="Share of the run's tokens, at its end, over which the learning rate falls to a tenth.")
    weight_decay: float = Field(0.1, ge=0, le=10, description="Decay of the matrices; norms and biases have none.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Memory of AdamW's mean.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Memory of AdamW's square.")
    grad_clip: float = Field(1.0, gt=0, le=1e6, description="Longest gradient; a longer one is scaled down to it.")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 matrix products where the device is faster with them.")

    @model_validator(mode="after")
    def _shares_fit(self) -> "TrainConfig":
        if self.warmup_share + self.decay_share > 1:
            raise ValueError(f"warmup_share {self.warmup_share} and decay_share {self.decay_share} are more than the whole run together")
        return self

    @model_validator(mode="after")
    def _stages_follow(self) -> "TrainConfig":
        ends = [stage.until_tokens for stage in self.seq_length_curriculum]
        if ends != sorted(set(ends)):
            raise ValueError("seq_length_curriculum: each stage must end after the one before (until_tokens)")
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

    state_size: int = Field(64, ge=1, description="States of each channel.")


class GlaConfig(LayerMechanism):
    """Gated linear attention."""


class DeltanetConfig(LayerMechanism):
    """Linear attention with the delta rule."""


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


class Colt5Config(LayerMechanism):
    """A light branch for all tokens, a heavy one for some."""

    routing_strategy: Literal["token_level", "sequence_level"] = Field("token_level", description="What is routed.")
    router_type: Literal["mlp", "threshold"] = Field("mlp", description="What decides.")


class MixtureOfDepthsConfig(LayerMechanism):
    """Tokens that skip a layer."""

    share: Share = Field(0.5, description="Share of tokens that pass through.")


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
    colt5: Colt5Config = Field(default_factory=Colt5Config)
    mixture_of_depths: MixtureOfDepthsConfig = Field(default_factory=MixtureOfDepthsConfig)
    ul2: Ul2Config = Field(default_factory=Ul2Config)

    @model_validator(mode="after")
    def _weights_can_adapt(self) -> "Preset":
        if self.auxiliary.enable_adaptive_sources and self.data.mix_strategy == "sequential":
            raise ValueError('enable_adaptive_sources weighs sources that are mixed, but mix_strategy is "sequential"; use "weighted" or "round_robin"')
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
    def step_rows(self) -> int:
        """Rows that one device reads for an optimizer step."""
        return self.train.per_gpu_batch_size * self.train.accumulation_steps

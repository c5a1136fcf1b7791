"""Every switch of a preset: its type, its default, its bounds and one line of meaning.

A preset is `model`, `train`, `data`, `auxiliary`, `generation`, and one section for each mechanism, each with "enabled".
What no section says takes the default that stands here. The editor's schema, the menu and the errors are made from these lines.
"""

from typing import Literal

from pydantic import Field, model_validator

from data_sources.config import Config, DataConfig
from lm.preset.auxiliary import AuxiliaryConfig
from lm.preset.fields import Layers
from lm.preset.generation import GenerationConfig
from lm.preset.mechanisms import (
    Colt5AttentionConfig,
    Colt5Config,
    DeltanetConfig,
    GlaConfig,
    HeadGatingConfig,
    HyenaConfig,
    LongformerConfig,
    Mamba2Config,
    MixtureOfDepthsConfig,
    MoeConfig,
    RetroConfig,
    RwkvChannelConfig,
    RwkvConfig,
    S5Config,
    SharedAttentionConfig,
    SharedFfnConfig,
)
from lm.preset.objectives import MlmConfig, Ul2Config
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
    activation: Literal["swiglu", "relu2"] = Field(
        "swiglu", description="Feed-forward where no mechanism claims one: SwiGLU, or squared ReLU, which has two matrices for SwiGLU's three."
    )
    value_residual: bool = Field(
        False,
        description="Mix the values of the first layer of attention or longformer into those of the others, each with a share of its own that is 0 at first.",
    )
    ffn_size: int | None = Field(
        None,
        ge=1,
        le=1_048_576,
        description="Width of the feed-forward; when null 8/3 of hidden_size, rounded up to 32, and half as much again for relu2: as many parameters.",
    )
    bidirectional: Literal["off", "own", "shared"] = Field(
        "off", description='Read texts from both ends, for objective "mlm": with weights of its own for each way, or shared ones.'
    )
    tie_embeddings: bool = Field(True, description="Use the token embedding as the output matrix too.")
    logit_soft_cap: float | None = Field(
        None, gt=0, le=1e4, description="Keep scores of the vocabulary within plus and minus this: c tanh(score / c). No limit when null."
    )
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
        widened = self.activation == "relu2" and self.ffn_size is None
        return self.swiglu_size * 3 // 2 if widened else self.swiglu_size

    @property
    def swiglu_size(self) -> int:
        """Width of a SwiGLU as large as the feed-forward, resolved: what experts and branches are measured by."""
        return -(-8 * self.hidden_size // (3 * 32)) * 32 if self.ffn_size is None else self.ffn_size

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
    head_gating: HeadGatingConfig = Field(default_factory=HeadGatingConfig)
    shared_ffn: SharedFfnConfig = Field(default_factory=SharedFfnConfig)
    ul2: Ul2Config = Field(default_factory=Ul2Config)
    mlm: MlmConfig = Field(default_factory=MlmConfig)

    @model_validator(mode="after")
    def _heads_are_there(self) -> "Preset":
        if lacking := self.generation.without_head(set(self.auxiliary.heads)):
            raise ValueError(lacking)
        return self

    @model_validator(mode="after")
    def _heads_see_far_enough(self) -> "Preset":
        long = self.train.long_context
        length, switch = (long.chunk_length, "train.long_context.chunk_length") if long.enabled else (self.model.seq_length, "model.seq_length")
        for name, ahead in self.auxiliary.reach.items():
            if ahead >= length:
                raise ValueError(f"auxiliary.{name}: {ahead} tokens behind another are never seen together in {length} ({switch}); make {name} smaller")
        return self

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
    def _neighbours_fit(self) -> "Preset":
        size, head = self.retro.encoder_size, self.model.head_size
        if self.retro.enabled and size and size % head:
            raise ValueError(f"retro: encoder_size {size} can't be divided into heads of {head} (model.hidden_size / model.num_heads)")
        chunk, long = self.retro.chunk_size, self.train.long_context
        if self.retro.enabled and long.enabled and chunk >= long.context_length:
            raise ValueError(f"retro: nothing follows a chunk of {chunk} tokens (chunk_size) within a context of {long.context_length}; make chunks shorter")
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
        for head in self.auxiliary.weightless:
            lines.append(f"{self.name}: auxiliary.enable_{head} is on, but its losses weigh 0, so that it learns nothing; give them weight or switch it off")
        if off := [name for name in self.auxiliary.stop_gradients if name not in self.auxiliary.heads]:
            lines.append(f"{self.name}: auxiliary.stop_gradients names heads that are off: {', '.join(off)}")
        return lines

    @property
    def loss_weights(self) -> dict[str, float]:
        """What each named loss of the units and the heads counts beside that of the next token, which counts once."""
        moe = {"moe_balance": self.moe.balance_weight, "moe_z": self.moe.z_weight} if self.moe.enabled else {}
        return moe | self.auxiliary.loss_weights

    @property
    def step_rows(self) -> int:
        """Rows that one device reads for an optimizer step."""
        return self.train.per_gpu_batch_size * self.train.accumulation_steps

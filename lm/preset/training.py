"""The switches of `train`: rows, steps of the optimizer, and texts longer than a row."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_sources.config import Config
from lm.preset.fields import Share
from lm.preset.objectives import Objective, ObjectiveStage


class LengthStage(Config):
    """A stage of the sequence-length curriculum."""

    until_tokens: int = Field(ge=1, description="Tokens of the model's life until which rows have this length.")
    seq_length: int = Field(ge=1, le=1_048_576, description="Tokens in a row of a batch in this stage.")


class BatchStage(Config):
    """A stage of the batch curriculum."""

    until_tokens: int = Field(ge=1, description="Tokens of the model's life until which a step reads so many rows.")
    rows: int = Field(ge=1, le=1_048_576, description="Rows of an optimizer step in this stage, of all devices together.")


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
    batch_curriculum: Annotated[tuple[BatchStage, ...], Field(strict=False)] = Field(
        (),
        description="Other numbers of rows in a step early in the model's life, stage after stage; per_gpu_batch_size and accumulation_steps after the last.",
    )
    long_context: LongContextConfig = Field(default_factory=LongContextConfig, description="States that go on from row to row.")
    objective: Objective = Field(
        "clm", description="What is learned. clm: the next token; ul2: gaps; mlm: masked tokens; custom: the targets that sources give (target_field)."
    )
    objectives: Annotated[tuple[ObjectiveStage, ...], Field(strict=False)] = Field(
        (),
        description="Other objectives before, stage after stage of the model's life; train.objective after the last. Stages don't begin again with a run: "
        "for the end of the third run of 100,000,000 tokens, say until_tokens 295000000.",
    )
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="Update rule. muon: for the matrices of layers, those of experts too, AdamW for the rest.")
    momentum: float = Field(0.95, ge=0, lt=1, description="Memory of Muon.")
    learning_rate: float = Field(2e-3, gt=0, le=10, description="Highest learning rate of a run.")
    base_width: int | None = Field(
        None,
        ge=1,
        le=1_048_576,
        description="model.hidden_size at which learning_rate was found: matrices then learn at the rate that does as much at this model's width, "
        "and one rate serves all widths; nothing: the rate as it is.",
    )
    warmup_share: Share = Field(0.001, description="Share of the run's tokens over which the learning rate rises.")
    decay_share: Share = Field(0.2, description="Share of the run's tokens, at its end, over which the learning rate falls to a tenth.")
    weight_decay: float = Field(0.1, ge=0, le=10, description="Decay of the matrices; norms and biases have none.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Memory of AdamW's mean.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Memory of AdamW's square.")
    grad_clip: float = Field(1.0, gt=0, le=1e6, description="Longest gradient; a longer one is scaled down to it.")
    average_tokens: int = Field(
        0,
        ge=0,
        le=10**12,
        description="Half-life, in tokens, of a moving average of the weights, which evaluation, samples, chat and exports then use; 0: none.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="Whether torch compiles parts of the layers: the first step then takes longer, the others less. auto: on GPUs."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 matrix products where the device is faster with them.")

    @model_validator(mode="after")
    def _shares_fit(self) -> "TrainConfig":
        if self.warmup_share + self.decay_share > 1:
            raise ValueError(f"warmup_share {self.warmup_share} and decay_share {self.decay_share} are more than the whole run together")
        return self

    @model_validator(mode="after")
    def _stages_follow(self) -> "TrainConfig":
        for name in ("seq_length_curriculum", "batch_curriculum"):
            ends = [stage.until_tokens for stage in getattr(self, name)]
            if ends != sorted(set(ends)):
                raise ValueError(f"{name}: each stage must end after the one before (until_tokens)")
        return self

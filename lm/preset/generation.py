"""The switches of `generation`: how the model writes in chat and in samples."""

from typing import Literal

from pydantic import Field, model_validator

from data_sources.config import Config
from lm.preset.fields import Weight


class PlannerConfig(Config):
    """Scores what may come next again, by what the dynamics module says that it leads to (lm/generation/planning.py)."""

    enabled: bool = Field(False, description="Look ahead before a token is written.")
    candidates: int = Field(8, ge=2, le=256, description="Tokens that are looked into, the likeliest; pieces that are kept on the way.")
    depth: int = Field(2, ge=0, le=16, description="Latents foretold beyond a candidate's own.")
    value_weight: Weight = Field(1.0, description="What a nat a token counts that is expected to come, against a nat of the model's own score.")
    policy_weight: Weight = Field(0.0, description="What the policy head's log-probability counts.")
    commit: Literal["token", "piece"] = Field("token", description="Write a token and look again, or a whole piece that did best.")
    piece_length: int = Field(3, ge=2, le=16, description="Tokens of a piece.")


class GenerationConfig(Config):
    """How the model writes in chat and in samples."""

    temperature: float = Field(0.8, ge=0, le=100, description="0 takes the likeliest token; higher is bolder.")
    top_p: float = Field(0.95, gt=0, le=1, description="Sample among the likeliest tokens that together hold this probability.")
    no_repeat_ngram: int = Field(0, ge=0, le=1000, description="Never write the same run of this many tokens twice; 0 allows it.")
    repetition_penalty: float = Field(1.1, ge=1, le=10, description="Lowers the score of tokens already written; 1 does nothing.")
    max_new_tokens: int = Field(200, ge=1, le=1_000_000, description="Longest answer.")
    draft_length: int = Field(
        0,
        ge=0,
        le=64,
        description="Tokens that the dynamics module drafts and the model checks in one pass; 0: none. Changes speed alone, but for the likeliest of two "
        "tokens that are alike within rounding at temperature 0.",
    )
    draft_entropy: float | None = Field(
        None, ge=0, le=100, description="A draft ends before a token whose distribution, as drafted from, has more entropy than this, in nats; null: never."
    )
    draft_vocabulary: int = Field(2048, ge=1, le=10_000_000, description="Drafts are of the first so many entries of the vocabulary, the commonest.")
    policy_weight: Weight = Field(0.0, description="What the policy head's log-probability counts beside the model's own score.")
    difficulty_temperature: float = Field(
        0.0,
        ge=-1,
        le=1,
        description="Bolder where the value head expects the next value_span tokens to be hard (or easy, below 0): temperature at most doubled or halved at 1.",
    )
    difficulty_bits: float | None = Field(
        None, gt=0, le=100, description="Expected bits a token, the mean of the coming span, at which the temperature stays as it is; null: the head's usual."
    )
    planner: PlannerConfig = Field(default_factory=PlannerConfig, description="Look ahead at what candidates lead to.")

    @property
    def needs(self) -> dict[str, str]:
        """Heads that it can't do without, each with the switch that asks for it."""
        planner = self.planner
        asked = {
            "draft_length": "dynamics" if self.draft_length else None,
            "planner.enabled": "dynamics" if planner.enabled and (planner.value_weight or planner.commit == "piece") else None,
            "planner.value_weight": "value" if planner.enabled and planner.value_weight else None,
            "planner.policy_weight": "policy" if planner.enabled and planner.policy_weight else None,
            "policy_weight": "policy" if self.policy_weight else None,
            "difficulty_temperature": "value" if self.difficulty_temperature else None,
        }
        return {head: switch for switch, head in reversed(asked.items()) if head}

    def without_head(self, heads: "frozenset[str] | set[str]") -> str:
        """Why it can't be done with `heads`, in one line; empty where it can."""
        for head, switch in self.needs.items():
            if head not in heads:
                off = "false" if switch.endswith("enabled") else "0"
                return f"generation.{switch} needs the {head} head, and auxiliary.enable_{head} is off: train with it on, or set {switch} to {off}"
        return ""

    @model_validator(mode="after")
    def _pieces_are_not_drafted(self) -> "GenerationConfig":
        if self.draft_length and self.planner.enabled and self.planner.commit == "piece":
            raise ValueError('draft_length: a planner that commits pieces writes several tokens a pass by itself; set it to 0, or planner.commit to "token"')
        return self

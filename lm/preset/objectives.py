"""The switches of what is learned from a text: denoisers, masks, and objectives that follow one another."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from data_sources.config import Config
from lm.preset.fields import Share

Objective = Literal["clm", "ul2", "mlm", "custom"]
Denoiser = Literal["R", "S", "X", "prefix", "suffix", "mask"]
MEANING: dict[str, str] = {"R": "R", "S": "S", "X": "X", "prefix": "S", "suffix": "S", "mask": "R"}
UL2R = {"R": 0.25, "S": 0.5, "X": 0.25}
MOST_GAPS = 100  # tokens for gaps in one example
ADDED_TOKENS = MOST_GAPS + 3  # with those of two modes and the mask: data_sources.special_tokens.OF_OBJECTIVES


class ObjectiveStage(Config):
    """What is learned until the model's life stands at so many tokens."""

    until_tokens: int = Field(ge=1, description="Tokens of the model's life, those of earlier runs among them, until which this is learned.")
    objective: Objective | None = Field(None, description="As train.objective; ul2 when null and probabilities are given.")
    probabilities: dict[Denoiser, Share] | None = Field(None, description="How often each denoiser is drawn, for ul2; as its section says when null.")

    @model_validator(mode="before")
    @classmethod
    def _of_denoisers(cls, row: Any) -> Any:
        """Probabilities alone mean ul2: who gives them need not name it."""
        named = isinstance(row, dict) and row.get("probabilities") is not None and row.get("objective") is None
        return {**row, "objective": "ul2"} if named else row

    @model_validator(mode="after")
    def _says_what(self) -> "ObjectiveStage":
        if self.objective is None:
            raise ValueError(f"what is learned until {self.until_tokens} tokens? give objective ({', '.join(get_args(Objective))}) or probabilities")
        return self


class SpanConfig(Config):
    """One way to take gaps out of a text."""

    mean_span: float = Field(ge=1, le=512, description="Mean length of a gap, in tokens.")
    rate: float = Field(gt=0, le=0.9, description="Share of the tokens that are in gaps.")


Spans = Annotated[tuple[SpanConfig, ...], Field(strict=False, min_length=1)]


def _spans(*pairs: tuple[float, float]) -> tuple[SpanConfig, ...]:
    return tuple(SpanConfig(mean_span=mean, rate=rate) for mean, rate in pairs)


class Ul2Config(Config):
    """Mixture of denoisers (Tay et al. 2022): a text with gaps, then what stood in them.

    As by default it is UL2R's, for models that are causal (Tay et al. 2022, "Transcending scaling laws with 0.1 % extra compute"): half S, a quarter
    each R and X. R has the gaps of UL2's table 1, of 3 and 8 tokens at a rate of 0.15 (UL2R names those of 3 alone). X has that table's, with UL2R's
    mean of 32 in the place of 64: gaps of 32, or half of the text, or both, each as likely as the others. UL2R says "32 or a rate of half", and gives
    no shares among them.
    """

    enabled: bool = Field(False, description='Learn by it; the same as train.objective "ul2".')
    denoiser_types: Annotated[tuple[Denoiser, ...], Field(strict=False, min_length=1)] = Field(
        ("R", "S", "X"),
        description="R: short gaps, few (mask: the usual span corruption); S: from a place on to the end (prefix: it is given, suffix: it is learned); "
        "X: long gaps, or half of the text. prefix and suffix are one denoiser.",
    )
    objective_probabilities: dict[Denoiser, Share] | None = Field(
        None,
        description="How often each is drawn; they need not add up to one. As in UL2R when null: R 0.25, S 0.5, X 0.25, of those among denoiser_types.",
    )
    regular_spans: Spans = Field(_spans((3, 0.15), (8, 0.15)), description="Gaps of R; each way is as likely as the others.")
    extreme_spans: Spans = Field(
        _spans((3, 0.5), (8, 0.5), (32, 0.15), (32, 0.5)), description="Gaps of X; UL2 has long ones of 64 tokens, UL2R of 32, as by default."
    )
    suffix_rate: float = Field(0.5, gt=0, lt=1, description="Mean share of a text that S learns, drawn evenly: 0.5, as UL2R, from anywhere on; UL2 has 0.25.")
    example_length: int = Field(512, ge=16, le=65_536, description="Tokens of a document that are denoised as one; longer ones in several.")

    @model_validator(mode="after")
    def _shares_are_of_types(self) -> "Ul2Config":
        check_probabilities(self.objective_probabilities, self.denoiser_types, "objective_probabilities")
        return self

    @model_validator(mode="after")
    def _gaps_have_tokens(self) -> "Ul2Config":
        for name, ways in (("regular_spans", self.regular_spans), ("extreme_spans", self.extreme_spans)):
            for way in ways:
                gaps = self.example_length * way.rate / way.mean_span
                if gaps > MOST_GAPS:
                    raise ValueError(
                        f"{name}: {gaps:.0f} gaps of {way.mean_span:g} tokens in an example of {self.example_length} (example_length), "
                        f"and there are tokens for {MOST_GAPS}; make gaps longer, the rate lower or examples shorter"
                    )
        return self

    def shares(self, probabilities: Mapping[str, float] | None = None) -> tuple[float, float, float]:
        """Of R, S and X, adding up to one."""
        asked = probabilities or self.objective_probabilities or {kind: UL2R[kind] for kind in {MEANING[name] for name in self.denoiser_types}}
        by_kind = [sum(share for name, share in asked.items() if MEANING[name] == kind) for kind in "RSX"]
        return tuple(share / sum(by_kind) for share in by_kind)


def check_probabilities(probabilities: Mapping[str, float] | None, types: tuple[str, ...], name: str) -> None:
    """ValueError, one line, where they are of denoisers that are not among `types`, or of none."""
    for denoiser in probabilities or ():
        if denoiser not in types:
            raise ValueError(f'{name}: "{denoiser}" is not among denoiser_types; allowed: {", ".join(types)}')
    if probabilities == {}:
        raise ValueError(f"{name}: none is given; give one, of {', '.join(types)}")
    if probabilities and not sum(probabilities.values()):
        raise ValueError(f"{name}: all are 0; give one of {', '.join(types)} more")


class MlmConfig(Config):
    """Masked tokens (Devlin et al. 2019), for models that read from both ends."""

    rate: float = Field(0.15, ge=0.01, le=0.9, description="Share of the tokens that is predicted. Held-out text is read 1 / rate times, as little each time.")
    mask_share: float = Field(
        0.8, gt=0, le=1, description="Of these, the share that the mask stands for; 1 for all. Never none: evaluation and chat ask with the mask."
    )
    random_share: Share = Field(0.1, description="And the share that another word stands for; the rest stay as they are.")

    @model_validator(mode="after")
    def _shares_fit(self) -> "MlmConfig":
        if self.mask_share + self.random_share > 1:
            most = round(1 - self.mask_share, 6)
            remedy = f"set random_share to {most:g}{' or less' * (most > 0)}"
            raise ValueError(f"mask_share {self.mask_share} and random_share {self.random_share} are more than all together; {remedy}")
        return self

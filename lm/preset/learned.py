"""What a preset has a model learn from a text: asked by those who build it and those who tell of it, and whether it can be trained."""

from collections.abc import Mapping
from typing import Any

from lm.preset.objectives import check_probabilities
from lm.preset.switches import Preset

IN_WORDS = {"clm": "the next token", "mlm": "words under masks", "custom": "the targets that sources give"}
SHORTEST_ROW = 32  # positions
_TWO_OBJECTIVES = 'ul2.enabled asks for train.objective "ul2", and that is "{}"; keep one'


def objective_after(preset: Preset) -> str:
    """What is learned once all stages of train.objectives are over."""
    return "ul2" if preset.ul2.enabled else preset.train.objective


def objectives_of(preset: Preset) -> set[str]:
    """Everything that is learned at some time."""
    return {objective_after(preset), *(stage.objective for stage in preset.train.objectives)}


def learned_in_words(preset: Preset, begin: int = 0) -> list[str]:
    """What is learned in each stage from number `begin` on, and after them all: "the next token until 1,000,000 tokens"."""
    stages = [f"{_in_words(preset, stage.objective, stage.probabilities)} until {stage.until_tokens:,} tokens" for stage in preset.train.objectives]
    return [*stages, _in_words(preset, objective_after(preset), None)][begin:]


def _in_words(preset: Preset, objective: str, probabilities: Mapping[str, float] | None) -> str:
    if objective != "ul2":
        return IN_WORDS[objective]
    shares = zip("RSX", preset.ul2.shares(probabilities), strict=True)
    return f"by denoisers ({', '.join(f'{kind} {share:.0%}' for kind, share in shares if share)})"


def what_is_learned(preset: Preset) -> tuple[Any, ...]:
    """The switches that decide what is made of a text."""
    return (preset.train.objective, preset.train.objectives, preset.ul2, preset.mlm)


def needs_tokens(preset: Preset) -> bool:
    """Whether the tokenizer must have the tokens that objectives write in the place of text."""
    return bool(objectives_of(preset) & {"ul2", "mlm"})


def check_written(preset: Preset) -> None:
    """ValueError, one line, for an objective that another switch overrules. Of what a person wrote: a preset in full always names one."""
    if preset.ul2.enabled and "objective" in preset.train.model_fields_set and preset.train.objective == "clm":
        raise ValueError(_TWO_OBJECTIVES.format("clm"))


def check_objectives(preset: Preset) -> None:
    """ValueError, one line, for objectives that the model or the sources can't be trained with."""
    stages, learned = preset.train.objectives, objectives_of(preset)
    ends = [stage.until_tokens for stage in stages]
    if ends != sorted(set(ends)):
        raise ValueError("train.objectives: each stage must end after the one before (until_tokens)")
    if preset.ul2.enabled and preset.train.objective not in ("clm", "ul2"):
        raise ValueError(_TWO_OBJECTIVES.format(preset.train.objective))
    for stage in stages:
        check_probabilities(stage.probabilities, preset.ul2.denoiser_types, "train.objectives")
        if stage.probabilities and stage.objective != "ul2":
            raise ValueError(f'train.objectives: probabilities are of denoisers, and the objective is "{stage.objective}"; use "ul2"')
    if "custom" in learned:
        _check_targets(preset)
    for objective in learned & {"ul2", "mlm"}:
        _check_rewriting(preset, objective)
    _check_both_ends(preset, learned)


def _check_both_ends(preset: Preset, learned: set[str]) -> None:
    both = preset.model.bidirectional != "off"
    if "mlm" in learned and not both:
        raise ValueError('objective "mlm" predicts words from both sides; set model.bidirectional to "own" or "shared", or use "clm" or "ul2"')
    if both and learned != {"mlm"}:
        other = ", ".join(sorted(learned - {"mlm"}))
        raise ValueError(f'model.bidirectional sees what objective "{other}" would have it predict; set train.objective to "mlm", and no other before it')
    if not both:
        return
    for name in ("shared_attention", "mixture_of_depths", "head_gating"):
        if getattr(preset, name).enabled:
            raise ValueError(f"model.bidirectional makes two of each unit, and {name} knows one; switch {name} off")
    if preset.auxiliary.heads:
        raise ValueError("model.bidirectional has seen what the heads of auxiliary would foretell; switch them off")
    if preset.retro.enabled:
        raise ValueError("model.bidirectional keeps no memory of what was read; set retro.enabled to false")


def _check_targets(preset: Preset) -> None:
    for source in preset.data.sources:
        if getattr(source, "loss_on", "all") != "answer":
            raise ValueError(f'objective "custom" learns targets that sources give, and {source.name} gives none; give it input_field and target_field')


def _check_rewriting(preset: Preset, objective: str) -> None:
    shortest = min([preset.model.seq_length, *(stage.seq_length for stage in preset.train.seq_length_curriculum)])
    if shortest < SHORTEST_ROW:
        raise ValueError(f'objective "{objective}" needs rows of {SHORTEST_ROW} tokens or more, and there are some of {shortest} (model.seq_length)')
    if preset.train.long_context.enabled:
        raise ValueError(f'objective "{objective}" reads each row or example afresh, and train.long_context carries states from row to row; switch one off')
    if preset.retro.enabled and preset.retro.add_cross_attention:
        raise ValueError(f'objective "{objective}" takes words out of a text that the memory would hand in again; set retro.add_cross_attention to false')

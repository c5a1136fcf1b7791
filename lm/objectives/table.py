"""The table of objectives: what each makes of documents on their way into rows. Adding one is a file here and a line in OBJECTIVES.

A rewriter (data_sources/rewriting.py) takes a document and the room in a row, and says how much of the document it used. It runs where rows are
filled, in loader processes where there are some. None leaves the text as it stands, with the next token to be predicted: so for clm, and for custom,
where the sources say which part of a text is their target.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from data_sources.lengths import RowLengths
from data_sources.rewriting import Rewriter
from data_sources.special_tokens import ObjectiveTokens, special_ids
from lm.objectives.masked import Masked
from lm.objectives.schedule import Scheduled, Stage
from lm.objectives.spans import Setting
from lm.objectives.ul2 import Ul2
from lm.preset import Preset
from lm.preset.learned import objective_after
from lm.preset.objectives import SpanConfig

Probabilities = dict[str, float] | None


def rewriter_of(preset: Preset, tokenizer: Any, lengths: RowLengths) -> Rewriter | None:
    """What the stream makes of documents in the run of a preset. `tokenizer` has the tokens of objectives where they are needed."""
    last = OBJECTIVES[objective_after(preset)](preset, tokenizer, None)
    stages = tuple(Stage(stage.until_tokens, OBJECTIVES[stage.objective](preset, tokenizer, stage.probabilities)) for stage in preset.train.objectives)
    if not any([last, *(stage.rewriter for stage in stages)]):
        return None
    return Scheduled(stages, last, lengths) if stages else last


def _as_it_stands(preset: Preset, tokenizer: Any, probabilities: Probabilities) -> None:
    return None


def ul2_of(preset: Preset, tokenizer: Any, probabilities: Probabilities = None) -> Ul2:
    """The mixture of denoisers that a preset asks for."""
    config, tokens = preset.ul2, tokens_of(tokenizer)
    settings = {"R": _settings(config.regular_spans), "X": _settings(config.extreme_spans)}
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return Ul2(config.shares(probabilities), settings, config.suffix_rate, config.example_length, tokens.modes, tokens.gaps, bos, end)


def _settings(ways: tuple[SpanConfig, ...]) -> tuple[Setting, ...]:
    return tuple(Setting(way.mean_span, way.rate) for way in ways)


def masked_of(preset: Preset, tokenizer: Any, probabilities: Probabilities = None) -> Masked:
    """The masks that a preset asks for."""
    config = preset.mlm
    words = np.array(sorted(set(range(len(tokenizer))) - special_ids(tokenizer)), np.int32)
    return Masked(config.rate, config.mask_share, config.random_share, tokens_of(tokenizer).mask, tokenizer.bos_token_id, words)


def tokens_of(tokenizer: Any) -> ObjectiveTokens:
    """The ids of what objectives write."""
    tokens = ObjectiveTokens.of(tokenizer)
    assert tokens is not None, "the tokens of objectives join the tokenizer before training begins"
    return tokens


OBJECTIVES: dict[str, Callable[[Preset, Any, Probabilities], Rewriter | None]] = {
    "clm": _as_it_stands,
    "ul2": ul2_of,
    "mlm": masked_of,
    "custom": _as_it_stands,
}

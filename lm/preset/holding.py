"""Bytes that training a preset's model holds from its first step on, in closed form, so that the menu knows before torch is imported."""

from typing import NamedTuple

from lm.preset.counting import count_heads, count_parameters
from lm.preset.learned import needs_tokens
from lm.preset.objectives import ADDED_TOKENS
from lm.preset.switches import Preset

NUMBER = 4  # bytes, in float32


class Held(NamedTuple):
    """Bytes, beside those of what a step reads."""

    training: int  # weights, gradients, the optimizer's moments, and the average where there is one
    copy: int  # in host memory, of all that but the gradients, while a snapshot is written


def held_bytes(preset: Preset, vocab_size: int) -> Held:
    """Of the model that build_model(preset, vocab_size) gives, and of its heads. With Muon a little less than there is: the matrices of layers have one
    moment, and what else is within layers is counted as if it had."""
    count, averaged = count_parameters(preset, vocab_size), bool(preset.train.average_tokens)
    numbers = count.total + count_heads(preset)
    moments = 2 * numbers - count.trunk * (preset.train.optimizer == "muon")
    copy = (1 + averaged) * numbers + moments
    return Held(NUMBER * (copy + numbers), NUMBER * copy)


def expected_vocabulary(preset: Preset) -> int:
    """Entries of the tokenizer that a new life with `preset` gets; 0 where they are those of a published one, and not known yet."""
    return preset.data.vocab_size + ADDED_TOKENS * needs_tokens(preset) if preset.data.tokenizer == "bpe" else 0

"""Real text for measurements: the documentation installed on this machine, or a Hub where HF_ENDPOINT points to one."""

import contextlib
import os
from typing import Any

from data_sources import Batch, open_stream
from data_sources.config import DataConfig
from data_sources.lane import Lane, Mix
from data_sources.order import LANES
from data_sources.sources import Sources
from data_sources.tokenizer import build_tokenizer
from lm.preset import Preset

LOCAL = DataConfig.model_validate({"sources": [{"type": "installed_docs", "repeat": True}]})


def local_batches(preset: Preset, count: int, data: DataConfig = LOCAL) -> tuple[list[Batch], Any]:
    """The first `count` step batches of installed documentation in the preset's sizes, and the tokenizer made for them."""
    tokenizer = build_tokenizer(data, seed=0)
    with open_stream(data, tokenizer, preset.model.seq_length, preset.step_rows) as stream:
        return [next(stream)[0] for _ in range(count)], tokenizer


def chosen_data(preset: Preset) -> DataConfig:
    """What the preset reads, where HF_ENDPOINT leads to a Hub that has it; installed documentation where not."""
    return preset.data if os.environ.get("HF_ENDPOINT") else LOCAL.model_copy(update={"vocab_size": preset.data.vocab_size})


def held_out_texts(data: DataConfig, count: int, longest: int) -> list[str]:
    """The first texts of `data` that no life is trained on, mixed as it says, up to `longest` characters of each: the same for all arms and seeds."""
    sources = Sources(data, 0, "held_out")
    with contextlib.closing(sources):
        while not sources.reached(0.1):
            continue
        mix, texts = Mix(data.mix_strategy, data.weights, False), []
        for lane in (Lane(number, sources.feeds, mix, None) for number in range(LANES)):
            while len(texts) < count and (text := lane.next_text()) is not None and not lane.is_round:
                texts.append(text[:longest])
    return texts

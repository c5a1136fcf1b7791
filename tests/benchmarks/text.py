"""Real text for measurements: the documentation installed on this machine, or a Hub where HF_ENDPOINT points to one."""

import os
from typing import Any

from data_sources import Batch, open_stream
from data_sources.config import DataConfig
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

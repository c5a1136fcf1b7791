"""A model so small that slow loops can follow it, with all its heads on and nothing in it zero."""

from typing import Any

import torch

from data_sources import Batch
from lm.auxiliary.head import Reading
from lm.auxiliary.heads import HEADS, build_heads
from lm.model import build_model
from lm.preset import Preset
from lm.training.learner import Learner
from tests.auxiliary.proving import Ear
from tests.training.ranks import V

ALL = {f"enable_{name}": True for name in HEADS}
PAD = 29
HEARD = {"left": lambda left: torch.randint_like(left, V), "lane": lambda lane: torch.full_like(lane, 47), "rounds": torch.ones_like}
SIZES = {"token_every": 2, "latent_every": 3, "distribution_every": 5, "consistency_every": 4, "consistency_depth": 2, "dynamics_steps": 3, "value_span": 5}
SIZES |= {"span_length": 2, "span_mask_fraction": 0.4, "span_size": 7, "span_contrastive_temperature": 0.5, "policy_size": 9, "value_size": 11}


def preset_of(auxiliary: dict[str, Any], **sections: Any) -> Preset:
    model = {"hidden_size": 24, "num_layers": 2, "num_heads": 2, "seq_length": 64}
    return Preset.model_validate({"model": model, "data": {"sources": ["c4"]}, "auxiliary": SIZES | auxiliary, **sections})


def learner_of(preset: Preset, dtype: torch.dtype = torch.float32) -> Learner:
    """Random weights; and what heads heard of the step before, which was of other lanes."""
    torch.manual_seed(9)
    learner = Learner(build_model(preset, V), build_heads(preset, PAD)).to(dtype)
    for name, parameter in learner.named_parameters():
        parameter.data.normal_(std=0.3)
        if "norm" in name:
            parameter.data.add_(1)
    for name, buffer in learner.heads.named_buffers():
        buffer.data = HEARD.get(name.removeprefix("span_contrastive."), torch.rand_like)(buffer)
    return learner


def read(learner: Learner, *pieces: Batch) -> list[Reading]:
    """What heads are given of rows in pieces of time."""
    learner.heads["ear"] = ear = Ear()
    learner(list(pieces), learner.model.initial_state(len(pieces[0].lane)) if len(pieces) > 1 else None)
    del learner.heads["ear"]
    return ear.heard

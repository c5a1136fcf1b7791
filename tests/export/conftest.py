"""Snapshots of small models whose parameters are all random, and one that was really trained."""

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch

from data_sources.tokenizer import tokenizer_from_json, tokenizer_to_json, trained_bpe
from lm.generation import generate
from lm.model import Model, build_model
from lm.preset import MECHANISMS, Preset
from lm.training import train
from lm.training.snapshots import Snapshot, Snapshots

MODEL = {"hidden_size": 24, "num_layers": 2, "num_heads": 3, "seq_length": 16, "ffn_size": 20}
GENERATION = {"temperature": 0.0, "repetition_penalty": 1.3, "no_repeat_ngram": 3, "max_new_tokens": 16}
# What each says beside the defaults. A mechanism that is built is exported without a line here.
VARIANTS: dict[str, dict[str, Any]] = {
    "rope": {},
    "grouped": {"model": {"num_kv_heads": 1, "tie_embeddings": False, "qk_norm": False, "position_interpolation": 3.0, "position_interpolation_layers": "odd"}},
    "learned": {"model": {"position": "learned"}},
    "options": {
        "model": {"num_layers": 4, "num_kv_heads": 1, "position_interpolation": 3.0, "position_interpolation_layers": [0, 2, 3]},
        "head_gating": {"enabled": True, "layers": [0, 2], "ffn_groups": 2},
        "shared_ffn": {"enabled": True, "private_share": 0.3, "layers": [0, 1, 2]},
        "shared_attention": {"enabled": True, "layers": [2, 3]},
    },
    "a memory without its unit": {"retro": {"enabled": True, "add_cross_attention": False}},
    "squared ReLU": {"model": {"activation": "relu2", "ffn_size": None}, "shared_ffn": {"enabled": True, "layers": [0, 1]}},
    "values of the first attention": {
        "model": {"num_layers": 3, "num_kv_heads": 1, "value_residual": True, "tie_embeddings": False},
        "longformer": {"enabled": True, "layers": [1], "window": 5},
    },
    "soft cap": {"model": {"logit_soft_cap": 2.0, "qk_norm": False}},
    "one feed-forward": {"shared_ffn": {"enabled": True, "private_share": 0.0}},
    **{name: {name: {"enabled": True, "layers": "even"}} for name in MECHANISMS},
    "mixture_of_depths": {"s5": {"enabled": True, "layers": "odd"}, "mixture_of_depths": {"enabled": True, "layers": "odd", "select": "previous_ffn"}},
}
LIFE = {"born": "2026-11-20T10:00:00+00:00", "tokens": 12_345, "steps": 9, "runs": [], "sources": {"natural_questions": 12_000, "installed_docs": 345}}
PROMPTS = ["The plant lives", "a", "Über 東京, and so on for many years"]


@pytest.fixture(scope="session")
def tokenizer_json() -> str:
    return tokenizer_to_json(trained_bpe(iter(list(topics.values())[:20]), 400))


def preset_of(name: str, **sections: Any) -> Preset:
    data = {"sources": ["natural_questions", "installed_docs"]}
    return Preset.model_validate({"name": name, "data": data, "generation": GENERATION, **sections, "model": MODEL | sections.get("model", {})})


def snapshot_of(preset: Preset, tokenizer: str, **life: Any) -> Snapshot:
    """A snapshot of a model with random parameters, no gate closed, that ends one of PROMPTS by a hair."""
    torch.manual_seed(5)
    model = build_model(preset, len(tokenizer_from_json(tokenizer)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for buffer in model.buffers():
        torch.nn.init.normal_(buffer, std=0.3)
    if model.output is not None:
        _ends_by_a_hair(model, tokenizer, preset)
    weights = {f"model.{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    return Snapshot(preset, tokenizer, weights, {}, {"cpu": torch.get_rng_state()}, None, {"tokens": 5}, LIFE | life)


def _ends_by_a_hair(model: Model, tokenizer_json: str, preset: Preset) -> None:
    """Make the end the likeliest token at some place, but not if a penalty fell on it."""
    tokenizer = tokenizer_from_json(tokenizer_json)
    with torch.no_grad():
        model.output.weight[tokenizer.eos_token_id] = 0
        writing = generate(model, tokenizer, PROMPTS[0], preset.generation.model_copy(update={"max_new_tokens": 9}))
        "".join(writing)
        out = model(torch.tensor([[*writing.read, *writing.tokens]]))
        hidden = out.hidden[0, -1]
        model.output.weight[tokenizer.eos_token_id] = 1.1 * out.logits[0, -1].max() * hidden / hidden.square().sum()


def model_of(snapshot: Snapshot) -> Model:
    """The model in a snapshot, as this program builds it."""
    model = build_model(snapshot.preset, len(tokenizer_from_json(snapshot.tokenizer)))
    model.load_state_dict(snapshot.model_weights)
    return model


@pytest.fixture(scope="session")
def snapshots(tokenizer_json: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Snapshot]:
    """By name: every variant, and a model that has read some of Python's reference."""
    random = {name: snapshot_of(preset_of(name, **sections), tokenizer_json) for name, sections in VARIANTS.items()}
    return random | {"trained": trained(tmp_path_factory.mktemp("trained"))}


def trained(folder: Path) -> Snapshot:
    text = json.dumps({"text": "\n".join(list(topics.values())[:12])})
    (folder / "reference.jsonl").write_text(f"{text}\n" * 3, encoding="utf-8")
    data = {"sources": [{"type": "files", "path": str(folder / "reference.jsonl"), "repeat": True}], "vocab_size": 400}
    preset = preset_of("trained", data=data, train={"per_gpu_batch_size": 8, "learning_rate": 0.01})
    train(preset, folder / "checkpoints", budget_tokens=12 * 8 * 16)
    found = Snapshots(folder / "checkpoints").newest()
    assert found is not None
    return found

"""The closed-form count equals the model that is built."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lm.auxiliary.heads import HEADS, build_heads
from lm.model import Context, build_model
from lm.preset import MECHANISMS, Preset, count_parameters, load_preset
from lm.preset.counting import count_heads, operations_per_token
from lm.preset.options import check_options
from lm.units.neighbours import Neighbours

SIZES: list[dict[str, Any]] = [
    {},
    {"num_kv_heads": 1, "ffn_size": 7},
    {"position": "learned", "tie_embeddings": False},
    {"qk_norm": False, "hidden_size": 36, "num_heads": 3, "num_layers": 5, "seq_length": 11},
    {"activation": "relu2", "hidden_size": 36, "num_heads": 3},
]


@pytest.mark.parametrize("name", [None, *MECHANISMS])
@pytest.mark.parametrize("model", SIZES, ids=str)
def test_count_equals_the_built_model(model: dict[str, Any], name: str | None) -> None:
    sections = {name: {"enabled": True}} if name else {}
    preset = Preset.model_validate({"model": {"hidden_size": 24, "num_heads": 2, "num_layers": 2} | model, "data": {"sources": ["c4"]}, **sections})
    built = build_model(preset, 31)
    count = count_parameters(preset, 31)
    assert count.total == sum(parameter.numel() for parameter in built.parameters())
    tables = [built.embedding.weight, *([built.output.weight] if built.output else [])]
    assert count.vocabulary == sum(table.numel() for table in tables)


OPTIONS: list[dict[str, Any]] = [
    {"head_gating": {"enabled": True}},
    {"head_gating": {"enabled": True, "mixers": False, "ffn_groups": 8, "layers": [1]}},
    {"head_gating": {"enabled": True, "ffn_groups": 0}, "mamba2": {"enabled": True, "layers": "odd"}, "deltanet": {"enabled": True, "value_size": 5}},
    {"shared_ffn": {"enabled": True}},
    {"shared_ffn": {"enabled": True, "private_share": 0.0}, "model": {"num_layers": 5, "ffn_size": 7}},
    {"shared_ffn": {"enabled": True, "private_share": 0.3, "layers": [0, 2, 4]}, "model": {"num_layers": 5}, "rwkv_channel": {"enabled": True, "layers": [4]}},
    {"shared_ffn": {"enabled": True, "private_share": 0.3}, "model": {"num_layers": 3, "activation": "relu2"}},
    {"model": {"num_layers": 5, "value_residual": True}, "s5": {"enabled": True, "layers": [0]}, "longformer": {"enabled": True, "layers": [0, 3]}},
    {"shared_ffn": {"enabled": True, "private_share": 0.25}, "head_gating": {"enabled": True, "ffn_groups": 2}, "shared_attention": {"enabled": True}},
    {"shared_attention": {"enabled": True, "layers": [1, 2, 4]}, "model": {"num_layers": 5, "num_kv_heads": 1}, "s5": {"enabled": True, "layers": [2, 3]}},
]


@pytest.mark.parametrize("sections", OPTIONS, ids=str)
def test_count_with_options_of_the_plan(sections: dict[str, Any]) -> None:
    model = {"hidden_size": 24, "num_heads": 2, "num_layers": 2} | sections.get("model", {})
    preset = Preset.model_validate({"data": {"sources": ["c4"]}, **sections, "model": model})
    check_options(preset)
    built = build_model(preset, 31)
    assert count_parameters(preset, 31).total == sum(parameter.numel() for parameter in built.parameters())
    assert sum(tensor.numel() for tensor in built.state_dict().values()) == count_parameters(preset, 31).total


@pytest.mark.parametrize("section", [{"encoder_size": 36, "chunk_size": 5}, {"encoder_layers": 3, "layers": "all"}, {"add_cross_attention": False}], ids=str)
@pytest.mark.parametrize("model", SIZES, ids=str)
def test_count_with_neighbours(model: dict[str, Any], section: dict[str, Any]) -> None:
    sizes = {"hidden_size": 24, "num_heads": 2, "num_layers": 3} | model
    preset = Preset.model_validate({"model": sizes, "data": {"sources": ["c4"]}, "retro": {"enabled": True} | section})
    built = build_model(preset, 31)
    assert count_parameters(preset, 31).total == sum(parameter.numel() for parameter in built.parameters())
    assert (built.neighbour_encoder is None) == (section.get("add_cross_attention") is False)


@pytest.mark.parametrize("section", [{}, {"experts": 5, "experts_per_token": 3, "shared_experts": 2}, {"experts_per_token": 1, "expert_size": 7}], ids=str)
def test_active_are_the_parameters_that_a_token_uses(section: dict[str, Any]) -> None:
    sections = {"moe": {"enabled": True, "layers": "odd"} | section, "model": {"hidden_size": 24, "num_heads": 2, "num_layers": 4}}
    preset = Preset.model_validate({"data": {"sources": ["c4"]}, **sections})
    built, count = build_model(preset, 31), count_parameters(preset, 31)
    assert count.total == sum(parameter.numel() for parameter in built.parameters())
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    built(torch.tensor([[3]])).logits.square().sum().backward()
    matrices = [parameter for parameter in built.parameters() if parameter.ndim == 3]
    assert len(matrices) == 4
    untouched = sum(int((~parameter.grad.flatten(1).any(1)).sum()) * parameter[0].numel() for parameter in matrices)
    assert count.active == count.total - untouched < count.total


@pytest.mark.parametrize("sizes", [{}, {"value_size": 5, "policy_size": 3, "dynamics_size": 7, "span_size": 11}], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_count_of_heads(name: str, sizes: dict[str, Any]) -> None:
    preset = Preset.model_validate({"model": SIZES[3], "data": {"sources": ["c4"]}, "auxiliary": {f"enable_{name}": True} | sizes})
    heads = build_heads(preset, pad=0)
    assert list(heads) == [name]
    assert count_heads(preset) == sum(parameter.numel() for parameter in heads.parameters()) > 0


def test_a_token_uses_all_of_a_dense_model() -> None:
    count = count_parameters(Preset.model_validate({"data": {"sources": ["c4"]}}), 31)
    assert count.active == count.total


SIZE = {"hidden_size": 128, "num_heads": 4}
SHIPPED = sorted(Path("configs").glob("[0-9]*.json"))
REUSED: list[dict[str, Any]] = [
    {"shared_ffn": {"enabled": True, "private_share": 0.25}},
    {"shared_ffn": {"enabled": True}, "mixture_of_depths": {"enabled": True, "layers": "odd", "share": 0.25}, "model": {"activation": "relu2"}},
    {"model": {"bidirectional": "shared"}, "train": {"objective": "mlm"}},
    {"colt5_attention": {"enabled": True, "light_heads": 1}, "model": {"tie_embeddings": False}},
]


@pytest.mark.parametrize("preset", SHIPPED, ids=lambda path: path.stem)
def test_operations_of_shipped_presets_are_those_that_torch_counts(preset: Path) -> None:
    """Of small sisters of them."""
    loaded = load_preset(preset)
    check_operations(loaded.model_copy(update={"model": loaded.model.model_copy(update=SIZE)}))


@pytest.mark.parametrize("sections", REUSED, ids=str)
def test_operations_of_weights_that_are_used_again_are_those_that_torch_counts(sections: dict[str, Any]) -> None:
    check_operations(Preset.model_validate({"data": {"sources": ["c4"]}} | sections | {"model": SIZE | sections.get("model", {})}))


def check_operations(preset: Preset) -> None:
    """Of its products, which are three times those of the forward pass. Attention's, which torch does not count on CPUs, are those that grow with the
    row; a tenth is left for what recurrences do beside their matrices, and for routers that pick a few tokens more or less, once they know their scores."""
    torch.manual_seed(0)
    tokens = torch.randint(300, (1, 256))  # one row, for which Hyena makes its filters
    model, memory = build_model(preset, 300).train(), None
    if preset.retro.enabled:
        chunk, neighbours = preset.retro.chunk_size, preset.retro.num_neighbors
        at = torch.arange(0, tokens.numel(), chunk)
        found = torch.randint(300, (len(at), neighbours, 2 * chunk))
        memory = Neighbours(at, found, torch.full((len(at), neighbours), 2 * chunk))
    model.after_step(model(tokens, None, Context(memory=memory)).stats)
    with FlopCounterMode(display=False) as counter:
        assert model(tokens, None, Context(memory=memory)).logits.shape == (1, 256, 300)
    of_one = preset.model_copy(update={"model": preset.model.model_copy(update={"seq_length": 1})})
    assert operations_per_token(of_one, 300) == pytest.approx(3 * counter.get_total_flops() / tokens.numel(), rel=0.1)


def test_a_token_uses_a_part_of_what_is_for_some_tokens() -> None:
    """A quarter of the heavy branches, and of every second layer half."""
    sections = {
        "colt5": {"enabled": True, "budget": 0.25, "light_size": 8, "heavy_size": 40},
        "mixture_of_depths": {"enabled": True, "layers": "odd", "share": 0.5},
    }
    preset = Preset.model_validate({"data": {"sources": ["c4"]}, "model": SIZE} | sections)
    model, count = build_model(preset, 300), count_parameters(preset, 300)
    numbers = {name: parameter.numel() for name, parameter in model.named_parameters() if name.startswith("layers.") and ".unit." in name}
    assert len(numbers) > 20
    idle = 0.0
    for name, number in numbers.items():
        share = (0.5 if int(name.split(".")[1]) % 2 else 1.0) * (0.25 if ".heavy." in name else 1.0)
        idle += (1 - share) * number
    assert count.idle == pytest.approx(idle) and count.active == count.total - count.idle

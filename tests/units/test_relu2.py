"""Squared ReLU equals a loop over channels, is as large as SwiGLU, and stands where no mechanism claims the feed-forward."""

from typing import Any

import pytest
import torch

from lm.model import build_model
from lm.preset import Preset, at_layer, count_parameters, layer_plan
from lm.units.relu2 import Relu2
from lm.units.unit import Context

B, T, D, WIDTH = 2, 5, 6, 11


def preset_of(**sections: Any) -> Preset:
    model = {"hidden_size": D, "num_heads": 3, "num_layers": 3, "activation": "relu2"} | sections.pop("model", {})
    return Preset.model_validate({"model": model, "data": {"sources": ["c4"]}, **sections})


def test_it_equals_a_loop_over_channels() -> None:
    torch.manual_seed(0)
    unit = Relu2(preset_of(model={"ffn_size": WIDTH})).double()
    x = torch.randn(B, T, D, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for row in range(B):
        for time in range(T):
            for channel in range(WIDTH):
                heard = float(unit.up.weight[channel].detach() @ x[row, time])
                expected[row, time] += max(heard, 0.0) ** 2 * unit.output.weight[:, channel].detach()
    torch.testing.assert_close(unit(x, (), Context()).y, expected)


@pytest.mark.parametrize("size", [2, 24, 96, 250, 256, 1024])
def test_by_itself_it_is_as_large_as_swiglu_and_four_times_as_wide_as_the_model(size: int) -> None:
    ours, theirs = (preset_of(model={"hidden_size": size, "num_heads": 1, "activation": activation}) for activation in ("relu2", "swiglu"))
    assert count_parameters(ours, 31) == count_parameters(theirs, 31)
    assert 0 <= ours.model.feed_forward_size - 4 * size < 48


def test_it_stands_where_no_mechanism_claims_the_feed_forward_and_leaves_experts_as_they_are() -> None:
    sections = {"moe": {"enabled": True, "layers": [0]}, "colt5": {"enabled": True, "layers": [1]}}
    ours, theirs = preset_of(**sections), preset_of(**sections, model={"activation": "swiglu"})
    assert layer_plan(ours) == (("attention", "moe"), ("attention", "colt5"), ("attention", "relu2"))
    built = [build_model(preset, 31) for preset in (ours, theirs)]
    for layer in (0, 1):
        shapes = [{name: weight.shape for name, weight in model.layers[layer].state_dict().items()} for model in built]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("share", "own"), [(0.3, 3), (0.0, 0)])
def test_layers_that_share_it_equal_a_dense_model_with_the_weights_repeated(share: float, own: int) -> None:
    preset = preset_of(model={"ffn_size": WIDTH}, shared_ffn={"enabled": True, "private_share": share})
    assert at_layer(preset, 1).model.feed_forward_size == own
    model, dense = build_model(preset, 31).double(), build_model(preset_of(model={"ffn_size": WIDTH}), 31).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    weights = {name: value for name, value in model.state_dict().items() if name in dense.state_dict()}
    for layer, (_, place) in enumerate(model.layers):
        unit, path = place.unit, f"layers.{layer}.1.unit"
        scale = unit.beside.shared_scale if own else unit.shared_scale
        up, out = model.shared_ffn.up.weight, scale[:, None] * model.shared_ffn.output.weight
        if own:
            up, out = torch.cat([up, unit.up.weight]), torch.cat([out, unit.output.weight], 1)
        weights |= {f"{path}.up.weight": up.detach(), f"{path}.output.weight": out.detach()}
    dense.load_state_dict(weights)
    tokens = torch.randint(31, (B, T))
    torch.testing.assert_close(model(tokens).logits, dense(tokens).logits)

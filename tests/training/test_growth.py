"""A snapshot of one model in another: what is kept, what grows, and that grown models compute what the old ones did."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lm.model import Context, build_model
from lm.preset import Preset
from lm.training import train
from lm.training.growth import fit, fitted, fitted_moments
from lm.training.learner import Learner
from lm.training.snapshots import Snapshots
from lm.units.retro import Neighbours
from tests.test_law import VARIANTS
from tests.units.test_bidirectional import MIXERS

Tiny = Callable[..., Preset]
V = 53


def grown(old: Preset, new: Preset, vocab: int = V, new_vocab: int = V) -> tuple[Any, Any, Any]:
    """A model with random weights, the same weights in the model of `new`, and how they fit."""
    torch.manual_seed(0)
    before = Learner(build_model(old, vocab))
    for parameter in before.parameters():
        parameter.data.normal_(std=0.3)
    after = Learner(build_model(new, new_vocab))
    how = fit(after.model, after.state_dict(), old, before.state_dict())
    after.load_state_dict(fitted(after.state_dict(), before.state_dict(), how), strict=False)
    return before.model.double(), after.model.double(), how


def places_kept(how: Any) -> set[str]:
    """Places in their layers of the units of which something is kept."""
    return {name.split(".")[3] for name in how.kept if name.startswith("model.layers.")}


def tokens(length: int) -> torch.Tensor:
    return torch.randint(V, (2, length), generator=torch.Generator().manual_seed(1))


def test_a_deeper_model_computes_the_same(tiny: Tiny) -> None:
    before, after, how = grown(tiny(), tiny(model={"num_layers": 5}))
    assert how.new and not how.left and not how.grown
    assert {name.split(".")[2] for name in how.new} == {"2", "3", "4"}
    torch.testing.assert_close(after(tokens(31)).logits, before(tokens(31)).logits, rtol=1e-12, atol=1e-12)


def test_more_places_compute_the_same_where_there_were_some(tiny: Tiny) -> None:
    learned = {"position": "learned", "seq_length": 16}
    before, after, how = grown(tiny(model=learned), tiny(model=learned | {"seq_length": 37}))
    assert how.grown == {"model.positions.weight": ((16, 32), (37, 32))}
    torch.testing.assert_close(after(tokens(16)).logits, before(tokens(16)).logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after.positions.weight[16:32], before.positions.weight, rtol=0, atol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_more_words_leave_the_scores_of_the_others(tiny: Tiny, tied: bool) -> None:
    preset = tiny(model={"tie_embeddings": tied})
    before, after, how = grown(preset, preset, V, V + 7)
    assert len(how.grown) == 2 - tied
    torch.testing.assert_close(after(tokens(9)).logits[..., :V], before(tokens(9)).logits, rtol=1e-12, atol=1e-12)


def test_an_output_of_its_own_begins_as_the_embedding_that_was_it(tiny: Tiny) -> None:
    before, after, how = grown(tiny(), tiny(model={"tie_embeddings": False}), V, V + 7)
    assert how.new == ["model.output.weight"]
    torch.testing.assert_close(after(tokens(9)).logits[..., :V], before(tokens(9)).logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mechanism", ["s5", "hyena", "rwkv"])
def test_another_mechanism_begins_as_the_identity(tiny: Tiny, mechanism: str) -> None:
    """Attention's output matrix is of the same name and shape: with it, what the new unit says at first would be noise."""
    before, after, how = grown(tiny(), tiny(**{mechanism: {"enabled": True, "layers": [0]}}))
    assert not [name for name in how.kept if name.startswith("model.layers.0.0.")]
    assert "model.layers.0.0.unit.output.weight" in how.new and "model.layers.0.0.unit.output.weight" in how.left
    before.layers[0][0].unit.output.weight.data.zero_()
    torch.testing.assert_close(after(tokens(31)).logits, before(tokens(31)).logits, rtol=1e-12, atol=1e-12)
    moments = fitted_moments({f"{name}/exp_avg": torch.ones(1) for name in before.state_dict(prefix="model.")}, how)
    assert moments.keys() == {f"{name}/exp_avg" for name in how.kept}


def reading(name: str, ways: str) -> Preset:
    """A small model of one mixer, that reads both ways or one."""
    size, sections = {"hidden_size": 12, "num_layers": 2, "num_heads": 2, "seq_length": 64, "bidirectional": ways}, {}
    if name != "attention":
        sections[name] = VARIANTS[name][0].get(name, {}) | {"enabled": True}
    return Preset.model_validate({"model": size, "data": {"sources": ["c4"]}, "train": {"objective": "clm" if ways == "off" else "mlm"}, **sections})


@pytest.mark.parametrize("name", MIXERS)
def test_a_model_that_reads_both_ways_computes_at_first_what_it_did(name: str) -> None:
    """Back it says nothing at first; nothing of what reads onward is lost, on the way back to one way neither."""
    before, after, how = grown(reading(name, "off"), reading(name, "own"))
    assert not how.left and not how.grown and all(".unit.back." in new for new in how.new) and how.new
    assert all(there == ours.replace(".unit.onward.", ".unit.") for ours, there in how.kept.items())
    torch.testing.assert_close(after(tokens(23)).logits, before(tokens(23)).logits, rtol=1e-9, atol=1e-9)
    _, again, back = grown(reading(name, "own"), reading(name, "off"))
    assert not back.new and all(".unit.back." in left for left in back.left) and again(tokens(9)).logits.isfinite().all()
    _, _, shared = grown(reading(name, "off"), reading(name, "shared"))
    assert not shared.new and not shared.left and shared.otherwise


@pytest.mark.parametrize("name", ["attention", "rwkv"])
def test_ways_that_come_apart_begin_alike(name: str) -> None:
    before, after, how = grown(reading(name, "shared"), reading(name, "own"))
    assert not how.left and how.new and all(".unit.back." in new for new in how.new)
    torch.testing.assert_close(after(tokens(23)).logits, before(tokens(23)).logits, rtol=1e-9, atol=1e-9)
    before, after, how = grown(reading(name, "own"), reading(name, "own"))
    assert how.is_whole and torch.equal(after(tokens(9)).logits, before(tokens(9)).logits)
    moments = fitted_moments({"model.layers.0.0.unit.onward.output.weight/exp_avg": torch.ones(1)}, grown(reading(name, "shared"), reading(name, "own"))[2])
    assert list(moments) == ["model.layers.0.0.unit.onward.output.weight/exp_avg"]


@pytest.mark.parametrize("ways", [("swiglu", "relu2"), ("relu2", "swiglu")], ids=str)
@pytest.mark.parametrize("share", [None, 0.3, 0.0])
def test_another_activation_begins_as_the_identity(tiny: Tiny, ways: tuple[str, str], share: float | None) -> None:
    """Of feed-forwards that layers share, too, whose output matrix is of the same name, and here of the same shape."""
    shared = {} if share is None else {"shared_ffn": {"enabled": True, "private_share": share}}
    old, new = (tiny(model={"activation": activation, "ffn_size": 40}, **shared) for activation in ways)
    before, after, how = grown(old, new)
    assert places_kept(how) == {"0"} and not any("shared_ffn" in name for name in how.kept)
    quiet = {
        name: torch.zeros_like(value) for name, value in before.state_dict().items() if name.endswith(("1.unit.output.weight", "shared_ffn.output.weight"))
    }
    before.load_state_dict(quiet, strict=False)
    torch.testing.assert_close(after(tokens(31)).logits, before(tokens(31)).logits, rtol=1e-12, atol=1e-12)


def test_a_deeper_model_of_squared_relus_computes_the_same(tiny: Tiny) -> None:
    relu2 = {"activation": "relu2"}
    before, after, how = grown(tiny(model=relu2), tiny(model=relu2 | {"num_layers": 4}))
    assert how.new and not how.left and not how.grown
    torch.testing.assert_close(after(tokens(31)).logits, before(tokens(31)).logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared", [0, 1])
def test_experts_in_a_feed_forwards_place_begin_as_the_identity(tiny: Tiny, shared: int) -> None:
    """With what their routers know of the step before: nothing yet. What moves is the layer that becomes experts, and no other."""
    before, after, how = grown(tiny(), tiny(moe={"enabled": True, "layers": [1], "shared_experts": shared}))
    assert {name.rsplit(".", 2)[0] for name in how.new} == {name.rsplit(".", 2)[0] for name in how.new if name.startswith("model.layers.1.1.")}
    assert "model.layers.1.1.unit.bias" in how.new and "model.layers.1.1.unit.output.weight" in how.left
    before.layers[1][1].unit.output.weight.data.zero_()
    torch.testing.assert_close(after(tokens(31)).logits, before(tokens(31)).logits, rtol=1e-12, atol=1e-12)


def test_another_number_of_experts_begins_anew_and_the_same_number_is_kept_with_its_loads(tiny: Tiny) -> None:
    four, six = (tiny(moe={"enabled": True, "layers": [1], "experts": count, "expert_size": 8}) for count in (4, 6))
    _, _, how = grown(four, six)
    assert "model.layers.1.1.unit.gate_up.weight" in how.new and not how.grown
    before = Learner(build_model(four, V))
    before.model.after_step({"1.moe.load": torch.tensor([5.0, 1.0, 2.0, 0.0])})
    after = Learner(build_model(tiny(model={"num_layers": 3}, moe={"enabled": True, "layers": [1], "experts": 4, "expert_size": 8}), V))
    after.load_state_dict(fitted(after.state_dict(), before.state_dict(), fit(after.model, after.state_dict(), four, before.state_dict())), strict=False)
    assert torch.equal(after.model.layers[1][1].unit.share, torch.tensor([5, 1, 2, 0]) / 8) and after.model.layers[1][1].unit.bias.any()


def test_a_unit_that_moves_within_its_layer_is_kept(tiny: Tiny) -> None:
    """S5 in front of what was attention and is now Longformer, which sees as far here: the feed-forward stands one place further."""
    before, after, how = grown(tiny(), tiny(s5={"enabled": True, "layers": [0]}, longformer={"enabled": True, "layers": [0], "window": 64}))
    assert after.plan[0] == ("longformer", "s5", "swiglu") and how.left == []
    assert {name.split(".")[3] for name in how.new} == {"1"} and how.kept["model.layers.0.2.unit.output.weight"] == "model.layers.0.1.unit.output.weight"
    torch.testing.assert_close(after(tokens(31)).logits, before(tokens(31)).logits, rtol=1e-12, atol=1e-12)
    moments = fitted_moments({"model.layers.0.1.unit.output.weight/exp_avg": torch.ones(2, 3)}, how)
    assert list(moments) == ["model.layers.0.2.unit.output.weight/exp_avg"]


@pytest.mark.parametrize("mechanism", ["attention", "gla", "mamba2"])
def test_gates_that_come_change_nothing_and_those_that_go_leave_the_unit(tiny: Tiny, mechanism: str) -> None:
    sections = {} if mechanism == "attention" else {mechanism: {"enabled": True}}
    without, gates = tiny(**sections), {"head_gating": {"enabled": True}}
    before, after, how = grown(without, tiny(**sections, **gates))
    assert len(how.new) == 2 * 4 and all(".output.gate." in name for name in how.new) and not how.left and not how.grown
    assert torch.equal(after(tokens(31)).logits, before(tokens(31)).logits)
    _, _, back = grown(tiny(**sections, **gates), without)
    assert sorted(back.left) == sorted(how.new) and not back.new
    _, _, other = grown(tiny(**sections, **gates), tiny(**sections, head_gating={"enabled": True, "ffn_groups": 2}))
    assert other.new == other.left and all(".1.unit.output.gate." in name for name in other.new)


VALUED = {"num_layers": 3, "value_residual": True}


def test_values_of_the_first_attention_that_come_change_nothing_and_leave_the_units_when_they_go(tiny: Tiny) -> None:
    before, after, how = grown(tiny(model={"num_layers": 3}), tiny(model=VALUED))
    assert how.new == [f"model.layers.{layer}.0.unit.first_share" for layer in (1, 2)] and not how.left and not how.grown
    assert torch.equal(after(tokens(31)).logits, before(tokens(31)).logits)
    _, _, back = grown(tiny(model=VALUED), tiny(model={"num_layers": 3}))
    assert back.left == how.new and not back.new and not back.is_same_model


def test_a_deeper_model_with_values_of_the_first_attention_computes_the_same(tiny: Tiny) -> None:
    before, after, how = grown(tiny(model=VALUED), tiny(model=VALUED | {"num_layers": 5}))
    assert {name.split(".")[2] for name in how.new} == {"3", "4"} and not how.left
    assert torch.equal(after(tokens(31)).logits, before(tokens(31)).logits)


@pytest.mark.parametrize("layer", [0, 1])
def test_another_units_values_begin_to_be_mixed_anew(tiny: Tiny, layer: int) -> None:
    """Where the first attention gives way, shares that were learned for its values are not taken of what is the first now."""
    before, after, how = grown(tiny(model=VALUED), tiny(model=VALUED, s5={"enabled": True, "layers": [layer]}))
    mixing = "model.layers.2.0.unit.first_share"
    assert (mixing in how.new) == (layer == 0) and "model.layers.2.0.unit.query_key_value.weight" in how.kept
    for one in before.layers:
        if layer == 0 and one[0].unit.first_share is not None:
            one[0].unit.first_share.data.zero_()
    before.layers[layer][0].unit.output.weight.data.zero_()
    torch.testing.assert_close(after(tokens(31)).logits, before(tokens(31)).logits, rtol=1e-12, atol=1e-12)


def neighbours_of(preset: Preset) -> Neighbours:
    count, size, generator = preset.retro.num_neighbors, 2 * preset.retro.chunk_size, torch.Generator().manual_seed(2)
    tokens = torch.randint(V, (4, count, size), generator=generator)
    return Neighbours(torch.tensor([3, 9, 31, 50]), tokens, torch.randint(1, size, (4, count), generator=generator))


@pytest.mark.parametrize("mixer", ["attention", "s5"])
def test_neighbours_that_come_to_be_attended_to_change_nothing(tiny: Tiny, mixer: str) -> None:
    """Bit for bit, handed in or not; the feed-forwards stand one place further. And what it was remains when they are no more."""
    sections = {} if mixer == "attention" else {mixer: {"enabled": True}}
    new = tiny(**sections, retro={"enabled": True, "layers": "all", "chunk_size": 8})
    before, after, how = grown(tiny(**sections), new)
    assert after.plan == ((mixer, "retro", "swiglu"),) * 2 and not how.left and not how.grown
    assert {name.split(".")[3] if "layers" in name else name.split(".")[1] for name in how.new} == {"1", "neighbour_encoder"}
    logits = before(tokens(31)).logits
    assert all(torch.equal(after(tokens(31), None, Context(memory=memory)).logits, logits) for memory in (None, neighbours_of(new)))
    _, _, back = grown(new, tiny(**sections))
    assert sorted(back.left) == sorted(how.new) and not back.new


def test_a_memory_that_no_layer_attends_to_makes_no_other_model(tiny: Tiny) -> None:
    assert grown(tiny(), tiny(retro={"enabled": True, "add_cross_attention": False}))[2].is_whole


def test_more_layers_come_to_attend_to_neighbours_and_another_encoder_is_not_read(tiny: Tiny) -> None:
    """The encoder is the model's, whichever layers there are. With another one what was learned about the old one's vectors would be noise."""
    two, all_four = (tiny(model={"num_layers": 4}, retro={"enabled": True, "layers": layers, "chunk_size": 8}) for layers in ([1, 3], "all"))
    before, after, how = grown(two, all_four)
    assert not how.left and {name.split(".")[2] for name in how.new} == {"0", "2"}
    memory = neighbours_of(two)
    found, meant = (model(tokens(31), None, Context(memory=memory)).logits for model in (after, before))
    assert torch.equal(found, meant) and not torch.equal(found, before(tokens(31)).logits)
    before, after, how = grown(two, tiny(model={"num_layers": 4}, retro={"enabled": True, "layers": [1, 3], "chunk_size": 8, "encoder_layers": 3}))
    assert {name.split(".")[3] for name in how.new if "layers" in name} == {"1"}
    assert torch.equal(after(tokens(31), None, Context(memory=memory)).logits, before(tokens(31)).logits)


@pytest.mark.parametrize("share", [0.125, 0.0])
def test_a_deeper_model_that_shares_its_feed_forward_computes_the_same(tiny: Tiny, share: float) -> None:
    shared = {"enabled": True, "private_share": share}
    before, after, how = grown(tiny(shared_ffn=shared), tiny(model={"num_layers": 4}, shared_ffn=shared))
    assert "model.shared_ffn.output.weight" in how.kept and not how.left
    torch.testing.assert_close(after(tokens(31)).logits, before(tokens(31)).logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", [0.125, 0.0])
def test_a_feed_forward_that_is_shared_from_now_on_begins_as_the_identity(tiny: Tiny, share: float) -> None:
    before, after, how = grown(tiny(), tiny(shared_ffn={"enabled": True, "private_share": share}))
    assert places_kept(how) == {"0"} and "model.layers.1.1.norm.weight" in how.new
    for layer in before.layers:
        layer[1].unit.output.weight.data.zero_()
    torch.testing.assert_close(after(tokens(31)).logits, before(tokens(31)).logits, rtol=1e-12, atol=1e-12)


def test_who_reads_what_is_shared_is_not_kept_without_it(tiny: Tiny) -> None:
    """The shared part of another width: scales that were learned for the old one would let the new one through. The same of keys."""
    old = tiny(shared_ffn={"enabled": True, "private_share": 0.0})
    _, _, how = grown(old, tiny(shared_ffn={"enabled": True, "private_share": 0.0}, model={"ffn_size": 64}))
    assert places_kept(how) == {"0"} and "model.shared_ffn.output.weight" in how.new
    deep = {"num_layers": 4}
    four, three = (tiny(model=deep, shared_attention={"enabled": True, "layers": layers}) for layers in ([0, 1, 2, 3], [1, 2, 3]))
    before, after, how = grown(four, three)
    assert places_kept(how) == {"1"}
    for layer in before.layers:
        layer[0].unit.output.weight.data.zero_()
    torch.testing.assert_close(after(tokens(31)).logits, before(tokens(31)).logits, rtol=1e-12, atol=1e-12)
    before, after, how = grown(three, tiny(model={"num_layers": 5}, shared_attention={"enabled": True, "layers": [1, 2, 3, 4]}))
    assert {name.split(".")[2] for name in how.new} == {"4"} and not how.left
    torch.testing.assert_close(after(tokens(31)).logits, before(tokens(31)).logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "sections",
    [
        {"longformer": {"enabled": True, "window": 16}},
        {"model": {"rope_theta": 500.0}},
        {"model": {"position_interpolation": 2.0, "position_interpolation_layers": "odd"}},
        {"model": {"num_heads": 4, "qk_norm": False}},
        {"model": {"norm_eps": 1e-3}},
        {"model": {"logit_soft_cap": 3.0}},
    ],
    ids=str,
)
def test_the_same_tensors_may_be_another_model(tiny: Tiny, sections: dict[str, Any]) -> None:
    same = {"qk_norm": False} if "qk_norm" in sections.get("model", {}) else {}  # whose norms have a shape that follows from the heads
    before, after, how = grown(tiny(model=same), tiny(**sections))
    assert not (how.grown or how.new or how.left) and how.otherwise and not how.is_whole
    assert (after(tokens(31)).logits - before(tokens(31)).logits).abs().max() > 1e-6


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"seq_length": 128, "ffn_size": 96, "num_kv_heads": 2}},
        {"longformer": {"enabled": False, "window": 16}},
        {"s5": {"enabled": True, "dt_min": 0.01, "blocks": 2}},
        {"hyena": {"enabled": True, "filter_length": 64}},
        {"moe": {"enabled": True, "bias_rate": 0.5, "z_weight": 0.0}},
        {"auxiliary": {"value_weight": 0.5}},
        {"shared_ffn": {"enabled": True}, "shared_attention": {"enabled": True}, "head_gating": {"enabled": True}},
    ],
    ids=str,
)
def test_what_makes_no_other_model(tiny: Tiny, sections: dict[str, Any]) -> None:
    """Defaults written out, switches of what is off or of first weights, longer rows."""
    on = {name: {"enabled": True} for name, section in sections.items() if section.get("enabled")}
    before, after, how = grown(tiny(**on), tiny(**sections))
    assert how.is_whole
    torch.testing.assert_close(after(tokens(31)).logits, before(tokens(31)).logits, rtol=0, atol=0)


def test_what_can_not_become_ours_is_left(tiny: Tiny) -> None:
    before, after, how = grown(tiny(), tiny(model={"hidden_size": 48}))
    assert not how.kept or all(before.state_dict()[n.removeprefix("model.")].shape == after.state_dict()[n.removeprefix("model.")].shape for n in how.kept)
    assert how.new and how.left and not how.is_whole
    shallower = grown(tiny(), tiny(model={"num_layers": 1}))[2]
    assert shallower.left and not shallower.new


def test_moments_of_grown_tables_grow_with_nothing(tiny: Tiny) -> None:
    preset = tiny(model={"position": "learned", "seq_length": 16})
    how = grown(preset, tiny(model={"position": "learned", "seq_length": 20}))[2]
    steps = {f"model.{name}.weight/step": torch.tensor(3.0) for name in ("positions", "norm")}
    moments = steps | {"model.positions.weight/exp_avg": torch.ones(16, 32)}
    found = fitted_moments(moments, how)
    assert found["model.positions.weight/exp_avg"].shape == (20, 32)
    assert found["model.positions.weight/exp_avg"][16:].abs().sum() == 0
    assert found["model.positions.weight/step"] == found["model.norm.weight/step"] == 3


def test_a_life_goes_on_in_a_larger_model(tiny: Tiny, tmp_path: Path) -> None:
    """Two runs, the second deeper: said, archived, kept moments, and no jump in the loss."""
    events: list[Any] = []
    train(tiny(), tmp_path, budget_tokens=80 * 256)
    old = Snapshots(tmp_path).read("current")
    train(tiny(model={"num_layers": 4}), tmp_path, budget_tokens=81 * 256, observers=(events.append,))
    notices = [event["text"] for event in events if event["event"] == "notice"]
    assert any("tensors kept, 0 grown" in line for line in notices)
    assert next(event for event in events if event["event"] == "resume")["exact"] is False
    (archived,) = (tmp_path / "archive").glob("before-*.pth")
    assert any(line.endswith(f"; as it was it stays in {archived}") for line in notices)
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert losses[0] < old.certificate["probe_loss"] + 1.5
    assert Snapshots(tmp_path).read("current").life["tokens"] > old.life["tokens"]

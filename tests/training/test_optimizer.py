"""Each parameter has one optimizer; Muon's step; what is remembered when the optimizer becomes another."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from data_sources import Batch
from data_sources.packed import Rows
from lm.auxiliary.heads import build_heads
from lm.model import build_model
from lm.preset import Preset, load_preset
from lm.preset.training import TrainConfig
from lm.training.distribution import Ranks
from lm.training.learner import Learner
from lm.training.muon import Muon, orthogonal
from lm.training.optimizer import Optimizer, build_optimizer, layer_matrices, rate_shares
from lm.training.snapshots import Snapshots
from lm.training.step import Teacher
from tests.training.test_run import Tiny, trained

JOINED = {
    "model": {"hidden_size": 64, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2},
    "deltanet": {"enabled": True, "layers": [1], "value_size": 24},
    "mamba2": {"enabled": True, "layers": [2], "state_size": 24},
    "moe": {"enabled": True, "layers": [1, 2], "experts": 4, "experts_per_token": 1, "shared_experts": 1},
}
SHIPPED = sorted(Path("configs").glob("[0-9]*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_muon_takes_the_maps_of_layers_and_nothing_that_names_words_or_chooses(path: Path) -> None:
    with torch.device("meta"):
        learner = Learner(build_model(load_preset(path), 300))
        optimizer = build_optimizer(learner, TrainConfig(optimizer="muon"))
    names = {parameter: name for name, parameter in learner.named_parameters()}
    muon, adamw = ({names[p] for group in part.param_groups for p in group["params"]} for part in optimizer.parts)
    assert muon | adamw == set(names.values()) and not muon & adamw
    assert not any("router" in name or "embedding" in name or name == "model.output.weight" for name in muon)
    in_layers = sum(learner.get_parameter(name).numel() for name in names.values() if name.startswith("model.layers."))
    assert sum(learner.get_parameter(name).numel() for name in muon) > 0.9 * in_layers, "most of what layers hold"


def test_a_parameter_without_an_optimizer_or_with_two_is_a_fault() -> None:
    module = nn.Linear(3, 3)
    weight = torch.optim.AdamW([module.weight])
    with pytest.raises(AssertionError, match="a parameter without an optimizer, or with two"):
        Optimizer(module, weight)
    with pytest.raises(AssertionError, match="a parameter without an optimizer, or with two"):
        Optimizer(module, weight, torch.optim.AdamW(module.parameters()))


def test_a_step_of_muon_is_the_nearest_orthogonal_matrix_as_long_as_a_step_of_adamw() -> None:
    """Against the singular value decomposition (Jordan et al. 2024): its Newton-Schulz steps bring singular values near one, from 0.7 to 1.2."""
    torch.manual_seed(0)
    learner = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(48, 32, bias=False)])})
    optimizer = build_optimizer(learner, TrainConfig(optimizer="muon", weight_decay=0.0, learning_rate=0.01))
    weight = learner["layers"][0].weight
    assert dict(layer_matrices(learner)) == {weight: (32,)}
    before = weight.detach().clone()
    weight.grad = torch.randn(32, 48)
    left, _, right = torch.linalg.svd(weight.grad, full_matrices=False)
    optimizer.step()
    moved = (before - weight.detach()) / (0.01 * 0.2 * 48**0.5)
    values = torch.linalg.svdvals(moved)
    assert values.min() > 0.6 and values.max() < 1.3, values
    along = (left.mT @ moved @ right.mT).diagonal()
    assert torch.nn.functional.cosine_similarity(along, values.sort(descending=True).values, dim=0) > 0.95
    assert moved.square().mean().sqrt() * 0.2 * 48**0.5 == pytest.approx(0.2, rel=0.2), "the root mean square of AdamW's steps"


def test_a_run_in_bfloat16_makes_steps_orthogonal_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And moves by nearly the same; what is remembered stays in the parameters' own dtype."""
    dtypes, moved = [], []
    monkeypatch.setattr("lm.training.muon.orthogonal", lambda matrices: (dtypes.append(matrices.dtype), orthogonal(matrices))[1])
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        learner = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(48, 32, bias=False)])})
        optimizer = build_optimizer(learner, TrainConfig(optimizer="muon", weight_decay=0.0, learning_rate=0.01), precision)
        weight = learner["layers"][0].weight
        before = weight.detach().clone()
        weight.grad = torch.randn(32, 48)
        optimizer.step()
        moved.append(weight.detach() - before)
        assert optimizer.moments(weight)["momentum_buffer"].dtype == torch.float32
    assert dtypes == [torch.float32, torch.bfloat16]
    assert 0 < (moved[0] - moved[1]).norm() < 0.05 * moved[0].norm()


def stepped(weight: torch.Tensor, gradients: list[torch.Tensor], rows: tuple[int, ...] | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
    """`weight` after a step of our Muon for each of `gradients`."""
    parameter = nn.Parameter(weight.clone())
    muon = Muon([{"params": [parameter], "lr": 0.003, "weight_decay": 0.1}], 0.9, {parameter: rows} if rows else {}, dtype)
    for gradient in gradients:
        parameter.grad = gradient
        muon.step()
    assert muon.state[parameter].keys() == {"momentum_buffer"} and muon.state[parameter]["momentum_buffer"].shape == weight.shape
    return parameter.detach()


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_a_plain_matrix_moves_as_by_torchs_muon(shape: tuple[int, int]) -> None:
    """Which makes its steps orthogonal in bfloat16."""
    torch.manual_seed(0)
    weight, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    theirs = nn.Parameter(weight.clone())
    muon = torch.optim.Muon([theirs], lr=0.003, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        theirs.grad = gradient
        muon.step()
    assert (stepped(weight, gradients, dtype=torch.bfloat16) - theirs).abs().max() < 1e-6
    assert 1e-6 < (stepped(weight, gradients) - theirs).abs().max() < 1e-4, "in float32 but for what bfloat16 rounds"


def test_stacked_and_joined_matrices_move_each_by_itself() -> None:
    torch.manual_seed(0)
    weight, gradients = torch.randn(3, 30, 20), [torch.randn(3, 30, 20) for _ in range(2)]
    moved = stepped(weight, gradients, (18, 7, 5))
    for expert in range(3):
        for begin, end in ((0, 18), (18, 25), (25, 30)):
            alone = stepped(weight[expert, begin:end], [gradient[expert, begin:end] for gradient in gradients])
            assert torch.allclose(moved[expert, begin:end], alone, atol=1e-7)
    assert not torch.allclose(moved, stepped(weight, gradients), atol=1e-5), "as one matrix they move otherwise"


def test_a_step_of_muon_asks_nothing_of_the_device() -> None:
    """On one of tensors that have shapes and no values, for matrices alone, joined and stacked."""
    parameters = [torch.nn.Parameter(torch.empty(*shape, device="meta")) for shape in ((24, 16), (48, 16), (3, 24, 16))]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    Muon([{"params": parameters, "lr": 0.1, "weight_decay": 0.1}], 0.95, {parameters[1]: (24, 24)}).step()


def test_joined_maps_are_named_as_they_are_computed() -> None:
    """What each unit takes apart is what Muon takes apart."""
    with torch.device("meta"):
        learner = Learner(build_model(Preset.model_validate({**JOINED, "data": {"sources": ["wikipedia"]}}), 300))
    names = {parameter: name.removeprefix("model.layers.").removesuffix(".weight") for name, parameter in learner.named_parameters()}
    joined = {names[weight]: rows for weight, rows in layer_matrices(learner) if len(rows) > 1}
    assert joined == {
        "0.0.unit.query_key_value": (64, 32, 32),
        "0.1.unit.gate_up": (192, 192),
        "1.0.unit.streams": (64, 64, 96),
        "2.0.unit.input": (128, 128, 24, 24, 8),
    } | {f"{layer}.1.unit.{name}": (96, 96) for layer in (1, 2) for name in ("gate_up", "shared_gate_up")}


def test_another_optimizer_keeps_what_both_remember(tiny: Tiny, tmp_path: Path) -> None:
    first = trained(tiny(), tmp_path, 6, stop_after=3)
    before = Snapshots(tmp_path).read("current").optimizer
    second = trained(tiny(train={"optimizer": "muon"}), tmp_path, 6, stop_after=1)
    after = Snapshots(tmp_path).read("current").optimizer
    assert not any("muon" in event["text"] for event in first.of("notice"))
    assert any("the optimizer was adamw and is muon" in event["text"] for event in second.of("notice"))
    assert not second.of("resume")[0]["exact"]
    assert before["model.embedding.weight/step"].item() == 3 and after["model.embedding.weight/step"].item() == 4
    changed = [path for path in after if path.endswith("/momentum_buffer")]
    assert changed and all(f"{path.rsplit('/', 1)[0]}/exp_avg" in before for path in changed)
    assert not any(f"{path.rsplit('/', 1)[0]}/exp_avg" in after for path in changed)


# One learning rate for all widths.

V, ROW, STEPS = 61, 32, 12


def of_width(width: int, **train: object) -> Preset:
    model = {"hidden_size": width, "num_layers": 2, "num_heads": width // 16, "seq_length": ROW}
    switches = {"learning_rate": 0.002, "warmup_share": 0.0, "decay_share": 0.0, "precision": "float32"} | train
    return Preset.model_validate({"model": model, "train": switches, "data": {"sources": ["wikipedia"]}})


@cache
def written(width: int, optimizer: str, base_width: int | None) -> dict[str, float]:
    """Root mean square of what each unit writes after a few steps: the coordinate check of Yang et al. 2022."""
    preset = of_width(width, optimizer=optimizer, base_width=base_width, learning_rate={"adamw": 0.002, "muon": 0.01}[optimizer])
    torch.manual_seed(0)
    learner = Learner(build_model(preset, V))
    teacher = Teacher(Ranks(preset.train), learner, build_optimizer(learner, preset.train), preset.train, {})
    tokens = torch.randint(V, (STEPS + 1, 8, ROW), generator=torch.Generator().manual_seed(1))
    found: dict[str, float] = {}

    def note(name: str) -> None:
        learner.get_submodule(name).register_forward_hook(lambda *given: found.__setitem__(name, given[-1].y.detach().square().mean().sqrt().item()))

    with torch.no_grad():
        for number, read in enumerate(tokens[:-1]):
            nothing, numbers = torch.zeros_like(read), torch.arange(len(read))
            rows = Rows(*(part.numpy() for part in (read, (read * 7 + 3) % V, nothing.bool(), nothing, numbers)))
            with torch.enable_grad():
                teacher.step(Batch.of(rows), 1, number * read.numel(), 10**9)
        for layer in range(2):
            for place in range(2):
                note(f"model.layers.{layer}.{place}.unit")
        learner.model(tokens[-1])
    return found


def drift(optimizer: str, base_width: int | None) -> float:
    """How many times as much a unit writes at one width as at another, of the unit that does most so."""
    by_width = [written(width, optimizer, base_width) for width in (32, 64, 128)]
    return max(max(each) / min(each) for each in zip(*(found.values() for found in by_width), strict=True))


@pytest.mark.parametrize(("optimizer", "most"), [("adamw", 1.5), ("muon", 1.7)])
def test_what_layers_write_after_some_steps_is_the_same_at_any_width(optimizer: str, most: float) -> None:
    """Muon's steps are short beside first weights, whose products grow with the width a little while they last."""
    assert drift(optimizer, 32) < most
    assert drift(optimizer, None) > 3, "one rate for all matrices is another at each width"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_matrices_learn_the_slower_the_more_they_add_up(path: Path) -> None:
    """Against the shapes of the same model four times as wide: what grew is what is shared by."""
    small, large = (grown(path, factor) for factor in (1, 4))
    shares = rate_shares(large, small.model.embedding.embedding_dim)
    assert shares[large.model.embedding.weight] == 0.5, "both read and written with"
    for name, part in small.named_modules():
        if isinstance(part, nn.Linear):
            growth = large.get_submodule(name).in_features / part.in_features
            wanted = growth**-0.5 if ".router." in name and "moe" not in path.stem else 1 / growth
            assert shares[large.get_submodule(name).weight] == pytest.approx(wanted, rel=0.05), name
    steady = {name for name, parameter in large.named_parameters() if parameter.ndim >= 2 and shares[parameter] == 1}
    alike = {name for name in steady if small.get_parameter(name).shape[-1] == large.get_parameter(name).shape[-1]}
    assert all(name.endswith(("mix_up", "positions.weight", "places.weight")) for name in steady - alike)


def grown(path: Path, factor: int) -> Learner:
    """The model of a preset with its heads, `factor` times as wide, its own attention heads as wide as they were."""
    preset = load_preset(path)
    sizes = {"hidden_size": factor * preset.model.hidden_size, "num_heads": factor * preset.model.num_heads}
    with torch.device("meta"):
        wider = preset.model_copy(update={"model": preset.model.model_copy(update=sizes)})
        return Learner(build_model(wider, 300), build_heads(wider, 0))


def test_groups_learn_at_their_share_and_decay_as_slowly() -> None:
    """A wide model of which nothing but the decay moves: each matrix loses the same part of itself, whatever its share of the rate."""
    preset = of_width(64, base_width=16, learning_rate=0.01, weight_decay=0.5)
    learner = Learner(build_model(preset, V))
    optimizer = build_optimizer(learner, preset.train)
    assert {group["scale"] for group in optimizer.param_groups} == {0.25, 0.5, 1.0}
    assert all(group["lr"] == 0.01 * group["scale"] for group in optimizer.param_groups)
    before = {name: parameter.detach().clone() for name, parameter in learner.named_parameters()}
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in learner.named_parameters():
        assert torch.allclose(parameter, before[name] * (1 - 0.01 * 0.5 * (parameter.ndim >= 2)), rtol=1e-6), name


def test_another_base_width_goes_on_and_is_told(tiny: Tiny, tmp_path: Path) -> None:
    """Also in a model that is as it was but for its width: what fits is kept, and its own share holds."""
    trained(tiny(), tmp_path, 60, stop_after=3)
    narrow = trained(tiny(train={"base_width": 16}), tmp_path, 60, stop_after=2)
    (resume,) = narrow.of("resume")
    assert resume["differs"] == ["train.base_width was None and is 16"] and not resume["exact"]
    assert Snapshots(tmp_path).read("current").optimizer["model.embedding.weight/step"].item() == 5, "with its moments"
    assert trained(tiny(train={"base_width": 16}), tmp_path, 60, stop_after=1).of("resume")[0]["exact"]
    wide = trained(tiny(model={"hidden_size": 64}, train={"base_width": 16}), tmp_path, 60, stop_after=2)
    assert len(wide.of("step")) == 2 and any("new" in event["text"] for event in wide.of("notice"))
    assert {event["learning_rate"] for event in wide.of("step")} == {event["learning_rate"] for event in narrow.of("step")}, (
        "the rate is told as the preset has it"
    )

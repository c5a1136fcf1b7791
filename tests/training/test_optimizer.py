"""Each parameter has one optimizer; Muon's step; what is remembered when the optimizer becomes another."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lm.model import build_model
from lm.preset import load_preset
from lm.preset.training import TrainConfig
from lm.training.learner import Learner
from lm.training.optimizer import Optimizer, build_optimizer, layer_matrices
from lm.training.snapshots import Snapshots
from tests.training.test_run import Tiny, trained

SHIPPED = sorted(Path("configs").glob("[0-9]*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_muon_takes_the_maps_of_layers_and_nothing_that_names_words_or_chooses(path: Path) -> None:
    with torch.device("meta"):
        learner = Learner(build_model(load_preset(path), 300))
        optimizer = build_optimizer(learner, TrainConfig(optimizer="muon"))
    names = {parameter: name for name, parameter in learner.named_parameters()}
    muon, adamw = ({names[p] for group in part.param_groups for p in group["params"]} for part in optimizer.parts)
    assert muon | adamw == set(names.values()) and not muon & adamw
    assert all(learner.get_parameter(name).ndim == 2 for name in muon)
    assert not any("router" in name or "embedding" in name or name == "model.output.weight" for name in muon)
    in_layers = sum(learner.get_parameter(name).numel() for name in names.values() if name.startswith("model.layers."))
    experts = sum(p.numel() for name, p in learner.named_parameters() if p.ndim == 3)
    assert sum(learner.get_parameter(name).numel() for name in muon) > 0.9 * (in_layers - experts), "most of what layers hold"


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
    assert list(layer_matrices(learner)) == [weight]
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

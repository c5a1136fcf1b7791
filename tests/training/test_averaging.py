"""The average of the weights: what it is by its definition, who uses it, and how it goes through stops, changes and processes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lm.app.partner import awoken
from lm.generation import generate
from lm.preset import Preset, count_parameters
from lm.training.averaging import Average
from lm.training.evaluation import evaluate
from lm.training.forecast import too_large
from lm.training.session import SAMPLE_TOKENS, Session
from lm.training.snapshot_evaluation import evaluate_snapshot, held_out_texts
from lm.training.snapshots import Snapshots
from lm.training.step import Teacher
from lm.training.tensorboard import curves
from tests.training.elastic import taken_over
from tests.training.test_run import STEP, poison, trained

Tiny = Callable[..., Preset]
HALF_LIFE = 5 * STEP
AVERAGED = {"average_tokens": HALF_LIFE}
RARELY = {"snapshot_every_minutes": 1000, "sample_every_tokens": 6 * STEP}


def test_it_is_the_mean_in_which_old_weights_count_less() -> None:
    """A token read so long ago counts half, whatever the sizes of steps; what stood there at first counts nothing, and shares add up to 1."""
    module = nn.Linear(3, 2).double()
    average, steps, drawn = Average(module, 100), [7, 7, 7, 250, 1, 30], torch.Generator().manual_seed(0)
    seen = []
    for number, tokens in enumerate(steps):
        for parameter in module.parameters():
            parameter.data.normal_(generator=drawn)
        average.follow(tokens)
        seen.append(module.weight.detach().clone())
        ages = [sum(steps[at + 1 : number + 1]) for at in range(number + 1)]  # of the newest token of each step
        counts = [2 ** (-age / 100) - 2 ** (-(age + size) / 100) for age, size in zip(ages, steps, strict=False)]
        expected = sum(count * weight for count, weight in zip(counts, seen, strict=True)) / sum(counts)
        torch.testing.assert_close(average.tensors()["weight"], expected, rtol=1e-12, atol=1e-12)
    assert not torch.equal(average.tensors()["weight"], module.weight)
    with average.in_place():
        torch.testing.assert_close(module.weight, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(module.weight, seen[-1])


def test_it_comes_back_when_what_is_done_with_it_fails() -> None:
    module = nn.Linear(3, 2)
    average, before = Average(module, 100), module.weight.detach().clone()
    module.weight.data.zero_()
    with pytest.raises(KeyboardInterrupt), average.in_place():
        assert torch.equal(module.weight, before)
        raise KeyboardInterrupt
    assert not module.weight.any()


@pytest.fixture(scope="module")
def followed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[dict[str, Tensor]]]:
    """A run of experts and a head with an average: its folder, what was told, and the weights after each step, of which the fourth was not sound."""
    folder, states = tmp_path_factory.mktemp("followed"), []
    with pytest.MonkeyPatch.context() as patched:
        honest = Teacher.step

        def noting(self: Teacher, *given: Any) -> Any:
            step = honest(self, *given)
            states.append({name: tensor.detach().clone() for name, tensor in self.alone.state_dict().items()})
            return step

        patched.setattr(Teacher, "step", noting)
        poison(patched, {4})
        recorder = trained(preset_over(corpus), folder, 12)
    return folder, recorder, states


def preset_over(corpus: Path) -> Preset:
    return Preset.model_validate(
        {
            "name": "tiny",
            "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "seq_length": 64},
            "moe": {"enabled": True, "experts": 4},
            "auxiliary": {"enable_value": True},
            "train": {"per_gpu_batch_size": 4, "learning_rate": 0.01, "precision": "float32", **RARELY, **AVERAGED},
            "data": {"sources": [{"type": "files", "name": "reference", "path": str(corpus), "repeat": True}], "vocab_size": 500},
        }
    )


def test_a_snapshot_has_the_average_over_its_steps(followed: tuple[Path, Any, list[dict[str, Tensor]]]) -> None:
    """Of every parameter, heads' too; a step that was not sound moved nothing, and buffers are those of the weights."""
    folder, recorder, states = followed
    snapshot = Snapshots(folder).read("current")
    assert [event["skipped"] for event in recorder.of("step")] == [0, 0, 0, *[1] * 9]
    sound = [state for number, state in enumerate(states) if number != 3]
    counts = [2 ** (-age * STEP / HALF_LIFE) for age in reversed(range(len(sound)))]
    assert snapshot.run["averaged"] == 11 * STEP
    for name, averaged in snapshot.average.items():
        expected = sum(count * state[name].double() for count, state in zip(counts, sound, strict=True)) / sum(counts)
        torch.testing.assert_close(averaged, expected.float(), rtol=1e-5, atol=1e-7)
    buffers = snapshot.weights.keys() - snapshot.average.keys()
    assert {name.split(".")[-1] for name in buffers} >= {"bias", "share"} and any(name.startswith("heads.value") for name in buffers)
    assert any(name.startswith("heads.value") for name in snapshot.average)
    for name in snapshot.weights:
        part, inner = name.split(".", 1)
        used = (snapshot.model_weights if part == "model" else snapshot.head_weights)[inner]
        assert torch.equal(used, snapshot.weights[name] if name in buffers else snapshot.average[name])
        assert torch.equal(snapshot.weights[name], states[-1][name]), "what is trained is not touched"


def test_the_average_is_what_is_used_and_both_are_measured(followed: tuple[Path, Any, list[dict[str, Tensor]]]) -> None:
    folder, recorder, _ = followed
    snapshot, (told,) = Snapshots(folder).read("current"), recorder.of("evaluation")
    partner, texts = awoken(snapshot, folder), held_out_texts(folder)
    used = evaluate(partner.model, partner.tokenizer, texts, snapshot.preset)
    assert all(torch.equal(tensor, snapshot.model_weights[name]) for name, tensor in partner.model.state_dict().items())
    assert all(torch.equal(tensor, snapshot.head_weights[name]) for name, tensor in partner.heads.state_dict().items())
    partner.model.load_state_dict(snapshot.trained_weights)
    trained_measures = evaluate(partner.model, partner.tokenizer, texts, snapshot.preset)
    assert abs(used["cross_entropy"] - trained_measures["cross_entropy"]) > 1e-3
    for found in (told, evaluate_snapshot(folder)):
        assert found["cross_entropy"] == pytest.approx(used["cross_entropy"], rel=1e-5)
        assert found["sources"]["reference"]["cross_entropy"] == pytest.approx(used["cross_entropy"], rel=1e-5)
        assert found["without_average"]["cross_entropy"] == pytest.approx(trained_measures["cross_entropy"], rel=1e-5)
        assert found["without_average"].keys() == trained_measures.keys() - {"sources"}
    assert curves(told)["held_out/without_average/cross_entropy"] == told["without_average"]["cross_entropy"]
    last = snapshot.life["measured"]["full"]["reference"]["now"]
    assert last == told["bits_per_byte"] != told["without_average"]["bits_per_byte"]


def test_a_sample_is_the_averages(followed: tuple[Path, Any, list[dict[str, Tensor]]]) -> None:
    folder, recorder, _ = followed
    snapshot, sample = Snapshots(folder).read("current"), recorder.of("sample")[-1]
    assert sample["tokens"] == 12 * STEP
    partner = awoken(snapshot, folder)
    settings = snapshot.preset.generation.model_copy(update={"max_new_tokens": SAMPLE_TOKENS})

    def written() -> str:
        return "".join(generate(partner.model, partner.tokenizer, sample["prompt"], settings, seed=12 * STEP, heads=partner.heads))

    assert written() == sample["text"]
    partner.model.load_state_dict(snapshot.trained_weights)
    assert written() != sample["text"]


def test_it_changes_nothing_that_is_learned(tiny: Tiny, tmp_path: Path) -> None:
    busy = {"evaluate_every_tokens": 3 * STEP, "sample_every_tokens": 2 * STEP}
    one, other = (trained(tiny(train=busy | switch), tmp_path / name, 5) for name, switch in (("plain", {}), ("averaged", AVERAGED)))
    assert [step["loss"] for step in one.of("step")] == [step["loss"] for step in other.of("step")]
    assert "without_average" not in one.of("evaluation")[-1]
    plain, averaged = (Snapshots(tmp_path / name).read("current") for name in ("plain", "averaged"))
    assert same(plain.weights, averaged.weights) and not plain.average and plain.run["averaged"] is None


def test_an_old_life_gets_one_and_loses_it_again(tiny: Tiny, tmp_path: Path) -> None:
    trained(tiny(), tmp_path, 40, stop_after=5)
    begun: list[dict[str, Tensor]] = []
    honest = Session.__post_init__

    def noting(self: Session) -> None:
        honest(self)
        begun.append({name: tensor.clone() for name, tensor in self.run.average.tensors().items()} if self.run.average else {})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Session, "__post_init__", noting)
        before = Snapshots(tmp_path).read("current")
        got = trained(tiny(train=AVERAGED), tmp_path, 40, stop_after=3)
        assert same(begun[0], before.weights) and got.of("resume")[0]["exact"]
        averaged = Snapshots(tmp_path).read("current")
        assert averaged.run["averaged"] == 3 * STEP and not same(averaged.average, averaged.weights)
        grown = trained(tiny(train=AVERAGED, model={"num_layers": 3}), tmp_path, 40, stop_after=1)
        assert ["of another model: a new one begins" in event["text"] for event in grown.of("notice")] == [False, True]
        assert not [event for event in got.of("notice") if "average" in event["text"]]
        assert begun[1].keys() > averaged.average.keys(), "another model begins another average"
        assert all(torch.equal(begun[1][name], tensor) for name, tensor in averaged.weights.items())
        lost = trained(tiny(model={"num_layers": 3}), tmp_path, 40, stop_after=3)
    after = Snapshots(tmp_path).read("current")
    assert lost.of("resume")[0]["exact"] and not after.average and begun[2] == {} and same(after.model_weights, after.trained_weights)


def test_a_model_with_an_average_needs_more_memory(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    count = count_parameters(tiny(), 500)

    def fits(preset: Preset, bytes_there: int) -> bool:
        monkeypatch.setattr("lm.training.forecast.memory_of", lambda device: (bytes_there, bytes_there))
        return not too_large(preset, 500, torch.device("cpu"))

    assert [fits(tiny(), 28 * count.total), fits(tiny(train=AVERAGED), 36 * count.total)] == [True, True]
    assert [fits(tiny(), 28 * count.total - 1), fits(tiny(train=AVERAGED), 36 * count.total - 1)] == [False, False]


@pytest.mark.slow
def test_two_processes_go_on_with_it(tiny: Tiny, tmp_path: Path) -> None:
    preset = tiny(train=AVERAGED)
    trained(preset, tmp_path / "whole", 30)
    trained(preset, tmp_path / "moved", 30, stop_after=13)
    taken_over(2, preset, tmp_path, tmp_path / "moved", 30 * STEP, 100)
    whole, moved = (Snapshots(tmp_path / name).read("current") for name in ("whole", "moved"))
    assert whole.run == moved.run and whole.run["averaged"] == 30 * STEP
    for name in whole.average:
        torch.testing.assert_close(moved.average[name], whole.average[name], rtol=1e-3, atol=1e-4)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

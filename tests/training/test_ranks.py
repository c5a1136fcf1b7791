"""Two processes, as under torchrun, against one: the same gradients, the same run, and no rank left waiting."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lm.preset import Preset
from lm.training import train
from lm.training.distribution import Ranks
from tests.loopback_hub import Answer, LoopbackHub, make_dataset
from tests.training.ranks import gradients, nats, part_of, rows, sharing
from tests.training.two_ranks import run_on_two_ranks

CALM = 0.001  # a learning rate at which AdamW and Muon do not enlarge what comes of summing in another order; 0.01 makes 1e-3 of it in 24 steps


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> tuple[Path, Preset]:
    """What tests/training/ranks.py left behind when two processes ran it."""
    folder = tmp_path_factory.mktemp("two")
    raw = {
        "name": "tiny",
        "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "seq_length": 64},
        "train": {"per_gpu_batch_size": 2, "learning_rate": CALM, "evaluate_every_tokens": 2000, "precision": "float32", "optimizer": "muon"},
        "data": {"sources": [{"type": "files", "name": "reference", "path": str(corpus), "repeat": True}], "vocab_size": 500},
    }
    (folder / "preset.json").write_text(json.dumps(raw), encoding="utf-8")
    remote = {"type": "hf", "name": "remote", "dataset": "some/words"}
    (folder / "remote.json").write_text(json.dumps(raw | {"data": raw["data"] | {"sources": [*raw["data"]["sources"], remote]}}), encoding="utf-8")
    make_dataset(folder / "hub", "some/words", [{"text": "Some words."}])

    def fault(answer: Answer, path: str) -> bool:
        if path == "/api/datasets/some/words" or "some/words" not in path:
            return False
        if not (folder / "asked").exists():
            (folder / "asked").touch()
        answer.stall(60)
        return True

    with LoopbackHub(folder / "hub", fault) as hub:
        run_on_two_ranks("tests.training.ranks", folder, HF_ENDPOINT=hub.endpoint, HF_HOME=str(folder / "home"))
    return folder, Preset.model_validate(raw)


def test_gradients_do_not_depend_on_the_number_of_ranks_or_micro_batches(two: tuple[Path, Preset]) -> None:
    """1 rank x 8 rows = 2 ranks x 4 rows = 2 ranks x 2 micro-batches of 2 rows = 1 rank x 8 micro-batches."""
    folder, preset = two
    found = torch.load(folder / "gradients.pt")
    alone = Ranks(preset.train)
    whole = gradients(preset, rows(), 8, alone)
    close(found["full"], whole)
    close(found["full, accumulated"], whole)
    close(gradients(preset, rows(), 1, alone), whole)
    assert all(bool(gradient.abs().sum() > 0) for gradient in whole.values())


def test_what_is_read_again_costs_as_much_on_any_number_of_ranks(two: tuple[Path, Preset]) -> None:
    """And where one of them has no memory for it, all of them know nothing."""
    folder, preset = two
    found, none = torch.load(folder / "gradients.pt")["nats"]
    whole = nats(preset, rows(), 8, Ranks(preset.train))
    assert found == pytest.approx(whole, rel=1e-5) and whole[1] == rows().valid and whole[0] > 0
    assert none == (0.0, 0.0)


def test_gradients_of_what_layers_share_are_those_of_one_rank(two: tuple[Path, Preset]) -> None:
    folder, preset = two
    whole = gradients(sharing(preset), rows(), 8, Ranks(preset.train))
    close(torch.load(folder / "gradients.pt")["shared"], whole)
    assert all(bool(gradient.abs().sum() > 0) for gradient in whole.values())
    assert {name.split(".")[1] for name in whole} >= {"shared_ffn", "layers"}


def test_a_rank_with_nothing_but_padding_goes_along(two: tuple[Path, Preset]) -> None:
    folder, preset = two
    found = torch.load(folder / "gradients.pt")
    alone = gradients(preset, part_of(rows(), 0, 2), 4, Ranks(preset.train))
    close(found["half padding"], alone)
    close(found["half padding, accumulated"], alone)


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")


def test_both_ranks_train_one_model_on_the_batches_that_one_rank_reads(two: tuple[Path, Preset], tiny: Callable[..., Preset], tmp_path: Path) -> None:
    folder, _ = two
    events: list[Any] = []
    train(tiny(train={"learning_rate": CALM, "evaluate_every_tokens": 2000, "optimizer": "muon"}), tmp_path, budget_tokens=6144, observers=(events.append,))
    alone = [event for event in events if event["event"] == "step"]
    together = [event for event in json.loads((folder / "events.json").read_text(encoding="utf-8")) if event["event"] == "step"]
    assert [event["batch_hash"] for event in together] == [event["batch_hash"] for event in alone]
    assert [event["loss"] for event in together] == pytest.approx([event["loss"] for event in alone], rel=1e-5)
    reports = [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert reports[0]["loss"] == reports[1]["loss"]
    assert reports[0]["tokens"] == reports[1]["tokens"] == 6144


def test_what_rank_0_can_not_do_ends_every_rank_in_one_line(two: tuple[Path, Preset]) -> None:
    folder, _ = two
    for rank in range(2):
        halted = json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8"))["halted"]
        assert "nowhere" in halted
        assert "\n" not in halted


def test_what_one_rank_can_not_do_keeps_every_rank_from_going_on(two: tuple[Path, Preset]) -> None:
    folder, _ = two
    said = [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8"))["together"] for rank in range(2)]
    assert said == ["FileNotFoundError: rank 0", "RuntimeError: process 0 can't go on: FileNotFoundError: rank 0"]


def test_ranks_take_the_precision_that_the_first_one_finds_best(two: tuple[Path, Preset]) -> None:
    folder, _ = two
    assert [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8"))["precision"] for rank in range(2)] == ["float32"] * 2


def test_ranks_that_wait_for_a_hub_stop_together(two: tuple[Path, Preset]) -> None:
    """The Hub says that the data set is there, and then nothing more; only the first rank is asked to stop."""
    folder, _ = two
    told = [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8"))["opening"] for rank in range(2)]
    assert [(each["stopped"], each["tokens"]) for each in told] == [(True, 0)] * 2
    late = [each["returned"] - (folder / "asked").stat().st_mtime for each in told]
    assert max(late) < 5, f"{late} seconds; the Hub alone is waited for twenty"

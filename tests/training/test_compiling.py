"""Compiled parts: the same losses, the same names, no graph for every batch; and a compiler that fails costs no step."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from lm.model import build_model
from lm.preset import Preset, load_preset
from lm.training.compiling import Compiled, compiles, parts_of
from lm.training.snapshots import Snapshots
from tests.training.test_run import STEP, trained

Tiny = Callable[..., Preset]
ON = {"compile": "on"}
ODD = {"per_gpu_batch_size": 3, "seq_length_curriculum": [{"until_tokens": 2500, "seq_length": 48}], "batch_curriculum": [{"until_tokens": 1200, "rows": 4}]}


class Counted:
    """torch.compile with a backend that counts graphs, and that fails from one on."""

    def __init__(self, fails_from: int | None = None) -> None:
        self.graphs, self.calls, self.fails_from = 0, 0, fails_from

    def __call__(self, graph: GraphModule, example: Any) -> Callable[..., Any]:
        self.graphs += 1
        if self.fails_from is not None and self.graphs >= self.fails_from:
            raise NotImplementedError("the compiler knows nothing\nof this")

        def run(*inputs: Any) -> Any:
            self.calls += 1
            return graph.forward(*inputs)

        return run


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    backend = Counted()
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    return backend


def losses(recorder: Any) -> list[float]:
    return [step["loss"] for step in recorder.of("step")]


def test_who_compiles() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [compiles(asked, device) for asked in ("auto", "on", "off") for device in (gpu, cpu)] == [True, False, True, True, False, False]


def test_it_is_the_same_model_by_the_same_names(tiny: Tiny, tmp_path: Path, counted: Counted) -> None:
    plain = trained(tiny(), tmp_path / "plain", 3)
    assert not counted.graphs and not plain.of("compiled")
    compiled = trained(tiny(train=ON), tmp_path / "compiled", 3)
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5) and counted.calls == 3 * 4, "two layers, each with two parts"
    (told,) = compiled.of("compiled")
    assert told["compiled"] and told["text"].startswith("parts of the layers are compiled; with that the first step took ")
    kinds = [event["event"] for event in compiled.events]
    assert kinds.index("compiled") < kinds.index("step") and "compiling, which makes the first step a long one" in {
        event.get("text") for event in compiled.events
    }
    one, two = (Snapshots(tmp_path / name).read("current") for name in ("plain", "compiled"))
    assert one.weights.keys() == two.weights.keys() and one.optimizer.keys() == two.optimizer.keys()
    resumed = trained(tiny(), tmp_path / "compiled", 1)
    assert resumed.of("resume")[0]["differs"] == ["train.compile was 'on' and is 'auto'"], "and the loss of the fixed row is what it was"


@pytest.mark.slow
def test_other_rows_and_documents_are_no_other_graphs(tiny: Tiny, tmp_path: Path, counted: Counted) -> None:
    """Micro-batches of three rows and of the one that is left, rows that grow, documents that end anywhere: few graphs, and no more with time."""
    seen = []
    for steps in (15, 8):
        trained(tiny(train={**ON, **ODD}), tmp_path, steps)
        seen.append(counted.graphs)
    assert seen[0] <= 8 and seen[1] == seen[0], seen


def test_what_fails_to_compile_is_read_without(tiny: Tiny, tmp_path: Path, counted: Counted) -> None:
    plain = trained(tiny(), tmp_path / "plain", 3)
    counted.fails_from = 2
    fallen = trained(tiny(train=ON), tmp_path / "fallen", 3)
    assert losses(fallen) == losses(plain), "no step is lost, and none is counted twice"
    (told,) = fallen.of("compiled")
    assert not told["compiled"] and "training goes on without compiling, which failed: " in told["text"] and "knows nothing of this" in told["text"]
    assert counted.graphs == 2, "it is not tried again"
    assert [event["skipped"] for event in fallen.of("step")] == [0] * 3


@pytest.mark.slow
def test_a_graph_that_fails_later_costs_no_step_either(tiny: Tiny, tmp_path: Path, counted: Counted) -> None:
    grows = {"seq_length_curriculum": [{"until_tokens": 3 * 4 * 32, "seq_length": 32}]}
    plain = trained(tiny(train=grows), tmp_path / "plain", 5)
    before = trained(tiny(train={**grows, **ON}), tmp_path / "whole", 5).of("compiled")
    torch._dynamo.reset()
    counted.graphs, counted.fails_from = 0, 3
    fallen = trained(tiny(train={**grows, **ON}), tmp_path / "fallen", 5)
    assert [event["compiled"] for event in before] == [True] and [event["compiled"] for event in fallen.of("compiled")] == [True, False]
    assert losses(fallen) == pytest.approx(losses(plain), rel=1e-5)


def test_a_fault_that_is_not_the_compilers_is_told(tiny: Tiny, tmp_path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise ZeroDivisionError("of the model's own")

    monkeypatch.setattr("lm.training.step.weighted_sum", broken)
    with pytest.raises(ZeroDivisionError, match="of the model's own"):
        trained(tiny(train=ON), tmp_path, 2)


def test_all_layers_of_the_default_preset_have_compiled_parts() -> None:
    with torch.device("meta"):
        model = build_model(load_preset("configs/00_best_general.json"), 50)
    assert [name for _, name in parts_of(model)] == ["projected", "forward"] * 8


def test_methods_are_put_back(tiny: Tiny, counted: Counted) -> None:
    model = build_model(tiny(), 50)
    compiled, parts = Compiled(model, is_on=True), list(parts_of(model))
    assert [name for _, name in parts] == ["projected", "forward"] * 2
    with pytest.raises(KeyboardInterrupt), compiled.in_place():
        assert all(name in vars(module) for module, name in parts)
        raise KeyboardInterrupt
    assert not any(name in vars(module) for module, name in parts)


@pytest.mark.slow
def test_the_real_compiler(tiny: Tiny, tmp_path: Path) -> None:
    """g++ by way of inductor: losses as without it, through a stop."""
    torch._dynamo.reset()
    plain = trained(tiny(), tmp_path / "plain", 12)
    first = trained(tiny(train=ON), tmp_path / "compiled", 12, stop_after=5)
    second = trained(tiny(train=ON), tmp_path / "compiled", 12)
    assert losses(first) + losses(second) == pytest.approx(losses(plain), rel=1e-4)
    assert [event["compiled"] for part in (first, second) for event in part.of("compiled")] == [True, True]
    assert counters["inductor"] and second.of("resume")[0]["exact"]


BROKEN = """
import json, sys, torch
from pathlib import Path
from lm.preset import preset_from_json
from lm.training import train
torch.set_num_threads(1)
events = []
train(preset_from_json(Path(sys.argv[1]).read_text(), "test"), sys.argv[2], int(sys.argv[3]), observers=(events.append,))
print(json.dumps([event for event in events if event["event"] in ("compiled", "step")]))
"""


@pytest.mark.slow
def test_a_machine_without_a_compiler(tiny: Tiny, tmp_path: Path) -> None:
    plain = trained(tiny(), tmp_path / "plain", 3)
    (tmp_path / "preset.json").write_text(tiny(train=ON).model_dump_json(), encoding="utf-8")
    environment = os.environ | {
        "CXX": "/nowhere/g++",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path.cwd()),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", BROKEN, str(tmp_path / "preset.json"), str(tmp_path / "c"), str(3 * STEP)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    told, *steps = json.loads(done.stdout.splitlines()[-1])
    assert not told["compiled"] and "failed" in told["text"] and "\n" not in told["text"]
    assert [step["loss"] for step in steps] == losses(plain)

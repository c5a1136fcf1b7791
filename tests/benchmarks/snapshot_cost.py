"""What snapshots cost: python -m tests.benchmarks.snapshot_cost

The wait of training, the time until a snapshot is on disk and until it is read again, and its size against the sum of its tensors, for
the model of the default preset in a run. Then three snapshots of SNAPSHOT_GIGABYTES (default 1) each: the time from the start of
the program to its menu, and of reading what the page "Go back" shows.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lm.preset import load_preset
from lm.training import train
from lm.training.headers import listed
from lm.training.snapshots import Snapshot, Snapshots
from tests.app.person import ROOT, Person

GIGABYTES = float(os.environ.get("SNAPSHOT_GIGABYTES", "1"))
TIMES = 5
BETWEEN = 600  # seconds between two snapshots, as the presets have it


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def middle(work: Callable[[], float]) -> float:
    return statistics.median(work() for _ in range(TIMES))


def size_of(snapshot: Snapshot) -> int:
    return sum(tensor.nbytes for part in (snapshot.weights, snapshot.optimizer, snapshot.random) for tensor in part.values())


def of_the_preset(folder: Path) -> tuple[Snapshot, list[Mapping[str, Any]]]:
    """The last snapshot of a run that takes one after every other step, and what the run told of the others."""
    preset = load_preset(ROOT / "configs" / "00_best_general.json")
    local = preset.data.model_copy(
        update={
            "sources": tuple(source for source in preset.data.sources if source.type == "installed_docs"),
            "source_weights": None,
            "mix_strategy": "round_robin",
        }
    )
    step = preset.step_rows * preset.model.seq_length
    often = preset.train.model_copy(update={"snapshot_every_tokens": 2 * step})
    told: list[Mapping[str, Any]] = []
    train(preset.model_copy(update={"data": local, "train": often}), folder, 2 * (TIMES + 1) * step, (told.append,))
    snapshot = Snapshots(folder).newest()
    assert snapshot is not None
    return snapshot, [event for event in told if event["event"] == "snapshot"][:TIMES]


def seconds_to_the_menu(program: Path) -> float:
    began = time.perf_counter()
    with Person([sys.executable, "main.py"], program) as person:
        person.child.expect("q quit", timeout=30)
        return time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "checkpoints"
        snapshot, told = of_the_preset(folder)
        snapshots = Snapshots(folder)
        waits, ends = zip(*((event["stall"], event["seconds"]) for event in told), strict=True)
        size, tensors = snapshots.path_of("current").stat().st_size, size_of(snapshot)
        wait = statistics.median(waits)
        print(f"training waits {wait:.3f} s (median of {TIMES}): {wait / BETWEEN:.4%} of ten minutes; on disk after {statistics.median(ends):.2f} s")
        print(f"{size / 1e6:.1f} MB for {tensors / 1e6:.1f} MB of tensors: {size / tensors - 1:+.2%}")
        print(f"read and checked in {middle(lambda: timed(snapshots.newest)):.2f} s", flush=True)

        program = Path(place) / "program"
        shutil.copytree(ROOT, program, ignore=shutil.ignore_patterns(".git", "checkpoints", "__pycache__", "tests"))
        none = middle(lambda: seconds_to_the_menu(program))
        shutil.copytree(folder, program / "checkpoints", ignore=shutil.ignore_patterns("*.pth"))
        large = replace(snapshot, optimizer={f"ballast/{number}": torch.randn(25_000_000) for number in range(round(10 * GIGABYTES))})
        for _ in range(3):
            Snapshots(program / "checkpoints").save(large)
        menu = middle(lambda: seconds_to_the_menu(program))
        page = middle(lambda: timed(lambda: listed(program / "checkpoints")))
        print(f"menu after {none:.3f} s without a model, {menu:.3f} s beside three snapshots of {GIGABYTES:g} GB; their headers in {page:.3f} s")


if __name__ == "__main__":
    main()

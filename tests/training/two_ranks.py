"""Two ranks of one group, forked from a process that has imported everything once: python -m tests.training.two_ranks MODULE

In each of them MODULE's `main` runs, as it would under torchrun, which takes three processes' imports for it. A rank that fails ends the other.
"""

import importlib
import multiprocessing
import multiprocessing.connection
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lm.preset import Preset

SIZE = 2


def run_on_two_ranks(module: str, folder: Path, **surroundings: str) -> None:
    """Run `module` so in `folder`, to its end. What went wrong is told by an assertion."""
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1", **surroundings}
    command = [sys.executable, "-m", "tests.training.two_ranks", module]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def left_by_two_ranks(module: str, folder: Path, preset: Preset | None = None) -> list[dict[str, Any]]:
    """What each rank of `module` saved, which finds `preset` as preset.json, where there is one."""
    if preset:
        (folder / "preset.json").write_text(preset.model_dump_json(), encoding="utf-8")
    run_on_two_ranks(module, folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(SIZE)]


def as_rank(rank: int, work: Callable[[], object]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    work()


def main() -> int:
    work = importlib.import_module(sys.argv[1]).main
    importlib.import_module("torch._dynamo")  # seconds, which each rank's first optimizer would take
    with socket.create_server(("127.0.0.1", 0)) as free:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(SIZE)}
    ranks = [multiprocessing.get_context("fork").Process(target=as_rank, args=(rank, work)) for rank in range(SIZE)]
    for rank in ranks:
        rank.start()
    while running := [rank for rank in ranks if rank.is_alive()]:
        if any(rank.exitcode for rank in ranks):
            for rank in running:
                rank.terminate()
        multiprocessing.connection.wait([rank.sentinel for rank in running])
    return int(any(rank.exitcode for rank in ranks))


if __name__ == "__main__":
    sys.exit(main())

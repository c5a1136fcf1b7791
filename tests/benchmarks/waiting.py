"""Steps of the default preset beside a process that takes a core for itself, by how long threads that wait for each other spin before they sleep:
python -m tests.benchmarks.waiting

Each number of spins has a process of its own, in turn, alone and beside the busy one; wall time, since a core that another has is what is asked.
"""

import os
import statistics
import subprocess
import sys
import time

from lm.app.waiting import SPINS
from lm.training.trial import random_batch
from tests.benchmarks.teaching import teacher_of

ROUNDS, STEPS = 3, 3
ARMS = {"as OpenMP comes": {}, f"{SPINS} spins": {"GOMP_SPINCOUNT": SPINS}, "no spins": {"OMP_WAIT_POLICY": "passive"}}
BUSY = [sys.executable, "-c", "while True: pass"]


def steps() -> None:
    """The median of some steps, in seconds, on standard output. The first two are not counted."""
    from lm.preset import load_preset

    preset = load_preset("configs/00_best_general.json")
    teacher, _ = teacher_of(preset, preset.data.vocab_size)
    batch = random_batch(preset.step_rows, preset.model.seq_length, preset.data.vocab_size)
    took = []
    for number in range(STEPS + 2):
        began = time.perf_counter()
        teacher.step(batch, len(preset.data.sources), number * batch.tokens.numel(), 10**9)
        took.append(time.perf_counter() - began)
    print(statistics.median(took[2:]))


def seconds(arm: dict[str, str], beside: bool) -> float:
    """Of a step in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))} | arm
    busy = subprocess.Popen(BUSY, start_new_session=True) if beside else None
    try:
        done = subprocess.run([sys.executable, "-m", __spec__.name, "steps"], env=environment, capture_output=True, text=True, check=True)
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()
    return float(done.stdout.split()[-1])


def main() -> None:
    print(f"seconds of a step, medians of {STEPS}; {ROUNDS} rounds", flush=True)
    for beside in (False, True):
        for _ in range(ROUNDS):
            for arm, environment in ARMS.items():
                print(f"{'beside a busy process' if beside else 'alone':24}{arm:20}{seconds(environment, beside):8.2f}", flush=True)


if __name__ == "__main__":
    steps() if sys.argv[1:] == ["steps"] else main()

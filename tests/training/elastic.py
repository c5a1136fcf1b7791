"""Several processes that take a run over: a test calls `taken_over`, and torchrun runs this module in each of them.

With APART each but the first has a folder of its own, as on a machine of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from lm.preset import Preset, preset_from_json
from lm.training import train


def taken_over(processes: int, preset: Preset, place: Path, folder: Path, budget: int, stop_after: int, apart: bool = False) -> list[dict[str, Any]]:
    """What a run in `folder` tells that so many processes go on with, up to `budget` tokens or so many steps. place: for what goes to and fro.

    apart: each but the first has a folder of its own. What went wrong is told by an assertion.
    """
    (place / "preset.json").write_text(preset.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone", "-m", "tests.training.elastic"]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1", "STOP_AFTER": str(stop_after), "BUDGET": str(budget)}
    environment |= {"APART": "1"} if apart else {}
    done = subprocess.run([*command, str(place), str(folder)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((place / "events.json").read_text(encoding="utf-8"))


def main() -> None:
    place, folder = map(Path, sys.argv[1:])
    if os.environ.get("APART") and os.environ["RANK"] != "0":
        folder = place / f"rank{os.environ['RANK']}"
    preset = preset_from_json((place / "preset.json").read_text(encoding="utf-8"), "test")
    torch.set_num_threads(1)
    events: list[Any] = []
    stop_after = int(os.environ["STOP_AFTER"])

    def stop() -> bool:
        return sum(event["event"] == "step" for event in events) >= stop_after

    train(preset, folder, budget_tokens=int(os.environ["BUDGET"]), observers=(events.append,), should_stop=stop)
    if os.environ["RANK"] == "0":
        (place / "events.json").write_text(json.dumps(events), encoding="utf-8")


if __name__ == "__main__":
    main()

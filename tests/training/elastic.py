"""One process of several that take a run over, for test_sources and test_replay: run by torchrun, never by a person.

With APART each but the first has a folder of its own, as on a machine of its own.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from lm.preset import preset_from_json
from lm.training import train


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

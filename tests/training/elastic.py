"""One process of several that take a run over, for test_sources: run by torchrun, never by a person."""

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

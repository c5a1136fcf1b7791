"""One process of several that are asked to stop while they open their sources, for test_ranks: run by torchrun, never by a person."""

import json
import os
import time
from pathlib import Path

import torch

from lm.preset import preset_from_json
from lm.training import train


def main() -> None:
    preset = preset_from_json(Path("preset.json").read_text(encoding="utf-8"), "test")
    torch.set_num_threads(1)
    first = os.environ["RANK"] == "0"
    # A folder in common tells when; the first alone is asked, as by a key.
    summary = train(preset, "checkpoints", should_stop=lambda: first and Path("asked").exists())
    told = {"stopped": summary.stopped, "tokens": summary.tokens, "returned": time.time()}
    Path(f"rank{os.environ['RANK']}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()

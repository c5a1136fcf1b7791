"""A model that is taught with its heads, for what is measured of drafts and plans; and held-out text to write from.

FORETELLING_TOKENS (2,000,000) says how much it reads, FORETELLING_FOLDER where it stays: one that is there and has read that much is taken as it is.
FORETELLING_PRESET (configs/12_planner.json) is what it is, and FORETELLING_HEADS ("") names heads that it learns beside its own. FORETELLING_SIZE is the
hidden size that it is scaled to, with as many heads and half of its layers; without, it is as large as the preset says. Text: the Hub that HF_ENDPOINT
leads to, else installed documentation.
"""

import os
import tempfile
from pathlib import Path

from lm.app.partner import Partner, awoken
from lm.preset import Preset, load_preset
from lm.training import train
from lm.training.snapshot_evaluation import held_out_texts
from lm.training.snapshots import Snapshots
from tests.benchmarks.text import LOCAL

TOKENS = int(os.environ.get("FORETELLING_TOKENS", 2_000_000))
FOLDER = os.environ.get("FORETELLING_FOLDER", "")
PRESET = os.environ.get("FORETELLING_PRESET", "configs/12_planner.json")
HEADS = os.environ.get("FORETELLING_HEADS", "").split()
SIZE = int(os.environ.get("FORETELLING_SIZE", 0))


def preset_of(path: str) -> Preset:
    preset = load_preset(path)
    data = preset.data if os.environ.get("HF_ENDPOINT") else LOCAL
    quiet = {"eval_tokens": 20_000, "evaluate_every_tokens": 10**9, "sample_every_tokens": 10**9}
    smaller = {"hidden_size": SIZE, "num_layers": preset.model.num_layers // 2} if SIZE else {}
    changes = {"train": quiet, "model": smaller, "auxiliary": {f"enable_{head}": True for head in HEADS}}
    raw = preset.model_copy(update={"data": data}).model_dump(mode="json")
    return Preset.model_validate(raw | {section: raw[section] | changed for section, changed in changes.items()})


def taught() -> tuple[Partner, dict[str, list[str]]]:
    """The model with its heads, and held-out texts by source."""
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(FOLDER or aside)
        snapshot = Snapshots(folder).newest()
        if snapshot is None or snapshot.run["tokens"] < TOKENS:
            train(preset_of(PRESET), folder, TOKENS)
            snapshot = Snapshots(folder).newest()
        partner, texts = awoken(snapshot, folder), held_out_texts(folder)
    sources = ", ".join(f"{name}: {len(kept)}" for name, kept in texts.items())
    print(f"{PRESET} after {partner.tokens:,} tokens; held-out documents: {sources}", flush=True)
    return partner, texts


def beginnings(texts: list[str], tokenizer: object, length: int, count: int) -> list[list[int]]:
    """The first tokens of texts that are at least twice as long."""
    rows = (tokenizer.encode(text[: 20 * length], add_special_tokens=False, split_special_tokens=True) for text in texts)
    return [row[:length] for row in rows if len(row) >= 2 * length][:count]

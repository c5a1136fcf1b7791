"""A folder to run main.py in, with presets of its own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.app.person import ROOT

TINY: dict[str, Any] = {
    "name": "tiny",
    "about": "A little one.",
    "model": {"hidden_size": 48, "num_layers": 2, "num_heads": 2, "seq_length": 64},
    "train": {"per_gpu_batch_size": 8, "learning_rate": 0.01, "warmup_share": 0.00002, "sample_every_tokens": 20_000, "evaluate_every_tokens": 40_000},
    "data": {"sources": [{"type": "files", "path": "./texts", "repeat": True}], "vocab_size": 600},
    "generation": {"max_new_tokens": 20},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """main.py with the presets that come with it."""
    shutil.copy(ROOT / "main.py", tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    return tmp_path


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    """main.py with one tiny preset on local text: the documentation of Python's own modules."""
    shutil.copy(ROOT / "main.py", tmp_path)
    write_preset(tmp_path, "00_best_general", TINY)
    texts = tmp_path / "texts"
    texts.mkdir()
    for path in sorted(Path(json.__file__).parents[1].glob("*.py"))[:20]:
        (texts / f"{path.stem}.txt").write_text(path.read_text(encoding="utf-8", errors="replace"), encoding="utf-8")
    return tmp_path


def write_preset(folder: Path, stem: str, content: dict[str, Any] | str) -> None:
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs" / f"{stem}.json").write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

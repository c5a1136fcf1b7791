"""Models that fill gaps as a person meets them: what they write for whom, what the screens say of them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from rich.console import Console

from lm.app.columns import Answer
from lm.app.compare_screen import Comparison
from lm.preset import Preset
from lm.training import train
from lm.training.headers import listed

STEP = 4 * 64  # tokens
UL2 = {"train": {"objective": "ul2"}}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with checkpoints/ in it, of a model that took some steps."""
    corpus = tmp_path_factory.mktemp("corpus") / "topics.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in topics.values()), encoding="utf-8")

    def folder(name: str, steps: int = 4, **sections: Any) -> Path:
        raw: dict[str, dict[str, Any]] = {
            "model": {"hidden_size": 24, "num_layers": 1, "num_heads": 2, "seq_length": 64},
            "train": {"per_gpu_batch_size": 4, "learning_rate": 0.01, "eval_tokens": 600},
            "data": {"sources": [{"type": "files", "name": "reference", "path": str(corpus), "repeat": True}], "vocab_size": 400},
            "generation": {"max_new_tokens": 6},
        }
        preset = Preset.model_validate({"name": name} | {key: raw.get(key, {}) | sections.get(key, {}) for key in raw.keys() | sections.keys()})
        place = tmp_path_factory.mktemp(name)
        train(preset, place / "checkpoints", steps * STEP)
        return place

    return folder


@pytest.fixture(scope="module")
def gapped(taught: Callable[..., Path]) -> Path:
    """Of a model that was taught R, S and X."""
    return taught("gapped", **UL2)


@pytest.fixture
def console() -> Iterator[Console]:
    with open("/dev/null", "w") as nowhere:
        yield Console(file=nowhere, record=True, width=80)


def test_a_comparison_says_that_there_are_too_many_gaps(gapped: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(gapped)
    (current, *_) = listed(Path("checkpoints"))
    answer = Answer(current.kind, current.header)
    assert list(Comparison(console)._begun(answer, "a ___ " * 101)) == []
    assert answer.note == "101 gaps, and the model knows 100; leave fewer"

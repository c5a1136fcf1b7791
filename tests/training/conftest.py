"""A small real corpus (Python's own language reference) and a preset small enough to train in seconds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from data_sources import tokenizer
from data_sources.text import chunks
from lm.preset import Preset

TEXTS = [topics[name] for name in sorted(topics)]
FILES = 3


@pytest.fixture(scope="session", autouse=True)
def each_tokenizer_is_trained_once() -> Iterator[None]:
    """New lives begin with the same texts in nearly every test: what was learned of them, half a second's work, is given again as a copy."""
    train, known = tokenizer.trained_bpe, {}

    def trained(texts: Iterator[str], vocab_size: int) -> Any:
        read = (*texts, vocab_size)
        if read not in known:
            known[read] = tokenizer.tokenizer_to_json(train(iter(read[:-1]), vocab_size))
        return tokenizer.tokenizer_from_json(known[read])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "trained_bpe", trained)
        yield


@pytest.fixture(scope="session", autouse=True)
def there_is_time_for_looks() -> Iterator[None]:
    """Runs that are over in a second evaluate and write whenever it is due."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm.training.loop.BESIDE", 1e9)
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the topics of the reference: about 700 kB. A file for each would be looked through by every lane."""
    folder = tmp_path_factory.mktemp("corpus")
    pieces = [piece for text in TEXTS for piece in chunks(text)]
    for part in range(FILES):
        lines = (json.dumps({"text": piece}) + "\n" for piece in pieces[part::FILES])
        (folder / f"topics_{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny(corpus: Path) -> Callable[..., Preset]:
    """A preset over the corpus, in the same precision on every machine; sections given by name are laid over it."""

    def build(**sections: dict[str, Any]) -> Preset:
        raw: dict[str, dict[str, Any]] = {
            "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "seq_length": 64},
            "train": {"per_gpu_batch_size": 4, "learning_rate": 0.01, "snapshot_every_minutes": 1000, "precision": "float32"},
            "data": {"sources": [{"type": "files", "name": "reference", "path": str(corpus), "repeat": True}], "vocab_size": 500},
        }
        return Preset.model_validate({"name": "tiny"} | {key: raw.get(key, {}) | sections.get(key, {}) for key in raw.keys() | sections.keys()})

    return build

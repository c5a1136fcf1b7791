"""What a model is handed in while it writes is what the stream hands in with the same document: the same neighbours, and the same scores."""

from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch

from data_sources import Batch, open_stream
from data_sources.config import DataConfig
from data_sources.recall import MemoryStates
from data_sources.stream import Options
from data_sources.tokenizer import tokenizer_from_json
from lm.generation.choosing import Chosen
from lm.generation.drafting import Ahead, Draft
from lm.generation.recollection import Recall
from lm.generation.writing import Writing
from lm.memory.finder import Finder
from lm.memory.memory import Options as MemoryOptions
from lm.memory.recall import MemoryRecall
from lm.model import Context, Model, build_model
from lm.training.remembering import MEMORY, Noted, embedder_of, lookup_of
from lm.training.snapshots import Snapshot, Snapshots
from lm.units.neighbours import Neighbours
from tests.training.test_run import Tiny, trained

SIZE = 8  # tokens of a chunk


@pytest.fixture
def snapshot(tiny: Tiny, tmp_path: Path) -> Snapshot:
    """Of a model that was taught with a memory."""
    trained(tiny(retro={"enabled": True, "chunk_size": SIZE, "layers": "all"}), tmp_path / "run", 14)
    return Snapshots(tmp_path / "run").read("current")


def model_of(snapshot: Snapshot, size: int) -> Model:
    model = build_model(snapshot.preset, size)
    model.load_state_dict(snapshot.model_weights)
    return model.double()


def batch_of(snapshot: Snapshot, folder: Path, texts: Path) -> Batch:
    """Rows of other texts than the model has read, with what the stream finds in the snapshot's memory."""
    tokenizer, retro = tokenizer_from_json(snapshot.tokenizer), snapshot.preset.retro
    recall = MemoryRecall(folder / MEMORY, SIZE, len(tokenizer), embedder_of(snapshot.preset, tokenizer), retro.num_neighbors, MemoryOptions())
    states = MemoryStates(1, {-1: tuple(Noted.of(snapshot.run["memory"]).newest)})
    data = DataConfig.model_validate({"sources": [{"type": "files", "path": str(texts)}], "min_text_length": 1})
    with open_stream(data, tokenizer, 64, 48, options=Options(chunk_size=SIZE, recall=recall, states=states)) as stream:
        return next(stream)[0]


def documents(batch: Batch) -> Iterator[tuple[int, slice]]:
    """Row and places of what stands in the batch of each document from its beginning on."""
    for row, (restart, source) in enumerate(zip(batch.restart, batch.source, strict=True)):
        starts = [*(restart & (source >= 0)).nonzero().flatten().tolist(), int((source >= 0).sum())]
        yield from ((row, slice(start, stop)) for start, stop in zip(starts, starts[1:], strict=False))


class Dictated:
    """In the place of a chooser: says which token is written, and keeps the scores that it was asked with."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.scores = tokens, []

    def drafts(self, latent: torch.Tensor, history: list[int], limit: int) -> tuple[Draft, ...]:
        return ()

    def chosen(self, ahead: Ahead, history: list[int]) -> Chosen | None:
        self.scores.append(ahead.rows.scores[0])
        return Chosen(self.tokens[len(self.scores) - 1]) if len(self.scores) <= len(self.tokens) else None


def scores_of(model: Model, tokenizer: Any, snapshot: Snapshot, document: list[int], prompt: int, find: Finder | None) -> torch.Tensor:
    """What the model says after each token from the prompt's last on, reading so many as a prompt and writing the others one by one."""
    settings = snapshot.preset.generation.model_copy(update={"max_new_tokens": len(document)})
    writing = Writing(model, tokenizer, document[:prompt], settings, recall=Recall(find))
    writing._chooser = dictated = Dictated(document[prompt:])
    "".join(writing)
    assert writing.document == tuple(document)
    return torch.stack(dictated.scores)


@pytest.mark.slow
def test_writing_is_handed_what_training_is(snapshot: Snapshot, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in sorted(topics)[:60:4]:
        (texts / f"{name}.txt").write_text(topics[name].replace("statement", "sentence")[:150], encoding="utf-8")
    tokenizer = tokenizer_from_json(snapshot.tokenizer)
    model, find = model_of(snapshot, len(tokenizer)), lookup_of(snapshot, tmp_path / "run", tokenizer)
    batch = batch_of(snapshot, tmp_path / "run", texts)
    handed = Neighbours(*batch.answers)
    with torch.no_grad():
        read = model(batch.tokens, context=Context(restart=batch.restart, memory=handed)).logits
        without = model(batch.tokens, context=Context(restart=batch.restart)).logits
    compared = differ = 0
    for row, place in documents(batch):
        document = batch.tokens[row, place].tolist()
        own = batch.answers.part(slice(row, row + 1), place, tuple(batch.tokens.shape))
        asked = Recall(find).neighbours(document, 0)
        assert own.at.tolist() == (asked.at.tolist() if asked else []) == list(range(SIZE, len(document), SIZE))
        assert not asked or (torch.equal(own.tokens, asked.tokens) and torch.equal(own.length, asked.length))
        for prompt in (1, min(SIZE + 3, len(document)), len(document)):
            written = scores_of(model, tokenizer, snapshot, document, prompt, find)
            torch.testing.assert_close(written, read[row, place][prompt - 1 :], rtol=0, atol=1e-9)
        compared += len(own.at)
        differ += not torch.allclose(read[row, place], without[row, place], atol=1e-6)
    assert compared > 20 and differ > 3, (compared, differ)
    assert np.all(handed.length.numpy() > 0)

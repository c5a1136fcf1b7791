"""A memory of what was read, while a model trains: exact through stops, with loader processes, and consistent with every snapshot."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_sources.tokenizer import tokenizer_from_json
from lm.memory.memory import Memory, Options
from lm.memory.store import State
from lm.training.remembering import MEMORY, Noted, embedder_of
from lm.training.snapshots import Snapshots
from tests.training.test_run import STEP, Tiny, trained

RETRO = {"enabled": True, "chunk_size": 8, "layers": "all"}


def remembered(folder: Path, name: str = "current") -> tuple[Memory, State]:
    """The memory as a snapshot holds it."""
    snapshot = Snapshots(folder).read(name)
    tokenizer = tokenizer_from_json(snapshot.tokenizer)
    state = Noted.of(snapshot.run["memory"]).newest
    terms = (folder / MEMORY, RETRO["chunk_size"], len(tokenizer), embedder_of(snapshot.preset, tokenizer))
    return Memory.open(*terms, state, Options()), state


def contents(folder: Path) -> list[Any]:
    memory, state = remembered(folder)
    chunks = memory._store.take(np.arange(state.length))
    return [state.length, *(chunks[name].tolist() for name in ("document", "place", "count", "tokens"))]


@pytest.mark.parametrize("workers", [0, 2])
def test_exactly_through_a_stop(tiny: Tiny, tmp_path: Path, workers: int) -> None:
    preset = tiny(retro=RETRO, train={"loader_processes": workers})
    at_once = trained(tiny(retro=RETRO), tmp_path / "once", 30)
    first = trained(preset, tmp_path / "twice", 30, stop_after=13)
    second = trained(preset, tmp_path / "twice", 30)
    assert [len(part.of("step")) for part in (first, second)] == [13, 17]
    assert second.of("resume")[0]["exact"]
    steps = first.of("step") + second.of("step")
    for key in ("batch_hash", "loss", "gradient_norm"):
        assert [event[key] for event in steps] == [event[key] for event in at_once.of("step")], key
    one, two = (Snapshots(tmp_path / name).read("current") for name in ("once", "twice"))
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    assert contents(tmp_path / "once") == contents(tmp_path / "twice")
    assert contents(tmp_path / "once")[0] > 25 * STEP // 8 * 0.9


def test_neighbours_reach_the_model(tiny: Tiny, tmp_path: Path) -> None:
    """With a memory the same batches come to other losses, once it is behind by fewer steps than were taken."""
    with_memory, without = (trained(tiny(retro=RETRO | {"memory_chunks": kept}), tmp_path / str(kept), 20) for kept in (10_000, 1))
    differs = [a["loss"] != b["loss"] for a, b in zip(with_memory.of("step"), without.of("step"), strict=True)]
    assert not any(differs[:9]) and all(differs[11:])

"""Snapshots measured after their time: on all text that was held out, with the memory as it was then, where they have one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data_sources.held_out import Held, HeldOutStore
from data_sources.tokenizer import tokenizer_from_json
from lm.memory.layout import MemoryFault
from lm.memory.lookup import Lookup
from lm.model import Model, build_model
from lm.training.evaluation import HELD_OUT, evaluate, in_all
from lm.training.memory_worth import worth_of
from lm.training.remembering import lookup_of
from lm.training.snapshots import Snapshot, Snapshots, read_snapshot


def evaluate_snapshot(checkpoint_dir: str | Path, which: str = "current") -> dict[str, Any]:
    """The evaluation event of a snapshot on all text that was held out for it. SnapshotError when there is no snapshot."""
    return evaluate_file(Snapshots(checkpoint_dir).path_of(which), held_out_texts(checkpoint_dir), Path(checkpoint_dir))


def held_out_texts(checkpoint_dir: str | Path) -> dict[str, list[Held]]:
    """All text that was held out, by source."""
    store = HeldOutStore(Path(checkpoint_dir) / HELD_OUT, limit_tokens=0)
    return {name: store.texts(name) for name in store.sources()}


def evaluate_file(path: Path, texts: Mapping[str, Sequence[str]], folder: Path) -> dict[str, Any]:
    """The same for the snapshot at `path`, on `texts`. folder: of the model's life, where its memory is, if it has one."""
    return evaluation_of(read_snapshot(path), texts, folder)


def evaluation_of(snapshot: Snapshot, texts: Mapping[str, Sequence[str]], folder: Path) -> dict[str, Any]:
    """The same for one that was read. A memory that is not there any more is told under "trouble"."""
    tokenizer = tokenizer_from_json(snapshot.tokenizer)
    model = build_model(snapshot.preset, len(tokenizer))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {"event": "evaluation", "tokens": snapshot.run["tokens"]}
    lookup = None
    try:
        lookup = lookup_of(snapshot, folder, tokenizer) if snapshot.preset.retro.add_cross_attention else None
    except (MemoryFault, ValueError) as error:
        found["trouble"] = f"measured without the memory: {error}"
    try:
        found = _measured(model, tokenizer, texts, snapshot, lookup) | found
        return found | {"memory": worth_of(model, tokenizer, texts, snapshot.preset, lookup)} if lookup else found
    except MemoryFault as fault:  # damage is found where it is read
        found["trouble"] = f"measured without the memory: {fault}"
    return _measured(model, tokenizer, texts, snapshot, None) | found


def _measured(model: Model, tokenizer: Any, texts: Mapping[str, Sequence[str]], snapshot: Snapshot, lookup: Lookup | None) -> dict[str, Any]:
    """What the snapshot is used with, measured; where that is an average, what training left, too. `model` has the former afterwards."""
    beside = {}
    if snapshot.average:
        model.load_state_dict(snapshot.trained_weights)
        beside = {"without_average": in_all(evaluate(model, tokenizer, texts, snapshot.preset, find=lookup))}
    model.load_state_dict(snapshot.model_weights)
    measures = evaluate(model, tokenizer, texts, snapshot.preset, find=lookup)
    return measures and measures | beside

"""A snapshot written as a folder for transformers: all of it aside and synced, then renamed, so that what has its name is whole.

What is in the way is never touched: the folder then gets the next free name, "-2", "-3" and so on.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from data_sources.disk import sync_folder
from lm.export import contents
from lm.export.card import folder_name, model_card
from lm.export.sources import flat_sources
from lm.preset import layer_plan
from lm.training.snapshots import Snapshot

WEIGHTS = "model.safetensors"
ASIDE = ".unfinished"  # no name of a preset begins with a point


class ExportError(Exception):
    """An export can't be written. The message is one line."""


def export_snapshot(snapshot: Snapshot, exports: Path, say: Callable[[str], None] = lambda step: None) -> Path:
    """Write `snapshot` as a folder inside `exports`; its path. `say` hears what is being done.

    ExportError when it can't be written, or another export is being written there; nothing unfinished stays.
    """
    if snapshot.preset.model.bidirectional != "off":
        raise ExportError(f"{exports}: a model that reads from both ends writes no text, and transformers would ask it to; only causal models are exported")
    try:
        exports.mkdir(parents=True, exist_ok=True)
        with _held(exports):
            place = _free_place(exports / folder_name(snapshot))
            aside = exports / ASIDE
            shutil.rmtree(aside, ignore_errors=True)  # of an export that was killed
            try:
                _write(snapshot, aside, place.name, say)
                aside.rename(place)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            sync_folder(exports)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{exports}: the export can't be written: {_reason(error)}") from None
    return place


@contextmanager
def _held(exports: Path) -> Iterator[None]:
    """The folder for this process alone: what lies aside in it is then nobody's."""
    handle = os.open(exports, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ExportError(f"{exports}: another export is being written there; wait for it") from None
    finally:
        os.close(handle)


def _free_place(wanted: Path) -> Path:
    names = chain([wanted.name], (f"{wanted.name}-{number}" for number in count(2)))
    return next(place for place in map(wanted.with_name, names) if not os.path.lexists(place))


def _write(snapshot: Snapshot, folder: Path, name: str, say: Callable[[str], None]) -> None:
    folder.mkdir()
    say("writing the code")
    files = flat_sources(unit for layer in layer_plan(snapshot.preset) for unit in layer)
    say("writing the tokenizer and the card")
    files |= contents.tokenizer_files(snapshot.tokenizer)
    files["config.json"] = contents.written_json(contents.config(snapshot))
    files["generation_config.json"] = contents.written_json(contents.generation_config(snapshot.preset.generation, snapshot.tokenizer))
    files["README.md"] = model_card(snapshot, name, json.loads(snapshot.tokenizer)["special"]["bos_token"])
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    say("writing the weights")
    weights = {f"model.{key}": tensor.contiguous() for key, tensor in snapshot.model_weights.items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod((folder / "config.json").stat().st_mode)  # safetensors lets nobody else read it
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _reason(error: Exception) -> str:
    """What was wrong, in a few words. safetensors tells of the system's errors in its own."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "no space left on device" if "os error 28" in str(error) else " ".join(str(error).split())

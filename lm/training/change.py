"""What a preset would make of the model that lives in a folder, told before anything is done; and how a new life begins."""

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import chain, count
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from data_sources.disk import sync_folder
from lm.preset import Preset
from lm.preset.compare import changed_switches
from lm.preset.learned import needs_tokens
from lm.preset.objectives import ADDED_TOKENS
from lm.training.headers import Header, Shape, SnapshotError, plain, preset_of

NOT_THE_MODEL = {"name", "about", "train", "data", "generation"}  # sections that what the model computes does not follow from
LAYER = re.compile(r"layers\.(\d+)\.")
PART = re.compile(r"(?:model\.)?(neighbour_encoder|heads\.\w+)\..+")  # told as one


class Part(NamedTuple):
    """A row of the table: tensors that share a fate."""

    fate: str  # "kept", "grown", "new" or "left behind"
    tensors: int
    parameters: int
    names: str  # of some of them, for a person


class Change(NamedTuple):
    """What becomes of a model under another preset."""

    parts: list[Part]  # empty where the model is the same
    switches: list[str]  # that make it another, in words
    tokenizer: str  # a line where the preset asks for another one than the model has, else empty


def change_of(header: Header, preset: Preset) -> Change | None:
    """What training with `preset` would change in the model of a snapshot; None where it would change nothing, or refuses.
    Torch is only imported where something differs."""
    try:
        before = preset_of(header.path, header.config)
    except SnapshotError:
        return None
    switches = changed_switches(before, preset, NOT_THE_MODEL)
    joining = ADDED_TOKENS if needs_tokens(preset) and not header.life.get("objective_tokens") else 0
    parts = _parts(header, before, preset, joining) if switches or joining else []
    because = [f"the tokenizer gets {joining} tokens for gaps and masks"] * bool(joining) + switches
    change = Change(parts, because if parts else [], other_tokenizer(header.life, preset))
    return change if change.parts or change.tokenizer else None


def tokenizer_of(preset: Preset) -> str:
    """The tokenizer that a preset asks for, in words."""
    return f"a tokenizer of {preset.data.vocab_size:,} entries" if preset.data.tokenizer == "bpe" else f"the tokenizer {preset.data.tokenizer}"


def other_tokenizer(life: Mapping[str, Any], preset: Preset) -> str:
    """A line where the preset asks for another tokenizer than the one the model was born with, else empty."""
    has, wanted = life.get("tokenizer", tokenizer_of(preset)), tokenizer_of(preset)
    return "" if wanted == has else f"the preset asks for {wanted}; the model was born with {has} and keeps it for life"


def _parts(header: Header, before: Preset, preset: Preset, joining: int) -> list[Part]:
    """joining: tokens that the vocabulary grows by."""
    import torch

    from lm.auxiliary.heads import build_heads
    from lm.model import build_model
    from lm.training.growth import fit
    from lm.training.learner import Learner

    theirs = {name.removeprefix("weights."): shape for name, shape in header.shapes.items() if name.startswith("weights.")}
    with torch.device("meta"):
        vocabulary = theirs["model.embedding.weight"][0] + joining
        learner = Learner(build_model(preset, vocabulary), build_heads(preset, pad=0))
        tensors = learner.state_dict()
        how = fit(learner.model, tensors, before, {name: torch.empty(shape) for name, shape in theirs.items()})
    if how.is_whole:
        return []
    ours = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return [
        _part("kept", how.kept, ours),
        _part("grown", how.grown, ours)._replace(names=how.grown_in_words),
        _part("new", how.new, ours),
        _part("left behind", how.left, theirs),
    ]


def _part(fate: str, names: Iterable[str], shapes: Mapping[str, Shape]) -> Part:
    names = list(names)
    return Part(fate, len(names), sum(prod(shapes[name]) for name in names), _in_words(names))


def _in_words(names: Iterable[str]) -> str:
    """ "layers 0 to 3 and 6, embedding"."""
    layers, others = set(), {}
    for name in names:
        found = LAYER.search(name)
        if found:
            layers.add(int(found[1]))
        else:
            part = PART.fullmatch(name)
            others[part[1] if part else plain(name)] = None
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    spans = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    inside = [f"layer{'s' * (len(layers) > 1)} {' and '.join(spans)}"] if spans else []
    return ", ".join([*inside, *others])


def begin_new_life(folder: Path) -> Path:
    """Give the folder, with the model that lives in it and all that belongs to it, another name beside its own, in one step: the next run
    gives birth to another model. SnapshotError where a run is using it; OSError where it can't be renamed."""
    from lm.training.snapshots import Snapshots

    with contextlib.closing(Snapshots(folder).lock()):
        day = datetime.now(UTC).date().isoformat()
        names = (f"{folder.name}-{day}{again}" for again in chain([""], (f"-{number}" for number in count(2))))
        home = next(path for name in names if not os.path.lexists(path := folder.with_name(name)))
        os.rename(folder, home)
        sync_folder(home.parent)
    return home

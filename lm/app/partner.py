"""A snapshot that can be talked with: its model on the device, with the tokenizer and preset it was saved with."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import psutil

from lm.app.commands import CommandError
from lm.app.terminal import CHECKPOINTS, uninterrupted
from lm.app.words import one_line
from lm.preset import Preset
from lm.training.headers import Header, SnapshotError

if TYPE_CHECKING:  # a screen is drawn before torch is there
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from lm.generation.chat import Conversation
    from lm.generation.passages import Library
    from lm.memory.lookup import Heard
    from lm.memory.memory import Passage
    from lm.model import Model
    from lm.preset.generation import GenerationConfig
    from lm.training.snapshots import Snapshot


class Partner(NamedTuple):
    """A model that answers."""

    preset: Preset
    tokens: int  # read in its life
    model: "Model"
    tokenizer: "PreTrainedTokenizerBase"
    memory: "Heard | None" = None  # of what it read
    heads: "Mapping[str, nn.Module]" = {}  # trained with the model
    lost: str = ""  # why there is no memory, where there should be one
    taught: "Mapping[str, int]" = {}  # tokens by denoiser, and under masks

    @property
    def drafts(self) -> bool:
        """Whether it can draft what it writes."""
        return "dynamics" in self.heads

    def conversation(self, settings: "GenerationConfig | None" = None, seed: int | None = None) -> "Conversation":
        """A new one, in the form of the snapshot's own sources. CommandError, one line, for settings that ask for a head it does not have; but
        drafts, which change speed alone, are then left out."""
        with uninterrupted():
            from lm.generation.chat import frame_of
            from lm.generation.infilling import conversation_of

        attends = self.preset.retro.add_cross_attention
        settings = settings or self.preset.generation
        if not self.drafts:
            settings = settings.model_copy(update={"draft_length": 0})
        if lacking := settings.without_head(set(self.heads)):
            raise CommandError(lacking)
        terms = (frame_of(self.preset), settings, seed, self.memory if attends else None)
        terms += (self._library() if self.memory and not attends else None, self.heads)
        return conversation_of(self.model, self.tokenizer, self.preset, self.taught, *terms)

    def _library(self) -> "Library":
        """Passages for a model that attends to no neighbours."""
        from lm.generation.passages import Library

        long = self.preset.train.long_context
        room = long.context_length if long.enabled else self.preset.model.seq_length
        return Library(lambda words: self.found(words) if self.memory and self.memory.is_on else [], room, self.tokenizer)

    def found(self, words: str) -> "list[Passage]":
        """The passages nearest to some words."""
        tokens = np.array(self.tokenizer.encode(words, add_special_tokens=False, split_special_tokens=True), np.int64)
        return self.memory.passages(tokens) if self.memory else []

    def used(self, conversation: "Conversation") -> "list[Passage]":
        """The passages that the newest answer was written with."""
        return [*conversation.passages, *(self.memory.taken() if self.memory else [])]

    @property
    def trouble(self) -> str:
        """Why it talks without its memory, in a line; empty where it has it, or should have none."""
        why = self.lost or (self.memory.trouble if self.memory else "")
        return f"without its memory: {one_line(why)}" if why else ""

    def text(self, tokens: np.ndarray) -> str:
        """Tokens as text, in one line."""
        return one_line(self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True))


def load(path: Path) -> Partner:
    """The snapshot at `path`, ready to talk. CommandError, one line, when it is not there or damaged."""
    with uninterrupted():
        from lm.training.snapshots import read_snapshot

    try:
        return awoken(read_snapshot(path), CHECKPOINTS)
    except SnapshotError as error:
        raise CommandError(one_line(str(error))) from None


def awoken(snapshot: "Snapshot", folder: Path) -> Partner:
    """The model of `snapshot`, ready to talk. folder: where its memory is, if it has one."""
    with uninterrupted():
        import torch

        from data_sources.tokenizer import tokenizer_from_json
        from lm.auxiliary.heads import build_heads, load_heads
        from lm.memory.layout import MemoryFault
        from lm.memory.lookup import Heard
        from lm.model import build_model
        from lm.training.remembering import lookup_of
        from lm.training.run import taught

    tokenizer = tokenizer_from_json(snapshot.tokenizer)
    model = build_model(snapshot.preset, len(tokenizer))
    model.load_state_dict(snapshot.model_weights)
    heads = build_heads(snapshot.preset, tokenizer.pad_token_id)
    load_heads(heads, snapshot.head_weights)
    for part in (model, heads):
        part.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    lookup, lost = None, ""
    try:
        lookup = lookup_of(snapshot, folder, tokenizer)
    except (MemoryFault, ValueError) as error:
        lost = str(error)
    return Partner(snapshot.preset, int(snapshot.life["tokens"]), model, tokenizer, Heard(lookup) if lookup else None, heads, lost, taught(snapshot))


class Cast:
    """The partners of a comparison. As many stay loaded as there is room for: with little memory one at a time."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Partner, int]] = {}  # by the snapshot's identity, with the bytes of its model

    @property
    def size(self) -> tuple[int, int]:
        """How many are loaded, and their bytes."""
        return len(self._kept), sum(held for _, held in self._kept.values())

    def partner(self, header: Header) -> Partner:
        """The one in the snapshot with `header`. CommandError, one line, when it can't be loaded."""
        if header.identity not in self._kept:
            # The whole file is read, the optimizer's moments with it, before the model is built.
            while self._kept and free_memory() < 2 * (header.bytes + header.weight_bytes):
                del self._kept[next(iter(self._kept))]
            self._kept[header.identity] = load(header.path), header.weight_bytes
        return self._kept[header.identity][0]


def free_memory() -> int:
    """Bytes that can be had, of the host or the device, whichever has less."""
    with uninterrupted():
        import torch

    free = psutil.virtual_memory().available
    return min(free, torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else free

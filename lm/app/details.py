"""What the menu says about a preset: who it is, how large, in which layers, from which sources."""

import textwrap

from data_sources.config import AnySource, DataConfig
from lm.app.shelf import Shelved
from lm.app.terminal import CHECKPOINTS
from lm.app.words import counted, duration, one_line, size
from lm.preset import RUN_TOKENS, Preset, count_parameters, model_in_words
from lm.preset.counting import count_heads
from lm.preset.holding import expected_vocabulary, held_bytes
from lm.preset.learned import learned_in_words
from lm.training.host import host_bytes
from lm.training.paces import Pace, kept_pace

Fragments = list[tuple[str, str]]  # (style, text), as prompt_toolkit takes them

MARGIN = 12  # of the words before a row
ORDERS = {"round_robin": "a document of each in turn", "sequential": "one after the other"}


def details(shelved: Shelved, width: int, vocab_size: int | None) -> Fragments:
    """All about one preset, in lines of at most `width` characters. `vocab_size` is the living model's, when there is one."""
    out: Fragments = [("class:strong", one_line(shelved.name)), ("class:quiet", f"   {one_line(str(shelved.path))}\n")]
    if shelved.reason:
        out += paragraph("class:bad", one_line(shelved.reason), width)
    preset = shelved.preset
    if preset is None:
        return out
    out += paragraph("", one_line(preset.about), width) if preset.about else []
    out += [("", "\n")]
    out += row("model", _size(preset, vocab_size), width)
    pace = kept_pace(CHECKPOINTS, preset)
    out += _memory(preset, vocab_size, pace, width)
    out += row("speed", _speed(pace), width)
    out += row("layers", model_in_words(preset), width)
    out += row("learns", ", then ".join(learned_in_words(preset)), width)
    out += _sources(preset.data, width)
    for notice in preset.notices:
        out += row("note", one_line(notice), width)
    return out


def paragraph(style: str, text: str, width: int) -> Fragments:
    """Words broken into lines."""
    return [(style, line + "\n") for line in textwrap.wrap(text, max(width, 8))]


def row(name: str, text: str, width: int, style: str = "") -> Fragments:
    """A name, and words that keep clear of it."""
    lines = textwrap.wrap(text, max(width - MARGIN, 8)) or [""]
    first = [("class:quiet", f"{name:<{MARGIN}}"), (style, lines[0] + "\n")]
    return [*first, *((style, " " * MARGIN + line + "\n") for line in lines[1:])]


def _size(preset: Preset, vocab_size: int | None) -> str:
    own = preset.data.tokenizer == "bpe"
    count = count_parameters(preset, vocab_size or expected_vocabulary(preset))
    long = preset.train.long_context
    context = f"{preset.model.seq_length:,} tokens in a row" + (f", a context of {long.context_length:,}" if long.enabled else "")
    context = f"heads of {counted(count_heads(preset))} beside them, {context}" if preset.auxiliary.heads else context
    if own or vocab_size:
        return f"{counted(count.total)} parameters{_active(count.active, count.total)}, {context}"
    trunk = f"{counted(count.trunk)} parameters{_active(count.trunk - count.idle, count.trunk)}"
    return f"{trunk} and the vocabulary of {one_line(preset.data.tokenizer)}, {context}"


def _memory(preset: Preset, vocab_size: int | None, pace: Pace | None, width: int) -> Fragments:
    """What training and saving hold from the first step on, and what a step's rows take beside it, where that was counted."""
    vocabulary, there = vocab_size or expected_vocabulary(preset), host_bytes()
    needed, reading = sum(held_bytes(preset, vocabulary)), (pace and pace.reading_bytes) or 0
    steps = f"{size(reading)} for what a step reads at once" if reading else "more for steps"
    text = f"{'at least ' * (not vocabulary)}{size(needed)} for weights, moments and snapshots, {steps}; this machine has {size(there)}"
    return row("memory", text + ", too little without a GPU" * (too_little := needed + reading > there), width, "class:warning" if too_little else "")


def _speed(pace: Pace | None) -> str:
    if pace is None:
        return "t times a few steps here; else the first ones of a run will tell it"
    share = f", {100 * pace.device_share:.0f}% of its peak," if pace.device_share else ""
    speed = f"{pace.tokens_per_second:,.0f} tokens/s on {one_line(pace.devices)}{share} when last measured"
    return f"{speed}: {counted(RUN_TOKENS)} in {duration(RUN_TOKENS / pace.tokens_per_second)}"


def _active(active: int, all_of_them: int) -> str:
    """Said where a token does not use all."""
    return f" ({counted(active)} active)" if active < all_of_them else ""


def _sources(data: DataConfig, width: int) -> Fragments:
    weighted = data.mix_strategy == "weighted"
    in_order = not weighted and len(data.sources) > 1
    out = row("reads", ORDERS[data.mix_strategy], width) if in_order else []
    widest = max(len(f"{100 * weight:.0f}") for weight in data.weights)
    name_width = min(max(len(source.name) for source in data.sources), 24)
    for number, (source, weight) in enumerate(zip(data.sources, data.weights, strict=True)):
        share = f"{100 * weight:>{widest}.0f}%  " if weighted else ""
        first = ("class:quiet", f"{'' if number or in_order else 'reads':<{MARGIN}}")
        line = f"{share}{one_line(source.name):<{name_width}}"
        origin, room = _origin(source), max(width - MARGIN - len(line) - 2, 1)
        out += [first, ("", line[: width - MARGIN]), ("class:quiet", f"  {origin if len(origin) <= room else f'{origin[: room - 1]}…'}\n")]
    return out


def _origin(source: AnySource) -> str:
    """Where a source's text is, in a few words."""
    if source.type == "hf":
        words = source.dataset + (f" ({source.config})" if source.config else "")
    elif source.type == "installed_docs":
        words = "this machine's Python packages"
    else:
        words = source.path
    return one_line(words) + (", repeats" if source.repeat else "")

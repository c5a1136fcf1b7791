"""What a model still knows of every source it ever read: its bits per byte on that source's held-out text, now and at best.

Two kinds of measure are kept apart: those along the way read the first held-out tokens of each source, those at the end of a run all of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.training.kept import keep, read_kept

WORSE = 0.02  # past its best by this share, a source is being forgotten
ENOUGH = 0.2  # of a run's text from the past kept what was read first within 1 % of its best
FULL = "full"  # measures on all held-out text
MEASURES, KEPT = "measures.json", 32

Measures = Mapping[str, Mapping[str, float]]  # by source: {"bits_per_byte", "tokens"}, "pseudo" where words on both sides were seen, and what else was measured


def are_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two measures can be held against each other: of the same text, by models that both saw what is behind a word, or both did not."""
    return one["tokens"] == other["tokens"] and one.get("pseudo", False) == other.get("pseudo", False)


def note_measures(life: dict[str, Any], measures: Measures, kind: str) -> list[str]:
    """Put the measures by source into the life; a line for each source that the model knew better.

    A best is kept as long as the same text is measured, in the same way: it grows until a source has enough of it.
    """
    known = life.setdefault("measured", {}).setdefault(kind, {})
    for name, found in measures.items():
        bits, held = found["bits_per_byte"], known.get(name)
        if held is None or not are_alike(held, found) or bits <= held["best"]:
            held = {"best": bits, "best_at": life["tokens"], **_kind(found)}
        known[name] = {**held, "now": bits, "at": life["tokens"]}
    if kind == FULL:
        life["runs"][-1]["after"] = last_measured(life, any(found.get("pseudo") for found in measures.values()))
    return [warning(name, known[name]["now"], known[name]["best"]) for name in measures if is_forgotten(known[name]["now"], known[name]["best"])]


def _kind(measure: Mapping[str, Any]) -> dict[str, Any]:
    """Of which text, and in which way."""
    return {key: measure[key] for key in ("tokens", "pseudo") if key in measure}


def last_measured(life: Mapping[str, Any], pseudo: bool) -> dict[str, dict[str, float]]:
    """By source: bits per byte on all its held-out text as measured last, and at how many tokens of the life that was. pseudo: those of a model
    that reads from both ends, else those of a causal one."""
    full = life.get("measured", {}).get(FULL, {})
    return {name: {"bits_per_byte": held["now"], "at": held["at"]} for name, held in full.items() if held.get("pseudo", False) == pseudo}


def is_forgotten(now: float, best: float) -> bool:
    return now > best * (1 + WORSE)


def warning(name: str, now: float, best: float) -> str:
    """A line about a source that is being forgotten."""
    return f"{name}: {now:.3f} bits per byte, {now / best - 1:.0%} more than its best {best:.3f}: it is being forgotten"


def remedy(share: float) -> str:
    """What a person can do about it, in a line, after a run of which `share` was text of earlier ones. What it costs is measured: docs/guide.md."""
    if share < ENOUGH:
        return f"To forget less: train.replay_share {ENOUGH} (now {share:.3g}) in the next run's preset; new text is then learned about 5 % less well"
    return f"To forget less: a higher train.replay_share (now {share:.3g}, at most 0.5) in the next run's preset, or the source in it again"


def forgotten_in_words(life: Mapping[str, Any]) -> str:
    """What a finished run has to say of it, from the life in its last snapshot; empty where nothing was measured."""
    full = life.get("measured", {}).get(FULL, {})
    newest = {name: held for name, held in full.items() if held["at"] == life["tokens"]}
    lost = [f"{name} ({held['now'] / held['best'] - 1:+.0%})" for name, held in newest.items() if is_forgotten(held["now"], held["best"])]
    return f"forgotten, against its best: {', '.join(lost)}" if lost else "nothing forgotten" if newest else ""


def kept_measures(folder: Path) -> dict[str, Measures]:
    """Measures taken of snapshots when a person asked for them, by the identity of the snapshot, oldest first."""
    return read_kept(folder / MEASURES)


def keep_measures(folder: Path, identity: str, measures: Measures) -> None:
    """Keep them, with the newest others. What can't be written is measured again some day."""
    short = {name: {"bits_per_byte": found["bits_per_byte"], **_kind(found)} for name, found in measures.items()}
    others = {key: value for key, value in kept_measures(folder).items() if key != identity}
    keep(folder / MEASURES, dict([*others.items(), (identity, short)][-KEPT:]))

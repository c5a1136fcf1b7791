"""The cursor: where the data stands, as plain JSON.

    {"version": 1, "seed": 0, "next_row": 96, "shuffle": true, "packing": "documents",
     "sources": [["wikipedia", "3f2a..."], ...],
     "lanes": {"0": [turn, under way, status, epoch, shard, block, taken, offset, documents, tokens, credit, ...], ...},
     "parked": {"c4": {"fingerprint": "90b1...", "lanes": {"0": [status, ..., credit], ...}}},
     "events": [[row, "wikipedia", "aside", rank, world size], ...],
     "weights": [0.5, ...], "weighed": 80,
     "held_out": {"notes": ["00c3f2...", ...]}}

Its size: a lane's place in a source is some 35 characters, and there are 48 lanes. It takes 2 kB with one source, 7 kB with five and 75 kB
with 64 at first, and 3, 10 and 115 kB where the numbers are those of a life of ten billion tokens.

`parked` holds the places of sources that an earlier preset named and this one does not, for life. `weights` are those in force,
where sources are chosen by weights, and `weighed` is the first row of the last batch, whose interval they are of: a batch may reach
into the next. `held_out` has, for life, the hashes of documents that are held out beside the percent. A rank's cursor holds its own
lanes; `merge_cursors` joins the ranks' into one that any number of processes can go on from.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from data_sources.config import PAST
from data_sources.events import united
from data_sources.lane import ASIDE, FINISHED, HEAD, NOTHING, READING, WIDTH, Standing, State
from data_sources.order import LANES

VERSION = 1

Cursor = dict[str, Any]
Parked = dict[str, dict[str, Any]]


def merge_cursors(cursors: Sequence[Cursor]) -> Cursor:
    """One cursor of those that all ranks had after the same batch. ValueError where they don't belong together."""
    if not cursors:
        raise ValueError("no cursors to merge; give one of each rank")
    first = cursors[0]
    for key in ("version", "seed", "next_row"):
        if any(cursor[key] != first[key] for cursor in cursors):
            raise ValueError(f"the ranks' cursors differ in {key}: {sorted({cursor[key] for cursor in cursors})}; take those of one batch")
    names = [name for name, _ in first["sources"]]
    if any([name for name, _ in cursor["sources"]] != names for cursor in cursors):
        raise ValueError("the ranks' cursors have different sources; take those of one run")
    if any(cursor.get(key) != first.get(key) for cursor in cursors for key in ("weights", "weighed")):
        raise ValueError("the ranks' cursors have different weights; take those of one batch")
    marks = zip(*([mark for _, mark in cursor["sources"]] for cursor in cursors), strict=True)
    return {key: first[key] for key in ("version", "seed", "next_row", "shuffle", "packing", "weights", "weighed") if key in first} | {
        "sources": [[name, _first_of(mark)] for name, mark in zip(names, marks, strict=True)],
        "lanes": _merged(cursor["lanes"] for cursor in cursors),
        "parked": _merged_parked([cursor.get("parked", {}) for cursor in cursors]),
        "events": united([event for cursor in cursors for event in cursor["events"]]),
        "held_out": _merged_held_out([cursor.get("held_out", {}) for cursor in cursors]),
    }


def _merged(lanes: Iterable[Mapping[str, State]]) -> dict[str, State]:
    together = {int(lane): state for part in lanes for lane, state in part.items()}
    return {str(lane): together[lane] for lane in sorted(together)}


def _merged_parked(parts: Sequence[Parked]) -> Parked:
    names = sorted({name for part in parts for name in part})
    held = {name: [part[name] for part in parts if name in part] for name in names}
    return {
        name: {"fingerprint": _first_of(part["fingerprint"] for part in held[name]), "lanes": _merged(part["lanes"] for part in held[name])} for name in names
    }


def _merged_held_out(parts: Sequence[Mapping[str, list[str]]]) -> dict[str, list[str]]:
    names = sorted({name for part in parts for name in part})
    return {name: sorted({value for part in parts for value in part.get(name, ())}) for name in names}


def _first_of(marks: Iterable[str]) -> str:
    return next((mark for mark in marks if mark), "")


def check_cursor(cursor: Cursor, lanes: Sequence[int]) -> None:
    """ValueError, in one line, where `lanes` can't go on from `cursor`."""
    if cursor.get("version") != VERSION:
        raise ValueError(f"the cursor has format {cursor.get('version')}, this program reads {VERSION}; start the data anew")
    missing = [lane for lane in lanes if str(lane) not in cursor["lanes"]]
    if missing:
        raise ValueError(f"the cursor lacks lane {missing[0]}; join the cursors of all ranks with merge_cursors first")
    wrong = [lane for lane, state in cursor["lanes"].items() if len(state) != HEAD + WIDTH * len(cursor["sources"])]
    if wrong:
        raise ValueError(f"the cursor is damaged at lane {wrong[0]}; start the data anew")
    checks = {
        "events": lambda: all(_is_event(event) for event in cursor["events"]),
        "parked": lambda: all(_is_parked(held) for held in cursor.get("parked", {}).values()),
        "weights": lambda: "weights" not in cursor or _are_weights(cursor["weights"], len(cursor["sources"])),
        "weighed": lambda: "weighed" not in cursor or (_are_numbers([cursor["weighed"]]) and cursor["weighed"] >= 0),
        "held_out": lambda: all(_are_hashes(values) for values in cursor.get("held_out", {}).values()),
    }
    for key, is_sound in checks.items():
        try:
            sound = is_sound()
        except (AttributeError, KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise ValueError(f"the cursor is damaged at {key}; start the data anew")


def _is_event(event: Any) -> bool:
    return len(event) in (3, 5) and _are_numbers([event[0], *event[3:]]) and isinstance(event[1], str) and isinstance(event[2], str)


def _is_parked(held: Any) -> bool:
    places = held["lanes"].items()
    return isinstance(held["fingerprint"], str) and all(0 <= int(lane) < LANES and len(place) == WIDTH and _are_numbers(place) for lane, place in places)


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def _are_weights(weights: Any, count: int) -> bool:
    return len(weights) == count and all(isinstance(weight, float) and math.isfinite(weight) and weight > 0 for weight in weights)


def _are_hashes(values: Any) -> bool:
    return isinstance(values, list) and all(0 <= int(value, 16) < 2**64 for value in values)


class Adapted(NamedTuple):
    """What of a cursor goes on under today's sources."""

    lanes: dict[int, State]
    joining: list[int]  # sources that were not in the cursor's mix
    parked: Parked


def adapted(cursor: Cursor, names: Sequence[str], repeats: Sequence[bool], lanes: Sequence[int], tell: Callable[[dict], None]) -> Adapted:
    """Those of `lanes` for today's sources: each goes on where it was when a mix named it last, new ones start, others are parked."""
    before = [name for name, _ in cursor["sources"]]
    parked: Parked = cursor.get("parked", {})
    for name in names:
        if name not in before and name != PAST:
            text = "back in this mix: goes on where it was" if name in parked else "new in this mix: read from its start"
            tell({"event": "notice", "source": name, "text": text})
    for name in before:
        if name not in names and name != PAST:
            tell({"event": "notice", "source": name, "text": "no longer in this mix: its place is kept"})
    held = {lane: _standings(cursor, before, lane) for lane in lanes}
    origin = [before.index(name) if name in before else None for name in names]
    states = {lane: _adapted(cursor["lanes"][str(lane)], [held[lane].get(name) for name in names], origin, repeats) for lane in lanes}
    kept = {}
    for name in [*parked, *before]:
        if name not in names:
            mark = dict(cursor["sources"])[name] if name in before else parked[name]["fingerprint"]
            kept[name] = {"fingerprint": mark, "lanes": {str(lane): held[lane][name] for lane in lanes if name in held[lane]}}
    return Adapted(states, [number for number, place in enumerate(origin) if place is None], kept)


def _standings(cursor: Cursor, before: Sequence[str], lane: int) -> dict[str, State]:
    """All that a lane knows of sources, by name. A parked one is no longer waited for, and its documents are at rest."""
    state = cursor["lanes"][str(lane)]
    known = {name: held["lanes"][str(lane)] for name, held in cursor.get("parked", {}).items() if str(lane) in held["lanes"]}
    known = {name: [READING if place[0] == ASIDE else place[0], *place[1:]] for name, place in known.items()}
    return known | dict(zip(before, _places(state), strict=True))


def _places(state: State) -> list[State]:
    return [state[start : start + WIDTH] for start in range(HEAD, len(state), WIDTH)]


def _adapted(state: State, held: Sequence[State | None], origin: Sequence[int | None], repeats: Sequence[bool]) -> State:
    turn, under_way = state[:HEAD]
    numbers: State = []
    for place, repeat in zip(held, repeats, strict=True):
        numbers += _reopened(place, repeat) if place else Standing().numbers()
    moved = {before: now for now, before in enumerate(origin) if before is not None}
    return [moved.get(turn, len(origin) - 1), moved.get(under_way, NOTHING), *numbers]


def _reopened(numbers: State, repeat: bool) -> State:
    """A source that was read to its end, before its next epoch where it goes round again; any other as it is."""
    standing = Standing.of(numbers)
    if standing.status == FINISHED and repeat:
        standing.status, standing.place = READING, standing.place._replace(epoch=standing.place.epoch + 1, shard=0, block=0, taken=0)
    return standing.numbers()


def reopened(cursor: Cursor) -> Cursor:
    """The cursor with every source that was read to its end put before its next epoch: a new run reads finite sources again."""
    lanes = {lane: [*state[:HEAD], *chain(*(_reopened(place, True) for place in _places(state)))] for lane, state in cursor["lanes"].items()}
    parked = {
        name: held | {"lanes": {lane: _reopened(place, True) for lane, place in held["lanes"].items()}} for name, held in cursor.get("parked", {}).items()
    }
    return cursor | {"lanes": lanes, "parked": parked}


def without(cursor: Cursor, name: str) -> Cursor:
    """The cursor as if it had never heard of a source. What of it is under way is not finished."""
    names = [each for each, _ in cursor["sources"]]
    if name not in names:
        return cursor | {"parked": {each: held for each, held in cursor.get("parked", {}).items() if each != name}}
    gone = names.index(name)
    lanes = {lane: _without(state, gone) for lane, state in cursor["lanes"].items()}
    weights = {"weights": [w for source, w in enumerate(cursor["weights"]) if source != gone]} if "weights" in cursor else {}
    return cursor | {"sources": [pair for pair in cursor["sources"] if pair[0] != name], "lanes": lanes} | weights


def _without(state: State, gone: int) -> State:
    turn, under_way = state[:HEAD]
    left = [place for source, place in enumerate(_places(state)) if source != gone]
    moved = NOTHING if under_way == gone else under_way - (under_way > gone)
    return [max(0, turn - (turn >= gone)), moved, *chain(*left)]


def lanes_of(rank: int, world_size: int) -> list[int]:
    """The lanes that `rank` of `world_size` reads. ValueError where they can't be shared out evenly."""
    if world_size < 1 or LANES % world_size:
        allowed = [number for number in range(1, LANES + 1) if LANES % number == 0]
        raise ValueError(f"{world_size} processes can't share {LANES} lanes evenly; start one of {allowed}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size} processes; ranks count from 0")
    return list(range(rank, LANES, world_size))


def read_so_far(cursor: Cursor) -> dict[str, dict[str, int]]:
    """By source, parked ones included, over all lanes that the cursor holds: documents begun, and the epoch of the lane furthest on, from 0."""
    found: dict[str, list[Standing]] = {name: [] for name, _ in cursor["sources"]}
    for state in cursor["lanes"].values():
        for (name, _), place in zip(cursor["sources"], _places(state), strict=True):
            found[name].append(Standing.of(place))
    for name, held in cursor.get("parked", {}).items():
        found[name] = [Standing.of(place) for place in held["lanes"].values()]
    return {name: {"documents": sum(s.documents for s in all_), "epochs": max(s.place.epoch for s in all_)} for name, all_ in found.items() if all_}

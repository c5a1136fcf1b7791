"""The cursor: where the data stands, as plain JSON.

    {"version": 1, "seed": 0, "next_row": 96, "sources": [["wikipedia", "3f2a..."], ...],
     "lanes": {"0": [turn, under way, status, epoch, shard, block, taken, offset, documents, tokens, credit, ...], ...},
     "events": [[row, "wikipedia", "aside"], ...]}

A rank's cursor holds its own lanes; `merge_cursors` joins the ranks' into one that any number of processes can go on from.
"""

from collections.abc import Callable, Sequence
from typing import Any

from data_sources.lane import FINISHED, HEAD, NOTHING, READING, WIDTH, Standing, State
from data_sources.order import LANES

VERSION = 1
EVENTS_KEPT = 64

Cursor = dict[str, Any]


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
    lanes = {lane: state for cursor in cursors for lane, state in cursor["lanes"].items()}
    fingerprints = [next((mark for mark in marks if mark), "") for marks in zip(*([mark for _, mark in cursor["sources"]] for cursor in cursors), strict=True)]
    events = sorted({tuple(event) for cursor in cursors for event in cursor["events"]})
    return {
        "version": first["version"],
        "seed": first["seed"],
        "next_row": first["next_row"],
        "sources": [list(pair) for pair in zip(names, fingerprints, strict=True)],
        "lanes": {str(lane): lanes[str(lane)] for lane in sorted(map(int, lanes))},
        "events": [list(event) for event in events[-EVENTS_KEPT:]],
    }


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


def adapted(cursor: Cursor, names: Sequence[str], repeats: Sequence[bool], tell: Callable[[dict], None]) -> dict[int, State]:
    """The lanes of `cursor` for today's sources: those of the same name keep their places, new ones start, others are forgotten."""
    before = [name for name, _ in cursor["sources"]]
    for name in names:
        if name not in before:
            tell({"event": "notice", "source": name, "text": "new in this mix: read from its start"})
    for name in before:
        if name not in names:
            tell({"event": "notice", "source": name, "text": "no longer in this mix: its place is forgotten"})
    origin = [before.index(name) if name in before else None for name in names]
    return {int(lane): _adapted(state, origin, repeats) for lane, state in cursor["lanes"].items()}


def _adapted(state: State, origin: Sequence[int | None], repeats: Sequence[bool]) -> State:
    turn, under_way = state[:HEAD]
    numbers: State = []
    for source, repeat in zip(origin, repeats, strict=True):
        standing = Standing() if source is None else Standing.of(state[HEAD + WIDTH * source : HEAD + WIDTH * (source + 1)])
        if standing.status == FINISHED and repeat:  # the preset now says to go round again
            standing.status, standing.place = READING, standing.place._replace(epoch=standing.place.epoch + 1, shard=0, block=0, taken=0)
        numbers += standing.numbers()
    moved = {before: now for now, before in enumerate(origin) if before is not None}
    return [moved.get(turn, len(origin) - 1), moved.get(under_way, NOTHING), *numbers]


def reopened(cursor: Cursor) -> Cursor:
    """The cursor with every source that was read to its end put before its next epoch: a new run reads finite sources again."""
    count = len(cursor["sources"])
    return cursor | {"lanes": {lane: _adapted(state, range(count), [True] * count) for lane, state in cursor["lanes"].items()}}


def lanes_of(rank: int, world_size: int) -> list[int]:
    """The lanes that `rank` of `world_size` reads. ValueError where they can't be shared out evenly."""
    if world_size < 1 or LANES % world_size:
        allowed = [number for number in range(1, LANES + 1) if LANES % number == 0]
        raise ValueError(f"{world_size} processes can't share {LANES} lanes evenly; start one of {allowed}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size} processes; ranks count from 0")
    return list(range(rank, LANES, world_size))

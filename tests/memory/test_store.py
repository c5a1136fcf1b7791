"""What was told to a snapshot is there as it was then, whatever came after it: an end at any instant, other chunks, a full disk, damage."""

import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from lm.memory.layout import MemoryFault
from lm.memory.memory import Memory, Options
from lm.memory.store import State
from tests.memory.texts import SEGMENT, SIZE, VOCABULARY, about, document, joined, opened, run, words


class Plain:
    """A memory in lists: what each chunk, its continuation and its document are."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, int, list[int]]] = []  # document, place, tokens

    def add(self, number: int, chunks: int, purpose: int) -> None:
        part = document(number, chunks, purpose)
        self.chunks += [(number, place, tokens[:count].tolist()) for place, (tokens, count) in enumerate(zip(part.tokens, part.count, strict=True))]

    def neighbour(self, number: int) -> list[int]:
        document, place, tokens = self.chunks[number]
        following = next((chunk[2] for chunk in self.chunks[number + 1 :] if chunk[:2] == (document, place + 1)), [])
        return tokens + (following if len(tokens) == SIZE else [])


def agree(memory: Memory, plain: Plain, first: int) -> None:
    """Every chunk from `first` on is what the list has."""
    length = len(plain.chunks)
    assert memory.first(length) == first
    numbers = np.arange(first, length)
    tokens, count = memory.neighbours(numbers, length)
    assert [row[:n].tolist() for row, n in zip(tokens, count, strict=True)] == [plain.neighbour(number) for number in numbers]
    assert not tokens[np.arange(2 * SIZE) >= count[:, None]].any()
    for passage, number in zip(memory.about(numbers), numbers, strict=True):
        held = plain.chunks[number]
        assert (passage.source, passage.place, passage.tokens.tolist()) == (*about(held[0]), held[2])


@pytest.mark.parametrize("seed", range(6))
def test_every_state_is_what_a_list_was_then(tmp_path: Path, seed: int) -> None:
    """Documents come in, snapshots are taken, runs stop and go on from any of the last three, with the same text or with other text."""
    draw, options = random.Random(seed), Options((97, 500, 10**6)[seed % 3], "exact")
    memory, plain, floor, number = opened(tmp_path, options=options, write=True), Plain(), 0, 0
    states: list[tuple[State, list, int]] = []
    for _ in range(60):
        match draw.choice(["add", "add", "add", "snapshot", "go back"]):
            case "add":
                parts = [(number + index, draw.choice([1, 1, 2, 7, 90]), draw.randrange(2)) for index in range(draw.randrange(4))]
                number += len(parts)
                for part in parts:
                    plain.add(*part)
                if parts:
                    memory.add(joined([document(*part) for part in parts]))
            case "snapshot":
                memory.sync()
                floor = max(floor, len(plain.chunks) - options.memory_chunks)
                states = [*states[-2:], (memory.state, list(plain.chunks), floor)]
                memory.tidy([state for state, _, _ in states])
            case "go back" if states:
                memory.close()
                state, plain.chunks, floor = draw.choice(states)
                plain.chunks = list(plain.chunks)
                memory = opened(tmp_path, state, options, write=True)
        assert memory.length == len(plain.chunks)
    agree(memory, plain, max(floor, len(plain.chunks) - options.memory_chunks))
    memory.close()
    for state, chunks, first in states:
        plain.chunks = chunks
        agree(opened(tmp_path, state, options), plain, first)


def test_a_documents_chunks_may_come_between_those_of_others(tmp_path: Path) -> None:
    memory = opened(tmp_path, write=True)
    lanes = [document(number, 30) for number in (5, 10, 15)]
    for place in range(30):
        memory.add(joined([type(lane)(*(column[place : place + 1] for column in lane)) for lane in lanes]))
    tokens, count = memory.neighbours(np.arange(90), 90)
    for number in range(90):
        lane, place = lanes[number % 3], number // 3
        assert tokens[number, : count[number]].tolist() == lane.tokens[place : place + 2].ravel().tolist()
    tokens, count = memory.neighbours(np.array([[50, -1]]), 53)
    assert count.tolist() == [[SIZE, 0]] and not tokens[0, 1].any(), "what follows is not there yet at that length"


WRITES = """
import sys
from pathlib import Path
from lm.memory.store import State
from tests.memory.texts import document, opened
folder, length, writer = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
memory = opened(folder, State(length, writer) if writer else None, write=True)
number = memory.length  # each document is two chunks
while True:
    for _ in range(20):
        memory.add(document(number, 2))
        number += 2
    memory.sync()
    print(*memory.state, flush=True)
"""


def killed_writers(folder: Path, kills: int, draw: random.Random) -> Iterator[list[State]]:
    """The states that were told so far, after each SIGKILL; the next one goes on from one of the last three."""
    states = [State(0, 0)]
    for _ in range(kills):
        writer = run(WRITES, folder, *draw.choice(states[-3:]))
        assert writer.stdout is not None
        for _ in range(draw.randrange(1, 6)):
            states.append(State(*map(int, writer.stdout.readline().split())))
        try:
            writer.wait(draw.random() * 0.01)
        except subprocess.TimeoutExpired:
            writer.kill()
        states += [State(*map(int, line.split())) for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        writer.wait()
        yield states


@cache
def pair_of(number: int) -> np.ndarray:
    """(1, 2 * SIZE)."""
    return document(number, 2).tokens.reshape(1, -1)


def whole_after_kills(folder: Path, kills: int) -> None:
    for states in killed_writers(folder, kills, random.Random(kills)):
        for state in states[-3:]:
            if state.writer:
                memory = opened(folder, state)
                firsts = np.array([number for number in range(0, state.length, 2) if number >= state.length - 200 or number % 26 == 0])
                for half in range(2):  # of each document; all of the last ones, which the kill may have met, and some of those before
                    tokens, count = memory.neighbours(firsts + half, state.length)
                    assert (count > SIZE).all() if not half else (count <= SIZE).all()
                    wanted = np.concatenate([pair_of(number)[:, half * SIZE :] for number in firsts.tolist()])
                    assert (tokens[:, : wanted.shape[1]] == wanted).all()
                    assert [passage.place for passage in memory.about(firsts + half)] == [about(number)[1] for number in firsts.tolist()]


def test_a_writer_that_is_killed_leaves_all_that_it_told(tmp_path: Path) -> None:
    whole_after_kills(tmp_path, 6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_writers_killed_again_and_again_leave_all_that_they_told(tmp_path: Path) -> None:
    whole_after_kills(tmp_path, 100)


def filled(folder: Path, documents: int = 40) -> Memory:
    memory = opened(folder, write=True)
    for number in range(documents):
        memory.add(document(number, 4))
    memory.sync()
    return memory


def test_a_full_disk_adds_nothing_and_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, real = filled(tmp_path), os.pwrite
    for room in (0, 1, 100, 1000, 3000):
        left = [room]

        def pwrite(handle: int, data: bytes, at: int, left: list[int] = left) -> int:
            if not left[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = real(handle, data[: left[0]], at)
            left[0] -= written
            return written

        monkeypatch.setattr(os, "pwrite", pwrite)
        with pytest.raises(OSError, match="No space left"):
            memory.add(joined([document(number, 9, 1) for number in range(40, 50)]))
        monkeypatch.setattr(os, "pwrite", real)
        assert memory.length == 160
    plain = Plain()
    for number in range(60):
        plain.add(number, 4, 0)
    for number in range(40, 60):
        memory.add(document(number, 4))
    agree(memory, plain, 0)
    agree(opened(tmp_path, memory.state), plain, 0)


def test_a_disk_that_is_full_indeed(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this machine mounts no small disk")
    try:
        memory, plain = opened(folder, write=True), Plain()
        with pytest.raises(OSError, match="No space left"):
            for number in range(10_000):
                memory.add(document(number, 3))
                plain.add(number, 3, 0)
        memory.sync()
        assert len(plain.chunks) > 100
        agree(opened(folder, memory.state), plain, 0)
        with pytest.raises(OSError):
            opened(folder, memory.state, write=True) and opened(folder, memory.state, write=True)
        agree(opened(folder, memory.state), plain, 0)
        memory.close()
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    memory = filled(tmp_path)
    state, draw = memory.state, random.Random(0)
    memory.close()
    query = words(0, SIZE)[None], np.array([SIZE])
    for path in sorted(tmp_path.glob("[0-9w]*")):
        whole = path.read_bytes()
        used = max(index for index, byte in enumerate(whole) if byte) + 1  # the last segment has room
        for _ in range(12):
            at = draw.randrange(used)
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :])
            if in_use(path, at, state):
                with pytest.raises(MemoryFault) as caught:
                    seen = opened(tmp_path, state)
                    seen.nearest(*query, 3, state.length)
                    seen.about(np.arange(state.length))
                assert "\n" not in str(caught.value)
        path.write_bytes(whole)
    agree_with_filled(tmp_path, state)


def in_use(path: Path, at: int, state: State) -> bool:
    """Whether a byte is of a chunk below the state's length."""
    if path.suffix != ".chunks":
        return True
    shape = opened(path.parent, state)._store.shape
    column = max((offset, name) for name, offset in shape.offsets.items() if offset <= at)
    kind, width = shape.columns[column[1]]
    chunk = int(path.name[:8]) * SEGMENT + (at - column[0]) // (np.dtype(kind).itemsize * max(1, width))
    return chunk < state.length


def agree_with_filled(folder: Path, state: State) -> None:
    plain = Plain()
    for number in range(state.length // 4):
        plain.add(number, 4, 0)
    agree(opened(folder, state), plain, 0)


@pytest.mark.parametrize("kind", ["chunks", "about", "json"])
def test_a_cut_or_missing_file_is_noticed(tmp_path: Path, kind: str) -> None:
    memory = filled(tmp_path)
    state, path = memory.state, sorted(tmp_path.glob(f"*.{kind}"))[0]
    whole = path.read_bytes()
    for damage in (lambda: path.write_bytes(whole[:-1]), lambda: path.write_bytes(b""), path.unlink):
        damage()
        with pytest.raises(MemoryFault):
            seen = opened(tmp_path, state)
            seen.about(np.arange(state.length))
    path.write_bytes(whole)
    agree_with_filled(tmp_path, state)


def test_another_writer_is_refused_in_one_line_and_a_dead_ones_child_holds_nothing(tmp_path: Path) -> None:
    holds = "import os, sys, time; from pathlib import Path; from tests.memory.texts import opened; memory = opened(Path(sys.argv[1]), write=True)"
    writer = run(f"{holds}; child = os.fork(); print(child, flush=True) if child else None; time.sleep(60)", tmp_path)
    assert writer.stdout is not None
    child = int(writer.stdout.readline())
    try:
        with pytest.raises(MemoryFault, match="another process writes") as caught:
            opened(tmp_path, write=True)
        assert "\n" not in str(caught.value)
        writer.kill()
        writer.wait()
        os.kill(child, 0)
        opened(tmp_path, write=True).close()
    finally:
        os.kill(child, 9)


def test_the_oldest_leave_and_what_is_told_stays(tmp_path: Path) -> None:
    options, kept = Options(200, "exact"), []
    memory = opened(tmp_path, options=options, write=True)
    for number in range(300):
        memory.add(document(number, 4))
        if number % 20 == 0:
            memory.sync()
            kept = [*kept[-2:], memory.state]
            memory.tidy(kept)
    files = len(list(tmp_path.glob("*.chunks")))
    assert files <= (200 + 3 * 80 + 80) // SEGMENT + 2
    reader = opened(tmp_path, memory.state, options)
    assert reader.first(1200) == 1000
    query = document(3, 4).tokens, document(3, 4).count
    assert reader.nearest(*query, 5, 1200).numbers.min() >= 1000
    held = reader.neighbours(np.arange(1000, 1200), 1200)
    memory.tidy([])
    assert all((now == then).all() for now, then in zip(reader.neighbours(np.arange(1000, 1200), 1200), held, strict=True)), "what is mapped stays"
    for state in kept[:2]:
        with pytest.raises(MemoryFault):
            opened(tmp_path, state, options).neighbours(np.array([state.length - 200]), state.length)


def test_what_is_not_of_this_memory_is_refused(tmp_path: Path) -> None:
    memory = filled(tmp_path)
    good = document(0, 3)
    for bad in (
        good._replace(tokens=good.tokens + VOCABULARY),
        good._replace(tokens=good.tokens - VOCABULARY),
        good._replace(count=good.count * 0),
        good._replace(count=good.count + SIZE),
        good._replace(document=good.document - 1),
        good._replace(tokens=good.tokens[:, :-1]),
        good._replace(place=good.place[:-1]),
    ):
        with pytest.raises(ValueError):
            memory.add(bad)
    memory.add(document(5, 0))
    assert memory.length == 160
    with pytest.raises(MemoryFault, match="chunk_size 5 in place of 6"):
        Memory.open(tmp_path, 6, VOCABULARY, memory._embedder, memory.state)
    with pytest.raises(MemoryFault, match="no memory was written yet"):
        opened(tmp_path)
    with pytest.raises(MemoryFault, match="nothing is there"):
        opened(tmp_path, State(5, 12345))
    with pytest.raises(ValueError, match="retriever_type"):
        opened(tmp_path, memory.state, Options(100, "external_api"))


def test_importing_it_needs_no_torch() -> None:
    program = "import sys, lm.memory.memory; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split() == ["False", "False"]

"""The card of a unit: tokens a second and memory by length, forward and backward, and for one token after many; against a peer.

Each length is measured in a process of its own, so that memory is its own: on the CPU the process's peak above what it held before, on a
GPU the allocator's. Where a unit has an independent peer, both take the same input in turns, and the median of the paired ratios counts.
A length that would take over CARD_SECONDS (default 60) a reading, at the slope so far, is left out.
`CARD_UNITS="s5 hyena" python -m tests.benchmarks.unit_card`; all that are built without it.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lm.preset import MECHANISMS, Preset
from lm.units import UNITS, Context
from lm.units.neighbours import AT, ENCODED, LENGTH
from tests.benchmarks.measures import peak_bytes
from tests.benchmarks.peers import UNIT_PEERS

LENGTHS = (1024, 4096, 16_384, 65_536)
PLACES = (1024, 32_768)
SECONDS = float(os.environ.get("CARD_SECONDS", 60))
SIZES = {"hidden_size": 256, "num_heads": 4, "seq_length": 512}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Reading(NamedTuple):
    """One length: seconds forward and backward, bytes at the peak, and how many times as long the peer takes (None: it was not asked)."""

    seconds: float
    memory: int
    ratio: float | None


def unit_of(name: str) -> tuple[Preset, nn.Module]:
    sections = {name: {"enabled": True}} if name in MECHANISMS else {}
    preset = Preset.model_validate({"model": SIZES, "data": {"sources": ["c4"]}, **sections})
    torch.manual_seed(0)
    unit = UNITS[name](preset)
    for parameter in unit.parameters():
        if parameter.ndim >= 2:  # an output of zeros would hide what follows from it
            nn.init.normal_(parameter, std=0.02)
    return preset, unit.to(DEVICE)


def handed(name: str, unit: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What the model shares with a unit that reads `x` (1, T, D): to retro whole neighbours come after each chunk, already encoded."""
    if name != "retro":
        return {}
    at = torch.arange(unit.chunk, x.shape[1], unit.chunk)
    encoded = torch.randn(len(at), unit.count, 2 * unit.chunk, unit.encoder_size, device=DEVICE)
    return {AT: at, ENCODED: encoded, LENGTH: torch.full(encoded.shape[:2], 2 * unit.chunk, device=DEVICE)}


def reader(unit: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """(1, T, D) -> (1, T, D), from a fresh start, with no state kept."""

    def read(x: Tensor) -> Tensor:
        context = Context(shared=handed(name, unit, x)).derived(x[..., 0], torch.zeros(1, dtype=torch.int64, device=DEVICE), carry=False)
        return unit(x, unit.initial_state(1), context).y

    return read


def timed(read: Callable[[Tensor], Tensor], x: Tensor) -> float:
    began = time.perf_counter()
    read(x).square().mean().backward()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(name: str, length: int, with_peer: bool) -> Reading:
    preset, unit = unit_of(name)
    read, x = reader(unit, name), torch.randn(1, length, SIZES["hidden_size"], device=DEVICE, requires_grad=True)
    timed(read, x[:, :64])
    before = peak_bytes()
    timed(read, x)
    memory = peak_bytes() - before
    peer = UNIT_PEERS[name](preset).to(DEVICE) if with_peer and name in UNIT_PEERS else None
    if peer is not None:
        timed(peer, x)
    mine, ratios, began = [], [], time.perf_counter()
    while len(mine) < 3 or (len(mine) < 15 and time.perf_counter() - began < 5):
        mine.append(timed(read, x))
        if peer is not None:
            ratios.append(timed(peer, x) / mine[-1])
    return Reading(statistics.median(mine), memory, statistics.median(ratios) if ratios else None)


@torch.no_grad()
def decoding(name: str, place: int) -> float:
    """Seconds for one token after `place` others."""
    _, unit = unit_of(name)
    state, start = unit.initial_state(1), torch.zeros(1, dtype=torch.int64, device=DEVICE)

    def read(length: int) -> None:
        nonlocal state, start
        x = torch.randn(1, length, SIZES["hidden_size"], device=DEVICE)
        state = unit(x, state, Context(shared=handed(name, unit, x)).derived(x[..., 0], start, carry=True)).state
        start = start + length

    for _ in range(place // 1024):
        read(1024)
    times = []
    for _ in range(64):
        began = time.perf_counter()
        read(1)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def in_a_process(*arguments: Any) -> Any:
    done = subprocess.run([sys.executable, "-m", "tests.benchmarks.unit_card", json.dumps(arguments)], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else f"failed: {(done.stderr.strip().splitlines() or ['no memory'])[-1][:90]}"


def slope(lengths: list[int], seconds: list[float]) -> float:
    """Of log seconds over log length, by least squares."""
    xs, ys = [math.log(length) for length in lengths], [math.log(second) for second in seconds]
    return statistics.linear_regression(xs, ys).slope if len(xs) > 1 else math.nan


def card(name: str) -> None:
    known: dict[int, float] = {}
    with_peer = True
    for length in LENGTHS:
        if known and max(known.values()) * (length / max(known)) ** max(1.0, slope(list(known), list(known.values())) if len(known) > 1 else 2.0) > SECONDS:
            print(f"{name:13} T {length:6,}: left out, it would take longer than {SECONDS:g} s", flush=True)
            continue
        found = in_a_process("measure", name, length, with_peer)
        if isinstance(found, str):
            print(f"{name:13} T {length:6,}: {found}", flush=True)
            continue
        seconds, memory, ratio = found
        known[length] = seconds
        with_peer = ratio is not None and ratio * seconds < SECONDS / 16  # a peer that is square in T is not asked for what takes minutes
        against = "" if ratio is None else f", {ratio:.2f} times as fast as its peer"
        print(f"{name:13} T {length:6,}: {length / seconds:9,.0f} tokens/s forward and backward, peak {memory / 2**20:7,.0f} MiB{against}", flush=True)
    if len(known) > 1:
        print(f"{name:13} slope of time over length {slope(list(known), list(known.values())):.2f}", flush=True)
    for place in PLACES:
        found = in_a_process("decoding", name, place)
        print(f"{name:13} one token after {place:6,}: {found if isinstance(found, str) else f'{1e3 * found:.3f} ms'}", flush=True)


def main() -> None:
    if len(sys.argv) > 1:  # in a process of its own
        what, *arguments = json.loads(sys.argv[1])
        print(json.dumps({"measure": measure, "decoding": decoding}[what](*arguments)))
        return
    print(f"{DEVICE.type}, float32, batch 1, {SIZES}, {torch.get_num_threads()} threads", flush=True)
    for name in os.environ.get("CARD_UNITS", "").split() or UNITS:
        card(name)


if __name__ == "__main__":
    main()

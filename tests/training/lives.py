"""Lives of one run for test_kill: each is forked, trains, and is killed. Run by the test in a process of its own, never by a person.

All that takes seconds to import is imported here once and left alone, so that this process has one thread and can be forked.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch
import torch._dynamo  # noqa: F401 - every life would import it for its optimizer
from transformers import PreTrainedTokenizerFast  # noqa: F401 - and this for its tokenizer

from lm.preset import Preset, preset_from_json
from lm.training import train
from lm.training.journal import JOURNAL
from lm.training.snapshots import NEW

LONGEST_WAIT = 60.0  # seconds for what takes one: past that a life stands still
LONGEST_GRACE = 5.0  # seconds that a loader may outlive its parent


def live(preset: Preset, folder: Path, budget: int) -> NoReturn:
    """What the forked process does. It never returns into the code of its parent."""
    try:
        train(preset, folder, budget)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def killed(preset: Preset, folder: Path, budget: int, lines: int, in_save: bool, seconds: float) -> dict[str, Any]:
    """A life that ends `seconds` after it has told `lines` events, and has begun to write a snapshot if `in_save`; and what it was doing then."""
    told = told_before(folder)
    written = time_of(folder / NEW)
    pid = os.fork()
    if not pid:
        live(preset, folder, budget)
    wait_for(lambda: lines_after(folder, told).count(b"\n") >= lines or has_ended(pid))
    loaders = len(loaders_of(pid))
    wait_for(lambda: not in_save or time_of(folder / NEW) not in (None, written) or has_ended(pid))
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    events = [json.loads(line) for line in lines_after(folder, told).splitlines(keepends=True) if line.endswith(b"\n")]
    assert status == -signal.SIGKILL, f"a life ended by itself, with status {status}, after {events[-3:]}"
    assert len(events) >= lines, f"a life stood still after {events[-3:]}"
    saving = time_of(folder / NEW) not in (None, written)
    steps = sum(event["event"] == "step" for event in events)
    return {"pid": pid, "steps": steps, "saving": saving, "at": doing(events, saving), "loaders": loaders, "orphans": orphans_of(pid)}


def wait_for(condition: Callable[[], bool], longest: float = LONGEST_WAIT) -> None:
    until = time.monotonic() + longest
    while not condition() and time.monotonic() < until:
        time.sleep(0.002)


def doing(events: list[dict[str, Any]], saving: bool) -> str:
    """What a life was doing when it ended, in words."""
    if saving:
        return "saving"
    phases = [event["text"] for event in events if event["event"] == "phase"]
    if not any(event["event"] == "step" for event in events):
        return f"starting: {phases[-1]}" if phases else "starting"
    return phases[-1] if events[-1]["event"] == "phase" else "stepping"


def told_before(folder: Path) -> int:
    """Bytes of whole lines in the journal; what a kill left behind them is cut off by the next life."""
    journal = folder / JOURNAL
    return journal.read_bytes().rfind(b"\n") + 1 if journal.exists() else 0


def lines_after(folder: Path, told: int) -> bytes:
    """The journal behind its first `told` bytes."""
    if not (folder / JOURNAL).exists():
        return b""
    with (folder / JOURNAL).open("rb") as file:
        file.seek(told)
        return file.read()


def time_of(path: Path) -> int | None:
    """When the file was written to last, None where there is none. The saving thread of a life may take it away at any instant."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def has_ended(pid: int) -> bool:
    """Whether the child is no more; it stays to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def loaders_of(pid: int) -> list[psutil.Process]:
    """Loader processes that were started by `pid`, also when that is gone: its number stands in their command."""
    commands = ((process, process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return [process for process, command in commands if str(pid) in command and any("data_sources.worker" in word for word in command)]


def orphans_of(pid: int) -> int:
    """How many loaders are left some seconds after their parent."""
    wait_for(lambda: not loaders_of(pid), LONGEST_GRACE)
    return len(loaders_of(pid))


def main() -> None:
    task = json.load(sys.stdin)
    preset = preset_from_json(json.dumps(task["preset"]), "test")
    torch.set_num_threads(1)
    assert psutil.Process().num_threads() == 1, "what has threads can't be forked"
    for moment in task["moments"]:
        print(json.dumps(killed(preset, Path(task["folder"]), task["budget"], *moment)), flush=True)


if __name__ == "__main__":
    main()

"""A person at a terminal: a pseudo-terminal, the keys, and the screen as a terminal would show it."""

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pexpect
import pyte

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"up": "\x1b[A", "down": "\x1b[B", "enter": "\r", "ctrl-c": "\x03", "ctrl-d": "\x04"}


def environment(**more: str) -> dict[str, str]:
    """The surroundings of a program under test: one thread, our packages, no network."""
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "EDITOR", "VISUAL")}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1", **more}


class Person:
    """Types and looks. Close it, or use it in a with statement."""

    def __init__(self, command: Sequence[str], folder: Path, width: int = 80, height: int = 24, **surroundings: str) -> None:
        self.screen = pyte.Screen(width, height)
        self._stream = pyte.Stream(self.screen)
        self.raw = ""
        self.child = pexpect.spawn(
            command[0], list(command[1:]), cwd=folder, env=environment(**surroundings), dimensions=(height, width), encoding="utf-8", codec_errors="replace"
        )

    def __enter__(self) -> "Person":
        return self

    def __exit__(self, *problem: object) -> None:
        self.child.close(force=True)

    @property
    def text(self) -> str:
        """What stands on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def look(self, seconds: float = 0.1) -> None:
        """Watch for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                got = self.child.read_nonblocking(65_536, 0.05)
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                return
            self.raw += got
            self._stream.feed(got)

    def waits_for(self, what: str | Callable[[str], bool], seconds: float = 60) -> str:
        """Watch until a pattern stands on the screen, or until it is as `what` says. The screen then."""
        there = what if callable(what) else lambda text: re.search(what, text) is not None
        until = time.monotonic() + seconds
        while not there(self.text):
            assert time.monotonic() < until, f"not seen within {seconds} s: {what}\n{self.text}"
            assert self.child.isalive() or there(self.text), f"it ended before: {what}\n{self.text}"
            self.look()
        return self.text

    def types(self, *keys: str) -> None:
        for key in keys:
            self.child.send(KEYS.get(key, key))
            self.look(0.15)

    def goes_to(self, entry: str) -> None:
        """Press the down arrow until a list's mark stands before `entry`."""
        for _ in range(100):
            if f"❯ {entry}" in self.text:
                return
            before = self.text
            self.types("down")
            until = time.monotonic() + 5  # a busy machine may draw late, and the next press would go past it
            while self.text == before and time.monotonic() < until:
                self.look()
        raise AssertionError(f"not in the list: {entry}\n{self.text}")

    def resizes(self, width: int, height: int) -> None:
        self.child.setwinsize(height, width)
        self.screen.resize(height, width)

    def hangs_up(self, seconds: float) -> None:
        """Close the terminal, as a lost connection does, and wait for the program's end."""
        self.child.ptyproc.fileobj.close()
        until = time.monotonic() + seconds
        while self.child.isalive():
            assert time.monotonic() < until, f"still running after {seconds} s"
            time.sleep(0.1)
        self.child.closed = self.child.ptyproc.closed = True

    def ends(self, seconds: float = 30) -> int:
        """Wait for the program's end: its exit status."""
        until = time.monotonic() + seconds
        while self.child.isalive():
            assert time.monotonic() < until, f"still running after {seconds} s\n{self.text}"
            self.look()
        self.look(0.1)
        self.child.close()
        return self.child.exitstatus if self.child.exitstatus is not None else -self.child.signalstatus


MAIN = (sys.executable, "main.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "main.py")

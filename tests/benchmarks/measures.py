"""What several benchmarks measure with: bits per byte, seconds, the highest memory of a process, and results that outlive a benchmark that is cut off."""

import contextlib
import hashlib
import json
import math
import re
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from data_sources import Batch

WARMUP_STEPS, DECAY = 50, 0.2


def factor(step: int, steps: int) -> float:
    """Of the learning rate: warmed up, and lowered over the last fifth."""
    return min(1.0, (step + 1) / WARMUP_STEPS, 0.1 + 0.9 * (steps - step) / (DECAY * steps))


@torch.no_grad()
def bits_per_byte(loss: Any, module: nn.Module, batches: list[Batch], sizes: torch.Tensor) -> tuple[float, float]:
    """(bits per byte, nats a token) of the held-out batches."""
    module.eval()
    nats = sum(float(loss(batch)) * batch.valid for batch in batches)
    module.train()
    written = sum(int(sizes[batch.targets[batch.targets >= 0].cpu()].sum()) for batch in batches)
    return nats / math.log(2) / written, nats / sum(batch.valid for batch in batches)


def unigram_entropy(batches: list[Batch]) -> float:
    """Nats a token of a model that knows how often each token occurs in this very text, and nothing else."""
    counts = Counter(int(token) for batch in batches for token in batch.targets[batch.targets >= 0])
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())


def timed(do: Callable[[], object]) -> float:
    """Seconds that `do` takes: of the processor, whose count other work leaves alone, or by the clock where a GPU works."""
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    began = clock()
    do()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - began


class Ratio(NamedTuple):
    """How many times as fast one is as another, pair by pair."""

    median: float
    low: float  # a quarter of the pairs is below it
    high: float  # and a quarter above
    mean: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.2f} (median of {self.pairs} pairs, half of them from {self.low:.2f} to {self.high:.2f})"


def paces(takers: Mapping[str, Callable[[int], int]], rounds: int, warm: int = 2) -> list[dict[str, float]]:
    """Seconds a token of all takers, round by round, after `warm` that don't count. A taker takes step `number` and says how many tokens that read.

    All take their turns in each round, so that what slows the machine slows all; and another goes first each time, since who goes later finds
    other caches. Steps should be of different batches: the same one again is already where it is needed.
    """
    found, names = [], [*takers]
    for number in range(warm + rounds):
        at, costs = number % len(names), {}
        for name in names[at:] + names[:at]:
            read: list[int] = []
            costs[name] = timed(lambda name=name, number=number, read=read: read.append(takers[name](number))) / read[0]
        found.append(costs)
    return found[warm:]


def ratio(found: list[dict[str, float]], name: str, against: str) -> Ratio:
    """How many times as fast as `against` the taker `name` is."""
    ratios = [costs[against] / costs[name] for costs in found]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high, statistics.mean(ratios), len(ratios))


def peak_bytes() -> int:
    """The most memory that this process ever held, or that it took of its GPU.

    Linux's own count of the program that runs: getrusage also counts what the process that started it held then.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else 1024 * held


def apart(module: str, argument: str) -> Any:
    """What the benchmark `module` prints last, as JSON, when it is run with `argument` in a process of its own."""
    done = subprocess.run([sys.executable, "-m", module, argument], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def digest(thing: Any) -> str:
    """A few letters that change when any part of `thing` (plain JSON) does."""
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()[:12]


def commit_of(folder: Path) -> str:
    """The commit of the code in `folder`, with a "+" where it was changed since; empty without git."""

    def told(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout.strip()

    try:
        return told("rev-parse", "HEAD") + "+" * bool(told("status", "--porcelain", "--", "*.py", "configs"))
    except (OSError, subprocess.CalledProcessError):
        return ""


class Results:
    """What was found, a line of JSON for each thing asked: nothing is measured twice, and what was cut off goes on.

    Each line has the commit of the code that made it, which is not asked for: other code does not measure again, but tables tell.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._known, self._commits = path, {}, {}
        self._used: dict[str, None] = {}  # a set in order
        self.commit = commit_of(Path(__file__).parent.parent.parent)  # of now: the code may change while it runs
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text and not text.endswith("\n"):
            path.write_text(text + "\n", encoding="utf-8")
        for line in text.splitlines():
            with contextlib.suppress(ValueError, KeyError):  # cut off in the middle, or of other results
                told = json.loads(line)
                self._known[digest(told["asked"])] = told["found"]
                self._commits[digest(told["asked"])] = told.get("commit", "")

    def known(self, asked: Mapping[str, Any]) -> Any:
        """None when it was never measured."""
        return self._known.get(digest(asked))

    def of(self, asked: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """What `asked` came to: measured now, unless it was."""
        self._used[key := digest(asked)] = None
        if (found := self.known(asked)) is not None:
            return found
        found = self._known[key] = measure()
        self._commits[key] = self.commit
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"asked": asked, "found": found, "commit": self.commit}) + "\n")
        return found

    def commits_told(self) -> Iterator[str]:
        """A line, where what was given out so far was measured with the code of several commits."""
        commits = Counter(self._commits[key] for key in self._used)
        if len(commits) > 1:
            yield "\ncommits: " + ", ".join(f"{name[:12] + '+' * name.endswith('+') if name else 'not known'} ({n} lines)" for name, n in commits.most_common())

"""Whether memory grows: python -m tests.benchmarks.stream_memory

The resident memory of a process that reads installed documentation over and over, each 30 seconds for STREAM_MINUTES (default 10), with
STREAM_WORKERS loader processes (default 0) counted in, and the slope of the second half. Printed, never asserted.
"""

import os
import sys
import time

import numpy as np
import psutil

from data_sources import open_stream
from data_sources.stream import Options
from data_sources.tokenizer import build_tokenizer
from tests.benchmarks.text import LOCAL

LENGTH, ROWS = 1024, 8
MINUTES = float(os.environ.get("STREAM_MINUTES", "10"))
WORKERS = int(os.environ.get("STREAM_WORKERS", "0"))
EVERY = min(30.0, MINUTES * 60 / 10)  # seconds


def main() -> None:
    tokenizer = build_tokenizer(LOCAL, seed=0)
    began, seen, tokens = time.monotonic(), [], 0
    with open_stream(LOCAL, tokenizer, LENGTH, ROWS, options=Options(WORKERS)) as stream:
        while time.monotonic() - began < MINUTES * 60:
            tokens += next(stream)[0].valid
            stream.held_out.take_new()
            stream.events()
            if time.monotonic() - began >= EVERY * (len(seen) + 1):
                seen.append((time.monotonic() - began, resident()))
                print(f"{seen[-1][0]:6.0f} s {seen[-1][1]:8.1f} MiB {tokens:14,} tokens, epoch {stream.sources[0].epoch}", flush=True)
    half = seen[len(seen) // 2 :]
    if len(half) > 1:
        print(f"slope of the second half: {60 * np.polyfit(*zip(*half, strict=True), 1)[0]:+.2f} MiB a minute")


def resident() -> float:
    """MiB of this process and of its loaders."""
    here = psutil.Process()
    return sum(process.memory_info().rss for process in (here, *here.children())) / 2**20


if __name__ == "__main__":
    sys.exit(main())

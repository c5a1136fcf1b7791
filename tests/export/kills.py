"""Exports that are killed: python -m tests.export.kills SNAPSHOT EXPORTS

Forks a child that exports again and again, and ends it by SIGKILL at some instant, until ten were ended, of them one in the middle of an
export, and an export was whole in between. A process of its own: a child forked from one that runs threads may hang.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from lm.export import export_snapshot
from lm.export.folder import ASIDE
from lm.training.snapshots import read_snapshot

MOST = 100


def main() -> None:
    snapshot, exports = read_snapshot(Path(sys.argv[1])), Path(sys.argv[2])
    exports.mkdir()
    draw, kills, unfinished, took = random.Random(3), 0, 0, 0.2
    while kills < 10 or not unfinished or not list(exports.glob("small-*")):
        assert kills < MOST, f"of {kills} kills {unfinished} came in the middle of an export"
        child = os.fork()
        if child == 0:
            while True:
                export_snapshot(snapshot, exports)
        time.sleep(took * draw.uniform(0.1, 2.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills, unfinished = kills + 1, unfinished + (exports / ASIDE).exists()
        took *= 1 if list(exports.glob("small-*")) else 1.2  # a slow machine
    print(f"{kills} kills, {unfinished} of them in the middle of an export")


if __name__ == "__main__":
    main()

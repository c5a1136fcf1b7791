"""The process that indexes a block while training goes on: python -m lm.memory.building FOLDER WRITER START END

It ends when it is done, or when the process that began it has ended. A file is written as a whole or not at all.
"""

import contextlib
import os
import sys
from pathlib import Path

from lm.memory.index import Block, Indexes
from lm.memory.layout import MemoryFault
from lm.memory.store import Store


def build(folder: Path, writer: int, block: Block, parent: int) -> None:
    """Index a block, unless `parent` ends before."""
    os.nice(10)  # what is waited for is built by who waits
    with contextlib.suppress(MemoryFault, InterruptedError, OSError):  # who needs the index finds out, and says so
        Indexes(folder).open(Store(folder, writer), block, lambda: os.getppid() != parent)


if __name__ == "__main__":
    build(Path(sys.argv[1]), int(sys.argv[2]), Block(int(sys.argv[3]), int(sys.argv[4])), os.getppid())

"""The memory of this machine, and who shares it, known without torch."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def host_bytes() -> int:
    """What programs of this machine, or of this container, may take in all."""
    there, (limit, _) = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), group_bytes()
    return there if limit is None else min(there, limit)


def processes() -> int:
    """How many train on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def group_bytes() -> tuple[int | None, int | None]:
    """What the control group that this process is in may take, and what it has; None without one, or without a limit."""
    return _number(CGROUP / "memory.max"), _number(CGROUP / "memory.current")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None

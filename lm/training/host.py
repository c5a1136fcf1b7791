"""The memory of this machine, and who shares it, known without torch."""

import os
import re
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


def host_bytes() -> int:
    """What programs of this machine, or of this container, may take in all."""
    limit, _ = group_bytes()
    return min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), limit)


def processes() -> int:
    """How many train on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def groups() -> list[Path]:
    """Folders of the control group that this process is in, as systemd's slices and Slurm's jobs are, and of all above it: their limits hold as well.

    A container sees its own group as the root, whatever path its host knows it by.
    """
    path = next((line.removeprefix("0::") for line in said(OWN_GROUP).splitlines() if line.startswith("0::")), "/")
    own = CGROUP / path.lstrip("/")
    return [folder for folder in (own, *own.parents) if folder.is_relative_to(CGROUP)]


def group_bytes() -> tuple[int, int]:
    """What the control groups of this process may take, and what is left of it, by the tightest of them; boundless without a limit."""
    limits = [(limit, max(limit - _used(group), 0)) for group in (*groups(), CGROUP / "memory") if (limit := _limit(group)) is not None]
    in_all, left = zip((sys.maxsize, sys.maxsize), *limits, strict=True)
    return min(in_all), min(left)


def _limit(group: Path) -> int | None:
    """In bytes. A container with control groups of the first version sees its own in the folder "memory"."""
    return _number(said(group / "memory.max") or said(group / "memory.limit_in_bytes"))


def _used(group: Path) -> int:
    """What a group has, but for what it read from files and did not come back to: the kernel takes that away where memory gets short."""
    cached = re.search(r"^(?:total_)?inactive_file (\d+)$", said(group / "memory.stat"), re.MULTILINE)
    used = _number(said(group / "memory.current") or said(group / "memory.usage_in_bytes")) or 0
    return max(used - int(cached[1] if cached else 0), 0)


def said(path: Path) -> str:
    """What a file of the kernel says; nothing where there is none."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None

"""How many threads a process has for its products on a CPU.

torch takes one for each physical core, whatever a container may use of them; torchrun takes one for each process, however many cores there are.
"""

import os
import re
import sys
from pathlib import Path

import torch

from lm.training.host import groups, processes, said

CPUS = Path("/sys/devices/system/cpu")


def fitting_threads() -> int:
    """Threads for this process: as many as a person chose, else its part of the cores.

    torchrun sets OMP_NUM_THREADS to 1 where nobody set it, so that among several processes a 1 is taken for torchrun's. Loader processes get no core of
    their own: they wait most of the time, and sums, which may depend on the number of threads, must not depend on them.
    """
    now, beside = torch.get_num_threads(), processes()
    if os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return now
    return max(1, cores() // beside) if beside > 1 else min(now, cores())


def cores() -> int:
    """Physical cores that this process may use, in whole ones: of those it may run on, no more than its container has time for."""
    allowed = os.sched_getaffinity(0) if sys.platform == "linux" else range(os.cpu_count() or 1)
    physical = len({said(CPUS / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed})
    return max(1, min(physical, *map(_quota, groups())))


def _quota(group: Path) -> int:
    """Whole cores that a control group has time for: microseconds of processors in each so many; boundless without a limit."""
    found = re.fullmatch(r"(\d+) ([1-9]\d*)", said(group / "cpu.max"))
    return int(found[1]) // int(found[2]) if found else sys.maxsize

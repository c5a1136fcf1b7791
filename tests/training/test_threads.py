"""Processes that train on the CPUs of one host share its cores, whatever torchrun says; a person's choice stays; another number is another device."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lm.app.waiting import SPINS
from lm.training import host, threads
from lm.training.distribution import Ranks, device_in_words
from lm.training.threads import cores
from tests.training.test_run import Tiny, trained


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A host of 16 cores with two threads each, all of which this process may use. Its folder of the control group."""
    for cpu in range(32):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(f"{cpu % 16},{cpu % 16 + 16}\n")
    monkeypatch.setattr(threads, "CPUS", tmp_path)
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    monkeypatch.setattr(host, "OWN_GROUP", tmp_path / "own")
    allow(monkeypatch, set(range(32)))
    return tmp_path


def allow(monkeypatch: pytest.MonkeyPatch, cpus: set[int]) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: cpus, raising=False)


@pytest.mark.parametrize(
    ("beside", "chosen", "before", "after"),
    [
        ("2", "1", 1, 8),  # as torchrun starts them
        ("3", "1", 1, 5),
        ("24", "1", 1, 1),
        ("2", None, 16, 8),  # as another launcher may
        ("2", "3", 3, 3),
        ("1", None, 16, 16),
        ("1", None, 32, 16),
        ("1", "1", 1, 1),
        (None, None, 2, 2),  # a program that calls train() has chosen fewer
    ],
)
def test_processes_share_the_cores(
    sixteen: Path, monkeypatch: pytest.MonkeyPatch, tiny: Tiny, beside: str | None, chosen: str | None, before: int, after: int
) -> None:
    for name, value in (("LOCAL_WORLD_SIZE", beside), ("OMP_NUM_THREADS", chosen)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(before)
    ranks = Ranks(tiny().train)
    assert torch.get_num_threads() == after
    assert f"({after} thread" in device_in_words(ranks)


def test_cores_are_those_that_this_process_may_use(sixteen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores() == 16
    for quota, known in (("max 100000", 16), ("250000 100000", 2), ("50000 100000", 1), ("9900000 100000", 16)):
        (sixteen / "cpu.max").write_text(f"{quota}\n")
        assert cores() == known
    allow(monkeypatch, {0, 1, 2, 16, 17})
    assert cores() == 3
    allow(monkeypatch, {40, 41})  # the kernel tells nothing of them
    assert cores() == 2


def test_time_for_a_group_above_is_time_for_all_in_it(sixteen: Path) -> None:
    """The tightest on the way from the process's own group to the root; files that say nothing of it limit nothing."""
    (sixteen / "own").write_text("1:cpu:/other\n0::/slurm/job_7\n")
    (sixteen / "slurm/job_7").mkdir(parents=True)
    for (own, above, root), known in (
        (("400000 100000", "max 100000", ""), 4),
        (("400000 100000", "300000 100000", ""), 3),
        (("max 100000", "300000 100000", "200000 100000"), 2),
        (("odd", "100000", "100000 0"), 16),
    ):
        for folder, quota in zip(("slurm/job_7", "slurm", "."), (own, above, root), strict=True):
            (sixteen / folder / "cpu.max").write_text(f"{quota}\n")
        assert cores() == known
    (sixteen / "slurm/cpu.max").write_text("300000 100000\n")
    (sixteen / "own").write_text("0::/as/its/host/knows/it\n")
    (sixteen / "cpu.max").write_text("500000 100000\n")
    assert cores() == 5, "a container's own group is the root that it sees"


def test_another_number_of_threads_is_told_of_a_run_that_goes_on(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tiny(), tmp_path, 30, stop_after=2)
    monkeypatch.setattr("lm.training.distribution.fitting_threads", lambda: 2)
    again = trained(tiny(train={"loader_processes": 1}), tmp_path, 30, stop_after=1)
    (resume,), (run,) = again.of("resume"), again.of("run")
    assert run["device"].startswith("CPU (2 threads)")
    assert not resume["exact"] and resume["differs"][0] == f"device {run['device'].replace('2 threads', '1 thread')} is now {run['device']}"


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP than libgomp")
@pytest.mark.parametrize(("chosen", "spins"), [({}, SPINS), ({"OMP_WAIT_POLICY": "passive"}, "0"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_waiting_threads_soon_sleep_where_nobody_chose_otherwise(chosen: dict[str, str], spins: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))} | chosen
    program = "import sys, main, lm.app.company as asked; sys.argv = ['']; asked.company_of = lambda _: sys.exit(not __import__('torch')); main.main()"
    told = subprocess.run([sys.executable, "-c", program], env={**environment, "OMP_DISPLAY_ENV": "verbose"}, capture_output=True, text=True).stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in told, "as libgomp says when torch loads it"

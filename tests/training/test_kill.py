"""A run that is killed again and again comes to the same model, bit for bit, as one that was left alone."""

import gzip
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_sources.held_out import HeldOutStore
from lm.preset import Preset
from lm.training import train
from lm.training.evaluation import HELD_OUT
from lm.training.journal import JOURNAL
from lm.training.snapshots import NEW, Snapshots
from tests.data_sources.streams import files, paragraphs
from tests.training.lives import loaders_of
from tests.training.test_remembering import contents

ROOT = Path(__file__).parents[2]
STEP = 4 * 64  # tokens of a step
STEPS = 6  # of the run for each kill, about twice what a life adds to it
LINES = 21  # events that a life tells before it is killed are fewer: about 6 until its first step, then steps, saves and weights
SECONDS, SAVE_SECONDS = 0.06, 0.02  # that it then still has, at most
LIVES = 25  # of one process that forks them: the next one hashes strings otherwise
ONE_THREAD = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}  # numpy and pyarrow start others when they are imported
TOLD = ("step", "life_tokens", "batch_hash", "loss", "losses", "gradient_norm", "learning_rate")


def two_sources(folder: Path) -> list[dict[str, Any]]:
    """Real paragraphs in two kinds of files, so few that both are read several times over."""
    texts = paragraphs(600)
    (folder / "rows").mkdir()
    for shard in range(2):
        pq.write_table(pa.table({"text": texts[shard * 180 : (shard + 1) * 180]}), folder / "rows" / f"{shard}.parquet", row_group_size=50)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[360:])
    (folder / "lines.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return [files("rows", folder / "rows", repeat=True), files("lines", folder / "lines.jsonl.gz", repeat=True)]


def small(tiny: Callable[..., Preset], sources: list[dict[str, Any]], loaders: int, remembers: bool) -> Preset:
    """Saved at every other step, and now and then evaluated, sampled from and weighed anew, so that kills fall into all of it."""
    often = {"snapshot_every_tokens": 2 * STEP, "evaluate_every_tokens": 40 * STEP, "sample_every_tokens": 100 * STEP}
    adaptive = {"enable_adaptive_sources": True, "adaptive_interval_tokens": 10 * STEP, "adaptive_smoothing": 0.5}
    data = {"sources": sources, "mix_strategy": "weighted", "source_weights": [2.0, 1.0]}
    retro = {"retro": {"enabled": True, "chunk_size": 8, "layers": "all", "memory_chunks": 600}} if remembers else {}
    return tiny(train=often | {"loader_processes": loaders}, auxiliary=adaptive, data=data, **retro)


def moments(kills: int, draw: random.Random) -> list[tuple[int, bool, float]]:
    """When each life ends: seconds after so many events, and for every third number of them after the next save has begun to write.

    Each number is as frequent, so that no seed leaves out a part of a life.
    """
    lines = [number * LINES // kills for number in range(kills)]
    draw.shuffle(lines)
    return [(number, number % 3 == 2, draw.uniform(0, SAVE_SECONDS if number % 3 == 2 else SECONDS)) for number in lines]


def kill_again_and_again(preset: Preset, folder: Path, budget: int, ends: list[tuple[int, bool, float]]) -> list[dict[str, Any]]:
    """What each life was doing when it was killed."""
    kills = []
    for start in range(0, len(ends), LIVES):
        task = {"preset": preset.model_dump(mode="json"), "folder": str(folder), "budget": budget, "moments": ends[start : start + LIVES]}
        environment = os.environ | ONE_THREAD | {"PYTHONHASHSEED": str(1 + start)}
        command = [sys.executable, "-m", "tests.training.lives"]
        done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, timeout=200, cwd=ROOT, env=environment)
        kills += map(json.loads, done.stdout.splitlines())
        assert done.returncode == 0, f"after {len(kills)} kills: {done.stderr[-3000:]}"
    return kills


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JOURNAL).read_text(encoding="utf-8").splitlines()]


def held_out(folder: Path) -> dict[str, set[str]]:
    store = HeldOutStore(folder / HELD_OUT, limit_tokens=0)
    return {name: set(store.texts(name)) for name in store.sources()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "loaders", "remembers", "least"),
    [
        (50, 0, False, {"starting": 5, "stepping": 20, "saving": 5}),
        (10, 1, False, {"starting": 1, "stepping": 4, "with a loader": 4}),
        (12, 0, True, {"starting": 1, "stepping": 4, "saving": 1}),
    ],
    ids=["alone", "with a loader", "with a memory"],
)
def test_killed_at_random_moments(tiny: Callable[..., Preset], tmp_path: Path, kills: int, loaders: int, remembers: bool, least: dict[str, int]) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # shown when the test fails
    sources, budget = two_sources(tmp_path), kills * STEPS * STEP
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    preset = small(tiny, sources, loaders, remembers)
    train(small(tiny, sources, 0, remembers), whole, budget)
    ends = kill_again_and_again(preset, cut, budget, moments(kills, random.Random(seed)))
    train(preset, cut, budget)

    met = Counter({"starting": sum(not end["steps"] for end in ends), "stepping": sum(end["steps"] > 0 for end in ends)})
    met += Counter({"saving": sum(end["saving"] for end in ends), "with a loader": sum(end["loaders"] > 0 for end in ends)})
    print(f"killed while {dict(Counter(end['at'] for end in ends))}; {dict(met)}")
    assert all(met[kind] >= number for kind, number in least.items())
    assert not any(end["orphans"] for end in ends) and not any(loaders_of(end["pid"]) for end in ends), "no loader outlives its parent"

    events = events_of(cut)
    once = {event["tokens"]: [event[key] for key in TOLD] for event in events_of(whole) if event["event"] == "step"}
    steps = [event for event in events if event["event"] == "step"]
    for event in steps:
        assert [event[key] for key in TOLD] == once[event["tokens"]], f"the step to {event['tokens']} tokens"
    assert {event["tokens"] for event in steps} == once.keys()
    assert len(steps) > len(once), "steps that were not saved are done again,"
    saved = 0
    for event in events:
        saved = event["tokens"] if event["event"] == "snapshot" else saved
        assert event["event"] != "step" or event["tokens"] > saved, "and those that were saved are not"
    resumes = [event for event in events if event["event"] == "resume"]
    assert len(resumes) > len(ends) // 4 and [event["text"] for event in resumes if not event["exact"]] == []
    assert all(event["exact"] for event in events if event["event"] == "certificate")
    assert kills < 50 or NEW in {event["from"] for event in resumes}, "a snapshot that was written and not yet in its place is gone on from"
    assert [event["reason"] for event in events if event["event"] == "end"] == ["the run's tokens are read"]

    one, two = (Snapshots(folder).read("current") for folder in (whole, cut))
    for part in ("weights", "optimizer", "random"):
        ours, theirs = getattr(one, part), getattr(two, part)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours), part
    notes = [part.run.pop("memory") for part in (one, two)]
    assert one.cursor == two.cursor and one.run == two.run and one.life["sources"] == two.life["sources"]
    if remembers:  # writers are drawn by lot
        assert [[row, length] for row, length, _ in notes[0]] == [[row, length] for row, length, _ in notes[1]]
        assert contents(whole) == contents(cut)
    assert held_out(whole) == held_out(cut)

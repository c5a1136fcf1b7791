"""Faults of real connections: others go on, nothing is lost, what comes back goes on where it was."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from data_sources import SourcesFailed, open_stream
from data_sources.config import DataConfig
from data_sources.stream import Options, Stream
from tests.data_sources.streams import byte_tokenizer, data_config, files, paragraphs, read_texts, rows_of, write_jsonl
from tests.loopback_hub import Answer, LoopbackHub, make_dataset

REMOTE = {"type": "hf", "name": "remote", "dataset": "some/words"}


@pytest.fixture
def remote_texts(tmp_path: Path, hub: LoopbackHub) -> list[str]:
    texts = paragraphs(400)
    make_dataset(tmp_path / "hub", "some/words", [{"text": text} for text in texts], shards=3, row_group_size=30)
    return texts


def with_local(tmp_path: Path, **options: object) -> DataConfig:
    write_jsonl(tmp_path / "local.jsonl", paragraphs(100, start=500))
    return data_config(REMOTE, files("local", tmp_path / "local.jsonl", repeat=True), **options)


def refuse_all(answer: Answer, path: str) -> bool:
    answer.refuse(503)
    return True


def states(stream: Stream) -> dict[str, str]:
    return {source.name: source.state for source in stream.sources}


def test_dead_sources_are_told_of_and_others_go_on(tmp_path: Path, point_at: Callable[[str], None]) -> None:
    point_at("http://127.0.0.1:9")
    write_jsonl(tmp_path / "local.jsonl", paragraphs(100))
    dead = [{**REMOTE, "name": f"dead {number}"} for number in range(3)]
    data = data_config(*dead, files("local", tmp_path / "local.jsonl"))
    began = time.monotonic()
    with open_stream(data, byte_tokenizer(), 64, 48) as stream:
        batches = [batch for batch, _ in stream]
        assert time.monotonic() - began < 6
        events = {event["name"]: (event["state"], event["reason"]) for event in stream.events() if event["event"] == "source"}
        assert all(state == "waiting" and "can't be reached" in reason for state, reason in list(events.values())[:3])
        assert states(stream) == {"dead 0": "waiting", "dead 1": "waiting", "dead 2": "waiting", "local": "finished"}
        assert all(source.next_try > time.time() for source in stream.sources[:3])
    assert {number for batch in batches for number in batch.source.flatten().tolist()} == {3, -1}


def test_all_failed(tmp_path: Path, point_at: Callable[[str], None], impatient: None) -> None:
    point_at("http://127.0.0.1:9")
    data = data_config(REMOTE, files("local", tmp_path / "nowhere"))
    with open_stream(data, byte_tokenizer(), 64, 48) as stream, pytest.raises(SourcesFailed) as error:
        next(stream)
    assert "\n" not in str(error.value)
    assert "can't be reached" in error.value.reasons["remote"] and "there is no" in error.value.reasons["local"]


def test_a_short_fault_changes_nothing(tmp_path: Path, hub: LoopbackHub, remote_texts: list[str], impatient: None) -> None:
    data = with_local(tmp_path)
    with open_stream(data, byte_tokenizer(), 64, 48) as stream:
        calm = [rows_of(batch) for batch, _ in islice(stream, 30)]
    calls = iter(range(10_000))

    def every_third(answer: Answer, path: str) -> bool:
        number = next(calls)
        if number % 3 == 0 and path.endswith(".parquet"):
            answer.cut(20) if number % 2 else answer.refuse(500)
            return True
        return False

    hub._server.fault = every_third
    with open_stream(data, byte_tokenizer(), 64, 48) as stream:
        assert [rows_of(batch) for batch, _ in islice(stream, 30)] == calm
        assert states(stream)["remote"] in ("reading", "finished") and next(calls) > 30


def test_a_source_comes_back_where_it_was(tmp_path: Path, hub: LoopbackHub, remote_texts: list[str], impatient: None) -> None:
    """Cut off at every block for a while: set aside, the other goes on, and in the end each document was read once."""
    data = with_local(tmp_path)
    rows, seen = [], set()
    with open_stream(data, byte_tokenizer(), 64, 48) as stream:
        for turn, (batch, _) in enumerate(stream):
            hub._server.fault = refuse_all if turn % 8 == 1 else None if turn % 8 == 4 else hub._server.fault
            rows += rows_of(batch)
            seen.add(states(stream)["remote"])
            time.sleep(0.02)
            if states(stream)["remote"] == "finished":
                break
        held_out = Counter(text.encode() for source, text in stream.held_out.take_new() if source == "remote")
        kinds = {(what, name) for _, name, what, *_ in stream.cursor()["events"]}
    assert {"waiting", "reading", "finished"} <= seen and kinds >= {("aside", "remote"), ("back", "remote")}
    remote = Counter(text for text in read_texts(rows) if text.decode() in set(remote_texts))
    assert remote + held_out == Counter(text.encode() for text in remote_texts)


def test_a_resume_while_the_source_is_away(tmp_path: Path, hub: LoopbackHub, remote_texts: list[str], impatient: None) -> None:
    """The document that was under way is left, and read on from the same token when its source is back."""
    data = with_local(tmp_path, shuffle=False)
    with open_stream(data, byte_tokenizer(), 16, 48) as stream:
        first = list(islice(stream, 9))
        cursor = json.loads(json.dumps(first[-1][1]))
        held_out = {text for _, text in stream.held_out.take_new()}
    hub._server.fault = refuse_all
    with open_stream(data, byte_tokenizer(), 16, 48, cursor=cursor) as stream:
        assert states(stream)["remote"] == "waiting"
        away, cursor = next(stream)
    assert set(away.source.flatten().tolist()) == {1}
    hub._server.fault = None
    with open_stream(data, byte_tokenizer(), 16, 48, cursor=cursor) as stream:
        later = [batch for batch, _ in islice(stream, 600)]
        assert states(stream)["remote"] == "finished"
        held_out |= {text for _, text in stream.held_out.take_new()}
    begun = [row for batch in [*[b for b, _ in first], away, *later] for row in rows_of(batch)]
    scored = Counter(target for row in begun for target, source in zip(row.targets, row.source, strict=True) if source == 0)
    texts = [text for text in remote_texts if text not in held_out]
    tokenizer = byte_tokenizer()
    assert scored == Counter(token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
    assert sum(row.targets[-1] != 257 for row in rows_of(first[-1][0])) > 20, "documents were under way"
    again = [token for batch in later[:40] for row in rows_of(batch) for token, restart in zip(row.tokens, row.restart, strict=True) if restart]
    assert sum(token != 256 for token in again) > 10, "read on in the middle, which is a new beginning for the reader"


def test_the_first_part_of_a_mix_may_be_away(tmp_path: Path, hub: LoopbackHub, remote_texts: list[str], impatient: None) -> None:
    data = with_local(tmp_path, mix_strategy="weighted", source_weights=[1.0, 1.0])
    hub._server.fault = refuse_all
    with open_stream(data, byte_tokenizer(), 64, 48) as stream:
        for batch, _ in islice(stream, 20):
            assert set(batch.source.flatten().tolist()) == {1}
        hub._server.fault = None
        deadline = time.monotonic() + 20
        while states(stream)["remote"] != "reading" and time.monotonic() < deadline:
            time.sleep(0.05)
        counts = Counter(number for batch, _ in islice(stream, 20) for number in batch.source.flatten().tolist())
    assert 0.4 < counts[0] / (counts[0] + counts[1]) < 0.6, "it takes its share again, and does not catch up"


def test_retry_after_is_heeded(tmp_path: Path, hub: LoopbackHub, remote_texts: list[str], impatient: None) -> None:
    data = with_local(tmp_path)

    def busy(answer: Answer, path: str) -> bool:
        answer.refuse(429, retry_after=1000)
        return True

    hub._server.fault = busy
    with open_stream(data, byte_tokenizer(), 64, 48) as stream:
        next(stream)
        assert 990 < (stream.sources[0].next_try or 0) - time.time() <= 1000


def test_a_refusal_in_the_middle_gives_the_source_up(tmp_path: Path, hub: LoopbackHub, remote_texts: list[str]) -> None:
    data = with_local(tmp_path)
    with open_stream(data, byte_tokenizer(), 64, 48) as stream:
        next(stream)

        def forbidden(answer: Answer, path: str) -> bool:
            answer.refuse(403)
            return True

        hub._server.fault = forbidden
        list(islice(stream, 150))
        (state,) = [source for source in stream.sources if source.name == "remote"]
        assert state.state == "given up" and "HF_TOKEN" in state.reason


def test_close_ends_a_wait(tmp_path: Path, hub: LoopbackHub, remote_texts: list[str]) -> None:
    from data_sources.prefetch import Prefetch

    data = data_config(REMOTE)
    stream = open_stream(data, byte_tokenizer(), 64, 48)
    next(stream)
    hub._server.fault = refuse_all
    ahead = Prefetch(stream, 2)
    time.sleep(1.0)
    began = time.monotonic()
    ahead.close()
    assert time.monotonic() - began < 2


def stall_after_the_first(answer: Answer, path: str) -> bool:
    """The Hub says that the data set is there, and then nothing more for some seconds."""
    if path != "/api/datasets/some/words":
        answer.stall(4)
    return False


def test_being_stopped_while_sources_are_reached(tmp_path: Path, hub: LoopbackHub, remote_texts: list[str]) -> None:
    hub._server.fault = stall_after_the_first
    began = time.monotonic()
    with open_stream(with_local(tmp_path), byte_tokenizer(), 64, 48, options=Options(wait=False)) as stream:
        assert not stream.reached(1)
    assert 1 <= time.monotonic() - began < 2


LEAVING = """
import time
from data_sources import open_stream
from data_sources.stream import Options
from tests.data_sources.streams import byte_tokenizer, data_config

data = data_config({"type": "hf", "name": "remote", "dataset": "some/words"})
with open_stream(data, byte_tokenizer(), 64, 48, options=Options(wait=False)) as stream:
    assert not stream.reached(1)
print(time.time())
"""


def test_a_process_that_was_stopped_so_ends_at_once(hub: LoopbackHub, remote_texts: list[str]) -> None:
    hub._server.fault = lambda answer, path: path != "/api/datasets/some/words" and (answer.stall(40) or True)
    ended = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert (ended.returncode, ended.stderr) == (0, "")
    assert time.time() - float(ended.stdout) < 10, "the interpreter takes a while by itself"


def test_a_slow_hub_is_not_waited_for_and_heard_later(
    tmp_path: Path, hub: LoopbackHub, remote_texts: list[str], impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_sources.hub.RESOLVE_SECONDS", 0.3)
    hub._server.fault = stall_after_the_first
    began = time.monotonic()
    with open_stream(with_local(tmp_path), byte_tokenizer(), 64, 48) as stream:
        assert time.monotonic() - began < 3
        assert states(stream) == {"remote": "waiting", "local": "reading"}
        assert "did not answer" in stream.sources[0].reason
        next(stream)
        hub._server.fault = None
        deadline = time.monotonic() + 20
        while states(stream)["remote"] == "waiting" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert states(stream)["remote"] == "reading"
    paths = [request.path for request in hub.log if "/tree/" in request.path or "/revision/" in request.path]
    assert paths and len(paths) == len(set(paths)), "it was resolved once"


def test_resuming_reads_the_places_of_the_lanes_and_nothing_before(tmp_path: Path, hub: LoopbackHub) -> None:
    """Requests after a resume do not grow with what was read before."""
    texts = [text * 8 for text in paragraphs(700)]
    make_dataset(tmp_path / "hub", "some/words", [{"text": text} for text in texts], shards=4, row_group_size=25)
    data = data_config(REMOTE, shuffle=False)
    with open_stream(data, byte_tokenizer(), 256, 48) as stream:
        cursors = [cursor for _, cursor in stream]
    asked = []
    for cursor in (cursors[1], cursors[len(cursors) // 2]):
        del hub.log[:]
        with open_stream(data, byte_tokenizer(), 256, 48, cursor=cursor) as stream:
            next(stream)
        asked.append(sum(request.path.endswith(".parquet") for request in hub.log))
    assert asked[1] <= asked[0] + 16, asked

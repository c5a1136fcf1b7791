"""A published tokenizer, from a Hub, from the cache of one, and from nowhere: in seconds, and nothing is printed. And asking to stop."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_sources.documents import Stopped
from data_sources.tokenizer import build_tokenizer, training_text
from tests.data_sources.streams import byte_tokenizer, data_config, files, paragraphs, write_jsonl
from tests.loopback_hub import Answer, LoopbackHub, make_dataset

DATA = data_config("installed_docs", tokenizer="some/tokenizer")


@pytest.fixture
def published(hub: LoopbackHub, tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "hub" / "some" / "tokenizer")


def test_it_is_fetched_and_found_again_without_the_hub(
    hub: LoopbackHub, published: None, point_at: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = byte_tokenizer()("a word")["input_ids"]
    assert build_tokenizer(DATA)("a word")["input_ids"] == wanted
    point_at("http://127.0.0.1:9")
    began = time.monotonic()
    assert build_tokenizer(DATA)("a word")["input_ids"] == wanted
    assert time.monotonic() - began < 6
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_it_is_nowhere(point_at: Callable[[str], None], endpoint: str, capfd: pytest.CaptureFixture[str]) -> None:
    point_at(endpoint)
    began = time.monotonic()
    with pytest.raises(ValueError, match='tokenizer "some/tokenizer" can\'t be had: the Hub (can\'t be reached|did not answer).*write "bpe"') as error:
        build_tokenizer(DATA)
    assert time.monotonic() - began < 6 and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_the_hub_has_none(hub: LoopbackHub) -> None:
    with pytest.raises(ValueError, match="no such data set or model"):
        build_tokenizer(DATA)


def test_a_stop_while_it_is_fetched(hub: LoopbackHub, published: None) -> None:
    def stall(answer: Answer, path: str) -> bool:
        answer.stall(20)
        return False

    hub._server.fault = stall
    began = time.monotonic()
    with pytest.raises(Stopped):
        build_tokenizer(DATA, should_stop=lambda: time.monotonic() - began > 0.5)
    assert time.monotonic() - began < 2


def test_a_stop_between_documents(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", paragraphs(300))
    data = data_config(files("a", tmp_path / "a.jsonl"), vocab_size=600)
    read: list[str] = []
    with pytest.raises(Stopped):
        read.extend(training_text(data, 0, should_stop=lambda: len(read) >= 0 and time.monotonic() > 0))
    calls = iter(range(10_000))
    with pytest.raises(Stopped):
        build_tokenizer(data, should_stop=lambda: next(calls) >= 50)
    assert next(calls) > 50


def test_a_stop_ends_waiting_for_a_source(hub: LoopbackHub, tmp_path: Path) -> None:
    make_dataset(tmp_path / "hub", "some/words", [{"text": text} for text in paragraphs(300)], row_group_size=20)
    asked = iter(range(10_000))

    def busy_later(answer: Answer, path: str) -> bool:
        busy = path.endswith(".parquet") and next(asked) > 3
        if busy:
            answer.refuse(503)
        return busy

    hub._server.fault = busy_later
    data = data_config({"type": "hf", "name": "remote", "dataset": "some/words"}, vocab_size=600)
    began = time.monotonic()
    with pytest.raises(Stopped):
        build_tokenizer(data, should_stop=lambda: time.monotonic() - began > 2)
    assert 2 < time.monotonic() - began < 5

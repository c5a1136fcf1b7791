"""The tokenizer: bytes come back exactly, and what travels as JSON gives the same ids."""

import pydoc_data.topics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_sources import SourcesFailed
from data_sources.tokenizer import build_tokenizer, token_bytes, tokenizer_from_json, tokenizer_to_json, trained_bpe, training_text
from tests.data_sources.streams import byte_tokenizer, data_config, files, paragraphs, write_jsonl

HARD = ["", " ", "Hello  world\n\n\tüß 🙂 12345 x\r\n y\u2028z\u00a0\u3000", "don't  DON'T l'été", "\x00\x01\x7f", "e\u0301 \ufb01 ﷽", "<|endoftext|> <|pad|>"]


@pytest.fixture(scope="module")
def trained() -> Iterator[Any]:
    yield trained_bpe(iter(pydoc_data.topics.topics.values()), 1000)


def test_bytes_come_back_exactly(trained: Any) -> None:
    assert len(trained) == 1000
    for text in [*HARD, *paragraphs(50)]:
        ids = trained(text)["input_ids"]
        assert trained.decode(ids) == text
    assert len({trained.bos_token_id, trained.eos_token_id}) == 1 and trained.pad_token_id != trained.eos_token_id


def test_it_learns(trained: Any) -> None:
    text = pydoc_data.topics.topics["with"]
    assert len(text.encode()) / len(trained(text)["input_ids"]) > 2.5


def test_json_gives_the_same_ids(trained: Any) -> None:
    again = tokenizer_from_json(tokenizer_to_json(trained))
    assert [again(text)["input_ids"] for text in HARD] == [trained(text)["input_ids"] for text in HARD]
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (trained.bos_token_id, trained.eos_token_id, trained.pad_token_id)
    assert again.all_special_ids == trained.all_special_ids and tokenizer_to_json(again) == tokenizer_to_json(trained)


def test_token_bytes_are_exact(trained: Any) -> None:
    sizes = token_bytes(trained)
    assert len(sizes) == len(trained) and sizes[trained.eos_token_id] == sizes[trained.pad_token_id] == 0
    for text in [*HARD[:-1], *paragraphs(50)]:
        assert sum(sizes[number] for number in trained(text)["input_ids"]) == len(text.encode())


def test_the_same_sources_and_seed_give_the_same_tokenizer(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", paragraphs(300))
    data = data_config(files("a", tmp_path / "a.jsonl"), vocab_size=600)
    assert tokenizer_to_json(build_tokenizer(data)) == tokenizer_to_json(build_tokenizer(data))


def test_too_little_text_gives_a_smaller_vocabulary(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["aaaa bbbb", "aaaa cccc"])
    tokenizer = build_tokenizer(data_config(files("a", tmp_path / "a.jsonl"), vocab_size=5000))
    assert 258 <= len(tokenizer) < 300 and tokenizer.decode(tokenizer("anything ü")["input_ids"]) == "anything ü"


def test_it_is_trained_on_what_training_reads(tmp_path: Path) -> None:
    texts = paragraphs(400)
    write_jsonl(tmp_path / "a.jsonl", texts)
    write_jsonl(tmp_path / "b.jsonl", paragraphs(100, start=500))
    data = data_config(files("a", tmp_path / "a.jsonl"), files("b", tmp_path / "b.jsonl"))
    drawn = list(training_text(data, 0))
    assert 490 <= len(drawn) < 500 and len(set(drawn)) == len(drawn), "all but the held-out ones, once"
    some = list(training_text(data, 0, characters=20_000))
    assert 0.3 < sum(text in texts for text in some) / len(some) < 0.7


def test_what_repeats_is_read_once(tmp_path: Path) -> None:
    few, many = paragraphs(60), paragraphs(300, start=200)
    write_jsonl(tmp_path / "few.jsonl", few)
    write_jsonl(tmp_path / "many.jsonl", many)
    alone = list(training_text(data_config(files("many", tmp_path / "many.jsonl", repeat=True)), 0))
    assert 290 <= len(alone) < 300 and len(set(alone)) == len(alone)
    mixed = list(training_text(data_config(files("few", tmp_path / "few.jsonl", repeat=True), files("many", tmp_path / "many.jsonl", repeat=True)), 0))
    assert len(set(mixed) & set(few)) > 50 and set(alone) <= set(mixed), "all of both"
    assert sum(text in few for text in mixed) > 200, "in the shares that training has"


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(SourcesFailed, match="there is no"):
        build_tokenizer(data_config(files("a", tmp_path / "nowhere")))


def test_a_published_tokenizer_from_a_folder(tmp_path: Path) -> None:
    plain = byte_tokenizer()
    type(plain)(tokenizer_object=plain.backend_tokenizer, eos_token="<eos>").save_pretrained(tmp_path / "published")
    tokenizer = build_tokenizer(data_config("installed_docs", tokenizer=str(tmp_path / "published")))
    assert tokenizer.eos_token_id == tokenizer.bos_token_id and tokenizer.pad_token == "<|pad|>"
    assert tokenizer("word")["input_ids"] == plain("word")["input_ids"]
    assert token_bytes(tokenizer)[:256] == [1] * 256


def test_a_tokenizer_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='tokenizer ".*nowhere" can\'t be had') as error:
        build_tokenizer(data_config("installed_docs", tokenizer=str(tmp_path / "nowhere")))
    assert "\n" not in str(error.value)

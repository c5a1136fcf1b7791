"""Which tokens of a document are scored: those of the answer and the end, where the preset says so."""

import copy
import pydoc_data.topics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from data_sources import encoder
from data_sources.blocks import Block
from data_sources.config import DataConfig
from data_sources.documents import Document, Documents
from data_sources.encoder import Encoder
from data_sources.feed import Found, Place
from data_sources.order import LANES
from data_sources.readers import open_reader
from data_sources.tokenizer import trained_bpe
from tests.data_sources.streams import BOS, EOS, byte_tokenizer, files

PAIR = {"fields": ["question", "answer"], "format": "Q: {question}\nA: {answer}", "loss_on": "answer"}
PAIRS = [("Why?", "So."), ("Où ça?", "Là-bas, ünd 漢字 🙂."), ("How many?", "7"), ("A: what?", "A: that\nA: and this")]


class Everything:
    """A feed that reads all of its blocks."""

    number = 0

    def chosen(self, block: Block, index: int) -> bool:
        return True


def documents(tmp_path: Path, name: str = "a.jsonl", **options: Any) -> list[Document]:
    import json

    (tmp_path / name).write_text("".join(json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in PAIRS))
    source = open_reader(DataConfig.model_validate({"sources": [files("a", tmp_path / name, **{**PAIR, **options})]}).sources[0])
    return list(source.read(0, 0) or ())


@pytest.fixture(scope="module")
def trained() -> Any:
    return trained_bpe(iter(pydoc_data.topics.topics.values()), 1000)


def learned(document: Document) -> list[str]:
    return [document.text[begin:end] for begin, end in document.scored or ()]


def test_the_span_of_the_answer(tmp_path: Path) -> None:
    for document, (question, answer) in zip(documents(tmp_path), PAIRS, strict=True):
        assert document.text == f"Q: {question}\nA: {answer}"
        assert learned(document) == [answer]
    assert {document.scored for document in documents(tmp_path, loss_on="all")} == {None}


@pytest.mark.parametrize(
    ("options", "text", "scored"),
    [
        ({"format": "A: {answer} (from {question}) {{end}}"}, "A: So. (from Why?) {end}", [(3, 6)]),
        ({"format": "{answer}\n{question}\n{answer}."}, "So.\nWhy?\nSo..", [(0, 3), (9, 12)]),
        ({"format": None}, "Why?\nSo.", [(5, 8)]),
        ({"fields": None}, "Q: Why?\nA: So.", [(11, 14)]),
        ({"fields": None, "format": "{answer} <- {question}"}, "So. <- Why?", [(7, 11)]),
    ],
)
def test_the_last_of_fields_is_the_answer_wherever_it_stands(tmp_path: Path, options: dict[str, Any], text: str, scored: list[Any]) -> None:
    """Without fields, the last that the format names."""
    document = documents(tmp_path, **options)[0]
    assert document.text == text and document.scored == tuple(scored)
    ((_, marks),) = tokens_of(byte_tokenizer(), [document])
    assert marks is not None and marks.tolist() == [False, *(any(begin <= place < end for begin, end in scored) for place in range(len(text))), True]


def test_an_answer_that_the_format_leaves_out_is_refused() -> None:
    with pytest.raises(ValueError, match="learns {answer}, the last of fields, and format does not use it"):
        fields = ["context", "question", "answer"]
        DataConfig.model_validate({"sources": [files("a", "a", fields=fields, format="{context} {question}", loss_on="answer")]})


def test_in_parquet_too(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"question": ["Why?"], "answer": [["So.", "Else."]]}), tmp_path / "a.parquet")
    source = open_reader(DataConfig.model_validate({"sources": [files("a", tmp_path, **PAIR)]}).sources[0])
    assert list(source.read(0, 0) or ()) == [Document("Q: Why?\nA: So.", "a.parquet, row 1", ((11, 14),))]


def block_of(found: list[Document]) -> Block:
    return Block(Documents(*zip(*found, strict=True)), False, 0)


def tokens_of(tokenizer: Any, found: list[Document]) -> list[encoder.Tokens]:
    """What a process with all lanes gets, in the order of `found`."""
    block = block_of(found)
    made = Encoder(tokenizer, range(LANES))
    return [made.tokens(Everything(), Found(Place(), block, index)) for index in range(len(found))]


def test_each_token_that_has_a_character_of_the_answer_is_scored(tmp_path: Path, trained: Any) -> None:
    found = documents(tmp_path)
    for tokenizer in (byte_tokenizer(), trained):
        whole = Encoder(tokenizer, [0]).encode([document.text for document in found])
        for document, ids, (again, scored) in zip(found, whole, tokens_of(tokenizer, found), strict=True):
            assert scored is not None and scored.dtype == np.bool_ and scored.shape == ids.shape and np.array_equal(ids, again)
            assert (scored[0], scored[-1]) == (False, True)
            (answer,) = learned(document)
            first = int(np.flatnonzero(scored)[0])
            assert scored[first:].all(), "the answer is last here"
            assert tokenizer.decode(ids[first:-1]).lstrip(" ") == answer and len(tokenizer.decode(ids[first + 1 : -1])) < len(answer)


def test_bytes_of_the_answer_are_counted_exactly() -> None:
    ((ids, scored),) = tokens_of(byte_tokenizer(), [Document("é: 漢!", "", ((3, 4),))])
    assert scored is not None and [ids[0], ids[-1]] == [BOS, EOS]
    assert scored.tolist() == [False] + [False] * 4 + [True] * 3 + [False] + [True]


def test_the_tokenizer_is_read_as_it_stands_but_for_what_a_command_would_be(trained: Any) -> None:
    """Ids and offsets are those of a copy written out and read again, whatever tokens were added, and the tokenizer itself stays as it was."""
    backend = copy.deepcopy(trained).backend_tokenizer
    backend.add_tokens(["<extra>", AddedToken("foo", single_word=True)])
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    backend.add_tokens([AddedToken("<last>", normalized=False, rstrip=True)])
    backend.enable_truncation(3)
    backend.enable_padding()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|pad|>")
    meant = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    meant.no_truncation()
    meant.no_padding()
    meant.encode_special_tokens = True
    texts = ["foo bar <extra>food  <mask>, a <|endoftext|> and <|pad|> <last>  x", "Où ça? <mask", *list(pydoc_data.topics.topics.values())[:20]]
    found = Encoder(tokenizer, [0])
    assert [ids[1:-1].tolist() for ids in found.encode(texts)] == [one.ids for one in meant.encode_batch(texts, add_special_tokens=False)]
    scored = found.encode_scored(texts, [((5, 9),)] * len(texts))
    offsets = [one.offsets for one in meant.encode_batch(texts, add_special_tokens=False)]
    assert [marks[1:-1].tolist() for _, marks in scored] == [[first < 9 and last > 5 for first, last in each] for each in offsets]
    added = [tokenizer.convert_tokens_to_ids(token) for token in ("<extra>", "foo", "<last>")]
    assert set(added) <= set(found.encode(texts[:1])[0].tolist()), "plain tokens stay one each"
    backend = tokenizer.backend_tokenizer
    assert backend.truncation and backend.padding and not backend.encode_special_tokens


def test_long_texts_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "PIECE", 20)
    text = "".join(f"word{number} " for number in range(30))
    ((ids, scored),) = tokens_of(byte_tokenizer(), [Document(text, "", ((50, 120),))])
    assert scored is not None and scored.tolist() == [False] + [50 <= place < 120 for place in range(len(text))] + [True]
    assert np.array_equal(ids, Encoder(byte_tokenizer(), [0]).encode([text])[0])


def test_documents_with_and_without_a_span_together() -> None:
    found = [Document(text, "", ((1, 2),) if number % 3 else None) for number, text in enumerate(["abc", "def", "ghi", "jkl"] * 20)]
    tokens = tokens_of(byte_tokenizer(), found)
    assert [scored is None for _, scored in tokens] == [document.scored is None for document in found]
    block, made = block_of(found), Encoder(byte_tokenizer(), range(LANES))
    assert all(np.array_equal(made.ids(Everything(), Found(Place(), block, index)), ids) for index, (ids, _) in enumerate(tokens))
    assert block.marks == {}, "handed out with their ids"


class Counted(Encoder):
    """Notes how many documents were tokenised at a time."""

    def encode(self, texts: Any) -> list[np.ndarray]:
        self.sizes = [*getattr(self, "sizes", []), len(texts)]
        return super().encode(texts)


def first_documents(blocks: int, rounds: int) -> list[int]:
    """How many documents were tokenised at a time until each lane had read `rounds` of them, when the lanes stand in so many blocks of 1,920."""
    held = [block_of([Document(f"{number} of {block}", "", None) for number in range(40 * LANES)]) for block in range(blocks)]
    places = {lane: Place(block=lane % blocks) for lane in range(LANES)}
    made = Counted(byte_tokenizer(), range(LANES), lambda lane, source: places[lane])
    for taken in range(rounds):
        for lane in range(LANES):
            block, place = held[lane % blocks], places[lane]
            index = block.index(lane, taken)
            assert made._tokenizer.decode(made.ids(Everything(), Found(place, block, index))[1:-1]) == f"{index} of {lane % blocks}"
            places[lane] = place._replace(taken=taken + 1)
    return [size for size in made.sizes if size]


@pytest.mark.parametrize("blocks", [1, 7, 48])
def test_lanes_that_have_drifted_apart_have_no_more_tokenised_than_twice_what_they_read(blocks: int) -> None:
    for rounds in (1, 2, 20):
        assert sum(first_documents(blocks, rounds)) <= LANES * (2 * rounds + 1)
    assert max(first_documents(blocks, 20)) >= 20, "they are tokenised many at a time once the stream is under way"


def test_lanes_in_step_are_tokenised_for_together() -> None:
    assert first_documents(1, 1) == [LANES] and len(first_documents(1, 20)) <= 25


def test_it_wants_two_fields() -> None:
    for options in ({}, {"fields": ["answer"]}, {"format": "{answer}"}):
        with pytest.raises(ValueError, match="needs two fields or more"):
            DataConfig.model_validate({"sources": [files("a", "a", loss_on="answer", **options)]})


@pytest.mark.parametrize("format", ["{a.__class__}{b}", "{a[0]}{b}", "{a!r}{b}", "{a:>9}{b}", "{a:{b}}", "{0}{1}", "{}{}", "{a b}", "{a", "a}"])
def test_a_format_that_could_reach_into_objects_is_refused(format: str) -> None:
    with pytest.raises(ValueError, match="format"):
        DataConfig.model_validate({"sources": [files("a", "a", format=format)]})

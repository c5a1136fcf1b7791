"""Rows, position by position, against a loop that does one token at a time."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from data_sources import open_stream
from data_sources.encoder import Encoder, pieces_of
from tests.data_sources.streams import BOS, EOS, PAD, Row, byte_tokenizer, data_config, files, paragraphs, read_texts, rows_of, write_jsonl

LENGTH = 41


def all_rows(tmp_path: Path, texts: list[str], tokenizer: Any, **options: Any) -> tuple[list[Row], list[Any], set[str]]:
    write_jsonl(tmp_path / "a.jsonl", texts)
    data = data_config(files("a", tmp_path / "a.jsonl"), shuffle=False, **options)
    with open_stream(data, tokenizer, LENGTH, 48) as stream:
        batches = [batch for batch, _ in stream]
        held_out = {text for _, text in stream.held_out.take_new()}
    return [row for batch in batches for row in rows_of(batch)], batches, held_out


def documents_of_lanes(rows: list[Row], texts: list[str]) -> dict[int, list[int]]:
    """Which documents each lane read, by number; in the order of the file, each 48th."""
    numbers = {text.encode(): number for number, text in enumerate(texts)}
    lanes = {lane: [numbers[text] for text in read_texts([row for row in rows if row.lane == lane])] for lane in range(48)}
    for read in lanes.values():
        assert read == sorted(read) and len({number % 48 for number in read}) <= 1
    return lanes


def slow_rows(documents: list[list[int]], pad_rows: bool) -> list[list[tuple[int, int, bool, int]]]:
    """(token, target, restart, source) of each position of a lane's rows, one token at a time."""
    rows: list[list[tuple[int, int, bool, int]]] = []
    for document in documents:
        inputs, targets = [BOS, *document], [*document, EOS]
        for at in range(len(inputs)):
            if not rows or len(rows[-1]) == LENGTH or (pad_rows and at == 0):
                rows.append([])
            rows[-1].append((inputs[at], targets[at], at == 0, 0))
    for row in rows:
        row += [(PAD, -100, False, -1)] * (LENGTH - len(row))
    return rows


@pytest.mark.parametrize("packing", ["documents", "pad"])
def test_each_position(tmp_path: Path, packing: str) -> None:
    texts = [*paragraphs(150), "x" * (LENGTH - 1), "y" * LENGTH, "\n\n".join(paragraphs(30, start=400))]
    tokenizer = byte_tokenizer()
    rows, batches, held_out = all_rows(tmp_path, texts, tokenizer, packing=packing)
    lanes = documents_of_lanes(rows, texts)
    assert sorted(number for read in lanes.values() for number in read) == [n for n, text in enumerate(texts) if text not in held_out]
    for lane, read in lanes.items():
        got = [list(zip(row.tokens, row.targets, row.restart, row.source, strict=True)) for row in rows if row.lane == lane]
        expected = slow_rows([tokenizer(texts[number])["input_ids"] for number in read], packing == "pad")
        nothing = [[(PAD, -100, False, -1)] * LENGTH] * (len(got) - len(expected))
        assert got == expected + nothing
    for batch in batches:
        bounds = [0]
        for at, restart in enumerate(batch.restart.flatten().tolist()):
            if at and (restart or at % LENGTH == 0):
                bounds.append(at)
        assert batch.cu_seqlens.tolist() == [*bounds, 48 * LENGTH]
        assert batch.valid == sum(target != -100 for target in batch.targets.flatten().tolist())


@pytest.mark.parametrize("present", [("bos",), ("eos",), ("eos", "pad"), ()])
def test_missing_special_tokens_are_added_and_others_keep_their_ids(tmp_path: Path, present: tuple[str, ...]) -> None:
    tokenizer = byte_tokenizer()
    plain = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, **{f"{name}_token": f"<{name}>" for name in present})
    before = plain("Some words.", add_special_tokens=False)["input_ids"]
    rows, _, _ = all_rows(tmp_path, paragraphs(100), plain)
    bos, eos, pad = plain.bos_token_id, plain.eos_token_id, plain.pad_token_id
    assert None not in (bos, eos, pad) and pad not in (bos, eos)
    assert bos == eos or present == ("bos", "eos")
    assert plain("Some words.", add_special_tokens=False)["input_ids"] == before
    assert {row.tokens[0] for row in rows if row.restart[0]} == {bos}
    assert eos in {target for row in rows for target in row.targets}


def test_a_special_token_written_in_a_text_is_text(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    (ids,) = Encoder(tokenizer, [0]).encode(["before <eos> after"])
    assert ids[0] == BOS and ids[-1] == EOS and EOS not in ids[1:-1] and len(ids) == 2 + len("before <eos> after")


def test_a_tokenizer_that_cuts_and_pads_is_kept_from_it() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert [len(ids) for ids in Encoder(tokenizer, [0]).encode(["a longer text", "b"])] == [15, 3]


def test_a_huge_text_is_tokenised_in_pieces() -> None:
    text = " ".join(paragraphs(700)) * 4 + "z" * 450_000
    pieces = pieces_of(text)
    assert "".join(pieces) == text and len(pieces) > 4 and max(map(len, pieces)) <= 200_000
    (ids,) = Encoder(byte_tokenizer(), [0]).encode([text])
    assert len(ids) == len(text.encode()) + 2


def test_added_tokens_are_kept() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("perennial")])
    (ids,) = Encoder(tokenizer, [0]).encode(["a perennial"])
    assert len(ids) == 5

"""Targets that a source gives: read after their inputs, and they alone are learned."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_sources import open_stream
from data_sources.config import DataConfig
from lm.generation.chat import frame_of
from lm.preset import Preset
from lm.training import train
from lm.training.snapshots import Snapshots
from tests.data_sources.streams import BOS, EOS, byte_tokenizer, data_config, files, paragraphs, rows_of
from tests.training.conftest import corpus, tiny  # noqa: F401 - fixtures

PAIRS = [{"source text": text, "summary": text[::-1], "id": number} for number, text in enumerate(paragraphs(120))]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("packing", ["documents", "pad"])
def test_every_target_is_learned_and_nothing_else(tmp_path: Path, packing: str) -> None:
    path = written(tmp_path / "pairs.jsonl", PAIRS)
    data = data_config(files("pairs", path, input_field="source text", target_field="summary"), packing=packing, shuffle=False)
    lanes: dict[int, list[tuple[int, int]]] = {}
    with open_stream(data, byte_tokenizer(), 64, 48) as stream:
        rows = [row for batch, _ in stream for row in rows_of(batch)]
        held_out = {text for _, text in stream.held_out.take_new()}
    for row in sorted(rows):
        lanes.setdefault(row.lane, []).extend((token, target) for token, target, source in zip(row.tokens, row.targets, row.source, strict=True) if source >= 0)
    documents: list[list[tuple[int, int]]] = []
    for positions in lanes.values():
        for token, target in positions:
            if token == BOS:
                documents.append([])
            documents[-1].append((token, target))
    tokenizer, found = byte_tokenizer(), []
    for document in documents:
        learned = [target for _, target in document if target != -100]
        read = tokenizer.decode([token for token, _ in document[1:]])
        assert learned[-1] == EOS
        target = tokenizer.decode(learned[:-1])
        assert read.endswith("\n" + target)
        found.append({"source text": read.removesuffix("\n" + target), "summary": target})
    expected = [{key: pair[key] for key in found[0]} for pair in PAIRS]
    expected = [pair for pair in expected if "\n".join(pair.values()) not in held_out]
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_a_format_puts_them_where_it_likes_and_chat_asks_so(tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.jsonl", [{"a": "what is read", "b": "what is learned"}] * 60)

    def first(**options: Any) -> str:
        data = data_config(files("pairs", path, input_field="a", target_field="b", **options), packing="pad")
        with open_stream(data, byte_tokenizer(), 64, 48) as stream:
            row = rows_of(next(stream)[0])[0]
        assert byte_tokenizer().decode([target for target in row.targets if target not in (-100, EOS)]) == "what is learned"
        return byte_tokenizer().decode(row.tokens, skip_special_tokens=True)

    assert first() == "what is read\nwhat is learned"
    assert first(format="{b} <- {a}") == "what is learned <- what is read"
    for options, turn in (({}, "hello\n"), ({"format": "Q: {a} A: {b}"}, "Q: hello A:")):
        source = files("pairs", path, input_field="a", target_field="b", **options)
        assert frame_of(Preset.model_validate({"data": {"sources": [source]}})).around("hello") == turn


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input_field": "a"}, "input_field needs target_field"),
        ({"target_field": "a"}, "target_field needs input_field"),
        ({"input_field": "a", "target_field": "a"}, "what is read would be what is learned"),
        ({"input_field": "a", "target_field": "b", "fields": ["b", "a"]}, "leave fields out"),
        ({"input_field": "a", "target_field": "b", "format": "{a} {b} {c}"}, "{c}, which is not in fields"),
        ({"input_field": "a", "target_field": "b", "format": "only {a}"}, "format uses no {b}"),
    ],
)
def test_what_can_not_be_meant_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DataConfig.model_validate({"sources": [files("pairs", "pairs.jsonl", **options)]})


def test_a_run_with_targets_goes_on_exactly(tiny: Callable[..., Preset], tmp_path: Path) -> None:  # noqa: F811
    path = written(tmp_path / "pairs.jsonl", PAIRS)
    source = {"type": "files", "path": str(path), "input_field": "source text", "target_field": "summary", "repeat": True}
    preset = tiny(data={"sources": [source]}, train={"objective": "custom", "eval_tokens": 0, "snapshot_every_tokens": 1024})

    def lived(folder: Path, stops: int) -> list[tuple[Any, ...]]:
        told: list[Any] = []
        train(preset, folder, 8 * 256, observers=(told.append,), should_stop=lambda: len(told) >= stops)
        if stops < 1000:
            train(preset, folder, 8 * 256, observers=(told.append,))
        return [(event["tokens"], event["loss"], event["batch_hash"]) for event in told if event["event"] == "step"]

    assert lived(tmp_path / "whole", 1000) == lived(tmp_path / "halved", 12)
    assert preset.model_dump() == Snapshots(tmp_path / "whole").newest().preset.model_dump()

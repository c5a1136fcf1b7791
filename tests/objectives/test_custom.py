"""Targets that a source gives: read after their inputs, and they alone are learned."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_sources import open_stream
from data_sources.config import DataConfig
from data_sources.encoder import Encoder
from data_sources.held_out import Held
from lm.generation.chat import frame_of
from lm.model import build_model
from lm.preset import Preset
from lm.training import train
from lm.training.corrupted import Corrupted, each_masked_once, with_gaps
from lm.training.evaluation import ALONE, document_of, packed, tally_of
from lm.training.snapshots import Snapshots
from tests.data_sources.streams import BOS, EOS, byte_tokenizer, data_config, files, paragraphs, rows_of
from tests.objectives.rebuilding import tokenizer_with_gaps
from tests.test_law import randomised
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


ANSWERS = [text[:90] for text in paragraphs(9)]
QUESTIONS = [Held(f"what? {text[::-1]} {text}", ((7 + len(text), 7 + 2 * len(text)),)) for text in ANSWERS]


def test_held_out_targets_are_read_as_in_training_and_alone_are_scored() -> None:
    tokenizer = byte_tokenizer()
    expected = Encoder(tokenizer, ()).encode_scored(QUESTIONS, [text.learned for text in QUESTIONS])
    for text, tokens in zip(QUESTIONS, expected, strict=True):
        source = document_of(text, tokenizer)
        assert source.tokens.tolist() == tokens.ids[:-1].tolist()
        assert source.targets.tolist() == [target if scored else -100 for target, scored in zip(tokens.ids[1:], tokens.scored[1:], strict=True)]
    rows = packed(QUESTIONS, tokenizer, 37)
    assert tokenizer.decode(rows.targets[rows.targets >= 0]).split(tokenizer.eos_token) == [*ANSWERS, ""]


@pytest.mark.parametrize("sections", [{}, {"train": {"long_context": {"enabled": True, "chunk_length": 16}}, "s5": {"enabled": True}}], ids=["rows", "chunks"])
def test_a_tally_is_of_the_targets_alone(sections: dict[str, Any]) -> None:
    """Against a reading of each text by itself: nats, tokens and bytes, also where chunks of a text that goes on have no target."""
    size = {"hidden_size": 12, "num_layers": 1, "num_heads": 2, "seq_length": 4096}
    preset, tokenizer = Preset.model_validate({"data": {"sources": ["c4"]}, "model": size, **sections}), byte_tokenizer()
    torch.manual_seed(1)
    model = randomised(build_model(preset, len(tokenizer)), torch.float32)
    texts = [Held("ask" * 7 + "x", ((21, 22),)), *QUESTIONS, Held("once " * 20, ((0, 5), (95, 99)))]
    nats, tokens = 0.0, 0
    for text in texts:
        ids, scored = Encoder(tokenizer, ()).encode_scored([text], [text.learned])[0]
        chances = model(torch.from_numpy(ids[:-1])[None].long()).logits[0].log_softmax(-1)
        at = np.flatnonzero(scored[1:])
        nats, tokens = nats - chances[at, ids[1:][at]].sum().item(), tokens + len(at)
    found = tally_of(model, texts, tokenizer, preset, ALONE, lambda: False)
    assert found.tokens == tokens and found.bytes == sum(len(text[first:last].encode()) for text in texts for first, last in text.learned)
    assert found.nats == pytest.approx(nats, rel=1e-5)


def test_denoisers_and_masks_are_measured_where_they_are_learned() -> None:
    tokenizer = tokenizer_with_gaps()
    preset = Preset.model_validate({"data": {"sources": ["c4"]}, "train": {"objective": "ul2"}, "model": {"seq_length": 256}})
    source = document_of(QUESTIONS[0], tokenizer)
    learned = set(np.flatnonzero(source.targets != -100).tolist())
    for kind in "RX":
        found = with_gaps(kind, [source._replace(tokens=1000 + np.arange(len(source.tokens)))], tokenizer, preset)
        words = [target - 1001 for target in found.targets.flatten().tolist() if target >= 1000]
        assert words and set(words) <= learned
    rows = packed(QUESTIONS, tokenizer, 37)
    times = torch.zeros(rows.tokens.shape)
    for masked in each_masked_once(Corrupted(*rows[:3]), tokenizer, preset):
        times += masked.targets >= 0
    assert int(times.max()) == 1 and tokenizer.decode(rows.tokens[times > 0]) == "".join(ANSWERS)


def test_held_out_losses_are_those_that_training_lowers(tiny: Callable[..., Preset], tmp_path: Path) -> None:  # noqa: F811
    """Answers can be known, questions can't: what is measured falls as what is trained on does."""
    rows = [{"q": f"What is number {number * 7919 % 10_000}?", "a": "It is even, yes." if number % 2 else "It is odd, no."} for number in range(600)]
    path = written(tmp_path / "pairs.jsonl", rows)
    source = {"type": "files", "path": str(path), "input_field": "q", "target_field": "a", "repeat": True}
    told: list[Any] = []
    train(tiny(data={"sources": [source]}, train={"objective": "custom", "eval_tokens": 2000}), tmp_path / "life", 60 * 256, observers=(told.append,))
    (measured,) = (event["cross_entropy"] for event in told if event["event"] == "evaluation")
    last = [event["loss"] for event in told if event["event"] == "step"][-10:]
    assert measured == pytest.approx(sum(last) / 10, abs=0.3)


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

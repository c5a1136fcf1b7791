"""Evaluation of long rows: fewer at a time, and the same measures."""

from typing import Any

import pytest

from lm.model import build_model
from lm.preset import Preset
from lm.training import evaluation
from lm.training.evaluation import evaluate
from tests.data_sources.streams import byte_tokenizer, paragraphs

LENGTH = 1_000


@pytest.mark.parametrize("long_context", [{}, {"enabled": True, "chunk_length": LENGTH}], ids=["rows", "documents"])
def test_no_more_tokens_are_read_at_once_than_memory_is_meant_for(long_context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    sections = {
        "model": {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "seq_length": LENGTH},
        "train": {"precision": "float32", "long_context": long_context},
        "data": {"sources": ["installed_docs"]},
        **({"s5": {"enabled": True}} if long_context else {}),
    }
    preset, tokenizer = Preset.model_validate(sections), byte_tokenizer()
    model = build_model(preset, len(tokenizer))
    prose = "\n\n".join(paragraphs(200))
    texts = {"prose": [prose[start : start + 1_900] for start in range(0, 14_000, 1_900)]}
    read: list[int] = []
    model.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0].numel()))

    as_usual = evaluate(model, tokenizer, texts, preset)
    assert max(read) == evaluation.ROWS_AT_ONCE * LENGTH, "there are rows enough"
    read.clear()
    monkeypatch.setattr(evaluation, "TOKENS_AT_ONCE", 2 * LENGTH + 1)
    fewer = evaluate(model, tokenizer, texts, preset)
    assert max(read) == 2 * LENGTH
    assert fewer["tokens"] == as_usual["tokens"] and fewer["bits_per_byte"] == pytest.approx(as_usual["bits_per_byte"], rel=1e-5)

    read.clear()
    monkeypatch.setattr(evaluation, "TOKENS_AT_ONCE", LENGTH // 2)
    evaluate(model, tokenizer, texts, preset)
    assert max(read) == LENGTH, "one row is read all the same"

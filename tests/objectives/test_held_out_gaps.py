"""Held-out text with the gaps of each denoiser: which text, in which order, and which denoisers."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lm.model import build_model
from lm.preset import Preset
from lm.training.corrupted import denoisers_of
from lm.training.evaluation import evaluate, first_texts
from tests.data_sources.streams import paragraphs
from tests.objectives.rebuilding import tokenizer_with_gaps

TOKENIZER = tokenizer_with_gaps()
NAMES = ("prose", "digits", "letters")


def preset_of(**sections: Any) -> Preset:
    size = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "seq_length": 256, "ffn_size": 8}
    return Preset.model_validate({"data": {"sources": ["c4"]}, "model": size, "train": {"objective": "ul2"}, **sections})


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    """Of each of three sources more than is read of it."""
    prose = paragraphs(20)
    return {
        "prose": prose,
        "digits": ["".join(str(ord(letter) % 10) for letter in text) for text in prose],
        "letters": [text[:3] * 40 for text in prose] + ["x" * 9_000],
    }


def denoisers(texts: dict[str, list[str]], **options: Any) -> dict[str, float]:
    torch.manual_seed(2)
    preset = preset_of(ul2={"objective_probabilities": {"R": 1, "S": 1}})
    return evaluate(build_model(preset, len(TOKENIZER)), TOKENIZER, texts, preset, **options)["denoisers"]


def test_brief_and_full_are_of_the_same_text_in_any_order_of_the_sources(texts: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm.training.evaluation.BRIEF_TOKENS", 900)
    monkeypatch.setattr("lm.training.evaluation.DENOISED_TOKENS", 2_000)
    full = denoisers(texts)
    assert set(full) == {"R", "S"} and denoisers({name: first_texts(kept, TOKENIZER, 900) for name, kept in texts.items()}) == full
    assert denoisers({name: texts[name] for name in reversed(NAMES)}) == pytest.approx(full, rel=1e-6)
    assert denoisers({"prose": texts["prose"]}) == denoisers({"prose": first_texts(texts["prose"], TOKENIZER, 900)})


def test_each_source_of_the_mix_has_an_equal_part(texts: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counting(kind: str, documents: Sequence[Any], *rest: Any) -> None:
        read.append(sum(len(document.tokens) for document in documents))

    monkeypatch.setattr("lm.training.evaluation.with_gaps", counting)
    monkeypatch.setattr("lm.training.evaluation.DENOISED_TOKENS", 1_000)
    preset, brief = preset_of(ul2={"objective_probabilities": {"R": 1}}), {name: first_texts(kept, TOKENIZER, 900) for name, kept in texts.items()}
    evaluate(build_model(preset, len(TOKENIZER)), TOKENIZER, brief, preset, mix={"prose", "letters"})
    assert len(read) == 2 and all(500 <= each < 500 + 400 for each in read)


@pytest.mark.parametrize(
    ("ul2", "train", "expected"),
    [
        ({"objective_probabilities": {"R": 1}}, {"objective": "ul2", "objectives": [{"until_tokens": 5, "objective": "ul2", "probabilities": {"X": 1}}]}, "RX"),
        ({}, {"objectives": [{"until_tokens": 5, "objective": "ul2", "probabilities": {"prefix": 1}}]}, "S"),
        ({}, {"objectives": [{"until_tokens": 5, "objective": "ul2"}]}, "RSX"),
        ({"denoiser_types": ["X"]}, {"objective": "ul2", "objectives": [{"until_tokens": 5, "objective": "clm"}]}, "X"),
        ({"objective_probabilities": {"R": 1}}, {}, ""),
    ],
)
def test_denoisers_are_those_of_every_stage_and_of_what_follows(ul2: dict[str, Any], train: dict[str, Any], expected: str) -> None:
    types = {"denoiser_types": ["R", "S", "X", "prefix"]}
    assert "".join(denoisers_of(preset_of(ul2=types | ul2, train=train))) == expected

"""Held-out text with the gaps of each denoiser: which text, in which order, and which denoisers."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lm.model import build_model
from lm.preset import Preset
from lm.training.corrupted import denoisers_of, with_gaps
from lm.training.evaluation import document_of, evaluate, first_texts
from tests.data_sources.streams import PAD, paragraphs
from tests.objectives.rebuilding import parsed, tokenizer_with_gaps

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


@pytest.mark.parametrize("kind", "RSX")
def test_rows_hold_every_document_and_what_is_too_short_is_not_scored(kind: str) -> None:
    documents = [document_of(text[: 40 + 13 * number], TOKENIZER) for number, text in enumerate(paragraphs(12))] + [document_of("ab", TOKENIZER)]
    found = with_gaps(kind, documents, TOKENIZER, preset_of(model={"hidden_size": 8, "num_heads": 2, "seq_length": 96}))
    text: list[int] = []
    for tokens, targets, restart in zip(*(part.tolist() for part in found), strict=True):
        starts = [at for at, begins in enumerate(restart) if begins] + [len(tokens)]
        for start, stop in zip(starts, starts[1:], strict=False):
            if tokens[start] != PAD:
                assert PAD not in tokens[start:stop], "padding begins anew"
                example = parsed(tokens[start:stop], targets[start:stop])
                text += example.text
                assert example.scored and example.kind == kind or not example.scored and len(example.text) < 4
    assert text == [token for document in documents for token in document.tokens.tolist()]

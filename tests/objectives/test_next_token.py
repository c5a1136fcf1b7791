"""The next token: every position of packed and padded rows is scored against what a reader of the documents would expect there, and no other."""

from pathlib import Path

import pytest
import torch

from data_sources import Batch, open_stream
from lm.preset import Preset
from lm.training.evaluation import packed
from lm.training.learner import Learner
from tests.data_sources.streams import BOS, EOS, byte_tokenizer, data_config, files, paragraphs, write_jsonl

LENGTH = 37
NOT_SCORED = -100


def rows(tmp_path: Path, texts: list[str], packing: str) -> list[Batch]:
    write_jsonl(tmp_path / "a.jsonl", texts)
    data = data_config(files("a", tmp_path / "a.jsonl"), shuffle=False, packing=packing)
    with open_stream(data, byte_tokenizer(), LENGTH, 48) as stream:
        return [batch for batch, _ in stream]


def texts_of_each_length() -> list[str]:
    """Documents that end at every place of a row, and some of many rows."""
    prose = "\n\n".join(paragraphs(40))
    return [prose[start : start + 8 + start % (3 * LENGTH)] for start in range(150)]


@pytest.mark.parametrize("packing", ["documents", "pad"])
def test_each_position_expects_what_follows_it_in_its_document(tmp_path: Path, packing: str) -> None:
    """Counted from the rows alone: within a row the target is the next token, at its end the first of the lane's next row, at a document's end the
    end; padding expects nothing."""
    lanes: dict[int, list[tuple[int, int, bool, bool]]] = {}
    ends = 0
    for batch in rows(tmp_path, texts_of_each_length(), packing):
        columns = (batch.lane, batch.tokens, batch.targets, batch.restart, batch.source)
        for lane, *row in zip(*(column.tolist() for column in columns), strict=True):
            positions = list(zip(*row, strict=True))
            lanes.setdefault(lane, []).extend((token, target, restart) for token, target, restart, source in positions if source >= 0)
            assert all(target == NOT_SCORED and not restart for _, target, restart, source in positions if source < 0)
    for positions in lanes.values():
        for (_, target, _), (token, _, restart) in zip(positions, [*positions[1:], (BOS, 0, True)], strict=True):
            assert target == (EOS if restart else token) and restart == (token == BOS)
            ends += restart
    assert ends > 100


@pytest.mark.parametrize("packing", ["documents", "pad"])
def test_the_loss_is_over_these_positions_alone(tmp_path: Path, packing: str) -> None:
    """A model that is sure of one token everywhere: the loss says which positions were scored, in whole rows and in pieces of them."""
    from lm.model import build_model

    preset = Preset.model_validate(
        {"data": {"sources": ["installed_docs"]}, "model": {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "seq_length": LENGTH}}
    )
    learner = Learner(build_model(preset, 259))
    batch = rows(tmp_path, texts_of_each_length(), packing)[0]
    whole = learner([batch])
    scored = batch.targets != NOT_SCORED
    assert batch.valid == int(scored.sum()) and torch.equal(whole.nll > 0, scored)
    logits = learner.model(batch.tokens).logits.log_softmax(-1) if packing == "pad" else None
    if logits is not None:  # each row is read by itself, so that a plain reading is the definition
        expected = -logits[scored].gather(1, batch.targets[scored][:, None])[:, 0]
        assert torch.allclose(whole.nll[scored], expected, atol=1e-5)
    parts = [(learner([piece]), piece.valid) for piece in batch.split(5)]
    total = sum(part.losses["next_token"].item() * valid for part, valid in parts)
    assert total / batch.valid == pytest.approx(whole.losses["next_token"].item(), rel=1e-5)


def test_held_out_text_is_scored_once_a_token_and_once_an_end() -> None:
    texts, tokenizer = texts_of_each_length(), byte_tokenizer()
    read = packed(texts, tokenizer, LENGTH)
    documents = [tokenizer(text)["input_ids"] for text in texts]
    expected = [(token, target) for ids in documents for token, target in zip([BOS, *ids], [*ids, EOS], strict=True)]
    pairs = list(zip(read.tokens.flatten().tolist(), read.targets.flatten().tolist(), strict=True))
    assert pairs[: len(expected)] == expected and all(target == NOT_SCORED for _, target in pairs[len(expected) :])
    assert read.restart.flatten().nonzero().flatten().tolist()[: len(texts)] == [at for at, (token, _) in enumerate(expected) if token == BOS]

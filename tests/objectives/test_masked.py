"""Masks against their paper, and held-out text with each token masked once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_sources import open_stream
from data_sources.rewriting import NOT_SCORED, Source
from data_sources.stream import Options
from lm.objectives.masked import Masked
from lm.preset import Preset
from lm.training.corrupted import Corrupted, each_masked_once
from lm.training.evaluation import packed
from tests.data_sources.streams import BOS, EOS, data_config, files, global_batches, paragraphs, rows_of, three_sources, write_jsonl
from tests.objectives.one_by_one import example_of
from tests.objectives.rebuilding import TOKENS, tokenizer_with_gaps

WORDS = np.arange(256, dtype=np.int32)
BERT = Masked(0.15, 0.8, 0.1, TOKENS.mask, BOS, WORDS)


def document(length: int) -> Source:
    ids = np.array([BOS, *(200 + np.arange(length - 1) % 50)], np.int32)
    return Source.of(np.append(ids, np.int32(EOS)), None)


def test_rates_are_the_papers() -> None:
    """15 % of 10^5 tokens are predicted; of these 80 % are masked, 10 % another word, 10 % as they were (Devlin et al. 2019)."""
    source, counts = document(1001), np.zeros(4)
    words = np.zeros(256)
    for row in range(100):
        example = example_of(BERT, 0, row, 0, source, 2000)
        predicted = example.targets != NOT_SCORED
        assert (example.targets[predicted] == source.tokens[predicted]).all() and not predicted[0]
        masked, same = example.tokens == TOKENS.mask, example.tokens == source.tokens
        assert (same | predicted).all() and (predicted | ~masked).all()
        drawn = predicted & ~masked & ~same
        np.add.at(words, example.tokens[drawn], 1)
        counts += [predicted.sum(), masked.sum(), drawn.sum(), (predicted & same).sum()]
    chance = counts[0] * 0.1 / 256  # that a random word is the one that stood there
    assert counts[0] / 100_000 == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / 100_000) ** 0.5)
    for found, share in zip(counts[1:], (0.8, 0.1, 0.1), strict=True):
        assert found / counts[0] == pytest.approx(share, abs=4 * (share * (1 - share) / counts[0]) ** 0.5 + chance / counts[0])
    assert (words > 0).sum() > 240, "any word may come"


def test_all_mask_and_masks_of_a_few_tokens() -> None:
    example = example_of(Masked(0.5, 1.0, 0.0, TOKENS.mask, BOS, WORDS), 0, 3, 0, document(300), 300)
    predicted = example.targets != NOT_SCORED
    assert (example.tokens[predicted] == TOKENS.mask).all()
    for length in (2, 3, 5):
        for row in range(50):
            assert (example_of(BERT, 0, row, 0, document(length), 64).targets != NOT_SCORED).sum() >= 1


def test_masks_are_drawn_anew_by_row_place_and_seed() -> None:
    seen = {tuple(example_of(BERT, *key, document(200), 200).targets.tolist()) for key in ((0, 1, 0), (0, 2, 0), (0, 1, 7), (1, 1, 0))}
    assert len(seen) == 4 and tuple(example_of(BERT, 0, 1, 0, document(200), 200).targets.tolist()) in seen


def test_only_what_may_be_learned_is_masked() -> None:
    source = document(100)
    source.targets[:59] = NOT_SCORED
    for row in range(50):
        assert (np.flatnonzero(example_of(BERT, 0, row, 0, source, 100).targets != NOT_SCORED) >= 60).all()


def test_rows_of_the_stream_hold_the_documents_and_padding_begins_anew(tmp_path: Path) -> None:
    texts = paragraphs(150)
    write_jsonl(tmp_path / "a.jsonl", texts)
    data, tokenizer = data_config(files("a", tmp_path / "a.jsonl"), shuffle=False), tokenizer_with_gaps()
    with open_stream(data, tokenizer, 64, 48, options=Options(rewrite=BERT)) as stream:
        rows = sorted(row for batch, _ in stream for row in rows_of(batch))
        held_out = {text for _, text in stream.held_out.take_new()}
    lanes: dict[int, list[int]] = {}
    for row in rows:
        end = next((at for at, source in enumerate(row.source) if source < 0), 64)
        read = zip(row.tokens[:end], row.targets[:end], strict=True)
        lanes.setdefault(row.lane, []).extend(token if target == NOT_SCORED else target for token, target in read)
        assert end == 64 or (row.restart[end] and not any(row.restart[end + 1 :]))
    found = [text for tokens in lanes.values() for text in tokenizer.decode(tokens).split("<bos>")[1:]]
    assert sorted(found) == sorted(text for text in texts if text not in held_out)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_processes_masks_the_same(tmp_path: Path, world_size: int) -> None:
    mix, options = three_sources(tmp_path), Options(rewrite=BERT)
    assert global_batches(mix, 4, 48, world_size, options=options) == global_batches(mix, 4, 48, options=options)


def test_held_out_tokens_are_predicted_once_each() -> None:
    tokenizer, texts = tokenizer_with_gaps(), paragraphs(12)
    preset = Preset.model_validate({"data": {"sources": ["installed_docs"]}})
    rows = packed(texts, tokenizer, 64)
    times, shares = torch.zeros(rows.tokens.shape), []
    for masked in each_masked_once(Corrupted(*rows[:3]), tokenizer, preset):
        predicted = masked.targets != NOT_SCORED
        assert torch.equal(masked.targets[predicted], rows.tokens[predicted]) and (masked.tokens[predicted] == TOKENS.mask).all()
        assert torch.equal(masked.tokens[~predicted], rows.tokens[~predicted])
        times += predicted
        shares.append(float(predicted.float().mean()))
    is_text = (rows.targets != NOT_SCORED) & (rows.tokens != BOS)
    assert torch.equal(times, is_text.float()) and int(is_text.sum()) == sum(len(text.encode()) for text in texts)
    assert max(shares) < 0.16, "as few at a time as in training"


def test_a_batch_at_once_is_the_same_as_one_by_one() -> None:
    keys = [(0, row, row, document(length), 300) for row, length in enumerate((2, 9, 40, 200, 3))]
    alone = [example_of(BERT, *key) for key in keys]
    tokens, targets = BERT.finished(0, [BERT.planned(*key).plan for key in keys])
    assert tokens.tolist() == np.concatenate([one.tokens for one in alone]).tolist()
    assert targets.tolist() == np.concatenate([one.targets for one in alone]).tolist()

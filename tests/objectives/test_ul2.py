"""UL2 examples against the paper: form, round trips, rates and lengths over many draws, and that no answer can be read before it is given."""

from collections import Counter
from functools import lru_cache
from math import comb

import numpy as np
import pytest

from data_sources.rewriting import NOT_SCORED, OF_NO_KIND, Source
from lm.objectives.spans import Counts, Setting
from tests.data_sources.streams import BOS, EOS
from tests.objectives.one_by_one import Stream, defined, example_of, gaps_drawn
from tests.objectives.rebuilding import PAPER, TOKENS, mixture, parsed

LENGTH = 512


def document(length: int, answer_from: int | None = None) -> Source:
    """A document of distinct tokens, so that each can be told from all others; with `answer_from`, learned from there on alone."""
    ids = np.array([BOS, *range(1000, 1000 + length - 1)], np.int32)
    scored = None if answer_from is None else np.arange(length + 1) >= answer_from
    return Source.of(np.append(ids, np.int32(EOS)), scored)


@pytest.mark.parametrize("length", [4, 5, 7, 23, 100, 511, 512, 700])
def test_input_and_targets_rebuild_the_text(length: int) -> None:
    source = document(length)
    kinds = Counter()
    for row in range(200):
        taken, position = 0, 0
        while taken < length:
            example = example_of(mixture(), 3, row, position, source._replace(offset=taken), 10_000)
            assert example.begins
            found = parsed(example.tokens.tolist(), example.targets.tolist())
            assert found.text == source.tokens[taken : taken + example.taken].tolist()
            assert len(found.scored) >= 1 and found.kind == "RSX"[example.kind]
            taken, position = taken + example.taken, position + len(example.tokens)
            kinds[found.kind] += 1
    assert set(kinds) == {"R", "S", "X"}


@pytest.mark.parametrize("room", [*range(8, 40), 64, 127, 512, 1000])
def test_an_example_fits_its_room_and_wastes_little(room: int) -> None:
    for row in range(60):
        example = example_of(mixture(), 0, row, 0, document(900), room)
        assert 1 <= len(example.tokens) <= room and example.taken >= 2
        wasted = min(room, 450) - len(example.tokens)
        assert wasted <= 2, "one more token would have cost a gap more, which takes three positions"


def ways() -> list[tuple[str, int, Setting]]:
    return [(kind, number, Setting(*way)) for kind, some in PAPER.items() for number, way in enumerate(some)]


@pytest.mark.parametrize(("kind", "number", "way"), ways())
def test_rates_and_lengths_are_the_papers(kind: str, number: int, way: Setting) -> None:
    check_draws(kind, number, way, 10_000)


@pytest.mark.longest
@pytest.mark.parametrize(("kind", "number", "way"), ways())
def test_rates_and_lengths_are_the_papers_over_many_draws(kind: str, number: int, way: Setting) -> None:
    check_draws(kind, number, way, 100_000)


def check_draws(kind: str, number: int, way: Setting, least: int) -> None:
    """So many gaps or more of a way in table 1: share of the tokens, mean length, the whole distribution of lengths, and where they are."""
    draws = Stream(b"paper", 0, ord(kind), number)
    sizes, leans, reached, found = [], [], np.zeros(LENGTH, np.bool_), 0
    while found < least or len(sizes) < least // 50:
        gaps = gaps_drawn(*Counts(*way, 100, *draws.shares(2)).of(LENGTH), LENGTH, draws)
        inside = np.zeros(LENGTH, np.bool_)
        for begin, end in gaps:
            inside[begin:end] = True
        sizes.append([end - begin for begin, end in gaps])
        found += len(gaps)
        leans.append(int(inside[: LENGTH // 2].sum()) - int(inside[LENGTH // 2 :].sum()))
        reached |= inside
    taken, count = np.array([sum(each) for each in sizes]), np.array([len(each) for each in sizes])
    assert taken.mean() == pytest.approx(way.rate * LENGTH, abs=4 * 0.5 / len(sizes) ** 0.5), "rounded by lot: half a token of spread"
    ratio = taken.sum() / count.sum()
    assert ratio == pytest.approx(way.mean_span, abs=4 * (taken - ratio * count).std() / count.mean() / len(sizes) ** 0.5)
    lengths = np.concatenate(sizes)
    for size in (1, 2, 3, 8, 20, 64):
        expected = sum(chance_of(size, int(n), int(s)) * s for n, s in zip(taken, count, strict=True)) / count.sum()
        assert (lengths == size).mean() == pytest.approx(expected, abs=4 * (expected / len(lengths)) ** 0.5 + 1e-9), size
    assert reached.all() and abs(np.mean(leans)) < 4 * np.std(leans) / len(leans) ** 0.5, "gaps may be anywhere, and lean to no side"


@lru_cache
def chance_of(size: int, total: int, parts: int) -> float:
    """That a part has this size where all ways to cut `total` into `parts` are equally likely."""
    if parts == 1:
        return float(size == total)
    return comb(total - size - 1, parts - 2) / comb(total - 1, parts - 1) if size < total else 0.0


def test_denoisers_come_as_often_as_asked_and_suffixes_begin_anywhere() -> None:
    shares, rounds = (0.2, 0.5, 0.3), 6_000
    made = mixture(shares, suffix_rate=0.25)
    source = document(64)
    kinds, suffixes = Counter(), []
    for row in range(rounds):
        example = example_of(made, 1, row, 0, source, 200)
        kinds["RSX"[example.kind]] += 1
        if example.kind == 1:
            suffixes.append(int((example.targets != NOT_SCORED).sum()))
    for kind, share in zip("RSX", shares, strict=True):
        assert kinds[kind] / rounds == pytest.approx(share, abs=4 * (share * (1 - share) / rounds) ** 0.5)
    assert np.mean(suffixes) / 64 == pytest.approx(0.25, abs=0.01) and set(suffixes) == set(range(1, 32))


def test_what_is_too_short_for_a_denoiser_is_learned_and_counted_for_none() -> None:
    """Where S has no share it is not told of, whatever documents end with."""
    kinds = Counter()
    for row in range(400):
        source, made = document(40 + row % 9), mixture((1.0, 0.0, 0.0))
        while source.offset < len(source.tokens):
            example = made.planned(5, row, source.offset, source, 40)
            kinds[example.kind] += 1
            if example.kind == OF_NO_KIND:
                assert example.begins and example.size == len(source.tokens) - source.offset < 4
                assert example.targets.tolist() == source.targets[source.offset :].tolist()
            source = source._replace(offset=source.offset + example.taken)
    assert set(kinds) == {0, OF_NO_KIND} and kinds[OF_NO_KIND] > 10


def test_no_answer_can_be_read_before_it_is_given() -> None:
    """All tokens of the text differ, so that one that stands anywhere before its own place would be found."""
    for row in range(500):
        example = example_of(mixture((0.5, 0.0, 0.5)), 7, row, 0, document(200), 600)
        tokens, targets = example.tokens.tolist(), example.targets.tolist()
        for at, target in enumerate(targets):
            if target >= 1000:
                assert target not in tokens[: at + 1]
        named = [target for target in targets if target in TOKENS.gaps]
        assert len(named) == len(set(named))


def test_what_a_source_does_not_teach_is_not_learned() -> None:
    """A question is read and its answer is learned: in gaps, too."""
    source = document(120, answer_from=60)
    for row in range(300):
        example = example_of(mixture(), 2, row, 0, source, 400)
        tokens, targets = example.tokens.tolist(), example.targets.tolist()
        for at, target in enumerate(targets):
            if target == NOT_SCORED:
                continue
            word = tokens[at] if target in TOKENS.gaps or target == EOS else target
            assert word >= 1000 + 59, "the word that is learned, or that what is learned ends with, is of the answer"
        start = max((at for at, token in enumerate(tokens) if token == TOKENS.gaps[0]), default=None)
        if start is not None:
            learned = {target for target in targets if target >= 1000}
            assert learned == {token for token in tokens[start:] if token >= 1000 + 59}


def test_a_draw_depends_on_seed_row_and_place_alone() -> None:
    made = [example_of(mixture((0.5, 0.0, 0.5)), *key, document(300), 400) for key in ((0, 5, 0), (0, 5, 0), (1, 5, 0), (0, 6, 0), (0, 5, 9))]
    first = made[0].tokens.tolist()
    assert made[1].tokens.tolist() == first and all(other.tokens.tolist() != first for other in made[2:])


def test_the_beginning_of_a_document_is_never_a_gap() -> None:
    for row in range(300):
        example = example_of(mixture((0.0, 0.0, 1.0)), 0, row, 0, document(30), 100)
        assert example.tokens[1] == BOS


def test_a_batch_at_once_is_the_definition_one_by_one() -> None:
    made = mixture((0.4, 0.1, 0.5), longest=90)
    sources = [document(length, answer_from=answer) for length in (5, 30, 89, 200) for answer in (None, length_of(length))]
    keys = [(3, row, 7 * row, source._replace(offset=row % 3), 60 + 20 * row) for row, source in enumerate(sources * 6)]
    alone = [defined(made, *key) for key in keys]
    planned = [made.planned(*key) for key in keys]
    with_plans = [(one, plan) for one, plan in zip(alone, planned, strict=True) if plan.plan is not None]
    assert len(with_plans) > 20 and any(plan.plan.learned is not None for _, plan in with_plans)
    for count in (1, 2, len(with_plans)):
        tokens, targets = made.finished(0, [plan.plan for _, plan in with_plans[:count]])
        assert tokens.tolist() == [token for one, _ in with_plans[:count] for token in one.tokens.tolist()]
        assert targets.tolist() == [target for one, _ in with_plans[:count] for target in one.targets.tolist()]
    assert all(one.size == plan.size == len(one.tokens) for one, plan in zip(alone, planned, strict=True))


def length_of(length: int) -> int:
    return max(2, length // 2)

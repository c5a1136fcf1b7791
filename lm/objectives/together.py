"""The examples of a whole batch made at once, in a fraction of the time that one by one would take (lm/objectives/spans.py, lm/objectives/masked.py).

All texts stand one behind the other in one array, and so do their gaps and what is made of them; what belongs to which is told by counts.

Sizes: E examples; of each L tokens of text, N of them in S gaps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data_sources.rewriting import NOT_SCORED
from lm.objectives.draws import GOLDEN, INDEX_BITS, KEY_BITS, mixed, ranked


class GapPlan(NamedTuple):
    """All that decides an example with gaps."""

    start: int  # of its draws
    text: np.ndarray  # (L,)
    learned: np.ndarray | None  # (L,) bool; None for all
    noise: int
    gaps: int
    spared: int  # tokens at the beginning that are in no gap
    mode: int


class MaskPlan(NamedTuple):
    """All that decides an example with masks."""

    start: int
    text: np.ndarray
    learned: np.ndarray | None


class Made(NamedTuple):
    """Examples, one behind the other; `ends` (E,) says where each does."""

    tokens: np.ndarray
    targets: np.ndarray
    ends: np.ndarray


def within(sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... for each of some groups of these sizes."""
    ends = sizes.cumsum()
    return np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)


def spread(begin: np.ndarray, end: np.ndarray, size: int) -> np.ndarray:
    """(size,) bool: the places from each `begin` up to its `end`; these don't overlap."""
    edges = np.zeros(size + 1, np.int8)
    edges[begin] = 1
    edges[end] -= 1
    return edges[:-1].cumsum(dtype=np.int8).view(np.bool_)


def keys_of(plans: Sequence[Any], counts: np.ndarray, first: np.ndarray | int = 0) -> np.ndarray:
    """Random keys, `counts` (E,) of each plan, from its number `first` on."""
    starts = np.array([plan.start for plan in plans], np.uint64) + GOLDEN * np.asarray(first, np.uint64)
    return mixed(np.repeat(starts, counts) + (within(counts) + 1).astype(np.uint64) * GOLDEN)


def learned_in_all(plans: Sequence[Any]) -> np.ndarray | None:
    """Which tokens of all texts may be learned; None for all."""
    if all(plan.learned is None for plan in plans):
        return None
    return np.concatenate([np.ones(len(plan.text), np.bool_) if plan.learned is None else plan.learned for plan in plans])


def with_gaps(plans: Sequence[GapPlan], names: np.ndarray, end: int) -> Made:
    """Each text with its gaps, then what stood in them. names: ids of S gaps or more."""
    _, texts, _, *counts = zip(*plans, strict=True)
    length, (noise, gaps, spared, mode) = np.array([*map(len, texts)]), np.array(counts)
    before, first, size = _gaps(plans, length - spared, noise, gaps)
    before += np.repeat(spared, gaps)
    text = np.concatenate(texts)
    begin = before + first + np.repeat(length.cumsum() - length, gaps)
    inside = spread(begin, begin + size, len(text))

    outside, total, order = length - noise, 1 + length + 2 * gaps, within(gaps)
    ends = total.cumsum()
    head = ends - total
    answer = head + 1 + outside + gaps
    at_input = before + order + np.repeat(head + 1, gaps)
    at_answer = first + order + np.repeat(answer, gaps)
    is_word, tokens = np.ones(ends[-1], np.bool_), np.empty(ends[-1], np.int64)
    is_word[head] = is_word[at_input] = is_word[at_answer] = False
    tokens[head], tokens[at_input], tokens[at_answer] = mode, names[order], names[order]
    is_answer = np.repeat(np.arange(2 * len(plans)) % 2 == 1, np.array((answer - head, ends - answer)).T.ravel())
    tokens[is_word & is_answer], tokens[is_word & ~is_answer] = text[inside], text[~inside]
    next_token = np.empty_like(tokens)
    next_token[:-1], next_token[ends - 1] = tokens[1:], end
    targets = np.where(is_answer, next_token, NOT_SCORED)
    learned = learned_in_all(plans)
    if learned is not None:
        is_learned = np.zeros(len(tokens), np.bool_)
        is_learned[is_word & is_answer] = learned[inside]
        follows = np.append(is_word[1:], False)
        targets[is_answer & ~np.where(follows, np.append(is_learned[1:], False), is_learned)] = NOT_SCORED
    return Made(tokens, targets, ends)


def _gaps(plans: Sequence[GapPlan], drawn: np.ndarray, noise: np.ndarray, gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of all gaps: how many tokens outside stand before each (those that are spared left out), how many of other gaps, and its length."""
    sizes, wanted = (np.array(pair).T.ravel() for pair in ((noise - 1, drawn - noise + 1), (gaps - 1, gaps)))  # where to cut, and where to stand
    group, begin = np.arange(len(sizes)) << KEY_BITS + INDEX_BITS, sizes.cumsum() - sizes
    number = np.arange(sizes.sum())
    keys = ranked(keys_of(plans, drawn), number - np.repeat(begin - group, sizes))
    keys.sort()
    keys = keys[number < np.repeat(begin + wanted, sizes)]  # sorted by group, so the first of each are its lowest
    low = np.uint64((1 << INDEX_BITS) - 1)
    ends_at = (group[::2] >> KEY_BITS) + noise - 1  # where the last gap of each is cut off
    picked = np.concatenate(((keys >> np.uint64(KEY_BITS + INDEX_BITS) << np.uint64(INDEX_BITS)) | (keys & low), ends_at.view(np.uint64)))
    picked.sort()
    stands = (picked >> np.uint64(INDEX_BITS) & np.uint64(1)).astype(np.bool_)
    places = (picked & low).astype(np.int64)
    ends = places[~stands] + 1
    first = np.empty_like(ends)
    first[1:] = ends[:-1]
    first[gaps.cumsum() - gaps] = 0
    return places[stands], first, ends - first


def with_masks(plans: Sequence[MaskPlan], rate: float, masked: float, random: float, mask: int, bos: int, words: np.ndarray) -> Made:
    """Each text with some of its tokens masked, or another word, or chosen and left."""
    length = np.array([len(plan.text) for plan in plans])
    text, ends = np.concatenate([plan.text for plan in plans]).astype(np.int64), length.cumsum()
    lots = shares(keys_of(plans, length))
    lots[text == bos] = 1.0
    learned = learned_in_all(plans)
    if learned is not None:
        lots[~learned] = 1.0
    lowest = np.minimum.reduceat(lots, ends - length)
    chosen = np.flatnonzero((lots < rate) | ((lots == np.repeat(lowest, length)) & (lots < 1)))  # one at least
    number = np.repeat(np.arange(len(plans)), length)[chosen]
    counts = np.bincount(number, minlength=len(plans))
    fate, word = shares(keys_of(plans, counts, length)), shares(keys_of(plans, counts, length + counts))
    tokens, targets = text.copy(), np.full(len(text), NOT_SCORED, np.int64)
    targets[chosen] = text[chosen]
    tokens[chosen[fate < masked]] = mask
    replaced = (fate >= masked) & (fate < masked + random)
    tokens[chosen[replaced]] = words[(word[replaced] * len(words)).astype(np.int64)]
    return Made(tokens, targets, ends)


def shares(keys: np.ndarray) -> np.ndarray:
    """From 0 up to 1."""
    return (keys >> np.uint64(11)) * 2.0**-53

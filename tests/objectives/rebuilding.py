"""An independent reader of what objectives make: it parses examples token by token and puts the texts together again."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from data_sources.special_tokens import ObjectiveTokens, with_objective_tokens
from lm.objectives.spans import Setting
from lm.objectives.ul2 import Ul2
from tests.data_sources.streams import BOS, EOS, PAD, Row, byte_tokenizer

NOT_SCORED = -100
PAPER = {"R": ((3, 0.15), (8, 0.15)), "X": ((3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5))}  # Tay et al. 2022, table 1


def tokenizer_with_gaps() -> Any:
    return with_objective_tokens(byte_tokenizer())


TOKENS = ObjectiveTokens.of(tokenizer_with_gaps())
assert TOKENS is not None
GAPS = {name: number for number, name in enumerate(TOKENS.gaps)}
MODES = {token: mode for mode, token in TOKENS.modes.items()}


def mixture(shares: tuple[float, float, float] = (0.25, 0.5, 0.25), longest: int = 512, ways: Any = None, suffix_rate: float = 0.5) -> Ul2:
    ways = ways or {"R": ((3, 0.15), (8, 0.15)), "X": ((3, 0.5), (8, 0.5), (32, 0.15), (32, 0.5))}
    settings = {kind: tuple(Setting(*way) for way in some) for kind, some in ways.items()}
    return Ul2(shares, settings, suffix_rate, longest, TOKENS.modes, TOKENS.gaps, BOS, EOS)


class Parsed(NamedTuple):
    """An example, read by a person who knows the rules."""

    kind: str
    text: list[int]  # what was corrupted
    gaps: list[list[int]]  # what was taken out
    scored: list[tuple[int, int]]  # (index in the text, or -1 for what ends a gap; target)


def parsed(tokens: Sequence[int], targets: Sequence[int]) -> Parsed:
    """AssertionError for whatever breaks the form."""
    if tokens[0] not in MODES:
        assert not set(tokens) & {*GAPS, *MODES}
        learned = [(at, target) for at, target in enumerate(targets) if target != NOT_SCORED]
        assert [at for at, _ in learned] == list(range(len(tokens) - len(learned), len(tokens))), "what is learned reaches the end"
        return Parsed("S", list(tokens), [], learned)
    places = [(at, GAPS[token]) for at, token in enumerate(tokens) if token in GAPS]
    count = len(places) // 2
    assert [number for _, number in places] == [*range(count), *range(count)]
    start = places[count][0]
    pieces = [list(tokens[a + 1 : b]) for a, b in zip([0, *(at for at, _ in places)], [*(at for at, _ in places), len(tokens)], strict=True)]
    outside, gaps = pieces[: count + 1], pieces[count + 1 :]
    assert all(gaps) and all(outside[1:-1]), "gaps are not empty, and do not touch"
    assert all(target == NOT_SCORED for target in targets[:start])
    expected = [*tokens[start + 1 :], EOS]
    assert all(target in (NOT_SCORED, token) for target, token in zip(targets[start:], expected, strict=True))
    text = [token for piece, gap in zip(outside, [*gaps, []], strict=True) for token in (*piece, *gap)]
    scored = [(at, target) for at, target in enumerate(targets) if target != NOT_SCORED]
    return Parsed(MODES[tokens[0]], text, gaps, scored)


def examples(row: Row) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """The examples of a row, apart: each begins with a restart. What fills the row up is left out, and is checked."""
    starts = [at for at, restart in enumerate(row.restart) if restart]
    end = next((at for at, source in enumerate(row.source) if source < 0), len(row.tokens))
    filling = zip(row.tokens[end:], row.targets[end:], row.source[end:], strict=True)
    assert all(each == (PAD, NOT_SCORED, -1) for each in filling)
    assert not starts or starts[0] == 0
    starts = [at for at in starts if at < end]
    for begin, stop in zip(starts, [*starts[1:], end][: len(starts)], strict=True):
        yield row.tokens[begin:stop], row.targets[begin:stop]

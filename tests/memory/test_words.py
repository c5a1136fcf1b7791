"""Words of tokens are the words of the text, however it was cut; vectors and scores are what words say."""

import re

import numpy as np
import pytest

from data_sources.tokenizer import trained_bpe
from lm.memory.embedder import Hashed
from lm.memory.memory import chunks_of
from lm.memory.words import Words, piece_texts
from tests.data_sources.streams import paragraphs

MASK = (1 << 64) - 1


def weight_of(token: int) -> int:
    return sum(50 * 9**power // 8**power - 50 <= token for power in range(60))


def words_of(text: str) -> set[str]:
    """Runs of letters and digits, without case and a last s."""
    return {word.removesuffix("s") for word in re.findall(r"[^\W_]+", text.casefold())}


@pytest.mark.parametrize("vocabulary", [300, 1500])
def test_words_of_real_text_are_those_of_a_regular_expression(vocabulary: int) -> None:
    """With a tokenizer that cuts nearly every word and one that cuts few: hashes and words lead to each other, one to one."""
    texts = [text for text in paragraphs(300) if text.isascii()]
    tokenizer = trained_bpe(iter(texts), vocabulary)
    words, hash_of = Words(len(tokenizer), piece_texts(tokenizer)), {}
    numbers: dict[str, int] = {}
    for number in range(len(tokenizer)):
        for word in words_of(tokenizer.decode([number])):
            numbers.setdefault(word, number)
    for text in texts:
        chunks = chunks_of(0, np.array(tokenizer.encode(text)), 37, ("", ""))
        for tokens, count, hashes, weights in zip(chunks.tokens, chunks.count, *words(chunks.tokens, chunks.count), strict=True):
            shown, told = words_of(tokenizer.decode(tokens[:count])), dict(zip(hashes.tolist(), weights.tolist(), strict=True))
            assert len(hashes[weights > 0]) == len({*hashes.tolist()} - {0}) == len(shown)
            for word in shown - hash_of.keys():
                tokens = np.array([tokenizer.encode(f" {(word or 's').upper()}, ")])  # another cut of the same word
                hash_of[word] = int(words.hashes(tokens, np.array([tokens.size])).max())
            wanted = {
                hash_of[word]: weight_of(numbers[word]) if word in numbers else weight_of(len(tokenizer) - 1) + 3 for word in shown if not word.endswith("s")
            }
            assert wanted.items() <= {value: max(weights[hashes == value]) for value in told}.items()
    assert len(hash_of) > 900 and len({*hash_of.values()}) > 0.99 * len(hash_of), "all but those that end in s, once more, have a hash each"


PIECES = ["cat", " Cat", "s", "ding", "(", " 19", "84", "\ufffd", "\ufffd", "日", "本", "'s", "ss", "", " a_b", "C", "AT"]


def same(first: list[int], second: list[int]) -> bool:
    words = Words(len(PIECES), PIECES)
    pair = [words(np.array([tokens], int), np.array([len(tokens)])) for tokens in (first, second)]
    return all({*a[a > 0].tolist()} == {*b[b > 0].tolist()} for a, b in zip(*pair, strict=True))


def test_how_pieces_make_words() -> None:
    assert same([0], [1]) and same([1], [15, 16]) and same([1, 2], [0]) and same([4, 0, 4], [1, 1]), "case, space, cut, plural, signs, how often"
    assert not same([0, 3], [3]) and not same([0, 3], [0, 4, 3]) and not same([5, 6], [5, 4, 6]) and not same([0, 12], [0]) and same([0, 12], [0, 2, 2])
    assert same([9, 10], [10, 9]) and not same([9, 10], [9]), "without case or spaces, each piece is a word"
    assert not same([7], [8]) and same([7, 8], [8, 7]), "what is no whole letter is known by its number"
    assert same([4, 13], []) and same([13, 4, 1], [0, 13])
    assert Words(2)(np.array([[1, 1, 0]]), np.array([2])).weights.astype(bool).sum() == 1, "without pieces each token is a word"


def test_names_tell_embedders_apart() -> None:
    names = [Hashed(17, PIECES).name, Hashed(17).name, Hashed(18).name, Hashed(17, size=256).name, Hashed(17, PIECES[::-1]).name]
    assert len({*names}) == len(names) and names[0] == Hashed(17, list(PIECES)).name
    assert Hashed(17, PIECES).name == "hashed-2-512-56454916", "vectors that were stored are compared with those of today"


def test_vectors_and_scores_are_what_words_say() -> None:
    """Word by word, in Python's integers."""
    embedder = Hashed(300, size=32)
    words = Words(300)
    tokens, count = np.array([[7, 290, 7, 60, 1], [5, 5, 5, 290, 7], [2, 2, 2, 2, 2]]), np.array([5, 5, 0])

    def mixed(value: int) -> int:
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        return value ^ (value >> 31)

    for row, (ids, length) in enumerate(zip(tokens.tolist(), count.tolist(), strict=True)):
        sums = [0] * 32
        for token in {*ids[:length]}:
            bits = mixed(int(words.hashes(np.array([[token]]), np.array([1]))[0, 0]))
            for hit in range(4):
                part = (bits >> (16 * hit)) & 0xFFFF
                sums[8 * hit + (part >> 1) % 8] += weight_of(token) if part & 1 else -weight_of(token)
        assert embedder(tokens, count)[row].tolist() == [min(127, max(-127, value)) for value in sums]
    square = {token: weight_of(token) ** 2 for token in (7, 290, 60, 1)}
    scores = embedder.scores(tokens[0], np.zeros(3), tokens, count)
    np.testing.assert_allclose(scores, [1, (square[7] + square[290]) / sum(square.values()), 0], rtol=1e-15)
    assert embedder.scores(tokens[0, :0], np.zeros(3), tokens, count).tolist() == [0, 0, 0]

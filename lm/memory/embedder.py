"""What makes chunks comparable: a vector for each, near to those of chunks that tell the same.

`Hashed` needs no download and never drifts. A chunk's tokens, and its pairs of neighbouring tokens, each count with a weight, and every one of
them is added, with a sign, to a few places of the vector that its hash names: a fixed sparse random projection (Charikar, Chen and
Farach-Colton 2002; Li, Hastie and Church 2006; for words: Weinberger et al. 2009). The inner product of two vectors is what their chunks
have in common, plus noise that falls with the square root of the vector's size. A token's weight grows with the logarithm of its number:
BPE numbers its tokens by how often they were needed, so that is what idf would give, and no later text can change it.

Vectors are whole numbers of 8 bits, of length `scale`. All sums on the way are exact in float64, and so are the inner products in float32
(127 * 127 * 1024 < 2^24): they are the same on every machine, in every order, by every library.

Sizes: N chunks, C tokens of a chunk, D size of a vector.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from math import sqrt
from typing import Any, Protocol

import numpy as np

from lm.memory.layout import mixed

LARGEST = 1024  # size of a vector, for exact inner products
PEAK = 8.0  # times the root mean square of a vector's numbers: the largest that is not clipped
HITS = 2  # places of a vector that a feature is added to
AT_ONCE = 4096  # chunks
COMMON, RATIO = 50, (9, 8)  # the tokens before this number count least; another unit of weight with each factor


class Embedder(Protocol):
    """Chunks -> vectors. `name` holds all that they depend on, so that those of different embedders are never compared."""

    name: str
    size: int

    def __call__(self, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        """tokens (N, C), of which the first `count` (N,) of each count -> (N, D) int8."""
        ...


def scale(size: int) -> float:
    """The length of a vector of this size, in units of its numbers."""
    return 127 / PEAK * sqrt(size)


def quantised(vectors: np.ndarray) -> np.ndarray:
    """(N, D) whole numbers or float64 -> (N, D) int8 of the same direction; zero stays zero."""
    length = np.sqrt((vectors * vectors).sum(1, keepdims=True, dtype=np.float64))
    return np.clip(np.rint(vectors * scale(vectors.shape[1]) / np.maximum(length, 1e-30)), -127, 127).astype(np.int8)


class Hashed:
    """Hashed tokens and pairs of tokens. `pieces`: the text of each token, where it is known; then those that differ in case or space alone are one."""

    def __init__(self, vocab_size: int, pieces: Sequence[str] | None = None, size: int = 512):
        if not 0 < size <= LARGEST or size % HITS:
            raise ValueError(f"a vector has an even number of places, at most {LARGEST}, not {size}")
        self.size = size
        self._same, self._weight = _folded(vocab_size, pieces)
        self.name = f"hashed-1-{size}-{zlib.crc32(self._same.tobytes()):08x}"

    def __call__(self, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        """IndexError where a token is past the vocabulary."""
        parts = [self._embed(tokens[at : at + AT_ONCE], count[at : at + AT_ONCE]) for at in range(0, len(tokens), AT_ONCE)]
        return np.concatenate(parts) if parts else np.zeros((0, self.size), np.int8)

    def _embed(self, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        there = np.arange(tokens.shape[1]) < count[:, None]
        words = self._same[np.where(there, tokens, 0)].astype(np.uint64)
        weights = self._weight[np.where(there, tokens, 0)]
        pair = words[:, :-1] * np.uint64(1 << 32) + words[:, 1:] + np.uint64(1 << 31)
        total = self._projected(words[there], weights[there], np.nonzero(there)[0], len(tokens))
        both = there[:, 1:]
        lighter = np.minimum(weights[:, :-1], weights[:, 1:])
        return quantised(2 * total + self._projected(pair[both], lighter[both], np.nonzero(both)[0], len(tokens)))

    def _projected(self, features: np.ndarray, weights: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
        """(count, D) float64, exact: each feature's weight, with its sign, in the HITS places of its row that its hash names."""
        hashes, width = mixed(features * np.uint64(2) + np.uint64(1)), self.size // HITS
        places, signed = [], []
        for hit in range(HITS):
            bits = (hashes >> np.uint64(32 * hit)) & np.uint64(0xFFFFFFFF)
            places.append(rows * self.size + hit * width + ((bits >> np.uint64(1)) % np.uint64(width)).astype(np.int64))
            signed.append(np.where(bits & np.uint64(1), weights, -weights))
        return np.bincount(np.concatenate(places), np.concatenate(signed), count * self.size).reshape(count, self.size)


def _folded(vocab_size: int, pieces: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """(V,) int64 the first token that is the same word, and (V,) float64 its weight."""
    same = np.arange(vocab_size)
    if pieces is not None:
        first: dict[str, int] = {}
        for number, piece in enumerate(pieces[:vocab_size]):
            same[number] = first.setdefault(piece.strip().casefold() or piece, number)
    limits, power = [], 0
    while not limits or limits[-1] < vocab_size:
        limits.append(COMMON * RATIO[0] ** power // RATIO[1] ** power - COMMON)
        power += 1
    return same, np.searchsorted(limits, same, "right").astype(np.float64)


class SentenceModel:
    """A sentence model of transformers: the mean of its last hidden states over a text, normalised (Reimers and Gurevych 2019).

    `decode`: token ids -> text. Its vectors depend on the versions and the machine in their last bits, which quantising hides but at the edges.
    """

    def __init__(self, model: str, decode: Callable[[list[int]], str], batch_size: int = 64):
        """ValueError, in one line, where the model can't be had."""
        self._model, self._decode, self._batch_size = model, decode, batch_size
        self.size = int(self._loaded[1].config.hidden_size)
        self.name = f"sentence-1-{model}"
        if self.size > LARGEST:
            raise ValueError(f"{model}: its vectors have {self.size} places; at most {LARGEST} can be compared exactly")

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self._model), AutoModel.from_pretrained(self._model).eval()
        except (OSError, ValueError) as error:
            raise ValueError(f"the sentence model {self._model} can't be had: {str(error).splitlines()[0]}") from None

    def __call__(self, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        texts = [self._decode(row[:length].tolist()) for row, length in zip(tokens, count.tolist(), strict=True)]
        parts = [self._embed(texts[at : at + self._batch_size]) for at in range(0, len(texts), self._batch_size)]
        return np.concatenate(parts) if parts else np.zeros((0, self.size), np.int8)

    def _embed(self, texts: list[str]) -> np.ndarray:
        import torch

        tokenizer, model = self._loaded
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=model.config.max_position_embeddings, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state.double()
        mask = inputs["attention_mask"].unsqueeze(-1)
        return quantised(((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).numpy())

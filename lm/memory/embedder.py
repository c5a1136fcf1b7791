"""What makes chunks comparable: a vector for each, near to those of chunks that tell the same, and a score for the few whose vectors are.

`Hashed` needs no download and never drifts. A question's score of a chunk is the part of its words that stands in the chunk, each word
counted once, by its weight squared. What idf and the saturation of BM25 bring is in that (Robertson and Zaragoza 2009); the lengths that BM25
allows for are all one here. To compare every chunk so takes too long, so each has a vector: a fixed sparse random projection of its words
(Charikar, Chen and Farach-Colton 2002; Li, Hastie and Church 2006; for words: Weinberger et al. 2009). The inner product of two vectors is what
their chunks have in common, plus noise that falls with the square root of the vector's size: enough to tell the few hundred that are to be scored.

Vectors are whole numbers of 8 bits. All sums on the way are exact in float64, and so are the inner products in float32
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
from lm.memory.words import Found, Words

LARGEST = 1024  # size of a vector, for exact inner products
PEAK = 8.0  # times the root mean square of a vector's numbers: the largest that is not clipped
HITS = 4  # places of a vector that a word is added to
AT_ONCE = 1024  # chunks


class Embedder(Protocol):
    """Chunks -> vectors. `name` holds all that they depend on, so that those of different embedders are never compared."""

    name: str
    size: int
    breadth: int  # chunks, at least, that are scored: those whose vectors have the largest inner products with the question's

    def __call__(self, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        """tokens (N, C), of which the first `count` (N,) of each count -> (N, D) int8."""
        ...

    def scores(self, question: np.ndarray, products: np.ndarray, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        """(N,) how near chunks (N, C) are to a question (any number of tokens): from 0 for nothing in common, to 1 for all of it."""
        ...


def scale(size: int) -> float:
    """The length of a vector of this size, in units of its numbers."""
    return 127 / PEAK * sqrt(size)


def quantised(vectors: np.ndarray) -> np.ndarray:
    """(N, D) whole numbers or float64 -> (N, D) int8 of the same direction; zero stays zero."""
    length = np.sqrt((vectors * vectors).sum(1, keepdims=True, dtype=np.float64))
    return np.clip(np.rint(vectors * scale(vectors.shape[1]) / np.maximum(length, 1e-30)), -127, 127).astype(np.int8)


class Hashed:
    """Words, hashed. `pieces`: the text of each token, as `piece_texts` has it; without, each token is a word."""

    breadth = 512  # words are compared in so many; the vectors leave about 1 in 100 of the best out

    def __init__(self, vocab_size: int, pieces: Sequence[str] | None = None, size: int = 512):
        if not 0 < size <= LARGEST or size % HITS:
            raise ValueError(f"a vector has at most {LARGEST} places, a multiple of {HITS}, not {size}")
        self.size, self._words = size, Words(vocab_size, pieces)
        self.name = f"hashed-2-{size}-{zlib.crc32(self._words.table.tobytes()):08x}"

    def __call__(self, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        """IndexError where a token is past the vocabulary."""
        parts = [self._embed(self._words(tokens[at : at + AT_ONCE], count[at : at + AT_ONCE])) for at in range(0, len(tokens), AT_ONCE)]
        return np.concatenate(parts) if parts else np.zeros((0, self.size), np.int8)

    def scores(self, question: np.ndarray, products: np.ndarray, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        hashes, weights = (part[0] for part in self._words(question[None], np.array([len(question)])))
        return self._words.shared(hashes, weights, tokens, count) / max((weights**2).sum(), 1.0)

    def _embed(self, words: Found) -> np.ndarray:
        """Each word's weight, with its sign, is added to HITS places that its hash names. What is too large is clipped: no place of a chunk
        of 64 tokens is, but 1 in 10,000."""
        rows, column = np.nonzero(words.weights)
        hashes, weights, width = mixed(words.hashes[rows, column]), words.weights[rows, column], self.size // HITS
        places, signed = [], []
        for hit in range(HITS):
            bits = (hashes >> np.uint64(64 // HITS * hit)) & np.uint64((1 << 64 // HITS) - 1)
            places.append(rows * self.size + hit * width + ((bits >> np.uint64(1)) % np.uint64(width)).astype(np.int64))
            signed.append(np.where(bits & np.uint64(1), weights, -weights))
        total = np.bincount(np.concatenate(places), np.concatenate(signed), len(words.hashes) * self.size)
        return np.clip(total, -127, 127).astype(np.int8).reshape(-1, self.size)


def longest(tokenizer: Any, model: Any) -> int:
    """How many tokens of a text `model` can read. Some (RoBERTa, MPNet) count their places from 2, and some say nothing of them."""
    return min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 514) - 2)


class SentenceModel:
    """A sentence model of transformers: the mean of its last hidden states over a text, normalised (Reimers and Gurevych 2019).

    `decode`: token ids -> text. Its vectors depend on the versions and the machine in their last bits, which quantising hides but at the edges.
    """

    breadth = 1  # no more than are wanted

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

    def scores(self, question: np.ndarray, products: np.ndarray, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Cosines."""
        return np.clip(products / scale(self.size) ** 2, 0, 1)

    def _embed(self, texts: list[str]) -> np.ndarray:
        import torch

        tokenizer, model = self._loaded
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=longest(tokenizer, model), return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state.double()
        mask = inputs["attention_mask"].unsqueeze(-1)
        return quantised(((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).numpy())

"""Chunks to remember: documents of drawn words, as many of each as a language has (Zipf), every one a function of its number."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from lm.memory.embedder import Hashed
from lm.memory.memory import Chunks, Memory, Options, chunks_of
from lm.memory.store import About, State

VOCABULARY, SIZE, SEGMENT = 3001, 5, 70  # tokens of a chunk, chunks of a segment
BY_CODES = Options(10**6, "faiss", 512)
ROOT = Path(__file__).parents[2]
EMBEDDER = Hashed(VOCABULARY, size=64)


def words(number: int, length: int, purpose: int = 0) -> np.ndarray:
    """(length,) int64."""
    return np.minimum(np.random.default_rng([number, purpose]).zipf(1.2, length), VOCABULARY) - 1


def about(number: int) -> About:
    return ("wikipedia", f"Größe\t\n\\n\ud83d {number}") if number % 3 else (f"guide{number % 2}.pdf", f"guide.pdf, page {number}")


def document(number: int, chunks: int, purpose: int = 0) -> Chunks:
    """A document of so many chunks, the last of which is mostly short."""
    length = chunks * SIZE - number % SIZE
    return chunks_of(number, words(number, length, purpose), SIZE, about(number))


def joined(parts: list[Chunks]) -> Chunks:
    columns = (np.concatenate(column) for column in list(zip(*parts, strict=True))[:4])
    return Chunks(*columns, about=[line for part in parts for line in part.about])


def opened(folder: Path, state: State | None = None, options: Options = Options(10**6, "exact"), write: bool = False) -> Memory:  # noqa: B008
    return Memory.open(folder, SIZE, VOCABULARY, EMBEDDER, state, options, write, segment=SEGMENT)


def run(program: str, *arguments: object) -> subprocess.Popen[str]:
    """A program in a process of its own, which finds the repository's packages."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)


def asked(count: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chunks of documents that were read, a word of each changed, how long they are, and their documents."""
    parts = [document(number, 1) for number in range(3, 3 + 9 * count, 9)]
    tokens = np.concatenate([part.tokens for part in parts])
    tokens[:, 2] = 17
    return tokens, np.concatenate([part.count for part in parts]), np.concatenate([part.document for part in parts])

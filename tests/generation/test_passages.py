"""Passages of a memory in a conversation: as text for a model that attends to none, where they stand and when they leave; as neighbours else."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lm.auxiliary.heads import build_heads
from lm.generation.chat import Conversation, Frame
from lm.generation.passages import Library
from lm.generation.recollection import Recall
from lm.generation.sampling import Sampler
from lm.generation.writing import Aside, Writing, prompt_tokens
from lm.memory.embedder import Hashed
from lm.memory.lookup import Heard, Lookup, unlike
from lm.memory.memory import Memory, Passage, chunks_of
from lm.model import Context, Model, build_model
from lm.preset import Preset, preset_from_json
from lm.preset.generation import GenerationConfig
from lm.units.neighbours import Neighbours
from tests.generation.conftest import PRESET

SHORT = GenerationConfig(temperature=0, repetition_penalty=1, max_new_tokens=9)
FRAME = Frame("Q: ", "\nA:")
SIZE = 12
TEXTS = {"plants": "a plant lives for years", "cafes": "a café in 東京 and so on", "annuals": "an annual one dies", "sizes": "größe and so on"}


@pytest.fixture
def memory(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Memory:
    """Four short documents, the first of which was read twice."""
    written = Memory.open(tmp_path, SIZE, len(tokenizer), Hashed(len(tokenizer)), write=True)
    for number, (source, text) in enumerate([*TEXTS.items(), ("again", TEXTS["plants"])]):
        tokens = np.array([tokenizer.bos_token_id, *prompt_tokens(tokenizer, text)], np.int64)
        written.add(chunks_of(number, tokens, SIZE, (source, f"row {number}")))
    return written


def library_of(memory: Memory, tokenizer: PreTrainedTokenizerFast, room: int = 200, count: int = 1) -> tuple[Library, Heard]:
    heard = Heard(Lookup(memory, memory.length, SIZE, count))
    return Library(lambda words: heard.passages(np.array(prompt_tokens(tokenizer, words))) if heard.is_on else [], room, tokenizer), heard


def answered(conversation: Conversation, message: str) -> str:
    answer = conversation.say(message)
    text = "".join(answer)
    conversation.settle(answer)
    return text


def agrees(model: Model, conversation: Conversation) -> None:
    """The state is that of a model which reads, at once, all that the conversation says it holds."""
    whole = model(torch.tensor([[*conversation.tokens, 7]])).logits[0, -1]
    assert torch.allclose(model(torch.tensor([[7]]), conversation.state).logits[0, -1], whole, atol=1e-9)


def test_passages_come_and_stay_and_leave(model: Model, tokenizer: PreTrainedTokenizerFast, memory: Memory) -> None:
    library, heard = library_of(memory, tokenizer)
    conversation = Conversation(model, tokenizer, FRAME, SHORT, library=library)
    text = []
    for message in ("plant lives for years?", "for years a plant lives", "", "annual one dies", "And one annual?"):
        answered(conversation, message)
        agrees(model, conversation)
        text.append(tokenizer.decode(conversation.tokens))
        assert [passage.source for passage in conversation.passages] == ["plants" if len(text) < 4 else "annuals"]
    said = [tokenizer.decode([*turn.read, *turn.written]) for turn in conversation.turns]
    passages = {source: f"{tokenizer.decode(prompt_tokens(tokenizer, TEXTS[source])[: SIZE - 1])}\n\n" for source in ("plants", "annuals")}
    assert text[0] == f"<bos>{passages['plants']}{said[0].removeprefix('<bos>')}", "after the beginning, before the frame"
    assert text[1] == text[0] + said[1], "what stays is not read again"
    assert text[2] == text[1] + said[2]
    new = "\n" + passages["annuals"] + said[3].removeprefix("\n")
    assert text[3] == "".join(said[:3]) + new, "what is stale has gone"
    assert text[4] == text[3] + said[4]
    heard.is_on = False
    answered(conversation, "Why?")
    agrees(model, conversation)
    turns = [tokenizer.decode([*turn.read, *turn.written]) for turn in conversation.turns]
    assert tokenizer.decode(conversation.tokens) == "".join(turns) and conversation.passages == ()


def test_without_the_memory_it_is_a_conversation_as_any(model: Model, tokenizer: PreTrainedTokenizerFast, memory: Memory) -> None:
    library, heard = library_of(memory, tokenizer)
    heard.is_on = False
    one, other = (Conversation(model, tokenizer, FRAME, SHORT, library=each) for each in (library, None))
    for message in ("plant lives", "annual", ""):
        assert answered(one, message) == answered(other, message)
    assert one.tokens == other.tokens and one.turns == other.turns


def test_one_that_is_broken_off_leaves_all_as_it_was(model: Model, tokenizer: PreTrainedTokenizerFast, memory: Memory) -> None:
    conversation = Conversation(model, tokenizer, FRAME, SHORT, library=library_of(memory, tokenizer)[0])
    answered(conversation, "plant lives")
    before, tokens, passages = conversation.state, conversation.tokens, conversation.passages
    conversation.settle(conversation.say("annual one dies"))
    assert (conversation.state, conversation.tokens, conversation.passages) == (before, tokens, passages)
    answer = conversation.say("annual one dies")
    next(answer)
    conversation.settle(answer)
    agrees(model, conversation)
    assert [passage.source for passage in conversation.passages] == ["annuals"]
    conversation.reset()
    assert conversation.passages == () and conversation.tokens == ()


@pytest.mark.parametrize(("room", "count"), [(1000, 4), (60, 2), (31, 1), (20, 0)])
def test_there_is_only_so_much_room(room: int, count: int, tokenizer: PreTrainedTokenizerFast, memory: Memory) -> None:
    """Up to half of it, less where prompt and answer want it; each text once, the nearest first; the first is cut to what there is."""
    library, _ = library_of(memory, tokenizer, room, count=4)
    found = library.fitting("a plant lives for years", 12, 200)
    sizes = [len(library.as_read(passage)) for passage in found]
    assert len(found) == count and sum(sizes) <= min(room // 2, room - 12 - room // 4)
    assert [passage.source for passage in found][:1] == ["plants"][:count] and len({tuple(passage.tokens) for passage in found}) == count
    assert room != 31 or len(found[0].tokens) < SIZE


def test_no_penalty_falls_on_what_was_not_said(model: Model, tokenizer: PreTrainedTokenizerFast) -> None:
    own, passages = prompt_tokens(tokenizer, "so on"), tuple(prompt_tokens(tokenizer, "the plant lives for years"))
    settings = GenerationConfig(temperature=0, repetition_penalty=1, no_repeat_ngram=1, max_new_tokens=30)
    answer = Writing(model, tokenizer, own, settings, aside=Aside((), passages))
    "".join(answer)
    history, sampler = list(own), Sampler(settings)
    for token in answer.tokens:
        scores = model(torch.tensor([[*passages, *history]])).logits[0, -1]
        assert sampler.draw(sampler.chances(sampler.ruled(scores, history))) == token
        history.append(token)
    assert set(answer.tokens) & set(passages), "else nothing was tried"


def attending_preset() -> Preset:
    more = f'"retro": {{"enabled": true, "layers": "all", "num_neighbors": 2, "chunk_size": {SIZE}}}, "auxiliary": {{"enable_dynamics": true}}'
    return preset_from_json(PRESET.replace('"data"', f'{more}, "data"'), "attending")


@pytest.fixture
def attending(tokenizer: PreTrainedTokenizerFast) -> Model:
    """A model that attends to neighbours, every parameter random."""
    torch.manual_seed(3)
    model = build_model(attending_preset(), len(tokenizer)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_the_end_of_a_prompt_asks_too(attending: Model, tokenizer: PreTrainedTokenizerFast, memory: Memory) -> None:
    """What is found by a short question is seen from its last token on, until a chunk is whole."""
    heard = Heard(Lookup(memory, memory.length, SIZE, 2))
    conversation = Conversation(attending, tokenizer, FRAME, SHORT.model_copy(update={"max_new_tokens": 20}), find=heard)
    answered(conversation, "plant")
    asked = conversation.turns[0].read
    assert {passage.source for passage in heard.taken()} >= {"plants"}
    document, end = conversation.tokens, len(asked) - 1
    chunks = {at: document[at - SIZE : at] for at in range(SIZE, len(document), SIZE)} | {end: asked[:end][-SIZE:]}
    assert len(asked) < len(document) and len(chunks) > 2
    handed = [Recall(heard)._found([chunk], torch.tensor([at])) for at, chunk in sorted(chunks.items())]
    handed = Neighbours(*(torch.cat(parts) for parts in zip(*handed, strict=True)))
    again = attending(torch.tensor([[7]]), conversation.state).logits[0, -1]
    expected = attending(torch.tensor([[*document, 7]]), context=Context(memory=handed)).logits[0, -1]
    assert torch.allclose(again, expected, atol=1e-9)
    without = attending(torch.tensor([[*document, 7]])).logits[0, -1]
    assert not torch.allclose(again, without, atol=1e-3)


def test_what_was_read_is_gone_through_where_chunks_end_alone(
    attending: Model, tokenizer: PreTrainedTokenizerFast, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each token that is written would take longer than the one before."""
    gone_through: list[int] = []
    neighbours = Recall.neighbours
    monkeypatch.setattr(Recall, "neighbours", lambda recall, tokens, start: gone_through.append(start) or neighbours(recall, tokens, start))
    settings = SHORT.model_copy(update={"max_new_tokens": 5 * SIZE})
    for find, before in ((Heard(Lookup(memory, memory.length, SIZE, 2)), 7), (None, 0)):
        writing = Writing(attending, tokenizer, range(5, 10), settings, recall=Recall(find, tuple(range(9, 9 + before))))
        "".join(writing)
        assert len(writing.tokens) > 3 * SIZE
        ends = [place for place in range(5, 5 + len(writing.tokens)) if find and not (before + place) % SIZE]
        assert gone_through == [0, 4, *ends]
        gone_through.clear()


def test_a_memory_that_is_switched_off_is_none(attending: Model, tokenizer: PreTrainedTokenizerFast, memory: Memory) -> None:
    heard = Heard(Lookup(memory, memory.length, SIZE, 2))
    heard.is_on = False
    one, other = (Conversation(attending, tokenizer, FRAME, SHORT, find=find) for find in (heard, None))
    for message in ("plant lives for years and so on", "annual one dies and so on and on"):
        assert answered(one, message) == answered(other, message)
    assert heard.taken() == []
    assert torch.equal(*(attending(torch.tensor([[7]]), each.state).logits for each in (one, other)))


@pytest.mark.parametrize("attends", [True, False], ids=["neighbours", "passages"])
def test_the_last_words_are_answered_again(attending: Model, model: Model, tokenizer: PreTrainedTokenizerFast, memory: Memory, attends: bool) -> None:
    """From before them: without the memory as if there were none, and with it as it was at first; also once the answer was let go on."""
    library, heard = library_of(memory, tokenizer, count=2)
    terms = (attending if attends else model, tokenizer, FRAME, SHORT)
    conversation, plain = Conversation(*terms, find=heard if attends else None, library=None if attends else library), Conversation(*terms)
    assert conversation.again() is None
    heard.is_on = False
    for each in (conversation, plain):
        answered(each, "an annual one dies and so on")
    heard.is_on = True
    first = answered(conversation, "plant lives for years"), answered(conversation, "")
    whole = conversation.tokens
    heard.is_on = False
    dropped = conversation.again()
    assert dropped is not None and conversation.tokens == whole and len(conversation.turns) == 3
    assert answered(conversation, "") and len(conversation.turns) == 4, "one that was dropped is none"
    without = answered_again(conversation)
    assert without == answered(plain, "plant lives for years") != first[0]
    assert conversation.tokens == plain.tokens and conversation.turns == plain.turns and not conversation.passages
    assert torch.equal(*(terms[0](torch.tensor([[7]]), each.state).logits for each in (conversation, plain)))
    heard.is_on = True
    assert (answered_again(conversation), answered(conversation, "")) == first and conversation.tokens == whole and len(conversation.turns) == 3
    conversation.reset()
    assert conversation.again() is None


def answered_again(conversation: Conversation) -> str:
    answer = conversation.again()
    assert answer is not None
    text = "".join(answer)
    conversation.settle(answer)
    return text


def test_an_interrupt_before_an_answer_again_leaves_everything_as_it_was(
    model: Model, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = Conversation(model, tokenizer, FRAME, SHORT)
    texts = [answered(conversation, "plant lives for years"), answered(conversation, "and so on")]
    turns, tokens = [*conversation.turns], conversation.tokens
    with monkeypatch.context() as patch:
        patch.setattr(Conversation, "_answer", lambda *asked: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            conversation.again()
    assert conversation.turns == turns and conversation.tokens == tokens
    assert answered_again(conversation) == texts[1] and conversation.tokens == tokens


def test_a_memory_damaged_on_the_way_is_asked_no_more(attending: Model, tokenizer: PreTrainedTokenizerFast, memory: Memory, tmp_path: Path) -> None:
    (chunks,) = tmp_path.glob("*.chunks")
    heard = Heard(Lookup(Memory.open(tmp_path, SIZE, len(tokenizer), Hashed(len(tokenizer)), memory.state), memory.length, SIZE, 2))
    chunks.write_bytes(bytes(chunks.stat().st_size))
    conversation = Conversation(attending, tokenizer, FRAME, SHORT, find=heard)
    plain = Conversation(attending, tokenizer, FRAME, SHORT)
    assert answered(conversation, "plant lives") == answered(plain, "plant lives")
    assert "is damaged" in heard.trouble and "\n" not in heard.trouble
    assert heard.taken() == [] and heard.passages(np.array([5, 6, 7])) == []


def test_passages_compare_by_what_they_say() -> None:
    tokens = np.array([1, 2, 3])
    assert [passage.place for passage in unlike([Passage("a", "1", tokens), Passage("b", "2", tokens.copy()), Passage("c", "3", tokens[:2])])] == ["1", "3"]


@pytest.mark.parametrize("vocabulary", [50, 1000])
def test_drafts_leave_answers_and_what_was_found_as_they_are(vocabulary: int, attending: Model, tokenizer: PreTrainedTokenizerFast, memory: Memory) -> None:
    """With a memory that is asked on the way: no chunk asks that holds a token which was only drafted."""
    heads = build_heads(attending_preset(), pad=0).double()
    settings = SHORT.model_copy(update={"max_new_tokens": 40, "draft_length": 5, "draft_vocabulary": vocabulary})
    answers, found, asked = [], [], []
    for each in (settings.model_copy(update={"draft_length": 0}), settings):
        heard, chunks = Heard(Lookup(memory, memory.length, SIZE, 2)), set()

        class Listening:
            chunk_size = SIZE

            def __call__(self, tokens: np.ndarray, heard: Heard = heard, chunks: set[tuple[int, ...]] = chunks) -> tuple[np.ndarray, np.ndarray]:
                chunks.update(map(tuple, tokens.tolist()))
                return heard(tokens)

        conversation = Conversation(attending, tokenizer, FRAME, each, find=Listening(), heads=heads)
        answers.append([answered(conversation, message) for message in ("plant lives for years", "annual one dies", "")])
        assert conversation.state is not None
        state = conversation.state
        found.append([passage.source for passage in heard.taken()])
        asked.append(chunks)
        last = attending(torch.tensor([[7]]), state).logits
        answers[-1].append(last)
    assert answers[0][:3] == answers[1][:3] and found[0] == found[1] and asked[0] == asked[1] and len(asked[0]) > 5
    assert torch.allclose(answers[0][3], answers[1][3], atol=1e-9)

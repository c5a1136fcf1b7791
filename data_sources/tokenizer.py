"""The tokenizer: trained once on the run's own sources, or a published one; as JSON, so that it can travel in a snapshot.

Byte-level BPE (Sennrich, Haddow & Birch 2016; bytes: Radford et al. 2019): every text has tokens, and they give it back exactly.
"""

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_sources.config import DataConfig
from data_sources.documents import SourceError, Stopped
from data_sources.special_tokens import END, PAD, special_ids, with_special_tokens

if TYPE_CHECKING:
    from data_sources.sources import Sources

TEXT_CHARACTERS = 4_000_000  # trained on
DOCUMENT_CHARACTERS = 50_000  # of one document: one long book must not speak for all
FETCH_SECONDS = 120.0  # for a published one, a few megabytes
POLL = 0.1
# Words with the space before them, numbers by two digits, runs of signs, line ends, other white space.
SPLIT = r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""


def build_tokenizer(data: DataConfig, seed: int = 0, should_stop: Callable[[], bool] = lambda: False) -> Any:
    """The tokenizer that `data.tokenizer` asks for, as transformers has it, with beginning, end and padding tokens.

    "bpe" reads the first megabytes of the sources in their mix, training documents only; SourcesFailed when no source can be read.
    ValueError, in one line, when a published tokenizer can't be had. Stopped, within a second, once `should_stop` says so while
    sources are read or a tokenizer is fetched; reaching the sources, and training on what was read, take seconds and end first.
    """
    if data.tokenizer == "bpe":
        return trained_bpe(training_text(data, seed, should_stop=should_stop), data.vocab_size)
    return with_special_tokens(_published(data.tokenizer, should_stop))


def trained_bpe(texts: Iterator[str], vocab_size: int) -> Any:
    """A byte-level BPE of up to `vocab_size` entries; fewer where the texts are too short for more."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer, {"bos_token": END, "eos_token": END, "pad_token": PAD})


def training_text(data: DataConfig, seed: int, characters: int = TEXT_CHARACTERS, should_stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
    """Documents as training will meet them first, lane after lane, up to a number of characters, or until all were met. Stopped when `should_stop`."""
    from data_sources.lane import Lane, Mix
    from data_sources.order import LANES
    from data_sources.sources import Sources

    sources = Sources(data, seed, "train")
    with contextlib.closing(sources), _stoppable(sources, should_stop):
        while not sources.reached(POLL):
            if should_stop():
                raise Stopped
        mix = Mix(data.mix_strategy, data.weights, False)
        lanes = [Lane(number, sources.feeds, mix, None) for number in range(LANES)]
        read, ended = 0, set()
        for lane in cycle(lanes):
            sources.require_one()
            if should_stop():
                raise Stopped
            text = lane.next_text()
            if text is None or lane.is_round:  # what is read again teaches it nothing
                ended.add(lane.number)
            else:
                yield text[:DOCUMENT_CHARACTERS]
                read += min(len(text), DOCUMENT_CHARACTERS)
            if read >= characters or len(ended) == LANES:
                break
        sources.require_one()


@contextlib.contextmanager
def _stoppable(sources: "Sources", should_stop: Callable[[], bool]) -> Iterator[None]:
    """Ends the waiting inside `sources` once `should_stop`: Stopped is raised in its place."""
    from data_sources.feed import Closed

    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL):
            if should_stop():
                return sources.stop()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except Closed:
        raise Stopped from None
    finally:
        done.set()
        watcher.join()


def _published(name: str, should_stop: Callable[[], bool]) -> Any:
    """A tokenizer of a folder or of the Hub; where the Hub can't be reached, as it was fetched before."""
    from huggingface_hub import snapshot_download
    from transformers import AutoTokenizer

    from data_sources.hub_faults import hush, within

    hush()
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    fault = None
    try:
        if not Path(name).exists():
            fault = _fault_of_reaching(name, should_stop)
        place = name if fault is None else snapshot_download(name, local_files_only=True)
        return within(FETCH_SECONDS, lambda: AutoTokenizer.from_pretrained(place), should_stop)
    except Stopped:
        raise
    except Exception as error:  # a dozen kinds, by what is wrong with the name, the network or the files
        reason = str(fault or error).strip().splitlines()[0] if str(fault or error).strip() else type(error).__name__
        raise ValueError(f'tokenizer "{name}" can\'t be had: {reason[:300]}; write "bpe" to train one instead') from None


def _fault_of_reaching(name: str, should_stop: Callable[[], bool]) -> SourceError | None:
    """Why the Hub does not give `name`, found out in seconds: the libraries above would try again for most of a minute, and say so."""
    from huggingface_hub import HfApi

    from data_sources.hub_faults import CONTACT_SECONDS, explained, within

    try:
        within(CONTACT_SECONDS, lambda: explained(lambda: HfApi().model_info(name, timeout=CONTACT_SECONDS)), should_stop)
    except SourceError as fault:
        return fault
    return None


def tokenizer_to_json(tokenizer: Any) -> str:
    """Everything that decides ids, as one JSON text. ValueError for a tokenizer that the `tokenizers` library can't hold."""
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} has no form that can travel in a snapshot; name a tokenizer that has a tokenizer.json")
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if name.endswith("_token") and isinstance(token, str)}
    return json.dumps({"special": special, "tokenizer": json.loads(tokenizer.backend_tokenizer.to_str())}, ensure_ascii=False)


def tokenizer_from_json(text: str) -> Any:
    """The tokenizer that `tokenizer_to_json` wrote: the same ids."""
    held = json.loads(text)
    return _wrapped(Tokenizer.from_str(json.dumps(held["tokenizer"])), held["special"])


def _wrapped(tokenizer: Tokenizer, special: dict[str, str]) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def token_bytes(tokenizer: Any) -> list[int]:
    """UTF-8 bytes that each token stands for, by id; 0 for special tokens. Exact for byte-level and byte-fallback vocabularies."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = special_ids(tokenizer)
    added = set(tokenizer.get_added_vocab().values())
    measure = _measure(tokenizer)
    sizes = []
    for number, token in enumerate(tokens):
        if token is None or number in special:
            sizes.append(0)
        else:
            sizes.append(len(token.encode()) if number in added else measure(token))
    return sizes


def _measure(tokenizer: Any) -> Callable[[str], int]:
    """How the decoder of this vocabulary turns a token into bytes."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] if tokenizer.is_fast else None
    kinds = [part["type"] for part in (decoder or {}).get("decoders", [decoder or {"type": ""}])]
    return next((MEASURES[kind] for kind in kinds if kind in MEASURES), _metaspace_bytes)


def _metaspace_bytes(token: str) -> int:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):  # a byte that has no token of its own
        return 1
    return len(token.replace("\u2581", " ").encode())


def _word_piece_bytes(token: str) -> int:
    return len(token.removeprefix("##").encode()) + (not token.startswith("##"))


MEASURES: dict[str, Callable[[str], int]] = {"ByteLevel": len, "WordPiece": _word_piece_bytes}

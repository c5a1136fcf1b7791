"""What the tests of the stream share: real paragraphs, sources written to files, and the rows that all ranks give together."""

import json
import pydoc_data.topics
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_sources import merge_cursors, open_stream
from data_sources.config import DataConfig
from data_sources.documents import Reader
from data_sources.stream import Options

BOS, EOS, PAD = 256, 257, 258


def byte_tokenizer() -> Any:
    """A token for each byte, so that lengths are known; bos, eos and pad all differ."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", clean_up_tokenization_spaces=False)


def paragraphs(number: int, start: int = 0) -> list[str]:
    """`number` different paragraphs of the Python language reference, of a few to a few hundred words."""
    found = dict.fromkeys(piece.strip() for topic in pydoc_data.topics.topics.values() for piece in topic.split("\n\n") if len(piece.strip()) >= 8)
    texts = list(found)[start : start + number]
    assert len(texts) == number
    return texts


def write_jsonl(path: Path, texts: Sequence[str], key: str = "text") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts))
    return str(path)


def data_config(*sources: Any, **options: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": list(sources), "min_text_length": 0, **options})


def files(name: str, path: Path | str, **options: Any) -> dict[str, Any]:
    return {"type": "files", "name": name, "path": str(path), **options}


def three_sources(folder: Path, **options: object) -> DataConfig:
    """Three sources of unlike sizes: several files, one file, a handful of documents that repeat."""
    texts = paragraphs(460)
    for shard in range(4):
        write_jsonl(folder / "many" / f"{shard}.jsonl", texts[shard * 60 : (shard + 1) * 60])
    write_jsonl(folder / "one.jsonl", texts[240:440])
    write_jsonl(folder / "few.jsonl", texts[440:])
    sources = files("many", folder / "many"), files("one", folder / "one.jsonl"), files("few", folder / "few.jsonl", repeat=True)
    return data_config(*sources, **options)


class Row(NamedTuple):
    """One global row, comparable."""

    number: int
    lane: int
    tokens: tuple[int, ...]
    targets: tuple[int, ...]
    restart: tuple[bool, ...]
    source: tuple[int, ...]


def rows_of(batch: Any) -> list[Row]:
    columns = (batch.row, batch.lane, batch.tokens, batch.targets, batch.restart, batch.source)
    return [Row(row, lane, *map(tuple, rest)) for row, lane, *rest in zip(*(column.tolist() for column in columns), strict=True)]


def global_batches(
    data: DataConfig, batches: int, rows: int = 48, world_size: int = 1, seq_length: int = 37, cursor: Any = None, **options: Any
) -> list[tuple[list[Row], Any]]:
    """The rows and the merged cursor of each of the first `batches` global batches of `rows` rows, read by `world_size` ranks."""
    ranks, size = [], max(1, rows // world_size)
    if size * world_size != rows:
        options["options"] = options.get("options", Options())._replace(global_rows=rows)
    for rank in range(world_size):
        with open_stream(data, byte_tokenizer(), seq_length, size, rank, world_size, cursor=cursor, **options) as stream:
            ranks.append(list(islice(stream, batches)))
    merged = []
    for parts in zip(*ranks, strict=True):
        found = sorted(row for batch, _ in parts for row in rows_of(batch))
        merged.append((found, json.loads(json.dumps(merge_cursors([each for _, each in parts])))))
    return merged


def read_texts(rows: Sequence[Row]) -> list[bytes]:
    """The documents in rows that were packed with boundaries, put together again. Unfinished ones are left out.

    By lane and source: a document whose source was away goes on where it was, after documents of others.
    """
    lanes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row in sorted(rows):
        for token, target, source in zip(row.tokens, row.targets, row.source, strict=True):
            if target != -100:
                lanes.setdefault((row.lane, source), []).append((token, target))
    alphabet = dict(enumerate(_bytes_by_id()))
    texts = []
    for positions in lanes.values():
        text: list[int] = []
        for token, target in positions:
            if token == BOS:
                text = []
            if target == EOS:
                texts.append(bytes(alphabet[number] for number in text))
            else:
                text.append(target)
    return texts


def _bytes_by_id() -> list[int]:
    """Byte behind each id of `byte_tokenizer`, found by asking it for every byte that can stand alone, and the rest by its alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(b for b in range(256) if b not in printable)}
    return [letters[letter] for letter in sorted(letters)]


def all_texts(source: Reader) -> list[str]:
    """Every document of a source, read block by block."""
    texts = []
    for shard in range(len(source.shards())):
        block = 0
        while (documents := source.read(shard, block)) is not None:
            texts += [document.text for document in documents]
            block += 1
    return texts

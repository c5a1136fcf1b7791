"""How fast the stream is: python -m tests.benchmarks.stream_speed

Tokens per second of the whole stream against `tokenizers`' own encode_batch over the same texts in the same run, the time to the
first batch, fresh and resumed, and the memory held. Printed, never asserted.
"""

import json
import resource
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data_sources import open_stream
from data_sources.config import DataConfig
from data_sources.tokenizer import trained_bpe, training_text

LENGTH, ROWS = 1024, 8


def main() -> None:
    texts = list(training_text(DataConfig.model_validate({"sources": ["installed_docs"]}), 0, characters=24_000_000))
    tokenizer = trained_bpe(iter(texts[:1000]), 16_384)
    with tempfile.TemporaryDirectory() as folder:
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), Path(folder) / "a.parquet", row_group_size=1000)
        data = DataConfig.model_validate({"sources": [{"type": "files", "path": folder}]})
        raw = raw_speed(tokenizer, texts)
        whole, cursors = stream_speed(data, tokenizer)
        print(f"raw encode_batch   {raw:12,.0f} tokens/s\nwhole stream       {whole:12,.0f} tokens/s ({whole / raw:.0%})")
        print(f"cursor             {len(json.dumps(cursors[-1])):12,} characters")
        for name, cursor in {"fresh": None, "resumed early": cursors[2], "resumed late": cursors[-5]}.items():
            print(f"first batch, {name:14}{first_batch(data, tokenizer, cursor):9.2f} s")
    print(f"memory             {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:12,.0f} MiB")


def raw_speed(tokenizer: Any, texts: list[str]) -> float:
    began = time.perf_counter()
    tokens = sum(len(encoded.ids) for start in range(0, len(texts), 1000) for encoded in tokenizer.backend_tokenizer.encode_batch(texts[start : start + 1000]))
    return tokens / (time.perf_counter() - began)


def stream_speed(data: DataConfig, tokenizer: Any) -> tuple[float, list[Any]]:
    began = time.perf_counter()
    with open_stream(data, tokenizer, LENGTH, ROWS) as stream:
        read = [(batch.valid, cursor) for batch, cursor in stream]
    return sum(valid for valid, _ in read) / (time.perf_counter() - began), [cursor for _, cursor in read]


def first_batch(data: DataConfig, tokenizer: Any, cursor: Any) -> float:
    began = time.perf_counter()
    with open_stream(data, tokenizer, LENGTH, ROWS, cursor=cursor) as stream:
        assert len(list(islice(stream, 1))) == 1
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())

"""How fast the stream is: python -m tests.benchmarks.stream_speed

Tokens per second of the whole stream, read in this process and by one and two loader processes, against `tokenizers`' own encode_batch
over the same texts in the same run; the time to the first batch, and the memory held. Printed, never asserted. STREAM_CHARACTERS
(default 24,000,000) of text, STREAM_ROUNDS (default 2) of all.
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data_sources import open_stream
from data_sources.config import DataConfig
from data_sources.stream import Options
from data_sources.tokenizer import trained_bpe, training_text

LENGTH, ROWS = 1024, 8
CHARACTERS = int(os.environ.get("STREAM_CHARACTERS", "24000000"))
ROUNDS = int(os.environ.get("STREAM_ROUNDS", "2"))


def main() -> None:
    texts = list(training_text(DataConfig.model_validate({"sources": ["installed_docs"]}), 0, characters=CHARACTERS))
    tokenizer = trained_bpe(iter(texts[:1000]), 16_384)
    with tempfile.TemporaryDirectory() as folder:
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), Path(folder) / "a.parquet", row_group_size=1000)
        data = DataConfig.model_validate({"sources": [{"type": "files", "path": folder}]})
        for _ in range(ROUNDS):
            raw = raw_speed(tokenizer, texts)
            print(f"raw encode_batch   {raw:12,.0f} tokens/s, with {os.environ.get('RAYON_NUM_THREADS', 'all')} threads")
            for workers in (0, 1, 2):
                first, speed, cursor = stream_speed(data, tokenizer, workers)
                print(f"{workers} loaders          {speed:12,.0f} tokens/s ({speed / raw:.0%}); the first batch after {first:.2f} s")
    print(f"cursor             {len(json.dumps(cursor)):12,} characters")
    print(f"memory             {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:12,.0f} MiB")


def raw_speed(tokenizer: Any, texts: list[str]) -> float:
    began = time.perf_counter()
    tokens = sum(len(encoded.ids) for start in range(0, len(texts), 1000) for encoded in tokenizer.backend_tokenizer.encode_batch(texts[start : start + 1000]))
    return tokens / (time.perf_counter() - began)


def stream_speed(data: DataConfig, tokenizer: Any, workers: int) -> tuple[float, float, Any]:
    """Seconds to the first batch, tokens per second after it, and the last cursor."""
    opened = time.perf_counter()
    with open_stream(data, tokenizer, LENGTH, ROWS, options=Options(workers)) as stream:
        next(stream)
        began, tokens = time.perf_counter(), 0
        for batch, _ in stream:
            tokens += batch.valid
        return began - opened, tokens / (time.perf_counter() - began), stream.cursor()


if __name__ == "__main__":
    sys.exit(main())

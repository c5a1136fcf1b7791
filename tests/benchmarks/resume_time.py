"""How long a resume takes: python -m tests.benchmarks.resume_time

Seconds from open_stream to the first batch, fresh and after more and more documents, of a parquet set of RESUME_DOCUMENTS (default
1,000,000) short documents in twenty files: the first words of installed documentation, again and again. Late places are reached without tokenising: the
lanes are asked for their documents' texts, as when a tokenizer is trained, which moves them as reading does. Printed, never asserted.
"""

import os
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data_sources import open_stream
from data_sources.config import DataConfig
from data_sources.lane import Lane, Mix
from data_sources.order import LANES
from data_sources.sources import Sources
from data_sources.tokenizer import trained_bpe, training_text

LENGTH, ROWS = 512, 48
DOCUMENTS = int(os.environ.get("RESUME_DOCUMENTS", "1000000"))
FILES, GROUP, CHARACTERS = 20, 1000, 120
TIMES = 3


def main() -> None:
    texts = list(training_text(DataConfig.model_validate({"sources": ["installed_docs"]}), 0, characters=4_000_000))
    tokenizer = trained_bpe(iter(texts[:500]), 16_384)
    with tempfile.TemporaryDirectory() as folder:
        short = cycle(text[:CHARACTERS] for text in texts if len(text) >= CHARACTERS)
        for number in range(FILES):
            table = pyarrow.table({"text": list(islice(short, DOCUMENTS * 11 // 10 // FILES))})
            pyarrow.parquet.write_table(table, Path(folder) / f"{number:02}.parquet", row_group_size=GROUP, compression="zstd")
        data = DataConfig.model_validate({"sources": [{"type": "files", "path": folder}]})
        tell(data, tokenizer, "fresh", None)
        for documents in (1_000, 10_000, 100_000, 1_000_000):
            if documents <= DOCUMENTS:
                tell(data, tokenizer, f"after {documents:,} documents", cursor_after(data, tokenizer, documents))


def cursor_after(data: DataConfig, tokenizer: Any, documents: int) -> dict[str, Any]:
    """The cursor of a stream whose lanes have read so many documents."""
    with open_stream(data, tokenizer, LENGTH, ROWS) as stream:
        cursor = stream.cursor()
    sources = Sources(data, 0, "train")
    lanes = [Lane(number, sources.feeds, Mix(data.mix_strategy, data.weights, False), None) for number in range(LANES)]
    for lane in islice(cycle(lanes), documents):
        assert lane.next_text() is not None
    sources.close()
    return cursor | {"next_row": documents * LANES, "lanes": {str(lane.number): lane.keep() for lane in lanes}}


def tell(data: DataConfig, tokenizer: Any, name: str, cursor: Any) -> None:
    seconds = []
    for _ in range(TIMES):
        began = time.perf_counter()
        with open_stream(data, tokenizer, LENGTH, ROWS, cursor=cursor) as stream:
            next(stream)
        seconds.append(time.perf_counter() - began)
    print(f"{name:26} {min(seconds):6.2f} s to the first batch (of {TIMES}, up to {max(seconds):.2f})", flush=True)


if __name__ == "__main__":
    sys.exit(main())

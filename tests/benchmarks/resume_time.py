"""How long a resume takes: python -m tests.benchmarks.resume_time

Seconds from open_stream to the first batch, fresh and after more and more documents, of a parquet set of RESUME_DOCUMENTS (default
1,000,000) short documents in twenty files: the first words of installed documentation, again and again. All places are gone on from in turn,
RESUME_ROUNDS (default 9) times, so that a busy machine is as hard on each of them; told are medians, and the median of what a round took longer than
its "after 1,000". Late places are reached without tokenising: the lanes are asked for their documents' texts, as when a tokenizer is trained.

Documents are of one length, and then as unlike as those of the web: only then do lanes drift apart, which read equally many tokens of
unequally many documents. Printed, never asserted.
"""

import copy
import heapq
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data_sources import open_stream
from data_sources.config import DataConfig
from data_sources.lane import HEAD, Lane, Mix
from data_sources.order import LANES, draw
from data_sources.sources import Sources
from data_sources.tokenizer import trained_bpe, training_text

LENGTH, ROWS = 512, 48
DOCUMENTS = int(os.environ.get("RESUME_DOCUMENTS", "1000000"))
ROUNDS = int(os.environ.get("RESUME_ROUNDS", "9"))
POINTS = (1_000, 10_000, 100_000, 1_000_000)
FILES, GROUP, CHARACTERS, SHORTEST = 20, 1000, 120, 50


def main() -> None:
    texts = list(training_text(DataConfig.model_validate({"sources": ["installed_docs"]}), 0, characters=4_000_000))
    tokenizer = trained_bpe(iter(texts[:500]), 16_384)
    whole = [text for text in texts if len(text) >= CHARACTERS]
    tell("documents of one length", tokenizer, (text[:CHARACTERS] for text in cycle(whole)))
    tell("documents of unlike lengths", tokenizer, unlike(whole))


def unlike(texts: list[str]) -> Iterator[str]:
    """The beginnings of `texts`, again and again, of lengths that are drawn: many short ones, few long ones."""
    for number, text in enumerate(cycle(texts)):
        yield text[: SHORTEST + round(-(CHARACTERS - SHORTEST) * math.log((draw(number, "length") + 1) / 2**64))]


def tell(about: str, tokenizer: Any, texts: Iterable[str]) -> None:
    texts = iter(texts)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(FILES):
            table = pyarrow.table({"text": list(islice(texts, DOCUMENTS * 11 // 10 // FILES))})
            pyarrow.parquet.write_table(table, Path(folder) / f"{number:02}.parquet", row_group_size=GROUP, compression="zstd")
        data = DataConfig.model_validate({"sources": [{"type": "files", "path": folder}]})
        cursors = {"fresh": None} | {f"after {number:,}": cursor_after(data, tokenizer, number) for number in POINTS if number <= DOCUMENTS}
        rounds = [{name: seconds(data, tokenizer, cursor) for name, cursor in cursors.items()} for _ in range(ROUNDS)]
    print(about)
    for name, cursor in cursors.items():
        middle, more = statistics.median(each[name] for each in rounds), statistics.median(each[name] / each["after 1,000"] - 1 for each in rounds)
        lowest, highest = min(each[name] for each in rounds), max(each[name] for each in rounds)
        print(f"  {name:18} {middle:6.3f} s ({lowest:.3f} to {highest:.3f}), {more:+4.0%}; lanes stand in {blocks_of(cursor)} row groups", flush=True)


def cursor_after(data: DataConfig, tokenizer: Any, documents: int) -> dict[str, Any]:
    """The cursor of a stream whose lanes have read so many documents, and equally many characters each, as nearly as documents allow."""
    with open_stream(data, tokenizer, LENGTH, ROWS) as stream:
        cursor = stream.cursor()
    sources = Sources(data, 0, "train")
    assert sources.reached(60)
    lanes = [Lane(number, sources.feeds, Mix(data.mix_strategy, data.weights, False), None) for number in range(LANES)]
    behind = [(0, number) for number in range(LANES)]
    for _ in range(documents):
        lane = lanes[behind[0][1]]
        assert lane.next_text() is not None
        heapq.heapreplace(behind, (lane.standings[0].tokens, lane.number))
    sources.close()
    return cursor | {"next_row": documents * LANES, "lanes": {str(lane.number): lane.keep() for lane in lanes}}


def blocks_of(cursor: dict[str, Any] | None) -> int:
    return len({tuple(state[HEAD + 1 : HEAD + 4]) for state in cursor["lanes"].values()}) if cursor else 1


def seconds(data: DataConfig, tokenizer: Any, cursor: Any) -> float:
    """By a tokenizer that has met no word yet, as in a process that has just begun."""
    tokenizer = copy.deepcopy(tokenizer)
    began = time.perf_counter()
    with open_stream(data, tokenizer, LENGTH, ROWS, cursor=cursor) as stream:
        next(stream)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())

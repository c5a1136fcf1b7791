"""Which share each source has: python -m tests.benchmarks.mix_shares

Over MIX_TOKENS (default 1,000,000) tokens of three sources whose documents are of unlike length, for the three mixes. Printed, never asserted.
"""

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data_sources import open_stream
from data_sources.config import DataConfig
from data_sources.tokenizer import trained_bpe, training_text

LENGTH, ROWS = 512, 48
TOKENS = int(os.environ.get("MIX_TOKENS", "1000000"))
SIZES = {"lines": 150, "passages": 1500, "articles": 15_000}  # characters of a document
WEIGHTS = {"lines": 0.5, "passages": 0.3, "articles": 0.2}


def main() -> None:
    text = "\n\n".join(training_text(DataConfig.model_validate({"sources": ["installed_docs"]}), 0, characters=9_000_000))
    tokenizer = trained_bpe(iter([text[:4_000_000]]), 16_384)
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, size) in enumerate(SIZES.items()):
            part = text[number * len(text) // 3 : (number + 1) * len(text) // 3]
            documents = [part[start : start + size] for start in range(0, len(part), size)]
            pyarrow.parquet.write_table(pyarrow.table({"text": documents}), Path(folder) / f"{name}.parquet", row_group_size=500)
        sources = [{"type": "files", "name": name, "path": f"{folder}/{name}.parquet", "repeat": True} for name in SIZES]
        for strategy in ("round_robin", "sequential", "weighted"):
            data = DataConfig.model_validate({"sources": sources, "mix_strategy": strategy, "source_weights": WEIGHTS, "min_text_length": 0})
            tell(strategy, data, tokenizer)


def tell(strategy: str, data: DataConfig, tokenizer: Any) -> None:
    tokens: Counter[int] = Counter()
    with open_stream(data, tokenizer, LENGTH, ROWS) as stream:
        while tokens.total() < TOKENS:
            tokens.update(next(stream)[0].source.flatten().tolist())
        documents = [source.documents for source in stream.sources]
    shares = ", ".join(f"{name} {tokens[number] / tokens.total():.3f} ({documents[number]:,} documents)" for number, name in enumerate(SIZES))
    print(f"{strategy:12} {shares}" + (f"; asked for {WEIGHTS}" if strategy == "weighted" else ""), flush=True)


if __name__ == "__main__":
    sys.exit(main())

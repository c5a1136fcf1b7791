"""Sources that go by a plain name: script-free data sets of the Hugging Face Hub, and the text that is always here.

Adding one is adding a row. Repositories, configurations and columns are the Hub's own.
"""

from typing import Any

BUILT_IN: dict[str, dict[str, Any]] = {
    "wikipedia": {"dataset": "wikimedia/wikipedia", "config": "20231101.en"},
    "openwebtext": {"dataset": "Skylion007/openwebtext"},
    "c4": {"dataset": "allenai/c4", "config": "en"},
    "bookcorpus": {"dataset": "rojagtap/bookcorpus"},
    "pile_subset": {"dataset": "monology/pile-uncopyrighted"},
    "common_crawl": {"dataset": "HuggingFaceFW/fineweb", "config": "CC-MAIN-2024-10"},
    "fineweb": {"dataset": "HuggingFaceFW/fineweb", "config": "sample-10BT"},
    "fineweb_edu": {"dataset": "HuggingFaceFW/fineweb-edu", "config": "sample-10BT"},
    "dclm": {"dataset": "mlfoundations/dclm-baseline-1.0"},
    "natural_questions": {
        "dataset": "sentence-transformers/natural-questions",
        "config": "pair",
        "fields": ["query", "answer"],
        "format": "Q: {query}\nA: {answer}",
    },
    "installed_docs": {"type": "installed_docs"},
}

# A column asked for under one name may stand in a data set under another: the first of the same row that is there is taken.
ALIASES: tuple[tuple[str, ...], ...] = (
    ("question", "query", "prompt", "instruction", "input"),
    ("answer", "answers", "response", "output", "completion"),
    ("text", "content", "document", "body"),
)


def described(name: str) -> dict[str, Any]:
    """The full source entry behind a built-in `name`. KeyError when there is none."""
    return {"type": "hf", "name": name, **BUILT_IN[name]}

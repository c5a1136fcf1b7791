"""Tokens that no text holds: where a document begins and ends, what fills a row up, and what objectives write in the place of text."""

from typing import Any, NamedTuple

from tokenizers import AddedToken

END, PAD = "<|endoftext|>", "<|pad|>"
MODES = {"R": "<|R|>", "X": "<|X|>"}  # what kind of gaps follows
GAPS = tuple(f"<|gap_{number}|>" for number in range(100))  # as many as T5 has
MASK = "<|mask|>"
OF_OBJECTIVES = (*MODES.values(), *GAPS, MASK)


class ObjectiveTokens(NamedTuple):
    """Ids of what objectives write in the place of text."""

    modes: dict[str, int]
    gaps: tuple[int, ...]
    mask: int

    @classmethod
    def of(cls, tokenizer: Any) -> "ObjectiveTokens | None":
        """Those of `tokenizer`; None where it has not got them."""
        known = tokenizer.get_added_vocab()
        if any(token not in known for token in OF_OBJECTIVES):
            return None
        return cls({mode: known[token] for mode, token in MODES.items()}, tuple(known[token] for token in GAPS), known[MASK])


def with_objective_tokens(tokenizer: Any) -> Any:
    """The tokenizer with the tokens of all objectives, behind those it has. They join it together and once: asked again, nothing changes."""
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in OF_OBJECTIVES], special_tokens=True)
    return tokenizer


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of all tokens that stand for no text, those of objectives among them."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def with_special_tokens(tokenizer: Any) -> Any:
    """The tokenizer with a beginning, an end and a padding token, where it lacks them. Ids of other tokens stay."""
    if tokenizer.bos_token is None and tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": END})
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.bos_token
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    return tokenizer

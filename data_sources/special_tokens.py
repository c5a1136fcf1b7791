"""Tokens that no text holds: where a document begins and ends, and what fills a row up."""

from typing import Any

END, PAD = "<|endoftext|>", "<|pad|>"


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

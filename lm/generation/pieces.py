"""Text from tokens while they are being written.

A byte-level token may hold half a character, and what a token reads like may depend on the one before it. So the newest tokens
are decoded together, and what can still change, a character that is not whole, waits for the next token.
"""

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what a decoder puts in the place of a character that is not whole
WINDOW = 32  # tokens decoded together at most, while characters come out whole


class Pieces:
    """Takes tokens one by one and gives the text that is certain. All pieces together are the decoded whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._whole = 0  # tokens after which the text last ended on a whole character
        self._given = 0  # characters of the window that went out

    def add(self, token: int) -> str:
        """The text that `token` makes certain; often a word, sometimes nothing."""
        self._tokens.append(token)
        text = self._decoded(self._tokens)
        certain = text.removesuffix(UNFINISHED)
        piece, self._given = certain[self._given :], max(self._given, len(certain))
        if certain == text:
            self._forget()
        return piece

    def rest(self) -> str:
        """What was held back: the replacement character for a character that never became whole."""
        piece, self._given = self._decoded(self._tokens)[self._given :], 0
        self._tokens, self._whole = [], 0
        return piece

    def _forget(self) -> None:
        """Lets go of tokens before the last whole place, which stay only as the neighbours of what follows them."""
        if len(self._tokens) > WINDOW and self._whole:
            self._tokens = self._tokens[self._whole :]
            self._given = len(self._decoded(self._tokens))
        self._whole = len(self._tokens)

    def _decoded(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

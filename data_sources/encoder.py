"""Texts to token ids, some documents ahead.

Lanes run nearly in step, so what the others need next stands in the same block: a batch of documents is tokenised at once, by
all threads that `tokenizers` has, and only those documents that this process reads.

Of some documents a part alone is learned (a question is read, its answer is learned). A token of theirs is scored where any of its
characters is in that part, and so is the end of the document, which is to be learned too.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from data_sources.blocks import Block
from data_sources.documents import Span, Spans
from data_sources.feed import Feed, Found, Place
from data_sources.order import LANES
from data_sources.special_tokens import with_special_tokens

AHEAD = 64  # documents tokenised at once
AHEAD_CHARACTERS = 2_000_000
PIECE = 200_000  # characters: a text of 50 MB in one piece would take gigabytes


class Tokens(NamedTuple):
    """A document as the lanes read it: [bos, t1 .. tn, eos], and which of these are scored, (n + 2,) bool; None for all but bos."""

    ids: np.ndarray
    scored: np.ndarray | None


class Encoder:
    """Token ids of documents for the lanes of one process: [bos, t1 .. tn, eos], int32.

    `place_of(lane, source)`: where a lane stands, so that after a resume nothing is tokenised again that it has read.
    """

    def __init__(self, tokenizer: Any, lanes: Sequence[int], place_of: Callable[[int, int], Place] = lambda lane, source: Place()):
        tokenizer = with_special_tokens(tokenizer)
        self._tokenizer, self._lanes, self._place_of = tokenizer, frozenset(lanes), place_of
        self._fast = _plain(tokenizer) if tokenizer.is_fast else None
        self.bos, self.eos, self.pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        self._made = self._handed = 0  # documents tokenised, and those of them that a lane has read

    def ids(self, feed: Feed, found: Found) -> np.ndarray:
        """The tokens of `found`, whichever of them are scored."""
        return self.tokens(feed, found).ids

    def tokens(self, feed: Feed, found: Found) -> Tokens:
        """The tokens of `found`; those of the documents that follow in its block are made along with them."""
        block, index = found.block, found.index
        if block.ids.get(index) is None:
            self._encode_ahead(block, self._ahead(feed, found))
        ids, block.ids[index] = block.ids[index], None
        assert ids is not None
        self._handed += 1
        return Tokens(ids, block.marks.pop(index, None))

    def _encode_ahead(self, block: Block, ahead: Sequence[int]) -> None:
        self._made += len(ahead)
        whole = [number for number in ahead if block.scored[number] is None]
        for number, ids in zip(whole, self.encode([block.text(number) for number in whole]), strict=True):
            block.ids[number] = ids
        spans = {number: span for number in ahead if (span := block.scored[number]) is not None}
        for number, tokens in zip(spans, self.encode_scored([block.text(number) for number in spans], list(spans.values())), strict=True):
            block.ids[number], block.marks[number] = tokens.ids, tokens.scored

    def _ahead(self, feed: Feed, found: Found) -> list[int]:
        """`found` and what the lanes that stand in its block read next there, round by round.

        A round at least; past that, no more documents than were read so far: after a resume lanes may stand in many blocks, and the first
        rows want one or two of each.
        """
        block, lanes = found.block, self._lanes_in_block(feed, found)
        ahead, characters = [found.index], len(found.text)
        most = min(AHEAD, max(len(lanes), 2 * self._handed - self._made))
        for taken in range(found.place.taken, -(-len(block) // LANES)):
            for lane in lanes:
                if len(ahead) >= most or characters >= AHEAD_CHARACTERS:
                    return ahead
                number = block.index(lane, taken)
                if lanes[lane] <= taken and number < len(block) and number != found.index and number not in block.ids and feed.chosen(block, number):
                    ahead.append(number)
                    characters += len(block.text(number))
        return ahead

    def _lanes_in_block(self, feed: Feed, found: Found) -> dict[int, int]:
        """Lanes of this process that stand where `found` does, and the documents they have taken there."""
        places = {lane: self._place_of(lane, feed.number) for lane in self._lanes}
        return {lane: place.taken for lane, place in places.items() if place[:3] == found.place[:3]} | {found.block.lane(found.index): found.place.taken}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """[bos, t1 .. tn, eos] of each text."""
        pieces = [piece for text in texts for piece in pieces_of(text)]
        encoded = iter(self._encode(pieces))
        ids = []
        for text in texts:
            parts = [next(encoded) for _ in pieces_of(text)]
            ids.append(np.concatenate([[self.bos], *parts, [self.eos]]).astype(np.int32))
        return ids

    def encode_scored(self, texts: Sequence[str], spans: Sequence[Spans]) -> list[Tokens]:
        """The same ids as `encode` gives, and which of them are scored. ValueError where the tokenizer can't tell."""
        if not texts:
            return []
        if self._fast is None:
            raise ValueError(f'{type(self._tokenizer).__name__} does not tell where its tokens stand; loss_on "answer" wants one that has a tokenizer.json')
        encoded = iter(self._fast.encode_batch([piece for text in texts for piece in pieces_of(text)], add_special_tokens=False))
        found = []
        for text, learned in zip(texts, spans, strict=True):
            ids, scored, start = [self.bos], [False], 0
            for piece in pieces_of(text):
                part = next(encoded)
                ids += part.ids
                scored += marked(part.offsets, learned, start)
                start += len(piece)
            found.append(Tokens(np.array([*ids, self.eos], np.int32), np.array([*scored, True])))
        return found

    def _encode(self, pieces: list[str]) -> list[list[int]]:
        if self._fast is not None:  # without offsets and word numbers, which nobody reads here
            return [piece.ids for piece in self._fast.encode_batch_fast(pieces, add_special_tokens=False)]
        return self._tokenizer(pieces, add_special_tokens=False)["input_ids"]


def marked(offsets: Sequence[Span], learned: Spans, start: int = 0) -> list[bool]:
    """Which tokens are learned: those any of whose characters is. offsets: of each in its piece of the text, which begins at `start`."""
    return [any(start + first < end and start + last > begin for begin, end in learned) for first, last in offsets]


def _plain(tokenizer: Any) -> Tokenizer:
    """A sister that neither cuts nor pads, and to which "<|endoftext|>" inside a document is text and no command.

    They share the vocabulary: to write it out and read it again takes a tenth of a second.
    """
    backend = tokenizer.backend_tokenizer
    plain = Tokenizer(backend.model)
    for name in ("normalizer", "pre_tokenizer", "post_processor"):  # the last one trims what offsets tell
        if (part := getattr(backend, name)) is not None:
            setattr(plain, name, part)
    added = [token for _, token in sorted(backend.get_added_tokens_decoder().items())]  # ids are given in order
    for special, tokens in groupby(added, lambda token: token.special):
        (plain.add_special_tokens if special else plain.add_tokens)(list(tokens))
    plain.encode_special_tokens = True
    return plain


def pieces_of(text: str) -> list[str]:
    """A text in pieces of up to PIECE characters, cut before a space where there is one: a function of the text alone."""
    pieces, start = [], 0
    while len(text) - start > PIECE:
        space = text.rfind(" ", start + PIECE // 2, start + PIECE)
        cut = space if space > 0 else start + PIECE
        pieces.append(text[start:cut])
        start = cut
    return [*pieces, text[start:]]

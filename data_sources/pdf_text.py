"""From the lines of printed pages to prose: paragraphs without the print.

    pages of lines -> clean letters -> without headers, footers, page numbers -> paragraphs, words joined over line ends

Everything is decided from the pages at hand, so that the same pages give the same text.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

LETTERS = str.maketrans(
    {
        **{chr(0xFB00 + number): text for number, text in enumerate(("ff", "fi", "fl", "ffi", "ffl", "st", "st"))},
        **dict.fromkeys([*range(9), 11, *range(14, 32), *range(127, 160), *range(0xD800, 0xE000), 0xFEFF, 0xFFFE, 0xFFFF]),
        "\xa0": " ",
        "\u2010": "-",
        "\u2011": "-",
        "\f": "\n",
        "\r": "\n",
    }
)
SPACES = re.compile(r"[^\S\n]+")
EDGE = 6  # lines at the top and at the bottom of a page that may be headers and footers; some programs put both first
NUMBER_EDGE = 2  # the same for a number alone
OWN_NUMBER = "own number"  # key of a line that holds nothing but the number of its page
FEWEST_PAGES = 3  # below which nothing is said to repeat
OFTEN = 0.4  # of the pages; left and right pages may have headers of their own
LEAST_LEFT = 0.1  # of the letters
NARROWEST = 40  # characters of a full line; a page of shorter ones is a list
NUMBER = re.compile(r"\d+")
PAGE_NUMBER = re.compile(r"[-–—|\s]*(?:page\s*)?(?:\d{1,5}|[ivxlc]{1,7})(?:\s*(?:of|/)\s*\d{1,5})?[-–—|\s.]*", re.IGNORECASE)
ITEM = re.compile(r"(?:[•◦▪‣●○■–*-]|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)])\s")
SENTENCE_END = re.compile(r"[.!?:;][\"'”’»)\]]*$")
BROKEN_WORD = re.compile(r"(\w+)[-\xad]$")
WORD = re.compile(r"\w+(?:-\w+)*")
# First halves that keep their hyphen where the text itself doesn't tell.
COMPOUNDS = frozenset(
    {"all", "cross", "ex", "half", "high", "long", "low", "mid", "non", "post", "quasi", "self", "semi", "short", "three", "two", "vice", "well"}
)


class Paragraph(NamedTuple):
    """A paragraph, and the number of the page it begins on."""

    text: str
    page: int


class Line(NamedTuple):
    text: str
    page: int


def paragraphs(pages: Sequence[tuple[int, str]]) -> list[Paragraph]:
    """Prose of consecutive pages, each given as (number, text with its line ends)."""
    cleaned = [(number, _lines(text)) for number, text in pages]
    lines = [Line(line, number) for number, page in _without_furniture(cleaned) for line in page]
    return _reflowed(lines)


def _lines(text: str) -> list[str]:
    """Lines without the space around them; blank ones mark a gap, and there are never two."""
    lines = [line.strip() for line in SPACES.sub(" ", text.translate(LETTERS)).split("\n")]
    return [line for index, line in enumerate(lines) if line or (index > 0 and lines[index - 1])]


def _without_furniture(pages: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Pages without the lines at their edges that stand, but for the numbers in them, at the edges of many."""
    keyed = [_keys_at_edges(number, lines) for number, lines in pages]
    seen = Counter(key for keys in keyed for key in set(keys.values()))
    often = max(FEWEST_PAGES, OFTEN * len(pages))
    kept = [
        (number, [line for index, line in enumerate(lines) if seen[keys.get(index, "")] < often and keys.get(index) != OWN_NUMBER])
        for (number, lines), keys in zip(pages, keyed, strict=True)
    ]
    return kept if _size(kept) > LEAST_LEFT * _size(pages) else pages  # where hardly anything is left, what repeated was the text


def _size(pages: list[tuple[int, list[str]]]) -> int:
    return sum(len(line) for _, lines in pages for line in lines)


def _keys_at_edges(number: int, lines: Sequence[str]) -> dict[int, str]:
    """The keys of the lines at the edges of a page, by their index."""
    filled = [index for index, line in enumerate(lines) if line]
    outermost = {*filled[:NUMBER_EDGE], *filled[-NUMBER_EDGE:]}
    keys = {index: _key(lines[index], number, index in outermost) for index in {*filled[:EDGE], *filled[-EDGE:]}}
    return {index: key for index, key in keys.items() if key}


def _key(line: str, number: int, outermost: bool) -> str:
    """What a header or footer has in common from page to page; nothing for other rows of figures."""
    if PAGE_NUMBER.fullmatch(line):
        found = OWN_NUMBER if line == str(number) else "#"
        return found if outermost else ""
    return NUMBER.sub("#", line.casefold()) if any(letter.isalpha() for letter in line) else ""


def _reflowed(lines: list[Line]) -> list[Paragraph]:
    lengths = sorted(len(line.text) for line in lines if line.text)
    width = max(NARROWEST, lengths[len(lengths) * 4 // 5] if lengths else 0)
    words = Counter(word.casefold() for line in lines for word in WORD.findall(line.text))
    found: list[Paragraph] = []
    parts: list[str] = []
    page = 0
    for line, following in pairwise([*lines, Line("", 0)]):
        if not line.text:
            continue
        page = page if parts else line.page
        parts.append(line.text)
        if _ends(line, following, width):
            found.append(Paragraph(_joined(parts, words), page))
            parts = []
    return found


def _ends(line: Line, following: Line, width: int) -> bool:
    """Whether a paragraph ends with `line`. Without gaps on the page, its length and its last and next letters tell."""
    if following.page != line.page:
        return not following.text[:1].islower() or bool(SENTENCE_END.search(line.text))
    if not following.text or ITEM.match(following.text):
        return True
    if BROKEN_WORD.search(line.text) or following.text[0].islower():
        return False
    return len(line.text) < (0.85 if SENTENCE_END.search(line.text) else 0.6) * width


def _joined(parts: Sequence[str], words: Counter[str]) -> str:
    text = [parts[0]]
    for part in parts[1:]:
        broken = BROKEN_WORD.search(text[-1])
        if broken is None:
            text.append(" ")
        elif text[-1].endswith("\xad") or not _keeps_hyphen(broken[1], part, words):
            text[-1] = text[-1][:-1]
        text.append(part)
    return "".join(text).replace("\xad", "")


def _keeps_hyphen(before: str, part: str, words: Counter[str]) -> bool:
    """Whether the hyphen at a line end belongs to the word: the rest of the text tells, else what usually is."""
    after = WORD.match(part)
    if after is None or not part[0].islower() or not before.isalpha():
        return True  # COVID-19, Jean-Paul, a dash
    second = after[0].split("-")[0]
    whole, compound = words[(before + second).casefold()], words[f"{before}-{second}".casefold()]
    return compound > whole or (compound == whole and before.casefold() in COMPOUNDS)

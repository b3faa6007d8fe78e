"""The words of a byte-level BPE's pre-tokenization, counted, many texts at a time.

What bpe.PATTERN matches one after another is found here for all places at once, with arrays as long
as the text: where a word starts depends on the kinds of a few neighbouring characters, and on
where runs of digits and of blanks begin and end. What counts as a letter, a digit or a blank is
asked of ``tokenizers``, once for each character.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from tokenizers import Regex, pre_tokenizers

from backends.tokenizers.word_counts import MOST_CHARACTERS, thin

if TYPE_CHECKING:
    from numpy.typing import NDArray

Flags: TypeAlias = "NDArray[np.bool_]"
Codes: TypeAlias = "NDArray[np.uint8] | NDArray[np.uint32]"  # code points

BATCH: Final = 1 << 19  # characters worked on at once
CODE_POINTS: Final = 0x110000
UNKNOWN, LETTER, DIGIT, BLANK, OTHER = range(5)  # kinds of characters
_KINDS: Final = ((LETTER, r"\p{L}"), (DIGIT, r"\p{N}"), (BLANK, r"\s"))
WORD: Final = 8  # bytes: words that are no longer are counted as numbers
WAITING: Final = 1 << 22  # such words, before they are counted


def count_words(texts: Iterable[str], *, most_characters: int = MOST_CHARACTERS) -> Counter[bytes]:
    """How often each word occurs in the texts, as UTF-8.

    Where the different words come to hold more than ``most_characters`` bytes, rare ones are
    forgotten, see ``word_counts.thin``; equal texts give equal counts.
    """
    counts = _Counts(most_characters)
    kinds = _Kinds()
    for batch in _batches(texts):
        counts.add(*_words(batch, kinds))
    return counts.all()


class _Counts:
    """Counts of words; the short ones wait until there are many, and are counted as numbers."""

    def __init__(self, most_characters: int) -> None:
        self._most_characters = most_characters
        self._counts: Counter[bytes] = Counter()
        self._size = 0  # bytes of the different words
        self._waiting: list[NDArray[np.uint64]] = []

    def add(self, data: bytes, starts: NDArray[np.int64]) -> None:
        """Count the words of a text: each ends where the next one starts."""
        sizes = np.diff(starts, append=len(data))
        short = sizes <= (0 if b"\0" in data else WORD)  # zeros stand for no character
        self._waiting.append(_numbers(data, starts[short], sizes[short]))
        long = ~short
        ends = (starts[long] + sizes[long]).tolist()
        places = zip(starts[long].tolist(), ends, strict=True)
        self._update(Counter([data[start:end] for start, end in places]).items())
        if sum(map(len, self._waiting)) >= WAITING:
            self._update_short()

    def all(self) -> Counter[bytes]:
        """The counts of all words so far."""
        self._update_short()
        return self._counts

    def _update_short(self) -> None:
        if self._waiting:
            words, counts = np.unique(np.concatenate(self._waiting), return_counts=True)
            self._waiting.clear()
            # without the zeros at its end, as numpy has it
            self._update(
                zip(words.astype("<u8").view(f"S{WORD}").tolist(), counts.tolist(), strict=True)
            )

    def _update(self, words: Iterable[tuple[bytes, int]]) -> None:
        counts, size = self._counts, self._size
        for word, count in words:
            before = counts.get(word, 0)
            counts[word] = before + count
            if not before:
                size += len(word)
        if size > self._most_characters:
            size = thin(counts, self._most_characters // 2, raw=bytes)
        self._size = size


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts, those of ASCII apart from the others, in batches of at least BATCH characters,
    but for the last two.
    """
    waiting: dict[bool, list[str]] = {True: [], False: []}
    sizes = {True: 0, False: 0}
    for text in texts:
        if not text:
            continue
        ascii_ = text.isascii()
        waiting[ascii_].append(text)
        sizes[ascii_] += len(text)
        if sizes[ascii_] >= BATCH:
            yield waiting[ascii_]
            waiting[ascii_], sizes[ascii_] = [], 0
    yield from filter(None, waiting.values())


class _Kinds:
    """The kind of each character, as far as it was asked for."""

    def __init__(self) -> None:
        self._known = np.full(CODE_POINTS, UNKNOWN, dtype=np.uint8)
        self._learn(np.arange(128))
        self._of_ascii = self._known[:128].tobytes().ljust(256, b"\0")

    def of_ascii(self, text: bytes) -> NDArray[np.uint8]:
        return np.frombuffer(text.translate(self._of_ascii), dtype=np.uint8)

    def of(self, codes: NDArray[np.uint32]) -> NDArray[np.uint8]:
        kinds = self._known[codes]
        if (new := kinds == UNKNOWN).any():
            self._learn(np.unique(codes[new]))
            kinds = self._known[codes]
        return kinds

    def _learn(self, codes: NDArray[np.int64] | NDArray[np.uint32]) -> None:
        characters = "".join(map(chr, codes.tolist()))
        self._known[codes] = OTHER
        for kind, pattern in _KINDS:
            split = pre_tokenizers.Split(Regex(pattern), behavior="removed")
            others = {c for part, _ in split.pre_tokenize_str(characters) for c in part}
            found = [code for code in codes.tolist() if chr(code) not in others]
            self._known[found] = kind


def _words(texts: list[str], kinds: _Kinds) -> tuple[bytes, NDArray[np.int64]]:
    """The texts as one in UTF-8, and where its words start."""
    joined = "".join(texts)
    data = joined.encode()
    begins = np.zeros(len(joined), dtype=np.bool_)  # where a text begins
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    begins[np.cumsum(lengths) - lengths] = True
    if joined.isascii():
        codes = np.frombuffer(data, dtype=np.uint8)
        return data, np.flatnonzero(word_starts(codes, kinds.of_ascii(data), begins))
    points = np.frombuffer(joined.encode("utf-32-le"), dtype="<u4")
    of_characters = np.flatnonzero((np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80)
    return data, of_characters[word_starts(points, kinds.of(points), begins)]


def _numbers(
    data: bytes, starts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Words of one to eight bytes as numbers: the first byte lowest, zeros above the last."""
    every = np.ndarray((len(data),), dtype="<u8", buffer=data + bytes(WORD), strides=(1,))
    return every[starts].astype(np.uint64) & (
        ~np.uint64(0) >> (np.uint64(64) - (8 * sizes).astype(np.uint64))
    )


def word_starts(codes: Codes, kinds: NDArray[np.uint8], begins: Flags) -> Flags:
    """At which characters the pattern's matches start.

    ``begins``: where a text begins; all three have the same length, which is not 0.
    """
    letter, digit, blank, other = (kinds == k for k in (LETTER, DIGIT, BLANK, OTHER))
    line_end = codes == ord("\n")
    inside = ~begins  # the character before belongs to the same text
    runs = begins.copy()  # where a run of one kind starts
    runs[1:] |= kinds[1:] != kinds[:-1]
    starts = runs.copy()

    # " ?[^\s\p{L}\p{N}]+": a space goes with what follows
    spaced = runs & inside & other & _after(codes == ord(" "))
    # "[^\r\n\p{L}\p{N}]?\p{L}+": so does one other character or blank with letters
    words = runs & inside & letter
    blanked = words & _after(blank & ~line_end & (codes != ord("\r")))
    marked = words & _after(runs & other & ~spaced)
    starts &= ~(spaced | blanked | marked)
    starts |= _before(spaced | blanked)
    _contractions(codes, letter & inside, marked, starts)

    # "\s+(?!\S)": of several blanks before something else the last is left
    gap = blank & ~line_end & inside
    starts |= gap & _after(blank & ~line_end) & _before(inside & ~blank, end=False)
    tails = runs & inside & _after(other) & blank
    _line_ends(codes, blank, line_end, inside, tails=tails, starts=starts)

    # "\p{N}{1,3}"
    at = np.flatnonzero(digit)
    first = np.maximum.accumulate(np.where(runs[at], at, 0))
    starts[at[(at - first) % 3 == 0]] = True
    return starts


def _after(flags: Flags) -> Flags:
    """Characters behind such ones."""
    moved = np.zeros_like(flags)
    moved[1:] = flags[:-1]
    return moved


def _before(flags: Flags, *, end: bool = False) -> Flags:
    """Characters before such ones; ``end``: whether the last is."""
    moved = np.empty_like(flags)
    moved[:-1] = flags[1:]
    moved[-1] = end
    return moved


def _contractions(codes: Codes, goes_on: Flags, marked: Flags, starts: Flags) -> None:
    """ "'s", "'t", "'re", "'ve", "'m", "'ll", "'d" end where they end, whatever letters follow.

    ``goes_on``: letters that do not begin a text; ``marked``: letters with a mark before them.
    """
    at = np.flatnonzero(marked[1:] & (codes[:-1] == ord("'"))) + 1
    if not len(at):
        return
    padded = np.append(codes, [0, 0]).astype(np.int64)
    lower = [np.where(c < 128, c | 0x20, c) for c in (padded[at], padded[at + 1])]
    one = np.isin(lower[0], [ord(c) for c in "stmd\u017f"])  # U+017F is an old s
    pairs = [ord(a) << 8 | ord(b) for a, b in ("re", "ve", "ll")]
    two = np.isin(lower[0] << 8 | lower[1], pairs) & np.append(goes_on, False)[at + 1]
    ends = np.concatenate([at[one] + 1, at[two & ~one] + 2])
    ends = ends[ends < len(codes)]
    starts[ends[goes_on[ends]]] = True


def _line_ends(
    codes: Codes, blank: Flags, line_end: Flags, inside: Flags, *, tails: Flags, starts: Flags
) -> None:
    """Line ends go with the marks before them, then with the blanks before them.

    "(?:\\r?\\n)*" takes whole line ends behind what is neither letter, digit nor blank: ``tails``
    are the first blanks there. "\\s*\\n" takes the blanks up to the last line end of a run.
    """
    whole = line_end | (codes == ord("\r")) & _before(line_end & inside)
    last = np.flatnonzero(whole & ~_before(whole & inside))
    taken = np.flatnonzero(tails & whole)
    starts[taken] = False
    behind = [last[np.searchsorted(last, taken)] + 1]

    ends = np.flatnonzero(line_end)
    run = np.searchsorted(np.flatnonzero(blank & ~_before(blank & inside)), ends)
    behind.append(ends[np.append(run[1:] != run[:-1], True)[: len(ends)]] + 1)

    at = np.concatenate(behind)
    starts[at[at < len(codes)]] = True

"""How often each word of a stream of texts occurs, in bounded memory."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import AnyStr, Final

MOST_CHARACTERS: Final = 1 << 22  # of different words: a natural text of any size has fewer


def count_words(
    texts: Iterable[str], words: re.Pattern[str], *, most_characters: int = MOST_CHARACTERS
) -> Counter[str]:
    """The words of the texts, by their number.

    Where the different words come to hold more than ``most_characters``, half of the rarest are
    forgotten, and half again: which ones a checksum decides, so equal texts give equal counts.
    """
    counts: Counter[str] = Counter()
    size = 0  # characters of the different words, each word at least once
    for text in texts:
        found = words.findall(text)
        size += sum(len(word) for word in set(found) if word not in counts)
        counts.update(found)
        if size > most_characters:
            size = thin(counts, most_characters // 2, raw=str.encode)
    return counts


def thin(counts: Counter[AnyStr], most_characters: int, *, raw: Callable[[AnyStr], bytes]) -> int:
    """Forget rare words until the others hold few enough characters; how many they hold.

    ``raw``: the bytes of a word.
    """
    size = sum(map(len, counts))
    halvings = 0
    while size > most_characters:
        halvings += 1
        mask = (1 << halvings) - 1
        rare = [
            word
            for word, count in counts.items()
            if count < 1 << halvings and zlib.crc32(raw(word)) & mask
        ]
        for word in rare:
            del counts[word]
        size -= sum(map(len, rare))
    return size

"""What a corpus must hold for a run, and what its size alone says of what it can hold.

The engine measures the units and tokens that it counts against these numbers; the API, which has
the size alone, refuses what no corpus of that size can pass. No arrays here: it imports neither
numpy nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LONGEST_UNIT: Final = 16_384  # characters
SHORTEST_SEQUENCE: Final = 8  # tokens: the least max_seq_len


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSize:
    """Bytes and lines of a text, the last line counted whether or not a line end closes it."""

    bytes: int  # a byte order mark, which is no text, may be among them
    lines: int | None = None  # None: nobody has counted them

    @property
    def most_units(self) -> int:
        """No reading of the text has more lines or paragraphs.

        A unit ends with a line, or is cut from one behind LONGEST_UNIT characters, which are at
        least as many bytes. No line is shorter than a byte.
        """
        lines = self.bytes if self.lines is None else self.lines
        return lines + self.bytes // LONGEST_UNIT

    @property
    def most_training_tokens(self) -> int:
        """No split of the text has more tokens, whatever the tokenizer, the fractions and the seed.

        A token stands for at least a byte: those of a byte-level BPE and of sentencepiece, with or
        without bytes, for one or more, those of a character tokenizer for one to four. Beside them
        stands an [EOS] behind each run of neighbouring units. Between two runs lies a unit of
        another split, which is not empty: so each run but one takes at least the byte for which it
        adds a token.
        """
        return self.bytes + 1


def fewest_tokens(max_seq_len: int) -> int:
    """Of the training split: a sequence and the target of its last token."""
    return max_seq_len + 1


def fewest_units(*, holdout_fraction: float, test_split_ratio: float) -> int:
    """Different ones: one for training, one for each split that is held out."""
    return 1 + (holdout_fraction > 0) + (test_split_ratio > 0)


def too_few_units(units: str, *, holdout_fraction: float, test_split_ratio: float) -> str:
    """Why a corpus of so many different units cannot be split; one of the two is not 0."""
    fractions = {"holdout_fraction": holdout_fraction, "test_split_ratio": test_split_ratio}
    taken = [f"{name} ({value})" for name, value in fractions.items() if value > 0]
    return (
        f"the corpus has {units} different lines or paragraphs, but {1 + len(taken)} splits "
        f"need at least one each: give more text, or set {' or '.join(taken)} to 0"
    )

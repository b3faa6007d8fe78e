"""Is a corpus large enough: refused at the POST where no text of its size could be.

Size and lines alone are looked at, and they are bounds: what passes here may still fail on what
the corpus holds, with CORPUS_TOO_SHORT or TOKENIZER_TRAIN_FAILED.
"""

from __future__ import annotations

from backends.vocabulary import most_tokens, needs_frequent_characters, sizes_to_ask_for
from trainer_app.api.job_fields import CORPUS
from trainer_app.core.corpus_size import (
    SHORTEST_SEQUENCE,
    CorpusSize,
    fewest_tokens,
    fewest_units,
    too_few_units,
)
from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.errors import FieldError


def check_run_size(spec: TrainSpec, size: CorpusSize) -> None:
    """Raise FieldError for a run that would end with CORPUS_TOO_SHORT."""
    _check_units(
        spec, size, holdout_fraction=spec.holdout_fraction, test_split_ratio=spec.test_split_ratio
    )
    most = size.most_training_tokens
    needed = fewest_tokens(spec.max_seq_len)
    if most >= needed:
        return
    longest = most - fewest_tokens(0)
    advice = "give more text"
    if longest >= SHORTEST_SEQUENCE:
        advice += f", or set {SHORTEST_SEQUENCE} to {longest}"
    raise FieldError(
        "max_seq_len",
        f"{spec.max_seq_len} needs {needed} tokens for training, and a corpus of {size.bytes} "
        f"bytes has at most {most}: {advice}",
    )


def check_tokenizer_size(spec: TokenizerSpec, size: CorpusSize) -> None:
    """Raise FieldError for a tokenizer that cannot be trained from a corpus of this size."""
    _check_units(spec, size, holdout_fraction=spec.holdout_fraction, test_split_ratio=0.0)
    if needs_frequent_characters(spec.method) and spec.min_frequency > size.bytes:
        raise FieldError(
            "min_frequency",
            f"no character occurs {spec.min_frequency} times in a corpus of {size.bytes} bytes: "
            f"give more text, or set 1 to {size.bytes}",
        )
    most = most_tokens(
        spec.method,
        vocab_size=spec.vocab_size,
        text_bytes=size.bytes,
        min_frequency=spec.min_frequency,
    )
    if most is None or spec.vocab_size <= most:
        return
    sizes = sizes_to_ask_for(spec.method, most=most, text_bytes=size.bytes)
    raise FieldError(
        "vocab_size",
        f"{spec.vocab_size} cannot be reached: with min_frequency {spec.min_frequency} a corpus "
        f"of {size.bytes} bytes gives at most {most} tokens: give more text, or set {sizes}",
    )


def _check_units(
    spec: TrainSpec | TokenizerSpec,
    size: CorpusSize,
    *,
    holdout_fraction: float,
    test_split_ratio: float,
) -> None:
    fractions = {"holdout_fraction": holdout_fraction, "test_split_ratio": test_split_ratio}
    if size.most_units < fewest_units(**fractions):
        by_id = spec.corpus_file_id is not None
        few = too_few_units(f"at most {size.most_units}", **fractions)
        raise FieldError(CORPUS[0] if by_id else CORPUS[1], few)

"""Train a tokenizer on the part of a corpus that is not held out, and measure it on the rest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.contracts import UNK_ID
from backends.loading import tokenizer_kind
from trainer_app.core.files import disk_full_named
from trainer_app.core.observer import StopReason
from trainer_app.core.split_texts import plan_split, split_texts
from trainer_app.core.splits import Split, SplitRule
from trainer_app.core.stopping import StopRequested

if TYPE_CHECKING:
    from backends.contracts import Tokenizer
    from trainer_app.core.spec import TokenizerSpec

BATCH: Final = 1_000  # units encoded at once


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerReport:
    """A tokenizer's size, and how it does on text that it was not trained on.

    All but ``vocab_size`` are None where nothing was held out.
    """

    vocab_size: int  # reached
    token_count: int | None  # in the held-out sample
    coverage: float | None  # share of those tokens that are not [UNK]
    oov_rate: float | None  # share of those tokens that are
    char_coverage: float | None  # share of the sample's characters that are known
    bytes_per_token: float | None  # of the sample: how much text a token holds

    def to_json(self) -> str:
        """A JSON object with these names."""
        return json.dumps(asdict(self), sort_keys=True)


def train_tokenizer(
    spec: TokenizerSpec,
    corpus: Path,
    directory: Path,
    *,
    sample_max_lines: int,
    on_message: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> TokenizerReport | None:
    """Write a tokenizer's files into ``directory``; None where a stop was asked for.

    At most ``sample_max_lines`` held-out lines or paragraphs are measured. Raises
    TokenizerTrainFailed, CorpusTooShort and the errors of ``read_units``.
    """
    try:
        return _train(
            spec,
            corpus,
            directory,
            sample_max_lines=sample_max_lines,
            on_message=on_message,
            should_stop=lambda: StopReason.CANCEL if should_stop() else None,
        )
    except StopRequested:
        return None


def _train(
    spec: TokenizerSpec,
    corpus: Path,
    directory: Path,
    *,
    sample_max_lines: int,
    on_message: Callable[[str], None],
    should_stop: Callable[[], StopReason | None],
) -> TokenizerReport:
    rule = SplitRule(seed=spec.seed, validation_fraction=spec.holdout_fraction, test_fraction=0.0)
    sha256 = spec.corpus_sha256
    on_message("reading the corpus")
    plan = plan_split(corpus, rule, sha256=sha256, should_stop=should_stop)
    on_message(f"training a {spec.method} tokenizer of {spec.vocab_size} tokens")
    tokenizer = tokenizer_kind(spec.method).train(
        split_texts(corpus, plan, Split.TRAIN, sha256=sha256, should_stop=should_stop),
        vocab_size=spec.vocab_size,
        min_frequency=spec.min_frequency,
    )
    with disk_full_named(directory):
        tokenizer.save(directory)
    if spec.holdout_fraction == 0:
        return TokenizerReport(
            vocab_size=tokenizer.vocab_size,
            token_count=None,
            coverage=None,
            oov_rate=None,
            char_coverage=None,
            bytes_per_token=None,
        )
    on_message("measuring it on held-out text")
    held_out = split_texts(corpus, plan, Split.VALIDATION, sha256=sha256, should_stop=should_stop)
    return measure(tokenizer, islice(held_out, sample_max_lines))


def measure(tokenizer: Tokenizer, texts: Iterable[str]) -> TokenizerReport:
    """A tokenizer's figures on a text that is not empty, in bounded memory."""
    tokens = unknown = size = 0
    characters: Counter[str] = Counter()
    source = iter(texts)
    while batch := list(islice(source, BATCH)):
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            tokens += len(ids)
            unknown += ids.count(UNK_ID)
            size += len(text.encode())
            characters.update(text)
    known = sum(
        count
        for character, count in characters.items()
        if UNK_ID not in tokenizer.encode(character)
    )
    return TokenizerReport(
        vocab_size=tokenizer.vocab_size,
        token_count=tokens,
        coverage=1 - unknown / tokens,
        oov_rate=unknown / tokens,
        char_coverage=known / characters.total(),
        bytes_per_token=size / tokens,
    )

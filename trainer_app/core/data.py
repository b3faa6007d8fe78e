"""From a corpus to the token streams of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.loading import load_tokenizer, tokenizer_kind
from trainer_app.core.encode import OnMessage, encode_corpus, while_it_stands
from trainer_app.core.files import disk_full_named, sha256_file
from trainer_app.core.split_texts import plan_split, split_texts
from trainer_app.core.splits import Split, SplitRule
from trainer_app.core.stopping import ShouldStop
from trainer_app.core.streams import Streams, split_streams
from trainer_app.errors import ModelIncompatible

if TYPE_CHECKING:
    from backends.contracts import Tokenizer
    from trainer_app.core.spec import TrainSpec

ALL_CHARACTERS: Final = 0x110000 + 4  # no bound on a character vocabulary but Unicode's own
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What a run reads: its tokenizer and its three streams."""

    tokenizer: Tokenizer
    tokenizer_sha256: str
    streams: Streams


def prepare_data(
    spec: TrainSpec,
    *,
    corpus: Path,
    tokenizer_directory: Path | None,
    scratch: Path,
    tokens: Path,
    on_message: OnMessage,
    should_stop: ShouldStop,
    begun_with: str | None = None,
) -> Data:
    """Tokenize, or find tokenized, and split the corpus.

    Without a tokenizer one token a character is learnt from the training split, under
    ``scratch``. ``begun_with``: the SHA-256 of the tokenizer that a run which goes on has had so
    far; None: it has just begun, or an older version kept none. Raises the errors of
    ``read_units``, ModelIncompatible for another tokenizer than that or none, CorpusTooShort,
    StopRequested, DiskFull.
    """
    rule = SplitRule(
        seed=spec.seed,
        validation_fraction=spec.holdout_fraction,
        test_fraction=spec.test_split_ratio,
    )
    name = f"tokenizer_id: {spec.tokenizer_id}" if spec.tokenizer_id else "the base model's"
    if tokenizer_directory is None:
        name = "that of the training split's characters"
        on_message("reading the corpus's characters")
        sha256 = spec.corpus_sha256
        plan = plan_split(corpus, rule, sha256=sha256, should_stop=should_stop)
        texts = split_texts(corpus, plan, Split.TRAIN, sha256=sha256, should_stop=should_stop)
        trained = tokenizer_kind("char").train(texts, vocab_size=ALL_CHARACTERS, min_frequency=1)
        with disk_full_named(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            trained.save(scratch)
        tokenizer_directory = scratch
    tokenizer_sha256 = tokenizer_digest(tokenizer_directory)
    if begun_with not in (None, tokenizer_sha256):
        # A name says too little: one that was deleted may have been given to another since.
        raise ModelIncompatible(
            f"{name} is another tokenizer now (SHA-256 {tokenizer_sha256[:12]}...) than the one "
            f"that the run began with ({str(begun_with)[:12]}...): a new run can be trained with it"
        )
    tokenizer = load_tokenizer(tokenizer_directory)
    on_message("tokenizing")

    def read() -> Streams:
        encoded = encode_corpus(
            corpus,
            tokenizer,
            tokens,
            corpus_sha256=spec.corpus_sha256,
            tokenizer_sha256=tokenizer_sha256,
            on_message=on_message,
            should_stop=should_stop,
        )
        return split_streams(encoded, rule, should_stop=should_stop)

    streams = while_it_stands(read, on_message)
    return Data(tokenizer=tokenizer, tokenizer_sha256=tokenizer_sha256, streams=streams)


def tokenizer_digest(directory: Path) -> str:
    """The SHA-256 of the file that defines a tokenizer; ModelIncompatible where there is none."""
    for name in TOKENIZER_FILES:
        if (path := directory / name).exists():
            return sha256_file(path)
    names = " or ".join(TOKENIZER_FILES)
    raise ModelIncompatible(f"the tokenizer's folder {directory.name} has no {names}")

"""Evaluate a finished run's model on one of its splits, or on any other text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backends.loading import load_tokenizer
from trainer_app.core.data import prepare_data, tokenizer_digest
from trainer_app.core.device import out_of_memory_named, resolve_device
from trainer_app.core.encode import encode_corpus, while_it_stands
from trainer_app.core.evaluate import Evaluation, evaluate
from trainer_app.core.loaded import load_model
from trainer_app.core.loss import LanguageModelLoss
from trainer_app.core.streams import TokenStream, whole_stream
from trainer_app.errors import CorpusTooShort

if TYPE_CHECKING:
    from trainer_app.core.encode import OnMessage
    from trainer_app.core.spec import RequestedDevice, TrainSpec
    from trainer_app.core.splits import Split
    from trainer_app.core.stopping import ShouldStop


def evaluate_run(
    directory: Path,
    split: Split,
    *,
    spec: TrainSpec,  # of the run
    corpus: Path,
    tokens: Path,  # the cache of token ids
    device: RequestedDevice,
    on_message: OnMessage,
    should_stop: ShouldStop,
) -> Evaluation:
    """The loss of the model in ``directory`` on a split of the run's corpus, in float32.

    Raises CorpusTooShort where the run has no such split, ModelIncompatible, CudaNotAvailable,
    OutOfMemory, StopRequested and the errors of ``read_units``.
    """
    data = prepare_data(
        spec,
        corpus=corpus,
        tokenizer_directory=directory,
        scratch=directory,
        tokens=tokens,
        on_message=on_message,
        should_stop=should_stop,
    )
    stream = data.streams.of(split)
    if not len(stream):
        raise CorpusTooShort(f"the run has no {split.label} split: its fraction is 0")
    return _evaluate(directory, stream, spec, device=device, should_stop=should_stop)


def evaluate_text(
    directory: Path,
    text: Path,
    *,
    sha256: str,  # of the text
    spec: TrainSpec,  # of the run
    tokens: Path,  # the cache of token ids
    device: RequestedDevice,
    on_message: OnMessage,
    should_stop: ShouldStop,
) -> Evaluation:
    """The loss of the model in ``directory`` on all of another text, in float32.

    Raises CorpusTooShort for a text of fewer than two tokens, and what ``evaluate_run`` raises.
    """
    tokenizer, tokenizer_sha256 = load_tokenizer(directory), tokenizer_digest(directory)

    def read() -> TokenStream:
        encoded = encode_corpus(
            text,
            tokenizer,
            tokens,
            corpus_sha256=sha256,
            tokenizer_sha256=tokenizer_sha256,
            on_message=on_message,
            should_stop=should_stop,
        )
        return whole_stream(encoded, should_stop=should_stop)

    stream = while_it_stands(read, on_message)
    if len(stream) < 2:
        raise CorpusTooShort(f"the text has {len(stream)} tokens; a loss needs at least 2")
    return _evaluate(directory, stream, spec, device=device, should_stop=should_stop)


def _evaluate(
    directory: Path,
    stream: TokenStream,
    spec: TrainSpec,
    *,
    device: RequestedDevice,
    should_stop: ShouldStop,
) -> Evaluation:
    place = resolve_device(device)
    with out_of_memory_named(f"evaluation with batch_size {spec.batch_size}", place):
        loaded = load_model(directory, device=place)
        loaded.check_trained_as(spec)
        return evaluate(
            LanguageModelLoss(loaded.model),
            stream,
            seq_len=spec.max_seq_len,
            batch_size=spec.batch_size,
            device=place,
            should_stop=should_stop,
        )

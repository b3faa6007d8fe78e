"""What a training run refers to: is it there, is it finished, does it fit?"""

from __future__ import annotations

from dataclasses import replace

from backends.registry import OWN_TOKENIZERS, UNBOUNDED_FAMILIES
from trainer_app.api import current
from trainer_app.api.corpus_choice import chosen_corpus, sha256_of
from trainer_app.api.errors import Detail, InvalidInput, field_named
from trainer_app.api.fields import shown
from trainer_app.api.finished_model import damage_of
from trainer_app.api.ids import is_id
from trainer_app.api.memory_check import check_memory, check_precision
from trainer_app.api.size_check import check_run_size
from trainer_app.artifacts import MANIFEST, tokenizer_directory
from trainer_app.core.spec import TrainSpec
from trainer_app.errors import ModelIncompatible, NotReady, RunNotFound, TokenizerNotFound
from trainer_app.queue import training_queue
from trainer_app.restore import TOKENIZER, check_sizes
from trainer_app.store import runs, tokenizers
from trainer_app.store.runs import Run
from trainer_app.store.tables import Status


def resolve(spec: TrainSpec) -> TrainSpec:
    """The spec with the digest of its corpus, if known, once all it refers to is found to fit.

    Raises CorpusNotFound, TokenizerNotFound, RunNotFound; NotReady and ModelIncompatible;
    CorpusEmpty and CorpusNotText; FieldError for a corpus too small for what is asked;
    InvalidInput for an unknown queue, and for a model or a precision that no live worker could
    train; Unavailable. Messages name the field.
    """
    _check_queue(spec)
    vocab_size = _check_tokenizer(spec)
    _check_base_run(spec)
    workers = [one for one in current.queue().workers() if queue_for(spec) in one.queues]
    check_precision(spec, workers)
    check_memory(spec, vocab_size, workers)
    corpus = chosen_corpus(spec.corpus_file_id, spec.corpus_path)
    if corpus is not None:
        check_run_size(spec, corpus.size)
    return replace(spec, corpus_sha256=sha256_of(corpus))


def _check_queue(spec: TrainSpec) -> None:
    if spec.queue is None:
        return
    known = current.queue().training_queues()
    if spec.queue not in known:
        names = ", ".join(known)
        raise InvalidInput([Detail("queue", f"no live worker has this queue; known: {names}")])


def _check_tokenizer(spec: TrainSpec) -> int:
    """The size of its vocabulary; 0 where it is yet to be trained."""
    if spec.tokenizer_id is None:
        return 0
    if not is_id(spec.tokenizer_id):
        raise TokenizerNotFound(f"tokenizer_id: no tokenizer has the id {shown(spec.tokenizer_id)}")
    with field_named("tokenizer_id"):
        tokenizer = tokenizers.get(current.database(), spec.tokenizer_id)
    if tokenizer.status is not Status.COMPLETED:
        raise NotReady(f"tokenizer_id: {spec.tokenizer_id} is {tokenizer.status}")
    with field_named("tokenizer_id"):
        tokenizer.check_row()
    kind = OWN_TOKENIZERS.get(spec.model_family, tokenizer.method)
    if tokenizer.method != kind:
        raise ModelIncompatible(
            f"tokenizer_id: {spec.model_family} takes a {kind} tokenizer, "
            f"and {spec.tokenizer_id} is {tokenizer.method}"
        )
    _check_files(spec.tokenizer_id, tokenizer.artifact_sha256)
    return tokenizer.vocab_size or 0


def _check_files(tokenizer_id: str, sealed: str | None) -> None:
    """Whether a finished tokenizer is still there; its worker reads it against its digests."""
    directory = tokenizer_directory(current.settings(), tokenizer_id)
    try:
        check_sizes(directory, needed=TOKENIZER, sealed=sealed)
    except NotReady:
        raise ModelIncompatible(
            f"tokenizer_id: the files of {tokenizer_id} are gone: there is no {MANIFEST}"
        ) from None
    except ModelIncompatible as error:
        raise ModelIncompatible(f"tokenizer_id: {error.message}") from None


def _check_base_run(spec: TrainSpec) -> None:
    if spec.pretrained_run_id is None:
        return
    if not is_id(spec.pretrained_run_id):
        raise RunNotFound(f"pretrained_run_id: no run has the id {shown(spec.pretrained_run_id)}")
    with field_named("pretrained_run_id"):
        run = runs.get(current.database(), spec.pretrained_run_id)
    if run.status is not Status.COMPLETED:
        raise NotReady(f"pretrained_run_id: {spec.pretrained_run_id} is {run.status}")
    with field_named("pretrained_run_id"):
        trained, context = run.spec, _context(run)
    for name in ("model_family", "model_size", "tokenizer_id"):
        wanted, there = getattr(spec, name), getattr(trained, name)
        if wanted != there:
            raise ModelIncompatible(_difference(name, wanted, there, spec.pretrained_run_id))
    if spec.model_family not in UNBOUNDED_FAMILIES and spec.max_seq_len > context:
        raise ModelIncompatible(
            f"max_seq_len: {spec.max_seq_len} is beyond the {context} tokens that "
            f"{spec.pretrained_run_id} reads at once"
        )
    damaged = damage_of(run)
    if damaged is not None:
        raise ModelIncompatible(f"pretrained_run_id: {damaged}")


def _difference(name: str, wanted: str | None, there: str | None, run_id: str) -> str:
    """Why a run cannot go on from another. No tokenizer_id: the run trained its own, or would."""
    if there is None:
        return (
            f"{name}: {wanted} is not the tokenizer of {run_id}, which trained its own: leave "
            f"{name} out to go on with that one"
        )
    if wanted is None:
        return f"{name}: {run_id} was trained with {there}: give that one"
    return f"{name}: {wanted} differs from {there} of {run_id}"


def _context(run: Run) -> int:
    """The tokens that a run's model reads at once: fine-tuning changes nothing about it."""
    while run.spec.pretrained_run_id is not None:
        run = runs.get(current.database(), run.spec.pretrained_run_id)
    return run.spec.max_seq_len


def queue_for(spec: TrainSpec) -> str:
    """The queue that the run goes to."""
    return spec.queue or training_queue(current.settings())

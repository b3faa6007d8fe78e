"""What went wrong in systems of this kind, and does not here."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, TypeAlias

import pytest

from backends.contracts import PAD_ID
from backends.registry import MODEL_FAMILIES
from trainer_app.core.data import prepare_data
from trainer_app.core.evaluate import Evaluation
from trainer_app.core.evaluate_run import evaluate_run
from trainer_app.core.run_files import Finished
from trainer_app.core.splits import Split
from trainer_app.core.stopping import never

if TYPE_CHECKING:
    from tests.training_bench import Bench, Recorder

MakeRecorder: TypeAlias = "type[Recorder]"


def evaluated(bench: Bench, finished: Finished, split: Split) -> Evaluation:
    return evaluate_run(
        finished.directory,
        split,
        spec=bench.spec,
        corpus=bench.corpus,
        tokens=bench.folder / "tokens",
        device="cpu",
        on_message=print,
        should_stop=never,
    )


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_labels_are_shifted(bench: Bench, family: str) -> None:
    """A model that sees its targets would predict noise as well as it does a period."""
    spec = replace(
        bench.spec,
        model_family=family,
        max_steps=80,
        eval_steps=80,
        batch_size=4,
        max_seq_len=32,
        learning_rate=5e-3,
    )
    generator = random.Random(1)
    lines = ("".join(generator.choices("abcdefgh", k=40)) for _ in range(400))
    noise = bench.with_corpus("noise.txt", "\n".join(lines))
    learnt = noise.finish(replace(spec, corpus_sha256=noise.spec.corpus_sha256), run="noise")
    # ln 8 = 2.08 nats a letter is the least there is
    assert learnt.best_val_loss is not None
    assert learnt.best_val_loss > 1.9
    period = bench.with_corpus("period.txt", "abcdefgh" * 2_000)
    spec = replace(spec, corpus_sha256=period.spec.corpus_sha256)
    spec = replace(spec, holdout_fraction=0.0, test_split_ratio=0.0)  # there is but one text
    assert period.finish(spec, run="period").final_loss < 0.1


def test_one_file_gives_three_different_splits(bench: Bench) -> None:
    data = prepare_data(
        bench.spec,
        corpus=bench.corpus,
        tokenizer_directory=bench.tokenizer,
        scratch=bench.folder,
        tokens=bench.folder / "tokens",
        on_message=print,
        should_stop=never,
    )
    texts = [
        set(data.tokenizer.decode(data.streams.of(split).ids.tolist()).split("\n\n")) - {""}
        for split in Split
    ]
    assert all(texts)
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]


def test_the_best_weights_are_published_and_tested_not_the_last(
    bench: Bench, recorder: MakeRecorder, story: Callable[[int], str]
) -> None:
    small = bench.with_corpus("small.txt", story(24))
    spec = replace(
        small.spec,
        max_steps=400,
        eval_steps=10,
        early_stopping_patience=3,
        batch_size=8,
        holdout_fraction=0.3,
        test_split_ratio=0.3,
    )
    small = replace(small, spec=spec)
    observer = recorder()
    outcome = small.fit(spec, observer)
    assert isinstance(outcome, Finished)
    assert outcome.early_stopped
    assert outcome.steps < 400
    best = min(report.val_loss for report in observer.evaluations)
    assert best == outcome.best_val_loss
    assert best < observer.evaluations[-1].val_loss
    assert [report.improved for report in observer.evaluations[-3:]] == [False] * 3
    assert observer.evaluations[-1].evaluations_without_improvement == 3
    assert evaluated(small, outcome, Split.VALIDATION).loss == pytest.approx(best, rel=1e-6)
    assert evaluated(small, outcome, Split.TEST).loss == pytest.approx(outcome.test_loss, rel=1e-6)


def test_patience_of_nought_never_stops_early(bench: Bench, recorder: MakeRecorder) -> None:
    spec = replace(bench.spec, learning_rate=0.0, eval_steps=1, early_stopping_patience=0)
    assert bench.finish(spec).steps == 12


def test_a_seed_reproduces_a_run(bench: Bench) -> None:
    first, second = (bench.finish(bench.spec, run=name) for name in ("first", "second"))
    assert first.weights_sha256 == second.weights_sha256


def test_clipping_of_nought_is_off_and_the_norm_is_reported(
    bench: Bench, recorder: MakeRecorder
) -> None:
    observers = []
    for clipping in (0.0, 1e9):
        observers.append(recorder())
        spec = replace(bench.spec, gradient_clipping=clipping)
        bench.fit(spec, observers[-1], run=f"clip-{clipping}")
    off, huge = observers
    assert [report.train_loss for report in off.steps] == [r.train_loss for r in huge.steps]
    assert [report.grad_norm for report in off.steps] == [r.grad_norm for r in huge.steps]
    assert off.steps[-1].train_loss < off.steps[0].train_loss
    assert all(report.grad_norm is not None and report.grad_norm > 0 for report in off.steps)


def test_clipping_bounds_the_update(bench: Bench, recorder: MakeRecorder) -> None:
    spec = replace(bench.spec, gradient_clipping=1e-6, optimizer="sgd")
    observer = recorder()
    bench.fit(spec, observer)
    assert observer.steps[-1].train_loss == pytest.approx(observer.steps[0].train_loss, abs=0.2)
    norm = observer.steps[0].grad_norm
    assert norm is not None
    assert norm > 1e-3  # reported as it was before


def test_json_holds_no_infinity(bench: Bench, recorder: MakeRecorder) -> None:
    observer = recorder()
    outcome = bench.fit(bench.spec, observer)
    assert isinstance(outcome, Finished)
    figures = [
        *map(asdict, observer.starts),
        *map(asdict, observer.steps),
        *map(asdict, observer.evaluations),
        asdict(outcome) | {"directory": ""},
    ]
    assert json.dumps(figures, allow_nan=False)


def test_an_evaluation_heeds_its_split(bench: Bench) -> None:
    finished = bench.finish(bench.spec)
    losses = [evaluated(bench, finished, split).loss for split in Split]
    assert len(set(losses)) == 3


def test_no_padding_is_in_the_loss(bench: Bench) -> None:
    data = prepare_data(
        bench.spec,
        corpus=bench.corpus,
        tokenizer_directory=bench.tokenizer,
        scratch=bench.folder,
        tokens=bench.folder / "tokens",
        on_message=print,
        should_stop=never,
    )
    for split in Split:
        assert PAD_ID not in data.streams.of(split).ids

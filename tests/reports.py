"""What the engine reports of a run, to start from: tests vary a field with ``replace``."""

from __future__ import annotations

from typing import Final

from trainer_app.core.observer import EvaluationReport, StartReport, StepReport
from trainer_app.core.spec import TrainSpec

START: Final = StartReport(
    spec=TrainSpec(
        model_family="char_lstm",
        model_size="tiny",
        corpus_path="a.txt",
        corpus_sha256="0" * 64,
        device="cpu",
        precision="fp32",
        torch_compile="off",
        data_num_workers=0,
        data_pin_memory=False,
    ),
    model_family="char_lstm",
    model_size="tiny",
    parameters=1,
    total_epochs=1,
    total_steps=10_000,
    first_step=0,
    batch_size=1,
    learning_rate=0.1,
    max_seq_len=8,
    train_tokens=1,
    validation_tokens=0,
    test_tokens=0,
    device="cpu",
    device_name="cpu",
    precision="fp32",
    threads=1,
    resumed_from=None,
)


def step(number: int, loss: float = 1.0, *, epoch: int = 0) -> StepReport:
    return StepReport(
        step=number,
        total_steps=10_000,
        epoch=epoch,
        train_loss=loss,
        learning_rate=0.1,
        grad_norm=0.5,
        tokens_per_sec=640.0,
        samples_per_sec=10.0,
        step_ms=100.0,
        chain=f"{number:064x}",
    )


def evaluation(
    number: int, loss: float = 1.0, *, epoch: int = 0, without: int = 0
) -> EvaluationReport:
    """``without``: evaluations in a row without an improvement."""
    return EvaluationReport(
        step=number,
        epoch=epoch,
        train_loss=2.0,
        val_loss=loss,
        best_val_loss=min(loss, 1.5),
        improved=not without,
        evaluations_without_improvement=without,
    )

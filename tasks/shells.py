"""The Celery tasks: shells that find a job's work and run it under the job's lease.

The work is named, not imported: a worker's parent knows every task and no torch, and its child
imports the engine when it starts (tasks/spare.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final

from celery import Task

from tasks.app import app
from tasks.job import Work
from tasks.perform import perform
from trainer_app.queue import TASK_NAMES
from trainer_app.store.lease import JobKind

# kind -> the module whose ``work`` does such a job
WORK: Final[Mapping[JobKind, str]] = {
    JobKind.TRAIN: "tasks.training",
    JobKind.TOKENIZER: "tasks.tokenizers",
    JobKind.GENERATE: "tasks.generation",
    JobKind.SCORE: "tasks.scoring",
    JobKind.EVALUATE: "tasks.evaluation",
    JobKind.CHAT: "tasks.chat",
}
# What a process imports before it takes a job; torch imports its compiler when a process makes its
# first optimizer: one that is to train better has it before.
ENGINE: Final = tuple(WORK.values())
TRAINING_ENGINE: Final = (*ENGINE, "torch._dynamo")


def work_of(kind: JobKind) -> Work:
    """What does a job of this kind; imports the engine on first use."""
    work: Work = import_module(WORK[kind]).work
    return work


def _register(kind: JobKind) -> None:
    @app.task(name=TASK_NAMES[kind], bind=True)
    def run(self: Task[[str], None], job_id: str) -> None:
        perform(job_id, hostname=self.request.hostname or "", work=work_of(kind))


for _kind in JobKind:
    _register(_kind)

"""A run that is interrupted ends in the bytes of one that is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest
import torch

from backends.loading import tokenizer_kind
from backends.registry import MODEL_FAMILIES
from tests.training_bench import Recorder
from trainer_app.core import checkpoint, data
from trainer_app.core.data import tokenizer_digest
from trainer_app.core.observer import EvaluationReport, Silent, StopReason
from trainer_app.core.run_files import Finished, Stopped
from trainer_app.core.spec import OPTIMIZERS, OptimizerName, TrainSpec
from trainer_app.core.step import TrainingStep
from trainer_app.core.stopping import StopRequested
from trainer_app.core.sums import quickest, sum_of
from trainer_app.errors import DiskFull, ModelIncompatible

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.training_bench import Bench

MakeRecorder: TypeAlias = "type[Recorder]"


def disk_is_full(*_: object) -> None:
    raise DiskFull("No space left on device")


def weights(finished: Finished) -> bytes:
    return (finished.directory / "model.safetensors").read_bytes()


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_a_run_stopped_again_and_again_ends_in_the_same_bytes(
    bench: Bench, recorder: MakeRecorder, family: str
) -> None:
    spec = replace(
        bench.spec, model_family=family, gradient_accumulation_steps=2, holdout_fraction=0.01
    )
    whole = bench.finish(spec, run="whole")
    steps = []
    # evaluations ask too, a few times each: stops fall between steps and within evaluations
    for attempt, questions in enumerate((2, 3, 8, 0, 1, 9, 2)):
        observer = recorder(stop_after=questions)
        stopped = bench.fit(spec, observer, run="stopped", attempt=attempt)
        assert isinstance(stopped, Stopped)
        steps.append(stopped.step)
    assert len(set(steps)) > 3, steps
    outcome = bench.finish(spec, run="stopped", attempt=9)
    assert weights(outcome) == weights(whole)
    figures = ("final_loss", "best_val_loss", "test_loss", "bits_per_byte", "steps", "epochs")
    for name in (*figures, "batch_size", "accumulation"):
        assert getattr(outcome, name) == getattr(whole, name)


@pytest.mark.parametrize("family", ["gpt2", "char_lstm"])
def test_a_stop_is_heard_between_the_batches_of_a_step_which_is_then_not_taken(
    bench: Bench, recorder: MakeRecorder, family: str
) -> None:
    spec = replace(
        bench.spec,
        model_family=family,
        batch_size=1,
        gradient_accumulation_steps=10,
        max_steps=3,
        holdout_fraction=0.0,
    )
    whole = bench.finish(spec, run="whole")
    steps = []
    for attempt, questions in enumerate((4, 7, 15), 1):
        observer = recorder(stop_after=questions)
        stopped = bench.fit(spec, observer, run="stopped", attempt=attempt)
        assert isinstance(stopped, Stopped)
        assert observer.asked <= questions + 3  # the step's, the loop's and the checkpoint's own
        steps.append(stopped.step)
    assert steps == [0, 0, 1]
    assert weights(bench.finish(spec, run="stopped", attempt=9)) == weights(whole)


def test_a_stop_whose_checkpoint_does_not_fit_on_the_disk_is_a_stop_with_the_one_before(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench.finish(bench.spec, run="whole")
    first = bench.fit(bench.spec, recorder(stop_after=3), run="stopped", attempt=1)
    assert isinstance(first, Stopped)
    observer = recorder(stop_after=6)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "replace_directory", disk_is_full)
        second = bench.fit(bench.spec, observer, run="stopped", attempt=2)

    assert isinstance(second, Stopped)
    assert second.checkpoint is None
    assert second.step > first.step
    told = f"no checkpoint of step {second.step} could be written, the one before it counts"
    assert any(message.startswith(told) for message in observer.messages)
    assert weights(bench.finish(bench.spec, run="stopped", attempt=9)) == weights(whole)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_resumes_in_the_same_bytes(
    bench: Bench, recorder: MakeRecorder, optimizer: OptimizerName
) -> None:
    spec = replace(bench.spec, optimizer=optimizer)
    whole = bench.finish(spec, run="whole")
    bench.fit(spec, recorder(stop_after=5), run="stopped")
    assert weights(bench.finish(spec, run="stopped", attempt=2)) == weights(whole)


def test_two_equal_runs_and_an_unrelated_one_between_give_the_same_bytes(bench: Bench) -> None:
    spec = replace(bench.spec, model_family="char_lstm")
    first = bench.finish(spec, run="first")
    torch.rand(1000)
    bench.finish(replace(bench.spec, seed=7, gradient_accumulation_steps=3), run="unrelated")
    second = bench.finish(spec, run="second")
    assert weights(first) == weights(second)
    for file in first.directory.iterdir():
        assert file.read_bytes() == (second.directory / file.name).read_bytes()
    other = bench.finish(replace(spec, seed=43), run="other")
    assert weights(other) != weights(first)


def test_a_run_killed_between_checkpoints_repeats_the_steps_since(
    bench: Bench, recorder: MakeRecorder
) -> None:
    whole = bench.finish(bench.spec, run="whole")
    bench.fit(bench.spec, recorder(stop_after=6), run="killed", checkpoint_seconds=0.0)
    checkpoints = sorted((bench.folder / "killed" / "checkpoints").iterdir())
    shutil.rmtree(checkpoints[-1])  # the one of the stop: a kill would not have written it
    observer = recorder()
    outcome = bench.fit(bench.spec, observer, run="killed", attempt=2)
    assert isinstance(outcome, Finished)
    assert observer.starts[0].resumed_from == checkpoints[-2].name
    assert 0 < observer.steps[0].step < 7
    assert weights(outcome) == weights(whole)


def test_a_damaged_checkpoint_costs_steps_but_no_bytes(
    bench: Bench, recorder: MakeRecorder
) -> None:
    whole = bench.finish(bench.spec, run="whole")
    stopped = bench.fit(bench.spec, recorder(stop_after=8), run="hurt", checkpoint_seconds=0.0)
    assert isinstance(stopped, Stopped)
    assert stopped.checkpoint is not None
    (stopped.checkpoint / "optimizer.safetensors").write_bytes(b"")
    observer = recorder()
    outcome = bench.fit(bench.spec, observer, run="hurt", attempt=2)
    assert isinstance(outcome, Finished)
    assert any("is damaged" in message for message in observer.messages)
    assert observer.starts[0].first_step > 0
    assert weights(outcome) == weights(whole)


def test_a_stop_during_the_last_evaluations_takes_no_step_twice(
    bench: Bench, recorder: MakeRecorder
) -> None:
    spec = replace(bench.spec, eval_steps=None, max_steps=3)
    whole = bench.finish(spec, run="whole")
    # questions: one a step, then within the validation and the test evaluation
    for stop_after in (3, 4, 8, 12):
        run = f"stopped-{stop_after}"
        stopped = bench.fit(spec, recorder(stop_after=stop_after), run=run)
        assert isinstance(stopped, Stopped)
        assert stopped.step == 3
        resumed = recorder()
        outcome = bench.fit(spec, resumed, run=run, attempt=2)
        assert isinstance(outcome, Finished)
        assert resumed.steps == []
        assert weights(outcome) == weights(whole)
        assert outcome.final_loss == whole.final_loss
        assert outcome.test_loss == whole.test_loss


def test_a_resume_keeps_the_threads_of_the_checkpoint_and_the_time_of_all_attempts(
    bench: Bench, recorder: MakeRecorder
) -> None:
    stopped = bench.fit(bench.spec, recorder(stop_after=6))
    assert isinstance(stopped, Stopped)
    assert stopped.checkpoint is not None
    observer = recorder()
    torch.set_num_threads(2)
    outcome = bench.fit(bench.spec, observer, attempt=2)
    assert isinstance(outcome, Finished)
    assert outcome.threads == torch.get_num_threads() == 1
    assert not any("may differ" in message for message in observer.messages)


def test_a_run_does_not_go_on_with_another_tokenizer_of_the_same_name(
    bench: Bench, recorder: MakeRecorder, story: Callable[[int], str]
) -> None:
    spec = replace(bench.spec, tokenizer_id="t1")
    whole = bench.finish(spec, run="whole")
    bench.fit(spec, recorder(stop_after=6))
    (written,) = (bench.folder / "run" / "checkpoints").iterdir()
    other = replace(bench, tokenizer=bench.folder / "t1")
    other.tokenizer.mkdir()
    trained = tokenizer_kind("bpe").train([story(9).upper()], vocab_size=320, min_frequency=2)
    trained.save(other.tokenizer)

    with pytest.raises(ModelIncompatible) as refused:
        other.fit(spec, recorder(), attempt=2)

    then, now = tokenizer_digest(bench.tokenizer), tokenizer_digest(other.tokenizer)
    assert "tokenizer_id: t1 is another tokenizer now" in refused.value.message
    assert now[:12] in refused.value.message
    assert then[:12] in refused.value.message
    assert written.exists()
    assert weights(bench.finish(spec, attempt=3)) == weights(whole)  # the first one is back


@pytest.mark.parametrize("now", ["ABCDEF", "more characters than that"], ids=["as many", "more"])
def test_a_run_that_learnt_its_characters_does_not_go_on_with_others(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch, now: str
) -> None:
    """As where an earlier version split the same text in another way."""
    spec = replace(bench.spec, model_family="char_lstm")
    monkeypatch.setattr(data, "split_texts", lambda *_args, **_options: iter(["abcdef"]))
    bench.fit(spec, recorder(stop_after=6))
    (written,) = (bench.folder / "run" / "checkpoints").iterdir()
    monkeypatch.setattr(data, "split_texts", lambda *_args, **_options: iter([now]))

    with pytest.raises(ModelIncompatible, match=r"^that of the training split's characters is"):
        bench.fit(spec, recorder(), attempt=2)

    assert written.exists()


def test_a_run_does_not_go_on_with_another_tokenizer_of_its_base_model(
    bench: Bench, recorder: MakeRecorder
) -> None:
    base = bench.finish(bench.spec, run="base").directory
    bench.fit(bench.spec, recorder(stop_after=6), base_model=base)
    tokenizer_file = base / "tokenizer.json"
    tokenizer_file.write_text(tokenizer_file.read_text() + "\n")

    with pytest.raises(ModelIncompatible, match=r"^the base model's is another tokenizer now"):
        bench.fit(bench.spec, recorder(), attempt=2, base_model=base)


def test_a_run_whose_tokenizer_is_gone_when_it_is_resumed_says_what_it_lacks(
    bench: Bench, recorder: MakeRecorder
) -> None:
    own = replace(bench, tokenizer=bench.folder / "tale-4k")
    shutil.copytree(bench.tokenizer, own.tokenizer)
    assert isinstance(own.fit(own.spec, recorder(stop_after=3)), Stopped)
    shutil.rmtree(own.tokenizer)
    with pytest.raises(
        ModelIncompatible, match=r"tale-4k has no tokenizer\.json or tokenizer\.model"
    ):
        own.fit(own.spec, recorder(), attempt=2)


def test_a_run_whose_checkpoint_names_no_tokenizer_as_of_an_older_version_goes_on(
    bench: Bench, recorder: MakeRecorder
) -> None:
    bench.fit(bench.spec, recorder(stop_after=6))
    (written,) = (bench.folder / "run" / "checkpoints").iterdir()
    content = json.loads((written / checkpoint.STATE).read_text())
    del content["state"]["tokenizer_sha256"]
    (written / checkpoint.STATE).write_text(json.dumps(content))
    sums = json.loads((written / checkpoint.MANIFEST).read_text())
    sums[checkpoint.STATE] = sum_of(written / checkpoint.STATE, quickest())
    (written / checkpoint.MANIFEST).write_text(json.dumps(sums))
    observer = recorder()

    assert isinstance(bench.fit(bench.spec, observer, attempt=2), Finished)

    assert observer.starts[0].resumed_from == written.name


def test_a_resume_on_another_device_says_that_the_bytes_may_differ(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.fit(bench.spec, recorder(stop_after=6))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "2.0.0")
        observer = recorder(stop_after=6)
        bench.fit(bench.spec, observer, attempt=2)
        assert any("may differ" in message for message in observer.messages)

    observer = recorder()
    outcome = bench.fit(bench.spec, observer, attempt=3)  # back where it began

    assert any("may differ" in message for message in observer.messages)
    assert isinstance(outcome, Finished)
    first, second = outcome.fingerprints
    assert (first.torch, second.torch) == (str(torch.__version__), "2.0.0")


def test_a_run_of_auto_that_began_on_the_cpu_stays_there_beside_a_gpu(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(bench.spec, device="auto")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        bench.fit(spec, recorder(stop_after=6))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    observer = recorder()
    outcome = bench.fit(spec, observer, attempt=2)
    assert isinstance(outcome, Finished)
    assert (outcome.device, outcome.precision) == ("cpu", "fp32")
    assert len(outcome.fingerprints) == 1
    assert not any("may differ" in message for message in observer.messages)


def test_an_attempt_tells_what_it_made_of_what_was_left_to_it_and_the_next_one_anew(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(bench.spec, device="auto", data_pin_memory=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    first, second = recorder(stop_after=6), recorder()
    bench.fit(spec, first)
    outcome = bench.fit(spec, second, attempt=2)

    assert isinstance(outcome, Finished)
    assert outcome.spec.worker_choices == {
        "device": "cpu",
        "precision": "fp32",
        "torch_compile": "off",
        "data_num_workers": 0,
        "data_pin_memory": False,
    }
    choices = json.dumps(outcome.spec.worker_choices)
    assert TrainSpec.from_json(spec.to_json(), over=choices) == outcome.spec
    assert [start.spec for start in first.starts + second.starts] == [outcome.spec] * 2


def test_a_resume_keeps_count_of_evaluations_without_improvement(
    bench: Bench, recorder: MakeRecorder
) -> None:
    # nothing improves after the first evaluation, because nothing is learnt
    spec = replace(bench.spec, learning_rate=0.0, early_stopping_patience=2, eval_steps=2)
    stopped = bench.fit(spec, recorder(stop_after=40, reason=StopReason.CANCEL))
    assert isinstance(stopped, Stopped)
    assert 0 < stopped.step < 6
    observer = recorder()
    outcome = bench.fit(spec, observer, attempt=2)
    assert isinstance(outcome, Finished)
    assert (outcome.early_stopped, outcome.steps) == (True, 6)


AUDITED = """
import pickle, sys

def refuse(event, arguments):
    if event == "pickle.find_class" and armed:
        raise SystemExit(f"pickle was read: {arguments}")

armed = False
sys.addaudithook(refuse)

from pathlib import Path
from trainer_app.core.fit import fit
from trainer_app.core.run_files import Finished, Inputs, Stopped, Workspace
from trainer_app.core.observer import Silent, StopReason
from trainer_app.core.spec import TrainSpec

class Stop(Silent):
    asked = 0
    def should_stop(self):
        self.asked += 1
        return StopReason.DRAIN if self.asked > 40 else None

armed = True
import torch
torch.save = torch.load = pickle.dump = pickle.dumps = None
folder = Path(sys.argv[1])
spec = TrainSpec.from_json(sys.argv[2])
inputs = Inputs(corpus=folder / "story.txt")
for attempt, observer in enumerate((Stop(), Silent())):
    workspace = Workspace(run=folder / "audited", tokens=folder / "tokens", attempt=attempt,
                          checkpoint_seconds=0.0, max_threads=1)
    print(type(fit(spec, inputs, workspace, observer)).__name__)
"""


def test_no_pickle_is_read_or_written_by_a_run_and_its_resume(bench: Bench) -> None:
    spec = replace(bench.spec, model_family="char_lstm")
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, str(bench.folder), spec.to_json()],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.split() == ["Stopped", "Finished"], done.stderr
    kinds = {path.suffix for path in bench.folder.rglob("*") if path.is_file()}
    assert kinds == {".txt", ".bin", ".json", ".safetensors"}


@pytest.mark.parametrize("place", ["step", "evaluation"])
def test_what_is_interrupted_half_way_is_done_again_from_the_checkpoint_before(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    whole = bench.finish(bench.spec, run="whole")
    before = bench.fit(bench.spec, recorder(stop_after=3), run="torn")
    assert isinstance(before, Stopped)
    compute = TrainingStep._compute

    def torn_step(step: TrainingStep) -> torch.Tensor:
        compute(step)  # the weights have changed, the count of steps has not
        raise StopRequested(StopReason.CANCEL)

    def torn_evaluation(*_: object) -> None:
        raise StopRequested(StopReason.CANCEL)

    with monkeypatch.context() as patched:
        if place == "step":
            patched.setattr(TrainingStep, "_compute", torn_step)
        else:
            patched.setattr(Recorder, "on_evaluation", torn_evaluation)
        observer = recorder()
        torn = bench.fit(bench.spec, observer, run="torn", attempt=2)
    assert isinstance(torn, Stopped)
    assert torn.checkpoint is None
    assert observer.messages[-1].startswith(f"interrupted within step {torn.step + 1}")

    resumed = bench.finish(bench.spec, run="torn", attempt=3)

    assert weights(resumed) == weights(whole)
    assert resumed.loss_chain == whole.loss_chain
    assert resumed.best_val_loss == whole.best_val_loss


@pytest.mark.parametrize("reason", [StopReason.CANCEL, StopReason.DRAIN])
def test_a_run_that_is_cancelled_while_its_model_is_saved_is_not_finished(
    bench: Bench, recorder: MakeRecorder, reason: StopReason
) -> None:
    class Late(Recorder):
        def should_stop(self) -> StopReason | None:
            return reason if "saving the model" in self.messages else None

    outcome = bench.fit(bench.spec, Late(), run="late")

    if reason is StopReason.DRAIN:  # the end is nearer than a checkpoint
        assert isinstance(outcome, Finished)
        return
    assert isinstance(outcome, Stopped)
    assert outcome.checkpoint is not None
    whole = bench.finish(bench.spec, run="whole")
    resumed = bench.finish(bench.spec, run="late", attempt=2)
    assert weights(resumed) == weights(whole)
    assert resumed.test_loss == whole.test_loss


class OneEvaluation(Silent):
    """Stops after the first."""

    reason: StopReason | None = None

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        self.reason = StopReason.DRAIN

    def should_stop(self) -> StopReason | None:
        return self.reason


class MapReader(Silent):
    """Remembers which files of checkpoints are mapped into memory at each evaluation."""

    def __init__(self) -> None:
        self.mapped: list[list[str]] = []

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        assert evaluation.step > 5
        lines = Path("/proc/self/maps").read_text().splitlines()
        self.mapped.append([line for line in lines if "/checkpoints/" in line])


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells which files are mapped")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_lets_go_of_the_files_that_it_went_on_from(
    bench: Bench, optimizer: OptimizerName
) -> None:
    spec = replace(bench.spec, optimizer=optimizer)
    stopped = bench.fit(spec, OneEvaluation())
    assert isinstance(stopped, Stopped)
    assert stopped.checkpoint is not None
    assert (stopped.checkpoint / "best.safetensors").exists()
    observer = MapReader()
    bench.fit(spec, observer, attempt=2, checkpoint_seconds=0.0)
    assert not stopped.checkpoint.exists()
    assert observer.mapped == [[], []]

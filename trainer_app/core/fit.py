"""A whole training run, from the corpus to a model that is ready to be published."""

from __future__ import annotations

import shutil
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from backends.loading import model_family
from trainer_app.core.batches import Batches
from trainer_app.core.checkpoint import Checkpoints, Snapshot
from trainer_app.core.checkpoint_name import FOLDER
from trainer_app.core.compilation import Compilation, resolve_compile
from trainer_app.core.data import Data, prepare_data
from trainer_app.core.device import (
    DataLoading,
    Fingerprint,
    data_loading,
    deterministic_algorithms,
    device_name,
    fingerprint,
    forget_peak_memory,
    fresh_accelerator,
    keep_freed_memory,
    out_of_memory_named,
    recommended_batch_size_for,
    release_memory,
    resolve_device,
    resolve_precision,
    use_threads,
    versions,
)
from trainer_app.core.evaluate import Evaluation
from trainer_app.core.feed import Feed
from trainer_app.core.files import disk_full_named, fsync_tree, sha256_file
from trainer_app.core.layers import use_kernels
from trainer_app.core.loop import Loop, Place
from trainer_app.core.loss import LanguageModelLoss
from trainer_app.core.model import initial_model
from trainer_app.core.observer import Observer, StartReport, StopReason
from trainer_app.core.optim import make_optimizer
from trainer_app.core.perplexity import perplexity
from trainer_app.core.run_files import Finished, Inputs, Stopped, Workspace
from trainer_app.core.stopping import StopRequested, heed
from trainer_app.errors import DiskFull, IdsChanged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.contracts import CausalModel
    from trainer_app.core.spec import TrainSpec
    from trainer_app.core.streams import TokenStream


def fit(
    spec: TrainSpec, inputs: Inputs, workspace: Workspace, observer: Observer
) -> Finished | Stopped:
    """Train one model, going on from the newest checkpoint of the run where there is one.

    Equal specs, corpora and tokenizers give equal bytes within a device fingerprint, however
    often the run is interrupted. Raises TrainerError: what is wrong with corpus, model, device,
    memory or disk; IdsChanged where another attempt can make it good.
    """
    try:
        return _Attempt(spec, inputs, workspace, observer).fit()
    except StopRequested as stop:  # before there was anything to keep
        return Stopped(reason=stop.reason, step=0, checkpoint=None)
    finally:
        release_memory()


class _Attempt:
    def __init__(
        self, spec: TrainSpec, inputs: Inputs, workspace: Workspace, observer: Observer
    ) -> None:
        self._spec = spec
        self._inputs = inputs
        self._workspace = workspace
        self._observer = observer
        self._checkpoints = Checkpoints(
            workspace.run / FOLDER,
            attempt=workspace.attempt,
            run_id=workspace.run_id,
            confirm=self._confirm,
            summed_by=workspace.summed_by,
        )
        self._staging = workspace.staging
        # What is not yet taken up. Here alone: its tensors are mapped files, which keep their place
        # on the disk and in memory, though deleted, for as long as anything refers to them.
        self._found: tuple[Snapshot, Path] | None = None
        self._read: Sequence[TokenStream] = ()  # from the disk, while the run goes on
        self._left_out: list[str] = []  # damaged checkpoints, as they were reported

    def fit(self) -> Finished | Stopped:
        before = self._find_checkpoint()
        loading = self._resolve(before)
        spec = self._spec
        threads = use_threads(before.threads if before else self._workspace.max_threads)
        keep_freed_memory()
        forget_peak_memory(self._device)
        data = prepare_data(
            spec,
            corpus=self._inputs.corpus,
            tokenizer_directory=self._inputs.tokenizer or self._inputs.base_model,
            scratch=self._staging / "tokenizer",
            tokens=self._workspace.tokens,
            on_message=self._observer.on_message,
            should_stop=self._observer.should_stop,
            begun_with=self._found[0].state.tokenizer_sha256 if self._found else None,
        )
        batches = Batches(
            data.streams.train.ids,
            seq_len=spec.max_seq_len,
            batch_size=spec.batch_size,
            accumulation=spec.gradient_accumulation_steps,
            seed=spec.seed,
        )
        what = (
            f"{spec.model_family} {spec.model_size} with batch_size {batches.batch_size} "
            f"and max_seq_len {spec.max_seq_len}"
        )
        with (
            deterministic_algorithms(self._device, wanted=spec.deterministic),
            out_of_memory_named(what, self._device),
            Feed(batches, device=self._device, loading=loading) as feed,
        ):
            self._read = data.streams.all
            if feed.is_resident:
                self._check_ids()  # of which the copy was made
                self._read = data.streams.all[1:]
            place = self._place(data, feed, threads)
            loop = Loop(
                spec=spec,
                data=data,
                place=place,
                observer=self._observer,
                checkpoints=self._checkpoints,
                checkpoint_seconds=self._workspace.checkpoint_seconds,
                is_cut_off=self._workspace.is_cut_off,
                await_folder=self._workspace.await_folder,
            )
            with closing(loop):
                self._begin(loop, place, data)
                return self._run(loop, place, data)

    def _find_checkpoint(self) -> Fingerprint | None:
        """Look for what to go on from; where that was trained."""
        self._found = self._checkpoints.load_newest(self._report_damage)
        if self._found is None:
            return None
        snapshot, _ = self._found
        return snapshot.fingerprint

    def _resolve(self, before: Fingerprint | None) -> DataLoading:
        """Choose what the request leaves to the worker; from here on the spec says what that is."""
        spec = self._spec
        self._device = resolve_device(spec.device, before)
        self._precision = resolve_precision(spec.precision, self._device, before)
        compiled, self._why_not_compiled = resolve_compile(
            spec.torch_compile, self._device, self._precision, deterministic=spec.deterministic
        )
        loading = data_loading(spec.data_num_workers, spec.data_pin_memory, self._device)
        self._spec = replace(
            spec,
            device=self._device,
            precision=self._precision,
            torch_compile=compiled,
            data_num_workers=loading.workers,
            data_pin_memory=loading.pin_memory,
        )
        return loading

    def _confirm(self) -> None:
        """Of a checkpoint that is about to appear: raises IdsChanged, and what the workspace's."""
        self._check_ids()
        self._workspace.confirm()

    def _check_ids(self) -> None:
        """Raise IdsChanged where others than those that were written may have been read."""
        for stream in self._read:
            stream.check()

    def _report_damage(self, message: str) -> None:
        self._left_out.append(message)
        self._observer.on_message(message)

    def _place(self, data: Data, feed: Feed, threads: int) -> Place:
        """Model, optimizer and Accelerate on the device."""
        spec = self._spec
        accelerator = fresh_accelerator(self._device, self._precision, feed.batches.accumulation)
        model = initial_model(spec, data, self._inputs.base_model).to(accelerator.device)
        compilation = self._compilation(model, feed.batches)  # first: it says where kernels go
        use_kernels(model, self._precision, self._observer.on_message)
        loss = LanguageModelLoss(model, fp8=self._precision == "fp8")
        prepared, optimizer = accelerator.prepare(loss, make_optimizer(model, spec))
        return Place(
            accelerator=accelerator,
            model=model,
            prepared=prepared,
            optimizer=optimizer,
            feed=feed,
            fingerprint=fingerprint(self._device, self._precision, threads),
            compilation=compilation,
        )

    def _compilation(self, model: CausalModel, batches: Batches) -> Compilation:
        spec = self._spec
        return Compilation(
            model,
            choice=spec.torch_compile,
            why_off=self._why_not_compiled,
            name=(
                f"{spec.model_family} {spec.model_size}, {batches.batch_size} x {batches.seq_len}, "
                f"{self._precision} on {device_name(self._device)}, torch {torch.__version__}"
            ),
            passes=batches.accumulation,
            cache=self._workspace.compiled,
        )

    def _begin(self, loop: Loop, place: Place, data: Data) -> None:
        """Take up the checkpoint, if any, let go of it, and announce the start."""
        found, self._found = self._found, None
        spec = self._spec
        size = spec.batch_size
        advised = recommended_batch_size_for(spec.model_family, size, self._device)
        if advised != size and found is None:  # pragma: needs cuda
            self._observer.on_message(
                f"batch_size {size} leaves most of a GPU idle: {advised} is recommended for "
                f"{spec.model_family}, where memory and corpus allow it"
            )
        if found is not None:
            snapshot, path = found
            loop.restore(snapshot)
            self._observer.on_message(f"resuming at step {loop.state.step} from {path.name}")
        loop.state.tokenizer_sha256 = data.tokenizer_sha256
        loop.state.train_on(place.fingerprint)
        if len(loop.state.fingerprints) > 1:
            *others, last = map(str, loop.state.fingerprints)
            self._observer.on_message(
                f"the run is trained on {', '.join(others)} and {last}: the result may differ from "
                "that of one place"
            )
        self._observer.on_start(
            StartReport(
                spec=spec,
                model_family=spec.model_family,
                model_size=spec.model_size,
                parameters=sum(parameter.numel() for parameter in place.model.parameters()),
                total_epochs=1 + loop.batches.epoch(loop.total_steps - 1),
                total_steps=loop.total_steps,
                first_step=loop.state.step,
                batch_size=loop.batches.batch_size,
                learning_rate=spec.peak_learning_rate,
                max_seq_len=spec.max_seq_len,
                train_tokens=len(data.streams.train),
                validation_tokens=len(data.streams.validation),
                test_tokens=len(data.streams.test),
                device=place.fingerprint.device,
                device_name=place.fingerprint.device_name,
                precision=place.fingerprint.precision,
                threads=place.fingerprint.threads,
                resumed_from=None if found is None else found[1].name,
                loss_chain=loop.state.loss_chain,
                left_out=tuple(self._left_out),
            )
        )

    def _run(self, loop: Loop, place: Place, data: Data) -> Finished | Stopped:
        try:
            self._observer.on_message("training")
            loop.run()
            loop.adopt_best()
            test = None
            if len(data.streams.test):
                self._observer.on_message("evaluating on the test split")
                test = loop.evaluate(data.streams.test)
            elif not len(data.streams.validation):
                self._read = data.streams.all  # of the first one some ids, though a GPU has a copy
                loop.check_weights()
            self._check_ids()
            self._workspace.await_folder(self._observer.on_message)
            self._observer.on_message("saving the model")
            # Others who ask to stop are better served by the end, which is near.
            heed(cancelled=self._observer.should_stop() is StopReason.CANCEL)
            finished = self._finished(loop, place, data, test)
            heed(cancelled=self._workspace.is_cancelled())
        except StopRequested as stop:
            return self._stopped(loop, stop.reason)
        except Exception:  # no id of the vocabulary, for example
            self._check_ids()  # before it is said to be the user's fault, or the engine's
            raise
        return finished

    def _stopped(self, loop: Loop, reason: StopReason) -> Stopped:
        """Keep what there is, where it is whole and still this attempt's."""
        checkpoint = None
        if reason is not StopReason.FENCED:
            shutil.rmtree(self._staging / "model", ignore_errors=True)
            if loop.torn:
                step = loop.state.step + 1
                self._observer.on_message(
                    f"interrupted within step {step}: the checkpoint before it counts"
                )
            else:
                checkpoint = self._last_checkpoint(loop)
        return Stopped(reason=reason, step=loop.state.step, checkpoint=checkpoint)

    def _last_checkpoint(self, loop: Loop) -> Path | None:
        """What a stop keeps; where the disk does not take it, the stop is no failure for that."""
        # A disk that did not take the one before may take this one, which says so if it does not.
        with suppress(DiskFull, OSError, IdsChanged):
            loop.finish_checkpoint()
        try:
            return loop.checkpoint()
        except (DiskFull, OSError, IdsChanged, StopRequested) as error:
            self._observer.on_message(
                f"no checkpoint of step {loop.state.step} could be written, the one before it "
                f"counts: {error}"
            )
            return None

    def _finished(self, loop: Loop, place: Place, data: Data, test: Evaluation | None) -> Finished:
        """Write the model that is to be published."""
        directory = self._staging / "model"
        shutil.rmtree(directory, ignore_errors=True)
        family = model_family(self._spec.model_family)
        with disk_full_named(directory):
            directory.mkdir(parents=True)
            family.save(place.model, directory)
            data.tokenizer.save(directory)
        fsync_tree(directory)
        state = loop.state
        return Finished(
            directory=directory,
            spec=self._spec,
            steps=state.step,
            batch_size=loop.batches.batch_size,
            accumulation=loop.batches.accumulation,
            epochs=1 + loop.batches.epoch(state.step - 1),
            early_stopped=state.early_stopped,
            final_loss=state.last_loss,
            final_perplexity=perplexity(state.last_loss),
            loss_chain=state.loss_chain,
            best_val_loss=state.best_val_loss,
            test_loss=test.loss if test else None,
            test_perplexity=test.perplexity if test else None,
            bits_per_byte=test.bits_per_byte if test else None,
            training_seconds=state.training_seconds,
            device=place.fingerprint.device,
            device_name=place.fingerprint.device_name,
            precision=place.fingerprint.precision,
            threads=place.fingerprint.threads,
            tokenizer_sha256=data.tokenizer_sha256,
            weights_sha256=sha256_file(directory / "model.safetensors"),
            versions=versions(),
            loads_in_transformers=family.loads_in_transformers,
            fingerprints=state.fingerprints,
            execution=loop.execution,
            performance=loop.performance(),
        )

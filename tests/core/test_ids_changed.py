"""Token ids that are changed while a run reads them: nothing that lasts is made of them."""

from __future__ import annotations

import errno
import os
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import pytest

from tests.training_bench import Bench, Recorder
from trainer_app.core import evaluate_run, feed, token_files
from trainer_app.core.checkpoint_name import FOLDER
from trainer_app.core.feed import Feed
from trainer_app.core.loaded import LoadedModel, load_model
from trainer_app.core.observer import StepReport, StopReason
from trainer_app.core.run_files import Finished, Stopped
from trainer_app.core.splits import Split
from trainer_app.core.stopping import never
from trainer_app.core.token_files import State, Sum, Watch
from trainer_app.errors import IdsChanged, LossNotFinite

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer_app.core.device import ResolvedDevice
    from trainer_app.core.evaluate import Evaluation
    from trainer_app.core.spec import RequestedDevice, TrainSpec

Change = Callable[[Path], object]


class Common(TypedDict):
    """What evaluations of both kinds are given."""

    spec: TrainSpec
    tokens: Path
    device: RequestedDevice
    on_message: Callable[[str], None]
    should_stop: Callable[[], StopReason | None]


GRAIN_SECONDS = 0.05  # more than that of a file system's clock


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a test are young; they are told by their times from later ones, as old ones are."""
    monkeypatch.setattr(token_files, "SETTLED_NS", -1)


def zero(path: Path) -> None:
    """The middle, in place: the file stays the one that is mapped."""
    size = path.stat().st_size
    time.sleep(GRAIN_SECONDS)
    with path.open("r+b") as file:
        file.seek(size // 4)
        file.write(bytes(size // 2))


def fill(path: Path) -> None:
    """With ids that no vocabulary has."""
    time.sleep(GRAIN_SECONDS)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\xff" * size)


def touch(path: Path) -> None:
    time.sleep(GRAIN_SECONDS)
    path.touch()


def make_anew(path: Path) -> None:
    """As another run does that found it damaged: another file of the same bytes."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


@pytest.fixture
def ids(bench: Bench) -> Callable[[], list[Path]]:
    """The files that a run reads: all splits."""

    def find() -> list[Path]:
        return sorted((bench.folder / "tokens").glob("*/*/*.bin"))

    return find


@dataclass
class At(Recorder):
    """Does something when a step, or an evaluation, is told."""

    step: int = 6
    change: Callable[[], object] = lambda: None
    done: bool = field(default=False)

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        super().on_steps(steps)
        if steps[-1].step >= self.step and not self.done:
            self.done = True
            self.change()


def weights(finished: Finished) -> bytes:
    return (finished.directory / "model.safetensors").read_bytes()


def to_each(change: Change, find: Callable[[], list[Path]]) -> Callable[[], None]:
    def act() -> None:
        for path in find():
            change(path)

    return act


@pytest.fixture
def whole(bench: Bench) -> bytes:
    """What an undisturbed run ends in; the ids are there from then on."""
    return weights(bench.finish(bench.spec, run="whole"))


def test_a_run_whose_ids_are_damaged_while_it_reads_them_ends_in_an_error_and_then_in_its_bytes(
    bench: Bench, ids: Callable[[], list[Path]], whole: bytes
) -> None:
    observer = At(change=to_each(zero, ids))
    with pytest.raises(IdsChanged, match=r"/\w+\.bin: its token ids were changed while they were"):
        bench.fit(bench.spec, observer, checkpoint_seconds=0.0)
    kept = sorted(path.name for path in (bench.folder / "run" / FOLDER).iterdir())
    assert kept
    assert not [name for name in kept if name.startswith(".")]
    assert max(int(name.split("-")[1]) for name in kept) <= 6  # of what was right

    again = Recorder()
    finished = bench.fit(bench.spec, again, attempt=2, checkpoint_seconds=0.0)
    assert isinstance(finished, Finished)
    assert again.starts[0].resumed_from == kept[-1]
    assert [message for message in again.messages if message.startswith("WARNING: damaged")]
    assert weights(finished) == whole


def test_ids_that_are_none_of_the_vocabulary_are_told_by_their_file(
    bench: Bench, ids: Callable[[], list[Path]], whole: bytes
) -> None:
    assert whole
    with pytest.raises(IdsChanged, match=r"/\w+\.bin: its token ids were changed while they were"):
        bench.fit(bench.spec, At(change=to_each(fill, ids)))


def test_a_run_without_a_checkpoint_publishes_nothing_that_was_learnt_from_damaged_ids(
    bench: Bench, ids: Callable[[], list[Path]], whole: bytes
) -> None:
    spec = replace(bench.spec, eval_steps=100)
    observer = At(change=to_each(zero, lambda: [ids()[1]]))
    with pytest.raises(IdsChanged, match=r"/train\.bin: "):
        bench.fit(spec, observer)
    assert "saving the model" not in observer.messages
    assert weights(bench.finish(bench.spec, attempt=2)) == whole


@pytest.mark.parametrize("split", ["validation", "test"])
def test_nothing_is_told_of_an_evaluation_on_damaged_ids(
    bench: Bench, ids: Callable[[], list[Path]], whole: bytes, split: str
) -> None:
    def damage() -> None:
        (path,) = [path for path in ids() if path.stem == split]
        zero(path)

    observer = At(change=damage)
    with pytest.raises(IdsChanged, match=rf"/{split}\.bin: "):
        bench.fit(bench.spec, observer)
    told = [evaluation.step for evaluation in observer.evaluations]
    assert told == ([4] if split == "validation" else [4, 8, 12])
    assert weights(bench.finish(bench.spec, attempt=2)) == whole


@pytest.mark.parametrize("change", [touch, make_anew, Path.unlink])
def test_a_file_that_was_touched_made_anew_or_cleaned_away_is_no_damage(
    bench: Bench, ids: Callable[[], list[Path]], whole: bytes, change: Change
) -> None:
    finished = bench.fit(bench.spec, At(change=to_each(change, ids)), checkpoint_seconds=0.0)
    assert isinstance(finished, Finished)
    assert weights(finished) == whole


def test_damage_is_found_too_where_the_name_was_taken_away_after_it(
    bench: Bench, ids: Callable[[], list[Path]], whole: bytes
) -> None:
    def damage_and_remove(path: Path) -> None:
        zero(path)
        path.unlink()

    with pytest.raises(IdsChanged):
        bench.fit(bench.spec, At(change=to_each(damage_and_remove, ids)))
    assert weights(bench.finish(bench.spec, attempt=2)) == whole


@dataclass
class ChangesWhatWasCleanedAway(At):
    """By another name, some steps after the first one has gone."""

    links: list[Path] = field(default_factory=list)

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        super().on_steps(steps)
        if steps[-1].step >= self.step + 2:
            for link in self.links:
                zero(link)
            self.links.clear()


def test_damage_is_found_too_where_it_comes_through_another_name_once_the_first_has_gone(
    bench: Bench, ids: Callable[[], list[Path]], whole: bytes
) -> None:
    observer = ChangesWhatWasCleanedAway()

    def rename(path: Path) -> None:
        observer.links.append(path.rename(bench.folder / path.name))

    observer.change = to_each(rename, ids)
    with pytest.raises(IdsChanged):
        bench.fit(bench.spec, observer, checkpoint_seconds=0.0)
    assert observer.links == []
    assert weights(bench.finish(bench.spec, attempt=2)) == whole


def test_a_file_is_let_go_of_with_what_is_read_of_it(bench: Bench, whole: bytes) -> None:
    before = sorted(Path("/dev/fd").iterdir())
    assert weights(bench.finish(bench.spec)) == whole
    assert sorted(Path("/dev/fd").iterdir()) == before


def test_a_file_that_is_longer_than_it_was_is_damaged(
    bench: Bench, ids: Callable[[], list[Path]], whole: bytes
) -> None:
    def lengthen(path: Path) -> None:
        with path.open("ab") as file:
            file.write(bytes(8))

    with pytest.raises(IdsChanged):
        bench.fit(bench.spec, At(change=to_each(lengthen, ids)))
    assert weights(bench.finish(bench.spec, attempt=2)) == whole


def test_a_stop_after_the_ids_were_damaged_keeps_the_checkpoint_before_and_is_no_failure(
    bench: Bench, ids: Callable[[], list[Path]]
) -> None:
    spec = replace(bench.spec, eval_steps=100)
    whole = weights(bench.finish(spec, run="whole"))
    bench.fit(spec, Recorder(stop_after=4), attempt=1)
    observer = At(step=5, stop_after=6, change=to_each(zero, lambda: [ids()[1]]))
    stopped = bench.fit(spec, observer, attempt=2)
    assert isinstance(stopped, Stopped)
    assert stopped.checkpoint is None
    told = f"no checkpoint of step {stopped.step} could be written, the one before it counts: "
    assert any(message.startswith(told) for message in observer.messages)
    assert weights(bench.finish(spec, attempt=3)) == whole


def test_a_loss_that_is_not_finite_is_not_the_users_fault_where_the_ids_were_damaged(
    bench: Bench, ids: Callable[[], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.finish(bench.spec, run="whole")

    def diverge() -> None:
        raise LossNotFinite("the loss is nan")

    with pytest.raises(LossNotFinite):
        bench.fit(bench.spec, At(change=diverge))

    def damage_and_diverge() -> None:
        zero(ids()[1])
        diverge()

    with pytest.raises(IdsChanged):
        bench.fit(bench.spec, At(change=damage_and_diverge), attempt=2)


def test_ids_of_which_a_gpu_has_a_copy_are_asked_for_up_to_then(
    bench: Bench,
    ids: Callable[[], list[Path]],
    whole: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = replace(bench.spec, eval_steps=100)
    (train,) = [path for path in ids() if path.stem == "train"]
    monkeypatch.setattr(Feed, "is_resident", True)
    observer = At(step=12, change=lambda: zero(train))
    assert isinstance(bench.fit(spec, observer, run="copied"), Finished)
    bench.finish(bench.spec, run="heals")

    monkeypatch.setattr(feed, "resident_ids", lambda *_: zero(train))
    with pytest.raises(IdsChanged, match=r"/train\.bin: "):
        bench.fit(spec, Recorder(), run="while copied")


@pytest.mark.parametrize("change", [zero, fill])
def test_ids_that_are_read_beside_a_copy_once_nothing_is_held_out_are_asked_for_to_the_end(
    bench: Bench,
    ids: Callable[[], list[Path]],
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
) -> None:
    spec = replace(bench.spec, holdout_fraction=0.0, test_split_ratio=0.0)
    monkeypatch.setattr(Feed, "is_resident", True)
    bench.finish(spec, run="whole")
    with pytest.raises(IdsChanged, match=r"/train\.bin: "):
        bench.fit(spec, At(step=12, change=to_each(change, ids)))


def never_sum(_watch: Watch) -> None:
    raise AssertionError("they were summed again")


def test_a_run_does_not_sum_its_ids_a_second_time(
    bench: Bench, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watch, "_sum", never_sum)
    finished = bench.fit(bench.spec, Recorder(), checkpoint_seconds=0.0)
    assert isinstance(finished, Finished)
    assert weights(finished) == whole


def test_ids_that_were_only_just_written_are_summed_once_more(
    bench: Bench, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "SETTLED_NS", 1 << 60)
    monkeypatch.setattr(Watch, "_sum", never_sum)
    with pytest.raises(AssertionError, match="summed again"):
        bench.fit(bench.spec, Recorder())


@dataclass(kw_only=True)
class DamagesWhatIsSplit(Recorder):
    """Once, before the first ids are read for it."""

    entry: Path

    def should_stop(self) -> StopReason | None:
        if not self.asked and any(self.entry.glob(".split*")):
            self.asked += 1
            zero(self.entry / "ids.bin")
        return super().should_stop()


def test_a_split_of_ids_that_were_damaged_while_it_was_made_is_not_kept(
    bench: Bench, whole: bytes
) -> None:
    (entry,) = (bench.folder / "tokens").iterdir()
    shutil.rmtree(next(entry.glob("split*")))
    observer = DamagesWhatIsSplit(entry=entry)
    finished = bench.fit(bench.spec, observer)
    assert isinstance(finished, Finished)
    assert weights(finished) == whole
    warnings = [message for message in observer.messages if message.startswith("WARNING")]
    assert warnings == [
        f"WARNING: damaged token ids are made anew: {entry.name}: ids.bin is not what was written"
    ]


@pytest.mark.parametrize("of_a_split", [True, False], ids=["a split", "another text"])
def test_an_evaluation_of_ids_that_were_damaged_meanwhile_is_an_error_and_right_the_next_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, of_a_split: bool
) -> None:
    model = bench.finish(bench.spec).directory
    common = Common(
        spec=bench.spec,
        tokens=bench.folder / "tokens",
        device="cpu",
        on_message=lambda _message: None,
        should_stop=never,
    )

    def measure() -> Evaluation:
        if of_a_split:
            return evaluate_run.evaluate_run(model, Split.TEST, corpus=bench.corpus, **common)
        sha256 = bench.spec.corpus_sha256
        return evaluate_run.evaluate_text(model, bench.corpus, sha256=sha256, **common)

    right = measure()
    name = "test" if of_a_split else "ids"

    def damage_and_load(directory: Path, *, device: ResolvedDevice) -> LoadedModel:
        (path,) = (bench.folder / "tokens").rglob(f"{name}.bin")
        zero(path)
        return load_model(directory, device=device)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_run, "load_model", damage_and_load)
        with pytest.raises(IdsChanged, match=rf"/{name}\.bin: "):
            measure()
    assert measure() == right


@pytest.fixture
def one_file(tmp_path: Path) -> tuple[Path, NDArray[np.uint16], State]:
    """A file of ids, the ids that are mapped of it, and how it was when it was summed."""
    path = tmp_path / "ids.bin"
    np.arange(1_000, dtype=np.uint16).tofile(path)
    data = path.read_bytes()
    state = State.of(path.stat(), Sum(bytes=len(data), crc32=zlib.crc32(data)))
    return path, np.memmap(path, dtype=np.uint16, mode="r"), state


def test_a_file_that_was_made_anew_while_it_was_mapped_is_read_anew(
    one_file: tuple[Path, NDArray[np.uint16], State],
) -> None:
    """Whether the old one or the new was mapped nobody can tell."""
    path, ids, state = one_file
    make_anew(path)
    with pytest.raises(FileNotFoundError, match="it was made anew meanwhile"):
        Watch(path, ids, state)


def test_a_file_of_a_network_that_is_gone_is_summed_as_far_as_it_is_mapped(
    one_file: tuple[Path, NDArray[np.uint16], State], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ids, state = one_file
    watch = Watch(path, ids, state)

    def fail(_descriptor: int) -> os.stat_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fail)
        watch.check()
    zero(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fail)
        with pytest.raises(IdsChanged):
            watch.check()

"""Checkpoints that are whole or not there."""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer_app.core import checkpoint
from trainer_app.core.checkpoint import Checkpoints, Snapshot
from trainer_app.core.device import ENGINE, fingerprint, random_states
from trainer_app.core.files import sha256_file
from trainer_app.core.run_state import RunState
from trainer_app.core.tensors import (
    Tensors,
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
    save_tensors,
)


def snapshot(step: int, best_step: int = 0) -> Snapshot:
    values = torch.full((3, 2), float(step))
    state = RunState(step=step, best_step=best_step, best_val_loss=1.5 if best_step else None)
    state.train_on(fingerprint("cpu", "fp32", 1))
    return Snapshot(
        state=state,
        fingerprint=fingerprint("cpu", "fp32", 1),
        model={"weight": values},
        optimizer={"weight/step": torch.tensor(float(step))},
        random=random_states("cpu"),
        best={"weight": torch.full((3, 2), float(best_step))} if best_step else None,
        scaler={"scale": 65536.0},
    )


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", attempt=1)


def fail(message: str) -> None:
    pytest.fail(message)


def test_what_is_no_longer_to_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    class Lost(Exception):
        """Another attempt has the run."""

    def refuse() -> None:
        raise Lost

    directory = tmp_path / "checkpoints"
    before = Checkpoints(directory, attempt=1).save(snapshot(1))
    with pytest.raises(Lost):
        Checkpoints(directory, attempt=1, confirm=refuse).save(snapshot(2))

    assert list(directory.iterdir()) == [before]


def test_what_is_saved_is_loaded(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(snapshot(7, best_step=3))
    found = checkpoints.load_newest(fail)
    assert found is not None
    loaded, where = found
    assert where == path
    assert path.name == "step-000000007-attempt-1"
    assert loaded.state == snapshot(7, best_step=3).state
    assert loaded.fingerprint == fingerprint("cpu", "fp32", 1)
    assert loaded.scaler == {"scale": 65536.0}
    assert loaded.model["weight"].tolist() == [[7.0, 7.0]] * 3
    assert loaded.best is not None
    assert loaded.best["weight"][0, 0] == 3.0
    assert torch.equal(loaded.random["cpu"], torch.get_rng_state())


def test_a_run_without_checkpoints_starts_afresh(checkpoints: Checkpoints) -> None:
    assert checkpoints.load_newest(fail) is None


def test_two_are_kept_and_the_last_written_is_the_newest(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    for step in (1, 2, 3, 3):
        checkpoints.save(snapshot(step))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000002-attempt-1", "step-000000003-attempt-1"]
    # a later attempt may have had to go back further
    path = Checkpoints(tmp_path / "checkpoints", attempt=2).save(snapshot(1))
    found = checkpoints.load_newest(fail)
    assert found is not None
    assert found[1] == path


def file_of_best(checkpoint: Path) -> int:
    return (checkpoint / "best.safetensors").stat().st_ino


def test_best_weights_that_stay_the_best_are_not_written_again_and_again(
    checkpoints: Checkpoints,
) -> None:
    files = [file_of_best(checkpoints.save(snapshot(step, best_step=1))) for step in range(1, 7)]
    assert files[0] == files[2] == files[4]
    assert files[1] == files[3] == files[5]
    assert files[0] != files[1]  # what happens to one is not to happen to the other
    newer = checkpoints.save(snapshot(7, best_step=7))
    assert file_of_best(newer) not in files


def test_a_checkpoint_at_the_same_step_shares_nothing_with_the_one_that_stays(
    checkpoints: Checkpoints,
) -> None:
    first = checkpoints.save(snapshot(1, best_step=1))
    checkpoints.save(snapshot(2, best_step=1))
    again = checkpoints.save(snapshot(2, best_step=1))
    assert file_of_best(again) != file_of_best(first)


def test_a_resumed_attempt_shares_nothing_with_the_checkpoint_that_it_came_from(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "checkpoints"
    first = Checkpoints(directory, attempt=1).save(snapshot(1, best_step=1))
    resumed = Checkpoints(directory, attempt=2)
    resumed.load_newest(fail)
    second = resumed.save(snapshot(2, best_step=1))
    assert file_of_best(second) != file_of_best(first)


@pytest.mark.parametrize("by_hand", [shutil.rmtree, lambda path: flip(path / "best.safetensors")])
def test_best_weights_are_written_again_where_those_on_disk_are_gone_or_damaged(
    checkpoints: Checkpoints, by_hand: Callable[[Path], None]
) -> None:
    first = checkpoints.save(snapshot(1, best_step=1))
    checkpoints.save(snapshot(2, best_step=1))
    by_hand(first)
    third = checkpoints.save(snapshot(3, best_step=1))
    found = checkpoints.load_newest(fail)
    assert found is not None
    assert found[1] == third


def flip(path: Path) -> None:
    with path.open("r+b") as file:  # in place, as a disk would
        content = file.read()
        file.seek(len(content) // 2)
        file.write(bytes([content[len(content) // 2] ^ 1]))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def zero(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


def replace_with_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_with_a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def replace_with_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_with_a_socket(path: Path) -> None:
    path.unlink()
    os.mknod(path, 0o600 | stat.S_IFSOCK)


def replace_with_a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "damage", [replace_with_a_fifo, replace_with_a_loop, replace_with_a_socket]
)
def test_best_weights_that_cannot_be_read_back_cost_no_checkpoint(
    checkpoints: Checkpoints, damage: Callable[[Path], None]
) -> None:
    first = checkpoints.save(snapshot(1, best_step=1))
    checkpoints.save(snapshot(2, best_step=1))
    damage(first / "best.safetensors")
    third = checkpoints.save(snapshot(3, best_step=1))
    found = checkpoints.load_newest(fail)
    assert found is not None
    assert found[1] == third
    assert found[0].best is not None
    assert found[0].best["weight"].tolist() == [[1.0, 1.0]] * 3


FILES = (
    "model.safetensors",
    "optimizer.safetensors",
    "rng.safetensors",
    "best.safetensors",
    "state.json",
    "MANIFEST.json",
)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        truncate,
        empty,
        zero,
        Path.unlink,
        replace_with_a_folder,
        replace_with_a_loop,
        replace_with_a_fifo,
        replace_with_a_socket,
        replace_with_a_device,
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    checkpoints: Checkpoints, damage: Callable[[Path], None], name: str
) -> None:
    for step in (1, 2):
        checkpoints.save(snapshot(step, best_step=1))
    good = checkpoints.save(snapshot(3, best_step=1))
    bad = checkpoints.save(snapshot(4, best_step=1))
    assert sorted(path.name for path in bad.iterdir()) == sorted(FILES)
    damage(bad / name)
    messages: list[str] = []
    found = checkpoints.load_newest(messages.append)
    assert found is not None
    assert found[1] == good
    (message,) = messages
    assert message.startswith(f"checkpoint {bad.name} is damaged and left out: ")
    assert name in message or name == "MANIFEST.json"
    assert not bad.exists()
    assert not list(good.parent.glob(".*"))


def test_a_folder_without_its_files_is_no_checkpoint(checkpoints: Checkpoints) -> None:
    good = checkpoints.save(snapshot(1))
    (good.parent / "step-000000002-attempt-1").mkdir()
    messages: list[str] = []
    found = checkpoints.load_newest(messages.append)
    assert found is not None
    assert found[1] == good
    assert "No such file or directory: MANIFEST.json" in messages[0]


@contextmanager
def no_file_to_be_opened() -> Iterator[None]:
    """As when a process has as many open as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    files = []
    try:
        with suppress(OSError):
            while True:
                files.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_fault_that_is_not_the_checkpoints_costs_none(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(snapshot(1))
    with no_file_to_be_opened(), pytest.raises(OSError, match="Too many open"):
        checkpoints.load_newest(fail)
    found = checkpoints.load_newest(fail)
    assert found is not None
    assert found[1] == path


def test_files_that_may_not_be_read_are_not_taken_for_damaged(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(snapshot(1))
    manifest = path / "MANIFEST.json"
    manifest.unlink()
    manifest.symlink_to("x" * 300)  # a refusal that root gets, too

    with pytest.raises(OSError, match="File name too long"):
        checkpoints.load_newest(fail)
    assert path.exists()


def rewrite_state(path: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    """As another version might have written it."""
    state = json.loads((path / "state.json").read_text())
    change(state)
    (path / "state.json").write_text(json.dumps(state))
    sign(path, "state.json")


def sign(path: Path, name: str) -> None:
    """Let the manifest hold a file's digest as it is now."""
    digests = json.loads((path / "MANIFEST.json").read_text())
    digests[name] = sha256_file(path / name)
    (path / "MANIFEST.json").write_text(json.dumps(digests))


def test_a_checkpoint_of_a_newer_version_that_says_more_is_taken_up(
    checkpoints: Checkpoints,
) -> None:
    path = checkpoints.save(snapshot(1))

    def add(state: dict[str, dict[str, object]]) -> None:
        state["state"]["mood"] = state["fingerprint"]["mood"] = "good"

    rewrite_state(path, add)
    found = checkpoints.load_newest(fail)
    assert found is not None
    assert found[0].state == snapshot(1).state


def test_a_whole_checkpoint_that_this_version_does_not_understand_is_not_deleted(
    checkpoints: Checkpoints,
) -> None:
    path = checkpoints.save(snapshot(1))

    def leave_out(state: dict[str, dict[str, object]]) -> None:
        del state["fingerprint"]["threads"]

    rewrite_state(path, leave_out)
    with pytest.raises(KeyError, match="threads"):
        checkpoints.load_newest(fail)
    assert path.exists()


@pytest.mark.parametrize("manifest", ["{}", "[]", '{"state.json": 1}'])
def test_a_manifest_that_does_not_name_every_file_is_damaged(
    checkpoints: Checkpoints, manifest: str
) -> None:
    good = checkpoints.save(snapshot(1))
    bad = checkpoints.save(snapshot(2))
    (bad / "MANIFEST.json").write_text(manifest)
    messages: list[str] = []
    found = checkpoints.load_newest(messages.append)
    assert found is not None
    assert found[1] == good
    assert messages[0].startswith(f"checkpoint {bad.name} is damaged and left out: MANIFEST.json")
    assert not bad.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_what_cannot_be_loaded_though_its_digests_are_right_is_left_out(
    checkpoints: Checkpoints, name: str
) -> None:
    good = checkpoints.save(snapshot(1))
    bad = checkpoints.save(snapshot(2))
    (bad / name).write_text("{}")
    sign(bad, name)
    messages: list[str] = []
    found = checkpoints.load_newest(messages.append)
    assert found is not None
    assert found[1] == good
    (message,) = messages
    assert message.startswith(f"checkpoint {bad.name} is damaged and left out: it cannot be loaded")
    assert not bad.exists()


def test_a_checkpoint_of_a_version_that_kept_no_fingerprints_has_its_own(
    checkpoints: Checkpoints,
) -> None:
    path = checkpoints.save(snapshot(1))

    def leave_out(state: dict[str, dict[str, object]]) -> None:
        del state["state"]["fingerprints"]

    rewrite_state(path, leave_out)
    found = checkpoints.load_newest(fail)
    assert found is not None
    assert found[0].state.fingerprints == (fingerprint("cpu", "fp32", 1),)


def test_a_checkpoint_of_a_version_without_a_chain_has_none(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(snapshot(1))

    def leave_out(state: dict[str, dict[str, object]]) -> None:
        del state["state"]["loss_chain"]

    rewrite_state(path, leave_out)
    found = checkpoints.load_newest(fail)
    assert found is not None
    assert found[0].state.loss_chain is None


def test_what_a_crash_left_half_written_is_removed(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    half = tmp_path / "checkpoints" / ".step-000000009-attempt-1.0123456789abcdef.tmp"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert checkpoints.load_newest(fail) is None
    assert not half.exists()


def test_a_checkpoint_that_a_killed_process_was_about_to_replace_is_used(
    checkpoints: Checkpoints,
) -> None:
    path = checkpoints.save(snapshot(1))
    path.rename(path.with_name(f".{path.name}.{'0' * 16}.old"))
    found = checkpoints.load_newest(fail)
    assert found is not None
    assert found[1] == path


def test_a_write_that_fails_leaves_the_last_checkpoint_as_it_was(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, _tensors: Tensors) -> None:
        path.write_bytes(b"half")
        raise RuntimeError(path.name)

    good = checkpoints.save(snapshot(1))
    before = {path.name: path.read_bytes() for path in good.iterdir()}
    monkeypatch.setattr(checkpoint, "save_tensors", broken)
    with pytest.raises(RuntimeError, match="safetensors"):
        checkpoints.save(snapshot(2))
    assert {path.name: path.read_bytes() for path in good.iterdir()} == before
    assert list((tmp_path / "checkpoints").iterdir()) == [good]


def test_a_checkpoint_is_safetensors_and_json_with_a_digest_of_each(
    checkpoints: Checkpoints,
) -> None:
    path = checkpoints.save(snapshot(1, best_step=1))
    names = {entry.name for entry in path.iterdir()}
    assert {Path(name).suffix for name in names} == {".safetensors", ".json"}
    assert set(json.loads((path / "MANIFEST.json").read_text())) == names - {"MANIFEST.json"}


def test_an_error_of_the_disk_keeps_its_number(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        save_tensors(tmp_path / "missing" / "file", {"a": torch.zeros(1)})


class Tied(nn.Module):
    """Two names for one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.ones(1))


def test_a_tied_matrix_is_kept_once_and_buffers_are_kept() -> None:
    model, other = Tied(), Tied()
    assert set(model_tensors(model)) == {"embedding.weight", "scale"}
    load_model_tensors(other, model_tensors(model))
    assert torch.equal(other.head.weight, model.head.weight)


def test_an_optimizer_s_state_survives_by_name() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)

    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.AdamW([model.weight], lr=0.1, fused=True)

    first, second = optimizer(), optimizer()
    assert optimizer_tensors(model, first) == {}
    torch.autograd.backward(model(torch.ones(1, 3)).sum())
    first.step()
    tensors = optimizer_tensors(model, first)
    assert set(tensors) == {f"weight/{key}" for key in ("step", "exp_avg", "exp_avg_sq")}
    load_optimizer_tensors(model, second, tensors)
    for name, tensor in optimizer_tensors(model, second).items():
        assert torch.equal(tensor, tensors[name])


def test_a_checkpoint_of_a_version_that_did_not_number_its_engine_is_of_the_first(
    checkpoints: Checkpoints,
) -> None:
    path = checkpoints.save(snapshot(1))

    def leave_out(state: dict[str, dict[str, object]]) -> None:
        del state["fingerprint"]["engine"]

    rewrite_state(path, leave_out)
    found = checkpoints.load_newest(fail)
    assert found is not None
    assert found[0].fingerprint == replace(fingerprint("cpu", "fp32", 1), engine=1)
    assert found[0].fingerprint.engine < ENGINE

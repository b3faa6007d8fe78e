"""Sums of checkpoints' files, made and read by versions and machines that know different ones."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.test_checkpoint import snapshot
from trainer_app.core.checkpoint import Checkpoints
from trainer_app.core.sums import (
    ALGORITHMS,
    SHA256,
    XXH3,
    algorithm_of,
    is_sum_of,
    quickest,
    sum_of,
)
from trainer_app.errors import TrainerError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    return path


def fail(message: str) -> None:
    pytest.fail(message)


def test_a_sum_says_by_which_algorithm_it_was_made_unless_that_is_the_first_versions(
    path: Path,
) -> None:
    assert sum_of(path, SHA256) == hashlib.sha256(b"abc").hexdigest()
    assert sum_of(path, XXH3) == "xxh3_128:06b05ab6733a618578af5f94892f3950"  # as xxhsum -H2 says
    assert [algorithm_of(sum_of(path, name)) for name in (SHA256, XXH3)] == [SHA256, XXH3]


@pytest.mark.parametrize("algorithm", [SHA256, XXH3])
def test_a_flipped_bit_is_seen(path: Path, algorithm: str) -> None:
    known = sum_of(path, algorithm)
    assert is_sum_of(path, known)
    path.write_bytes(b"abb")
    assert not is_sum_of(path, known)


@pytest.mark.parametrize("known", ["", "xxh3_129:06b05ab6", "md5:1", "xxh3_128", "XXH3_128:"])
def test_what_no_version_writes_is_no_sum_of_anything(path: Path, known: str) -> None:
    assert not is_sum_of(path, known)


def test_the_engine_does_without_the_package_and_leaves_alone_what_it_cannot_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Checkpoints(tmp_path, attempt=1).save(snapshot(1))
    monkeypatch.delitem(ALGORITHMS, XXH3)
    assert quickest() == SHA256

    without = Checkpoints(tmp_path, attempt=2)
    with pytest.raises(TrainerError, match="has sums of xxh3_128: the package xxhash reads them"):
        without.load_newest(fail)
    saved = without.save(snapshot(2))

    found = without.load_newest(fail)
    assert found is not None
    assert found[1] == saved
    assert len(list(tmp_path.iterdir())) == 2


def test_the_engine_is_imported_where_the_package_is_not_installed() -> None:
    program = (
        "import sys; sys.modules['xxhash'] = None; import trainer_app.core.fit; "
        "from trainer_app.core.sums import quickest; assert quickest() == 'sha256'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_checkpoint_of_the_version_before_is_taken_up_and_one_for_it_has_its_sums(
    tmp_path: Path,
) -> None:
    wanted = [SHA256, XXH3, SHA256]
    checkpoints = Checkpoints(tmp_path, attempt=1, summed_by=lambda: wanted.pop(0))
    for step in (1, 2, 3):
        path = checkpoints.save(snapshot(step, best_step=1))
        algorithm = XXH3 if step == 2 else SHA256
        manifest = (path / "MANIFEST.json").read_text()
        assert manifest.count("xxh3_128:") == (5 if algorithm == XXH3 else 0)
        found = checkpoints.load_newest(fail)
        assert found is not None
        assert found[1] == path

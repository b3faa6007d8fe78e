"""Two workers of one name and one host name do not judge each other's processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import process
from tasks.owner import node, owner, place
from tasks.watchdog import Watchdog
from trainer_app.core.spec import TrainSpec
from trainer_app.store import lease, runs

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """What tells machines and namespaces apart, as Linux shows it."""
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("6f1c\n")
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").symlink_to("pid:[4026531836]")
    return tmp_path


def test_an_owner_is_a_node_and_a_process_of_it() -> None:
    assert owner("train-0@host") == f"{node('train-0@host')}:{os.getpid()}"


def test_all_processes_of_a_place_call_it_the_same() -> None:
    command = "from tasks.owner import place; print(place())"
    other = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )

    assert other.stdout.strip() == place()


def test_another_namespace_of_pids_and_another_boot_are_other_places(proc: Path) -> None:
    here = place(proc)
    place.cache_clear()
    assert place(proc) == here

    (proc / "self/ns/pid").unlink()
    (proc / "self/ns/pid").symlink_to("pid:[4026532999]")
    place.cache_clear()
    container = place(proc)
    (proc / "sys/kernel/random/boot_id").write_text("aa07\n")
    place.cache_clear()

    assert len({here, container, place(proc)}) == 3
    place.cache_clear()


def test_a_system_without_such_a_proc_has_one_place(tmp_path: Path) -> None:
    assert place(tmp_path) == "host"


def test_the_watchdog_judges_the_dead_of_its_own_place_alone() -> None:
    database = process.database()
    spec = TrainSpec(corpus_path="a.txt", corpus_sha256="0" * 64)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours = runs.create(database, spec, queue="trainer").run_id
    theirs = runs.create(database, spec, queue="trainer").run_id
    for run_id, where in ((ours, node("train-0@host")), (theirs, "train-0@host/0therone")):
        owned = f"{where}:{dead.pid}"
        assert lease.claim(database, run_id, owned, lease_seconds=60) is not None

    Watchdog(database, node("train-0@host")).look(dict)

    assert [lost.job_id for lost in lease.reap(database, max_crashes=3)] == [ours]

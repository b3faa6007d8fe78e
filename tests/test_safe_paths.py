"""Files are opened beneath one folder or not at all."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import pytest

from trainer_app.errors import CorpusNotFound
from trainer_app.safe_paths import open_beneath, resolve


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a file, beside what must not be reached."""
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file.txt").write_bytes(b"inside")
    (tmp_path / "outside.txt").write_bytes(b"outside")
    return root


def read(root: Path, name: str) -> bytes:
    with open_beneath(root, name) as file:
        return file.read()


def test_a_file_is_opened_by_its_relative_name(root: Path) -> None:
    assert read(root, "a/b/file.txt") == b"inside"


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert read(tmp_path / "link", "a/b/file.txt") == b"inside"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/",
        "a",
        "a/b",
        "a/b/",
        "a//b/file.txt",
        "a/./b/file.txt",
        "a/../a/b/file.txt",
        "../outside.txt",
        "a/b/file.txt/x",
        "none",
        "a\0",
        "..\\outside.txt",
        "C:file.txt",
        "\ud800",
        "x" * 300,
        "x" * 5_000,
    ],
)
def test_any_other_name_gets_one_answer(root: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        open_beneath(root, name)
    assert str(caught.value) == "[Errno 2] no such file"


@pytest.mark.parametrize("target", ["../outside.txt", "a/b/file.txt", "/dev/zero", "missing"])
def test_a_symbolic_link_is_refused_wherever_it_leads(root: Path, target: str) -> None:
    (root / "link").symlink_to(target)
    with pytest.raises(FileNotFoundError):
        open_beneath(root, "link")


def test_a_folder_that_is_a_link_is_refused(root: Path) -> None:
    (root / "up").symlink_to("..")
    with pytest.raises(FileNotFoundError):
        open_beneath(root, "up/outside.txt")


def test_a_fifo_is_refused_without_waiting(root: Path) -> None:
    os.mkfifo(root / "fifo")
    with pytest.raises(FileNotFoundError):
        open_beneath(root, "fifo")


def test_a_missing_root_holds_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_beneath(tmp_path / "none", "file.txt")


def test_a_parent_that_is_swapped_all_the_time_never_leads_outside(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file.txt").write_bytes(b"outside")
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            (root / "a").rename(root / "kept")
            (root / "a").symlink_to(tmp_path)
            (root / "a").unlink()
            (root / "kept").rename(root / "a")

    thread = threading.Thread(target=swap)
    thread.start()
    found = set()
    try:
        for _ in range(2_000):
            try:
                found.add(read(root, "a/b/file.txt"))
            except FileNotFoundError:
                found.add(b"")
    finally:
        over.set()
        thread.join(10)
    assert found <= {b"inside", b""}


def test_no_descriptor_is_left_open(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - iterdir would open one more
    read(root, "a/b/file.txt")
    for name in ("a/b", "a/b/none", "none/x"):
        with pytest.raises(FileNotFoundError):
            open_beneath(root, name)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_process_without_free_descriptors_does_not_call_the_file_missing(root: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            open_beneath(root, "a/b/file.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_library_that_wants_a_path_gets_one(root: Path) -> None:
    assert resolve(root, "a/b/file.txt") == root / "a/b/file.txt"


def test_a_path_that_may_not_be_opened_is_no_corpus(root: Path) -> None:
    with pytest.raises(CorpusNotFound):
        resolve(root, "../outside.txt")

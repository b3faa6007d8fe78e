"""Damaged token ids are noticed before anything is learnt from them, and made anew."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from backends.contracts import PAD_ID
from backends.loading import load_tokenizer
from tests.training_bench import Bench
from trainer_app.core import encode, files, token_files
from trainer_app.core.data import prepare_data
from trainer_app.core.encode import READS, encode_corpus, while_it_stands
from trainer_app.core.observer import StopReason
from trainer_app.core.splits import Split, SplitRule
from trainer_app.core.stopping import StopRequested, never
from trainer_app.core.streams import Streams, split_streams
from trainer_app.core.token_files import Damaged, Identity, Sum, check_sums, examining

RULE = SplitRule(seed=1, validation_fraction=0.1, test_fraction=0.2)
ANOTHER = SplitRule(seed=2, validation_fraction=0.2, test_fraction=0.1)
Damage = Callable[[Path], object]
Write = Callable[[bytes], tuple[Path, str]]
Story = Callable[[int], str]
Ids = dict[str, tuple[int, list[int]]]  # by split: bytes of text, ids


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def remove(path: Path) -> None:
    path.unlink()


def replace_by_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


SIZED: dict[str, Damage] = {
    "empty": empty,
    "cut": cut,
    "gone": remove,
    "a FIFO": replace_by_a_fifo,
}
OF_A_FILE: dict[str, Damage] = {"zeroed": zero, "a bit flipped": flip, **SIZED}
OF_META: dict[str, Damage] = {
    **OF_A_FILE,
    "a list": lambda path: path.write_text("[]"),
    "nothing in it": lambda path: path.write_text("{}"),
    "too deep": lambda path: path.write_text("[" * 100_000),
    "no sum of its own": lambda path: path.write_text('{"files": {}}'),
    "odd counts": lambda path: path.write_text(
        '{"dtype": "uint16", "tokens": 1.5, "units": "2", "bytes": -1, "train": true}'
    ),
}


@dataclass(kw_only=True)
class Cache:
    """A cache of token ids, and whoever reads it."""

    root: Path
    corpus: Path
    sha256: str
    tokenizer: Path
    messages: list[str] = field(default_factory=list)
    should_stop: Callable[[], StopReason | None] = never

    def read(self, rule: SplitRule = RULE) -> Ids:
        """Copies: what is mapped to memory changes when a test damages its file."""
        self.messages.clear()

        def read() -> Streams:
            encoded = encode_corpus(
                self.corpus,
                load_tokenizer(self.tokenizer),
                self.root,
                corpus_sha256=self.sha256,
                tokenizer_sha256="t" * 64,
                on_message=self.messages.append,
                should_stop=self.should_stop,
            )
            return split_streams(encoded, rule, should_stop=self.should_stop)

        streams = while_it_stands(read, self.messages.append)
        return {
            split.label: (streams.of(split).bytes, streams.of(split).ids.tolist())
            for split in Split
        }

    @property
    def entry(self) -> Path:
        (entry,) = self.root.iterdir()
        return entry

    @property
    def warnings(self) -> list[str]:
        return [message for message in self.messages if message.startswith("WARNING")]

    def make_older(self, *folders: Path) -> None:
        """Take away what meta.json has only since this version."""
        for folder in folders:
            meta = json.loads((folder / "meta.json").read_text())
            del meta["files"], meta["crc32"]
            (folder / "meta.json").write_text(json.dumps(meta))


@pytest.fixture
def cache(tmp_path: Path, tokenizer_directory: Path, write_corpus: Write, story: Story) -> Cache:
    """A story, tokenized and split."""
    path, sha256 = write_corpus(story(60).encode())
    cache = Cache(
        root=tmp_path / "tokens", corpus=path, sha256=sha256, tokenizer=tokenizer_directory
    )
    cache.read()
    return cache


def assert_healed(cache: Cache, rule: SplitRule, expected: Ids, folder: str) -> None:
    """One warning that names what was removed, the right ids, and no word the next time."""
    assert cache.read(rule) == expected
    (warning,) = cache.warnings
    assert warning.startswith(f"WARNING: damaged token ids are made anew: {folder}: ")
    assert cache.read(rule) == expected
    assert cache.messages == []
    assert not list(cache.root.rglob(".*"))


def test_a_file_in_the_place_of_all_token_ids_is_removed_and_they_are_made_anew(
    cache: Cache,
) -> None:
    expected = cache.read()
    shutil.rmtree(cache.root)
    cache.root.write_text("no folder")

    assert cache.read() == expected
    assert cache.warnings[0] == f"WARNING: {cache.root} was no folder: it is made anew"
    assert cache.read() == expected
    assert cache.messages == []


@pytest.mark.parametrize("name", ["ids", "hashes", "sizes", "counts"])
@pytest.mark.parametrize("damage", OF_A_FILE.values(), ids=OF_A_FILE)
def test_damaged_ids_are_made_anew_before_a_split_is_made_of_them(
    cache: Cache, name: str, damage: Damage
) -> None:
    expected = cache.read(ANOTHER)
    shutil.rmtree(cache.entry / ANOTHER.name)
    damage(cache.entry / f"{name}.bin")
    assert_healed(cache, ANOTHER, expected, cache.entry.name)


@pytest.mark.parametrize("split", Split)
@pytest.mark.parametrize("damage", OF_A_FILE.values(), ids=OF_A_FILE)
def test_a_damaged_split_is_made_anew_from_the_ids(
    cache: Cache, split: Split, damage: Damage
) -> None:
    expected = cache.read()
    damage(cache.entry / RULE.name / f"{split.label}.bin")
    assert_healed(cache, RULE, expected, RULE.name)


@pytest.mark.parametrize("damage", OF_META.values(), ids=OF_META)
@pytest.mark.parametrize("folder", [".", RULE.name], ids=["the ids", "the split"])
def test_what_has_a_damaged_meta_json_is_made_anew(
    cache: Cache, folder: str, damage: Damage
) -> None:
    expected = cache.read()
    place = cache.entry / folder
    damage(place / "meta.json")
    assert_healed(cache, RULE, expected, place.name)


def test_a_split_and_its_ids_that_are_both_damaged_are_made_anew(cache: Cache) -> None:
    expected = cache.read()
    zero(cache.entry / RULE.name / "train.bin")
    zero(cache.entry / "ids.bin")
    assert cache.read() == expected
    assert len(cache.warnings) == 2
    cache.read()
    assert cache.messages == []


def test_ids_of_a_version_that_kept_no_sums_are_used(cache: Cache) -> None:
    expected = cache.read()
    another = cache.read(ANOTHER)
    shutil.rmtree(cache.entry / ANOTHER.name)
    cache.make_older(cache.entry, cache.entry / RULE.name)
    cache.corpus.unlink()  # not even read again
    assert cache.read() == expected
    assert cache.read(ANOTHER) == another
    assert cache.messages == []


@pytest.mark.parametrize("name", ["ids", "hashes", "sizes", "counts"])
@pytest.mark.parametrize("damage", SIZED.values(), ids=SIZED)
def test_ids_of_such_a_version_that_have_other_sizes_are_made_anew(
    cache: Cache, name: str, damage: Damage
) -> None:
    expected = cache.read()
    cache.make_older(cache.entry)
    damage(cache.entry / f"{name}.bin")
    assert_healed(cache, RULE, expected, cache.entry.name)


@pytest.mark.parametrize("name", ["sizes", "counts"])
def test_units_of_such_a_version_that_do_not_add_up_are_made_anew(cache: Cache, name: str) -> None:
    expected = cache.read(ANOTHER)
    shutil.rmtree(cache.entry / ANOTHER.name)
    cache.make_older(cache.entry)
    zero(cache.entry / f"{name}.bin")
    assert_healed(cache, ANOTHER, expected, cache.entry.name)


@pytest.mark.parametrize("split", Split)
@pytest.mark.parametrize("damage", SIZED.values(), ids=SIZED)
def test_a_split_of_such_a_version_that_cannot_be_one_of_the_ids_is_made_anew(
    cache: Cache, split: Split, damage: Damage
) -> None:
    expected = cache.read()
    cache.make_older(cache.entry / RULE.name)
    damage(cache.entry / RULE.name / f"{split.label}.bin")
    assert_healed(cache, RULE, expected, RULE.name)


@pytest.mark.parametrize("change", [{"train": 1}, {"validation": 0}])
def test_a_split_of_such_a_version_that_stands_for_another_text_is_made_anew(
    cache: Cache, change: dict[str, int]
) -> None:
    expected = cache.read()
    folder = cache.entry / RULE.name
    cache.make_older(folder)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | change))
    assert_healed(cache, RULE, expected, RULE.name)


def test_a_split_of_such_a_version_with_too_many_ids_is_made_anew(cache: Cache) -> None:
    expected = cache.read()
    folder = cache.entry / RULE.name
    cache.make_older(folder)
    with (folder / "train.bin").open("ab") as file:
        file.write(bytes(20_000))
    assert_healed(cache, RULE, expected, RULE.name)


def test_a_stop_is_heard_while_ids_are_checked(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "PIECE_BYTES", 100)
    cache.should_stop = lambda: StopReason.CANCEL
    with pytest.raises(StopRequested):
        cache.read()
    assert cache.messages == []


def test_a_disk_that_damages_all_that_is_written_is_an_error(tmp_path: Path) -> None:
    found: list[str] = []

    def read() -> None:
        (tmp_path / "entry").mkdir()
        with examining(tmp_path / "entry"):
            raise Damaged(tmp_path / "entry", "ids.bin is not what was written")

    with pytest.raises(Damaged, match=r"^entry: ids\.bin is not what was written$"):
        while_it_stands(read, found.append)
    assert len(found) == READS - 1


@pytest.fixture
def another_run(cache: Cache) -> Callable[[], object]:
    """Finds the same damage, removes what is damaged and makes it anew, while this one looks on."""

    entry = cache.entry

    def make_anew() -> None:
        shutil.rmtree(entry, ignore_errors=True)
        other = replace(cache, messages=[], should_stop=never)
        other.read()
        assert other.entry == entry

    return make_anew


Others = Callable[[Callable[[Path], Path], Path, Callable[[], object]], Path]


def made_anew_before(move: Callable[[Path], Path], path: Path, other: Callable[[], object]) -> Path:
    other()
    return move(path)


def made_anew_before_and_after(
    move: Callable[[Path], Path], path: Path, other: Callable[[], object]
) -> Path:
    other()
    taken = move(path)
    shutil.copytree(taken, path)
    return taken


def removed_before(move: Callable[[Path], Path], path: Path, other: Callable[[], object]) -> Path:
    shutil.rmtree(path)
    try:
        return move(path)
    finally:
        other()


@pytest.mark.parametrize("others", [made_anew_before, made_anew_before_and_after, removed_before])
def test_what_another_run_has_made_anew_just_when_this_one_removes_is_not_removed(
    cache: Cache,
    another_run: Callable[[], object],
    others: Others,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = cache.read()
    zero(cache.entry / "ids.bin")
    shutil.rmtree(cache.entry / RULE.name)
    times: list[Path] = []

    def move(path: Path) -> Path:
        times.append(path)
        return others(files.move_away, path, another_run)

    monkeypatch.setattr(encode, "move_away", move)
    assert cache.read() == expected
    assert cache.warnings == []
    assert len(times) == 1
    assert not list(cache.root.rglob(".*"))


def test_what_another_run_has_made_anew_before_this_one_removes_it_is_not_removed(
    cache: Cache, another_run: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "PIECE_BYTES", 100)
    expected = cache.read()
    shutil.rmtree(cache.entry / RULE.name)
    for path in cache.entry.glob("*.bin"):
        zero(path)  # the first, too, of which this run finds out when it has been removed
    made: list[Identity | None] = []

    def look() -> None:
        """Called while this run sums the first file."""
        if not made:
            another_run()
            made.append(Identity.of(cache.entry))

    cache.should_stop = look
    assert cache.read() == expected
    assert cache.warnings == []
    assert made == [Identity.of(cache.entry)]


def test_a_folder_that_is_made_anew_is_another_though_its_number_is_used_again(
    tmp_path: Path,
) -> None:
    folder, moved = tmp_path / "entry", tmp_path / "moved"
    assert Identity.of(folder) is None
    folder.mkdir()
    without = Identity.of(folder)
    (folder / "meta.json").touch()
    first = Identity.of(folder)
    folder.rename(moved)
    assert Identity.of(moved) == first != without

    time.sleep(0.05)  # more than the grain of the file system's clock
    (moved / "meta.json").write_text("{}")
    assert Identity.of(moved) != first


def test_no_run_learns_from_token_ids_that_were_zeroed(bench: Bench) -> None:
    messages: list[str] = []

    def train_ids() -> list[int]:
        data = prepare_data(
            bench.spec,
            corpus=bench.corpus,
            tokenizer_directory=bench.tokenizer,
            scratch=bench.folder,
            tokens=bench.folder / "tokens",
            on_message=messages.append,
            should_stop=never,
        )
        found: list[int] = data.streams.train.ids.tolist()
        return found

    expected = train_ids()
    for path in (bench.folder / "tokens").rglob("*.bin"):
        zero(path)
    assert train_ids() == expected
    assert PAD_ID not in expected
    assert [message for message in messages if message.startswith("WARNING")]


def test_a_folder_that_is_gone_is_not_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        token_files.Meta.read(tmp_path / "deleted")


@pytest.fixture
def summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Checks a file's sum; says how many pieces of it were read for that."""
    monkeypatch.setattr(token_files, "PIECE_BYTES", 100)
    (tmp_path / "ids.bin").write_bytes(bytes(1_000))

    def check() -> int:
        pieces: list[int] = []
        sums = {"ids": Sum(bytes=1_000, crc32=zlib.crc32(bytes(1_000)))}
        check_sums(tmp_path, sums, lambda: pieces.append(1))
        return len(pieces)

    return check


def test_a_file_that_was_right_a_short_while_ago_is_not_read_again(
    summed: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(token_files, "SETTLED_NS", -1)
    assert [summed(), summed()] == [10, 0]
    os.utime(tmp_path / "ids.bin", ns=(0, 0))
    assert [summed(), summed()] == [10, 0]
    monkeypatch.setattr(time, "monotonic", lambda: 1e12)
    assert summed() == 10


@pytest.mark.parametrize("damage", [flip, cut, remove])
def test_a_file_that_has_changed_since_it_was_right_is_read_again(
    summed: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: Damage
) -> None:
    monkeypatch.setattr(token_files, "SETTLED_NS", -1)
    path = tmp_path / "ids.bin"
    before = path.stat()
    summed()
    time.sleep(0.05)  # more than the grain of the file system's clock
    damage(path)
    if path.exists():
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Damaged):
        summed()


def test_a_file_that_was_only_just_written_is_read_each_time(
    summed: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "SETTLED_NS", 1 << 60)
    assert [summed(), summed()] == [10, 10]


def test_a_file_that_was_wrong_is_read_each_time(
    summed: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(token_files, "SETTLED_NS", -1)
    flip(tmp_path / "ids.bin")
    for _ in range(2):
        with pytest.raises(Damaged):
            summed()


def test_a_fault_of_the_process_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(token_files, "open_regular", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        token_files.Meta.read(tmp_path)

"""constraints.txt pins what setup.cfg needs, and all that comes with it."""

import re
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)$")
# Comes with Python or with the virtual environment.
UNPINNED = {"pip", "setuptools", "wheel"}


def pins() -> dict[str, str]:
    """Version by canonical name."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    found = [PIN.match(line) for line in lines]
    assert all(found), "each line is NAME==VERSION, without a local version or an address"
    return {canonicalize_name(pin[1]): pin[2] for pin in found if pin}


def requirements() -> list[Requirement]:
    """What setup.cfg asks for, extras included."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", "utf-8")
    texts = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    return [Requirement(line) for text in texts for line in text.splitlines() if line]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_requirement_is_pinned_to_a_version_that_it_allows(requirement: Requirement) -> None:
    version = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


def test_everything_that_comes_with_a_requirement_is_pinned() -> None:
    seen: set[str] = set()
    unpinned: set[str] = set()
    todo = [(requirement, "") for requirement in requirements()]
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if not applies or f"{name}{sorted(requirement.extras)}" in seen:
            continue
        seen.add(f"{name}{sorted(requirement.extras)}")
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:  # of an extra that is not installed here
            continue
        if name not in pins().keys() | UNPINNED:
            unpinned.add(name)
        todo += [
            (Requirement(text), wanted) for text in needed for wanted in ("", *requirement.extras)
        ]
    # CUDA's libraries are pinned by torch itself, and only some builds of torch want them.
    assert {
        name for name in unpinned if not name.startswith(("nvidia-", "triton", "cuda-"))
    } == set()


def test_what_is_installed_is_what_is_pinned() -> None:
    differing = {}
    for name, version in pins().items():
        try:
            installed = distribution(name).version
        except PackageNotFoundError:  # of an extra, or of another platform
            continue
        if installed.partition("+")[0] != version:
            differing[name] = (installed, version)
    assert differing == {}


def test_the_pins_are_sorted() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert lines == sorted(lines, key=lambda line: canonicalize_name(line.partition("==")[0]))

"""The house keeps its shape: what may import what, what a file may be, where names are written."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from backends.loading import model_family, tokenizer_kind
from backends.registry import MODEL_FAMILIES, MODEL_SIZES, TOKENIZER_KINDS
from trainer_app.errors import FieldError

ROOT = Path(__file__).parents[1]
PACKAGES = ("backends", "migrations", "tasks", "trainer_app")
SERVICE_LIBRARIES = (
    "flask",
    "flask_smorest",
    "werkzeug",
    "celery",
    "kombu",
    "sqlalchemy",
    "alembic",
    "redis",
    "marshmallow",
    "environs",
    "structlog",
    "httpx",
    "typer",
)
ENGINE_LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy")

IMPORT_ALL_WITHOUT = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ImportError(f"{{name}} is not for this part of the house")

sys.meta_path.insert(0, Absent())
for name in {modules!r}:
    importlib.import_module(name)
"""


def source_files() -> list[Path]:
    """Every Python file of the project that is not a test, relative to the root."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return sorted(file.relative_to(ROOT) for file in [*files, *ROOT.glob("*.py")])


def modules_below(*folders: str) -> list[str]:
    """The dotted names of the modules in these folders."""
    return [
        ".".join(file.with_suffix("").parts)
        for file in source_files()
        if file.name != "__init__.py" and any(file.is_relative_to(folder) for folder in folders)
    ]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in the root of the project."""
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )


def tracked_files() -> Iterator[tuple[str, str]]:
    """Name and text of each text file that belongs to the project."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        if b"\0" not in content:
            yield name, content.decode("utf-8")


def test_the_web_process_loads_nothing_of_the_engine() -> None:
    code = f"import sys, wsgi; print(*sorted(sys.modules.keys() & {set(ENGINE_LIBRARIES)!r}))"
    process = run_python(code)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == []


def test_the_command_line_loads_nothing_of_the_engine() -> None:
    code = (
        "import sys, trainer_app.cli.main; "
        f"print(*sorted(sys.modules.keys() & {set(ENGINE_LIBRARIES)!r}))"
    )
    process = run_python(code)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == []


def test_the_engine_can_be_imported_where_the_service_is_not_installed() -> None:
    modules = modules_below("backends", "trainer_app/core")
    if find_spec("triton") is None:  # comes with torch's builds for CUDA alone
        modules = [name for name in modules if not name.endswith("kernels")]
    code = IMPORT_ALL_WITHOUT.format(absent=SERVICE_LIBRARIES, modules=modules)
    process = run_python(code)
    assert process.returncode == 0, process.stderr


def test_the_registry_can_be_read_without_any_library() -> None:
    code = IMPORT_ALL_WITHOUT.format(
        absent=SERVICE_LIBRARIES + ENGINE_LIBRARIES, modules=["backends.registry"]
    )
    process = run_python(code)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("name", MODEL_FAMILIES)
def test_a_family_has_the_sizes_that_the_registry_gives_it(name: str) -> None:
    assert tuple(model_family(name).sizes) == MODEL_SIZES[name]


def test_the_tables_of_the_registry_have_the_same_families() -> None:
    assert MODEL_FAMILIES.keys() == MODEL_SIZES.keys()


@pytest.mark.parametrize("name", TOKENIZER_KINDS)
def test_a_tokenizer_kind_can_be_loaded_by_its_name(name: str) -> None:
    assert tokenizer_kind(name).min_vocab_size > 0


@pytest.mark.parametrize("load", [model_family, tokenizer_kind])
def test_an_unknown_name_is_refused_with_the_known_ones(load: object) -> None:
    assert callable(load)
    with pytest.raises(FieldError, match=r"'gpt9' is not one of \w+, \w+"):
        load("gpt9")


def test_every_init_file_is_empty() -> None:
    full = [
        str(file) for file in source_files() if file.name == "__init__.py" and file.stat().st_size
    ]
    assert full == []


def test_no_source_file_is_longer_than_400_lines() -> None:
    lengths = {str(file): len((ROOT / file).read_text().splitlines()) for file in source_files()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_half_of_the_source_files_are_shorter_than_150_lines() -> None:
    lengths = sorted(
        len((ROOT / file).read_text().splitlines())
        for file in source_files()
        if file.name != "__init__.py"
    )
    assert lengths[len(lengths) // 2] < 150


def test_no_module_has_a_name_that_could_hold_anything() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
    assert [str(file) for file in source_files() if vague & set(file.with_suffix("").parts)] == []


def test_types_are_checked_without_a_way_out() -> None:
    ways_out = re.compile(
        r"#\s*type:\s*[i]gnore|\bfrom typing import [^\n]*\b(Any|cast)\b|\btyping\.(Any|cast)\b"
    )
    files = [(name, text) for name, text in tracked_files() if name.endswith(".py")]
    assert [name for name, text in files if ways_out.search(text)] == []


def test_the_environment_is_read_in_one_place() -> None:
    reads = re.compile(r"os\.getenv|os\.environ(\.get|\[[^]]*\](?!\s*=\s))|\bEnv\(")
    readers = {str(file) for file in source_files() if reads.search((ROOT / file).read_text())}
    assert readers == {"trainer_app/settings.py"}


def test_no_file_names_a_place_of_one_machine() -> None:
    places = re.compile(r"(?<![\w.])/(work|root|home)/\w+|/Users/\w+")
    found = {name: match[0] for name, text in tracked_files() if (match := places.search(text))}
    assert found == {}


def test_each_page_of_the_documentation_can_be_reached_and_no_link_is_dead() -> None:
    pages = {ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").glob("*.md")}
    linked: set[Path] = set()
    dead: list[str] = []
    for page in pages | {ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"}:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text("utf-8")):
            file = (page.parent / target).resolve()
            linked.add(file)
            if not file.exists():
                dead.append(f"{page.name}: {target}")
    assert dead == []
    assert pages - linked - {ROOT / "README.md"} == set()

"""The documentation names the addresses that there are: all of them, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.curl_lines import FLOWER, PAGES, ROOT, commands, request_of
from trainer_app.api.errors import STATUSES
from trainer_app.errors import RUN_CODES
from trainer_app.factory import create_app
from trainer_app.settings import Settings

UNLISTED = {("GET", "/docs"), ("GET", "/openapi.json")}  # named in the text


@pytest.fixture
def operations(settings: Settings) -> dict[tuple[str, re.Pattern[str]], str]:
    """Method and pattern of the path of each operation of the OpenAPI document."""
    with create_app(settings).test_client() as client:
        paths = client.get("/openapi.json").get_json()["paths"]
    return {
        (method.upper(), re.compile(re.sub(r"{\w+}", "[^/]+", path))): f"{method.upper()} {path}"
        for path, methods in paths.items()
        for method in methods
        if method != "parameters"
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_curl_command_is_one_that_a_test_runs(page: Path) -> None:
    """tests/e2e/test_docs.py runs those of the API, tests/stack/test_flower.py that of Flower."""
    blocks = re.findall(r"^```.*?^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    shown = sum(len(re.findall(r"\bcurl\s", block)) for block in blocks)
    assert shown == len(commands(page)) + len(commands(page, FLOWER))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_address_that_is_shown_exists(
    page: Path, operations: dict[tuple[str, re.Pattern[str]], str]
) -> None:
    invented = [
        command
        for command in commands(page)
        if request_of(command) not in UNLISTED
        and not any(
            method == request_of(command)[0] and pattern.fullmatch(request_of(command)[1])
            for method, pattern in operations
        )
    ]
    assert invented == []


def test_every_operation_is_shown_on_the_page_of_the_api(
    operations: dict[tuple[str, re.Pattern[str]], str],
) -> None:
    shown = [request_of(command) for command in commands(ROOT / "docs" / "api.md")]
    missing = {
        name
        for (method, pattern), name in operations.items()
        if not any(method == verb and pattern.fullmatch(path) for verb, path in shown)
    }
    assert missing == set()


def test_every_code_of_an_error_is_on_the_page_of_the_api() -> None:

    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert {code for code in STATUSES if f"`{code}`" not in text} == set()


def test_every_code_of_a_run_is_on_the_page_of_the_api_with_its_meaning() -> None:
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    rows = [f"| `{code}` | {meaning} |" for code, meaning in RUN_CODES.items()]
    assert "\n".join(rows) in text


def test_each_promise_names_the_tests_that_hold_it() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    table = page.partition("| Promise | Test |")[2].partition("\n\n")[0].splitlines()[2:]
    named = [re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py)`", row) for row in table]
    assert all(named)
    assert [name for row in named for name in row if not (ROOT / name).is_file()] == []

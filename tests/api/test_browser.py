"""The documentation page in a real browser, which obeys the page's security policy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import pytest
from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.api.served import served

_SECONDS = 60  # for a page on a busy machine

Used = TypeVar("Used")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """A Chromium without a window; on CI it has to be there."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        assert not os.environ.get("CI"), "chromium and chromedriver are not installed"
        pytest.skip("needs chromium and chromedriver on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
        browser.set_page_load_timeout(_SECONDS)
        yield browser


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("served")
    environment = {
        "APP__DATA_ROOT": str(root),
        "DATABASE__URL": f"sqlite:///{root / 'trainer.db'}",
        "REDIS__URL": "redis://127.0.0.1:1/0",  # nobody: the page needs none
    }
    with served(root / "server.log", environment) as port:
        yield f"http://127.0.0.1:{port}"


def once_shown(browser: webdriver.Chrome, selector: str, use: Callable[[WebElement], Used]) -> Used:
    """What ``use`` makes of the first such element, once it is shown and stands still."""

    def used(_: webdriver.Chrome) -> tuple[Used] | None:
        elements = browser.find_elements(By.CSS_SELECTOR, selector)
        shown = next((one for one in elements if one.is_displayed()), None)
        return None if shown is None else (use(shown),)

    moving = (StaleElementReferenceException, ElementClickInterceptedException)
    found = WebDriverWait(browser, _SECONDS, ignored_exceptions=moving).until(used)
    assert found is not None
    return found[0]


def text(element: WebElement) -> str:
    return element.text


def test_the_page_shows_every_operation_and_asks_nobody_else(
    browser: webdriver.Chrome, url: str
) -> None:
    browser.get(f"{url}/docs")
    paths = httpx.get(f"{url}/openapi.json", timeout=_SECONDS).json()["paths"]
    operations = {
        (path, method)
        for path, item in paths.items()
        for method in item.keys() & {"get", "post", "delete"}
    }
    assert len(operations) > 20
    WebDriverWait(browser, _SECONDS).until(
        lambda _: len(browser.find_elements(By.CSS_SELECTOR, ".opblock-summary")) == len(operations)
    )
    asked: list[str] = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert f"{url}/openapi.json" in asked
    hosts = {urlsplit(one).netloc for one in asked if not one.startswith("data:")}
    assert hosts == {urlsplit(url).netloc}
    log = browser.execute("getLog", {"type": "browser"})["value"]
    assert [entry for entry in log if entry["level"] == "SEVERE"] == []


def test_a_request_can_be_tried_out(browser: webdriver.Chrome, url: str) -> None:
    browser.get(f"{url}/docs")
    for button in ('.opblock-summary-path[data-path="/healthz"]', ".try-out__btn", ".execute"):
        once_shown(browser, button, WebElement.click)
    answer = ".live-responses-table tbody .response-col_"
    assert once_shown(browser, f"{answer}status", text).startswith("200")
    assert '"ok"' in once_shown(browser, f"{answer}description", text)


POST = """
const [address, answered] = arguments;
fetch(address, {method: "POST", body: "{}", headers: {"Content-Type": "application/json"}})
    .then(async answer => answered([answer.status, (await answer.json()).code]));
"""


def test_the_page_may_post_whatever_name_it_was_opened_by(
    browser: webdriver.Chrome, url: str
) -> None:
    # A browser sends an Origin with each POST, of the page's own server as well.
    for name in ("127.0.0.1", "localhost"):
        browser.get(f"{url.replace('127.0.0.1', name)}/docs")
        answer = browser.execute_async_script(POST, "/runs/train")
        assert answer == [422, "INVALID_INPUT"]

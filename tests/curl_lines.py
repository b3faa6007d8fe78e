"""The curl commands with which the documentation shows the API."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy" / "README.md"]
ADDRESS = re.compile(r"(?:http://)?(?:localhost|127\.0\.0\.1):8000(/[^\s\"']*)?")
FLOWER = re.compile(r"http://127\.0\.0\.1:5555(/[^\s\"']*)")
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(page: Path, address: re.Pattern[str] = ADDRESS) -> list[str]:
    """Each curl command of a page that asks the address, in order, with all of its lines."""
    found = [""]
    for block in _BLOCK.findall(page.read_text("utf-8")):
        for line in block.splitlines():
            if found[-1].endswith("\\") or found[-1].count("'") % 2:
                found[-1] += f"\n{line}"
            else:
                found.append(line)
    return [line for line in found if line.startswith("curl ") and address.search(line)]


def request_of(command: str) -> tuple[str, str]:
    """Method and path of a command, without its query."""
    address = ADDRESS.search(command)
    assert address, command
    method = re.search(r"-X (\w+)", command)
    sends = re.search(r"(?:^|\s)(?:-d|-F|-sF|--data-binary)\s", command)
    return (method[1] if method else "POST" if sends else "GET"), (address[1] or "/").partition(
        "?"
    )[0]

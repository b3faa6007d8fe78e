"""Which tests run in one process, one after the other."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling


class BySharedSetUp(LoadFileScheduling):
    """Each file is one piece of work, for the sake of what it sets up once."""

    def _split_scope(self, nodeid: str) -> str:
        """The piece that a test belongs to; the files of tests/e2e share a stack."""
        file = super()._split_scope(nodeid)
        return "tests/e2e" if file.startswith("tests/e2e/") else file

"""What a manifest says of the system that made it."""

from __future__ import annotations

import pytest

from tasks.manifest import git_commit


def test_a_machine_without_git_has_no_commit_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    git_commit.cache_clear()

    assert git_commit() is None

    git_commit.cache_clear()

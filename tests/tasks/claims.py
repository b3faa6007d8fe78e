"""Attempts at a job that a test makes by hand."""

from __future__ import annotations

from tasks import process
from trainer_app.store import lease
from trainer_app.store.lease import Claim


def claimed(job_id: str, owner: str) -> Claim:
    """The next attempt at a job that nobody has; for a minute."""
    claim = lease.claim(process.database(), job_id, owner, lease_seconds=60)
    assert claim is not None
    return claim

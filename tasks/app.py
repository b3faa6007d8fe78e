"""The Celery application of the workers: ``celery -A tasks.app worker``."""

from __future__ import annotations

from typing import Final

from celery import Celery

app: Final = Celery("trainer")
app.config_from_object("celeryconfig")

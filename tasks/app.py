"""The Celery application of the workers: ``celery -A tasks.app worker``."""

from __future__ import annotations

import warnings
from typing import Final

from celery import Celery
from celery.exceptions import SecurityWarning

# Celery warns a superuser, as in a container, of pickled messages; celeryconfig takes JSON alone.
warnings.filterwarnings("ignore", category=SecurityWarning)

app: Final = Celery("trainer")
app.config_from_object("celeryconfig")

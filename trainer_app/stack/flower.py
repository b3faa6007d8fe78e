"""Flower, the pages that show workers and tasks: ``python -m trainer_app.stack.flower``.

``trainer up --flower`` and the Procfile start it like this, so that its password stands in its
environment, never on a command line, which every user of the machine can read.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from celery.__main__ import main as celery

from trainer_app.core.files import write_atomically
from trainer_app.errors import SettingsError, TrainerError
from trainer_app.settings import Settings, load_settings
from trainer_app.stack.ports import local_url


def check_installed() -> None:
    """Raise SettingsError where the extra is absent."""
    if find_spec("flower") is None:
        raise SettingsError("--flower: needs Flower: pip install -c constraints.txt -e '.[flower]'")


def flower_url(settings: Settings) -> str:
    """Where a browser on this machine finds it."""
    return local_url(settings.flower.host, settings.flower.port)


def auth_file(settings: Settings) -> Path:
    """Where a password that was made up is kept; its mode is 0600."""
    return settings.paths.data_root / "run" / "flower.auth"


def credentials(settings: Settings, say: Callable[[str], None]) -> str:
    """``user:password`` of the settings, or else one made up at the first start, which is said."""
    if settings.flower.basic_auth:
        return settings.flower.basic_auth
    file = auth_file(settings)
    if not file.exists():
        made = f"trainer:{secrets.token_hex(12)}"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, made.encode(), mode=0o600)
        say(f"Flower's user and password, kept in {file}: {made}")
    return file.read_text("utf-8").strip()


def main() -> None:
    """Run Flower until SIGTERM."""
    try:
        check_installed()
        settings = load_settings()
        auth = credentials(settings, print)
    except TrainerError as error:
        sys.exit(f"error: {error.message}")
    os.environ.update(FLOWER_BASIC_AUTH=auth)
    place = (f"--address={settings.flower.host}", f"--port={settings.flower.port}")
    sys.argv = ["celery", "-q", "-A", "tasks.app", "flower", *place]
    celery()


if __name__ == "__main__":
    main()

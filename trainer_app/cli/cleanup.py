"""``trainer cleanup``: delete what can be fetched or made again, here and now.

Works on the settings, as housekeeping does, whether or not it is switched on there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Annotated

import typer

from trainer_app.cleanup.corpus_cache import clean_corpus_cache
from trainer_app.cleanup.models import clean_models
from trainer_app.cleanup.report import Item, Report
from trainer_app.cleanup.runs import clean_runs
from trainer_app.cleanup.tokenizers import clean_tokenizers
from trainer_app.cleanup.tokens import clean_tokens
from trainer_app.cli.exits import EXPLANATION
from trainer_app.cli.tables import size, table
from trainer_app.databank.client import DataBank
from trainer_app.errors import SettingsError, Unavailable
from trainer_app.folders import is_away, remember_roots, waits_for
from trainer_app.settings import Settings, load_settings
from trainer_app.store import migrate
from trainer_app.store.database import Database

group = typer.Typer(
    help="Delete what can be fetched or made again; never what a job reads.", no_args_is_help=True
)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and why.")]
AsJson = Annotated[bool, typer.Option("--json", help="Only JSON on stdout.")]


@group.command("corpus-cache", epilog=EXPLANATION)
def _corpus_cache(*, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Delete fetched corpora until APP__CORPUS_CACHE_CLEANUP__* hold."""

    def clean(database: Database, settings: Settings) -> Report:
        rules = settings.corpus_cache_cleanup
        return clean_corpus_cache(database, settings.paths.corpus_cache, rules, dry_run=dry_run)

    _run(clean, as_json=as_json)


@group.command("runs", epilog=EXPLANATION)
def _runs(*, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Delete checkpoints of runs that failed or were cancelled CELERY__FAILURE_TTL_SEC ago."""

    def clean(database: Database, settings: Settings) -> Report:
        return clean_runs(database, settings, dry_run=dry_run)

    _run(clean, as_json=as_json)


@group.command("tokens", epilog=EXPLANATION)
def _tokens(*, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Delete the longest unused token ids until APP__TOKEN_CACHE_CLEANUP__* hold."""

    def clean(database: Database, settings: Settings) -> Report:
        return clean_tokens(database, settings, dry_run=dry_run)

    _run(clean, as_json=as_json)


@group.command("tokenizers", epilog=EXPLANATION)
def _tokenizers(*, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Delete tokenizers that no run needs, by APP__TOKENIZER_CLEANUP__MIN_UNUSED_DAYS."""

    def clean(database: Database, settings: Settings) -> Report:
        return clean_tokenizers(database, settings, dry_run=dry_run)

    _run(clean, as_json=as_json)


@group.command("models", epilog=EXPLANATION)
def _models(*, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Delete weights that the data bank has, by APP__CLEANUP__*."""

    def clean(database: Database, settings: Settings) -> Report:
        if settings.data_bank.url is None:
            raise SettingsError("APP__DATA_BANK_API_URL: is needed, and empty")
        with DataBank(settings.data_bank) as bank:
            only_told = dry_run or settings.cleanup.dry_run
            return clean_models(database, settings, bank, dry_run=only_told)

    _run(clean, as_json=as_json)


def _run(clean: Callable[[Database, Settings], Report], *, as_json: bool) -> None:
    settings = load_settings()
    remember_roots(settings)
    for root in (settings.paths.artifacts, settings.paths.runs):
        if is_away(root, os.environ):
            raise Unavailable(f"nothing is cleaned up while a disk is away: {waits_for(root)}")
    with closing(Database(settings.database_url)) as database:
        if migrate.current_revision(database) != migrate.head_revision():
            raise Unavailable(
                "the database is not of this version: `trainer db upgrade` first, or clean up with "
                "the later version that it is of"
            )
        report = clean(database, settings)
    if as_json:
        typer.echo(json.dumps({**asdict(report), "freed_bytes": report.freed_bytes}, indent=2))
        return
    if report.removed or report.kept:
        rows = [*_rows("would go" if report.dry_run else "gone", report.removed)]
        rows += _rows("stays", report.kept)
        typer.echo(table(("", "name", "bytes", "why"), rows))
    verb = "would be" if report.dry_run else "was"
    typer.echo(f"{size(report.freed_bytes)} {verb} freed")


def _rows(fate: str, items: tuple[Item, ...]) -> list[tuple[str, str, int, str]]:
    return [(fate, item.name, item.bytes, item.reason) for item in items]

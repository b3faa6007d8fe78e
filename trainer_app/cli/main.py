"""The ``trainer`` command."""

from __future__ import annotations

import sys

import typer

from trainer_app.cli import cleanup, corpora, models, runs, stack, tokenizers
from trainer_app.cli.exits import EXPLANATION, Exit
from trainer_app.errors import FieldError, SettingsError, TrainerError, Unavailable
from trainer_app.transport import ApiError, NotReachable

app = typer.Typer(
    name="trainer",
    help="Train, evaluate and use small language models on your own machines.",
    epilog=EXPLANATION,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
stack.register(app)
app.add_typer(corpora.group, name="corpora")
app.add_typer(tokenizers.group, name="tokenizers")
app.add_typer(runs.group, name="runs")
app.add_typer(cleanup.group, name="cleanup")
models.register(app)


def main() -> None:
    """Run the command line; an error is one line on stderr and an exit code."""
    try:
        app(prog_name="trainer")
    except ApiError as error:
        sys.exit(_refused(error))
    except TrainerError as error:
        _complain(error.message)
        sys.exit(_exit_code(error))
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(Exit.BAD_INPUT)


def _refused(error: ApiError) -> Exit:
    if not error.details:
        _complain(f"{error.message} ({error.code})")
    for field, message in error.details:
        _complain(f"{field}: {message}")
    if error.status >= 500:
        _complain(f"request id {error.request_id}")
    if error.status == 503:
        return Exit.NOT_REACHABLE
    return Exit.FAILED if error.status >= 500 else Exit.BAD_INPUT


def _exit_code(error: TrainerError) -> Exit:
    if isinstance(error, NotReachable | Unavailable):
        return Exit.NOT_REACHABLE
    return Exit.BAD_INPUT if isinstance(error, SettingsError | FieldError) else Exit.FAILED


def _complain(message: str) -> None:
    typer.echo(f"error: {message}", err=True)


if __name__ == "__main__":
    main()

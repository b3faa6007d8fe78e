"""What the commands that speak to a server share: its URL, the key, and the form of the output."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter
from typing import Annotated, Concatenate, Final, ParamSpec

import typer
from marshmallow import Schema
from rich.console import Console

from trainer_app.cli.body_options import body_options
from trainer_app.cli.exits import EXPLANATION, Exit
from trainer_app.client import DEFAULT_URL, Client

P = ParamSpec("P")

_URL = Annotated[
    str, typer.Option("--url", envvar="TRAINER_URL", help="The server.", rich_help_panel="Server")
]
_KEY = Annotated[
    str,
    typer.Option(
        "--api-key",
        envvar="SECURITY__API_KEY",
        show_envvar=True,
        help="The server's key, if it wants one.",
        rich_help_panel="Server",
    ),
]
_JSON = Annotated[
    bool, typer.Option("--json", help="Only JSON on stdout.", rich_help_panel="Server")
]
_SHARED: Final = (
    Parameter("url", Parameter.KEYWORD_ONLY, default=DEFAULT_URL, annotation=_URL),
    Parameter("api_key", Parameter.KEYWORD_ONLY, default="", annotation=_KEY),
    Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=_JSON),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One command's connection to the server and to the terminal."""

    client: Client
    as_json: bool
    body: Mapping[str, object]  # the options that became fields of the request, if given
    out: Console  # results
    notes: Console  # all else: stderr where stdout is for JSON

    def print_json(self, value: object) -> None:
        """The result, for a script."""
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def command(
    group: typer.Typer, name: str, *, body: type[Schema] | None = None
) -> Callable[[Callable[Concatenate[Session, P], Exit]], Callable[Concatenate[Session, P], Exit]]:
    """Register a command whose function takes a Session before its own parameters.

    It gets the options of the session, and one for each field of the request's ``body``: the
    API's schema is the one list of them.
    """

    def register(
        function: Callable[Concatenate[Session, P], Exit],
    ) -> Callable[Concatenate[Session, P], Exit]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        fields = [] if body is None else body_options(body())

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            as_json = bool(kwargs.pop("as_json"))
            # The server takes several keys, separated by commas: any of them will do.
            key = str(kwargs.pop("api_key")).partition(",")[0].strip()
            given = {field.name: kwargs.pop(field.name) for field in fields}
            with Client(str(kwargs.pop("url")), api_key=key or None) as client:
                session = Session(
                    client=client,
                    as_json=as_json,
                    body={name: value for name, value in given.items() if value not in (None, [])},
                    out=Console(soft_wrap=True, highlight=False),
                    notes=Console(stderr=as_json, soft_wrap=True, highlight=False),
                )
                raise typer.Exit(function(session, *args, **kwargs))

        parameters = [
            parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in [*own, *fields]
        ]
        # typer reads the options from the signature.
        vars(run)["__signature__"] = inspect.Signature([*parameters, *_SHARED])
        group.command(name, epilog=EXPLANATION)(run)
        return function

    return register

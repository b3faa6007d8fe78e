"""The one gate in front of everything: host, origin and key, before any view runs.

Who may talk to the server, by name: a browser that is tricked into calling it sends the foreign
name in Host or in an absolute target (DNS rebinding) or in Origin (another page's script).

- A server bound to loopback answers to ``localhost``, ``127.0.0.1``, ``[::1]`` and API__HOST, on
  any port. One that is bound elsewhere answers to any name: it has names that it cannot know.
- A request with an Origin must come from a page of the host and port that it is sent to: another
  port of this machine is another program. The scheme may differ, behind a proxy with TLS.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from typing import Final

from flask import Flask, request

from trainer_app.api import current
from trainer_app.api.errors import Forbidden, Unauthorized
from trainer_app.errors import SettingsError
from trainer_app.settings import Settings

KEY_HEADER: Final = "X-Api-Key"
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
_OPEN_FOLDER: Final = "/docs/"  # the files of the documentation page: no data in them
_AUTHORITY: Final = re.compile(
    r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[0-9a-z._-]+))(?::(?P<port>[0-9]{1,5}))?"
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_AFTER_AUTHORITY: Final = re.compile(r"[/?#]")
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def install(app: Flask) -> None:
    """Stand before every view, errors of the router included."""
    app.before_request(_check)


def check_exposure(settings: Settings) -> None:
    """Raise SettingsError for a server that anybody on the network could use unasked."""
    if settings.security.api_keys or settings.security.allow_open:
        return
    if not is_loopback(settings.api.host):
        raise SettingsError(
            f"API__HOST: {settings.api.host} can be reached from other machines; set "
            "SECURITY__API_KEY, or SECURITY__ALLOW_OPEN=true to let everybody in"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_open(path: str) -> bool:
    """Whether the path needs no key."""
    return path in OPEN_PATHS or path.startswith(_OPEN_FOLDER)


def _check() -> None:
    settings = current.settings()
    _check_reach(settings)
    _check_names(settings)
    if settings.security.api_keys and not is_open(request.path):
        _check_key(settings.security.api_keys)


def _check_reach(settings: Settings) -> None:
    """Whatever address another starter has bound: without a key nobody comes in from outside."""
    if settings.security.api_keys or settings.security.allow_open:
        return
    if request.remote_addr and not is_loopback(request.remote_addr):  # none: a socket's file
        raise Forbidden("without SECURITY__API_KEY this server answers to its own machine alone")


def _check_names(settings: Settings) -> None:
    host = _asked_for().lower()
    if is_loopback(settings.api.host):
        names = _LOOPBACK_NAMES | {settings.api.host.strip("[]").lower()}
        # Host is to be ignored then, but nobody who means well sends a foreign one.
        if {_name_in(host), _name_in(request.headers.get("Host", "").lower())} - names:
            raise Forbidden("this server does not answer to the name that it is asked for by")
    origin = request.headers.get("Origin")
    if origin is None:
        return
    if not _is_same(origin.lower(), host):
        raise Forbidden("requests from pages of another origin are refused")


def _is_same(origin: str, host: str) -> bool:
    """Whether the host and port of an Origin are those that Host names.

    A port that is not named is the default of the Origin's scheme: the only one that the server
    knows the browser to have used.
    """
    scheme, _, authority = origin.partition("://")
    source, target = _AUTHORITY.fullmatch(authority), _AUTHORITY.fullmatch(host)
    default = _DEFAULT_PORTS.get(scheme)
    if default is None or source is None or target is None:
        return False
    return source.group("address", "name") == target.group("address", "name") and int(
        source["port"] or default
    ) == int(target["port"] or default)


def _asked_for() -> str:
    """The authority that the request is for: in its target, where one is there, or else in Host.

    RFC 9112, 3.2.2: of a target like ``http://name/runs`` the name counts, whatever Host says.
    """
    target: str = request.environ.get("RAW_URI", "")  # as it was sent, or none of another server
    if not target or target.startswith(("/", "*")):
        return request.headers.get("Host", "")
    rest = target.partition("://")[2] or target  # CONNECT has the authority alone
    return _AFTER_AUTHORITY.split(rest, maxsplit=1)[0]


def _name_in(authority: str) -> str | None:
    """The host in ``host``, ``host:port`` or ``[address]:port``; None for anything else."""
    match = _AUTHORITY.fullmatch(authority)
    return match and (match["address"] or match["name"])


def client() -> str:
    """Who asks: the digest of a valid key, or else the address that the request comes from."""
    given = request.headers.get(KEY_HEADER)
    if given is not None and _is_valid(given, current.settings().security.api_keys):
        return _digest(_bytes(given)).hex()
    return request.remote_addr or "nobody"


def _check_key(keys: tuple[str, ...]) -> None:
    given = request.headers.get(KEY_HEADER)
    if given is None:
        raise Unauthorized(f"the header {KEY_HEADER} is missing")
    if not _is_valid(given, keys):
        raise Forbidden(f"the key in {KEY_HEADER} is not valid")


def _is_valid(given: str, keys: tuple[str, ...]) -> bool:
    """Compare digests of equal length with every key, so that time tells nothing."""
    digest = _digest(_bytes(given))
    matches = [hmac.compare_digest(digest, _digest(key.encode())) for key in keys]
    return any(matches)


def _bytes(header: str) -> bytes:
    return header.encode("latin-1")  # as which WSGI hands them over


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

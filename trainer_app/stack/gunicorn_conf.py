"""How gunicorn serves the API; all that varies comes from the settings."""

from __future__ import annotations

from trainer_app.settings import load_settings

_settings = load_settings()
_host = f"[{_settings.api.host}]" if ":" in _settings.api.host else _settings.api.host

bind = [f"{_host}:{_settings.api.port}"]
# One process: its threads share one reader of Redis that fans out to all streams.
workers = 1
worker_class = "trainer_app.stack.gunicorn_worker.Worker"
threads = _settings.api.threads
# Room for kept-alive connections beside those that are being served.
worker_connections = 4 * threads
keepalive = 15
# A stream does not end by itself: its client comes back with Last-Event-ID.
graceful_timeout = 5
# The main loop of the worker reports each second, whatever its threads do.
timeout = 60
# No header is believed that only a proxy should send: SCRIPT_NAME and PATH_INFO, which are believed
# from loopback otherwise, would answer for another address than the one that was asked for.
forwarded_allow_ips = ""
accesslog = None  # the application logs its requests itself
errorlog = "-"
# It would lie in the home folder and be shared by all gunicorns of this user.
control_socket_disable = True

"""``trainer up``: the whole stack in the foreground, until it is told to stop."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

import httpx

from trainer_app.api.gate import check_exposure
from trainer_app.errors import DiskFull, SettingsError, Unavailable
from trainer_app.folders import check_folders, is_away, remember_roots, waits_for
from trainer_app.settings import Settings
from trainer_app.stack import broker as brokers
from trainer_app.stack import flower
from trainer_app.stack.broker import Broker
from trainer_app.stack.gpus import visible_gpus
from trainer_app.stack.output import Output
from trainer_app.stack.ports import free_port, is_free, local_url
from trainer_app.stack.processes import Process, Role, processes
from trainer_app.stack.state import (
    end_leftovers,
    is_damaged,
    is_of_another_root,
    read_state,
    remove_state,
    state_file,
    write_state,
)
from trainer_app.stack.supervisor import Supervisor
from trainer_app.store import migrate
from trainer_app.store.write_ahead_log import WriteAheadLog

_BROKER_SECONDS: Final = 60.0  # to read a long append-only file back
READY_SECONDS: Final = 180.0  # until /readyz says 200; a worker's first import of torch is slow
READY_LINE: Final = "ready  "  # starts the line that says so, with the URL after it
_TICK_SECONDS: Final = 0.1
_ASK_SECONDS: Final = 0.3  # between two looks at /readyz
_WRITE_SECONDS: Final = 1.0  # between two tries to put stack.json back
_UNREADABLE: Final = 2  # refusals in a row of a broker whose port was free
_HOPELESS: Final = 5  # deaths in a row of one process before it was ever ready
_OUTSIDE_SECONDS: Final = 10.0  # for a broker that is not ours
_LEFTOVER_SECONDS: Final = 10.0


class _Signals:
    """Counts what asks the stack to stop: Ctrl-C, SIGTERM, a closed terminal."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._heard)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.count += 1


def up(settings: Settings, *, with_flower: bool = False) -> int:
    """Run the stack and return the exit code: 0 when it was asked to stop, 1 when it never came up.

    Raises SettingsError, before anything is started, where it cannot be started like this, and
    Unavailable where a database or broker from outside does not answer.
    """
    root = settings.paths.data_root
    _check_settings(settings)
    if with_flower:
        flower.check_installed()
    _check_data_root(root)
    check_folders(settings, for_a_stack=True)
    with locked_root(root):
        logs = root / "run" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        plan = processes(settings, visible_gpus(os.environ), with_flower=with_flower)
        output = Output(sys.stdout, logs, [Role.BROKER, *(process.name for process in plan)])
        _end_leftovers(root, output)  # first: they may hold the ports
        remember_roots(settings)
        for folder in (settings.paths.artifacts, settings.paths.runs):
            if is_away(folder, os.environ):
                output.say(waits_for(folder))
        settings = _with_port(settings)
        if with_flower:
            settings = _with_flower_port(settings)
        flower_url = flower.flower_url(settings) if with_flower else None
        return _Stack(settings, output, _Signals(), flower_url).run(plan)


class _Stack:
    """A stack whose data root is checked and locked."""

    def __init__(
        self,
        settings: Settings,
        output: Output,
        signals: _Signals,
        flower_url: str | None = None,
    ) -> None:
        self._settings = settings
        self._flower_url = flower_url  # None: it was not asked for
        self._output = output
        self._signals = signals
        self._redis_url = settings.redis.url
        self._said: str | None = None  # why stack.json is not there, once
        self._excused = 0  # refusals of the broker that had another cause than its own file
        readable = {"LOGGING__FORMAT": "text"}  # unless the user chose otherwise
        self._environment = (
            readable
            | dict(os.environ)
            | {
                "APP__DATA_ROOT": str(settings.paths.data_root),
                "DATABASE__URL": settings.database_url,
                "API__HOST": settings.api.host,
                "API__PORT": str(settings.api.port),
                "FLOWER__PORT": str(settings.flower.port),
                "PYTHONUNBUFFERED": "1",  # lines are to be seen as they are written
            }
        )

    def run(self, plan: list[Process]) -> int:
        if self._flower_url is not None:
            flower.credentials(self._settings, self._output.plain)
        supervisor = Supervisor(self._output, self._environment)
        log = WriteAheadLog(self._settings.database_url)
        try:
            self._start_broker(supervisor)
            if not self._signals.count:
                self._migrate()
                log.remember()
            if self._signals.count:
                return 0
            for process in plan:
                supervisor.start(process)
            return self._watch(supervisor)
        finally:
            self._output.say("stopping")
            before = self._signals.count
            supervisor.stop(lambda: self._signals.count > before)
            log.put_away()
            remove_state(self._settings.paths.data_root)
            self._output.say("stopped")

    def _start_broker(self, supervisor: Supervisor) -> None:
        try:
            if self._settings.redis.given:
                self._wait_for_broker(_OUTSIDE_SECONDS, lambda: True)
            else:
                self._start_own_broker(supervisor)
        except Unavailable:
            if not self._signals.count:  # else nobody waits for it any more
                raise

    def _migrate(self) -> None:
        try:
            migrate.upgrade(self._settings.database_url, give_up=lambda: self._signals.count > 0)
        except Unavailable:
            if not self._signals.count:  # as above
                raise

    def _start_own_broker(self, supervisor: Supervisor) -> None:
        broker = brokers.configure(self._settings.paths.data_root, say=self._output.say)
        self._redis_url = supervisor.environment["REDIS__URL"] = broker.url
        process = Process(name=Role.BROKER, role=Role.BROKER, command=broker.command)

        def mend(refusals: int) -> None:
            self._mend_broker(broker, refusals)

        supervisor.start(process, before_restart=mend)
        try:
            self._wait_for_broker(_BROKER_SECONDS, lambda: supervisor.alive(process))
        except Unavailable:
            may_be_its_file = not supervisor.alive(process) and brokers.has_its_port(broker)
            aside = brokers.set_aside(broker) if may_be_its_file else None
            if aside is None:
                raise
            self._say_set_aside(aside)
            supervisor.drop(process)
            supervisor.start(process, before_restart=mend)
            self._wait_for_broker(_BROKER_SECONDS, lambda: supervisor.alive(process))

    def _mend_broker(self, broker: Broker, refusals: int) -> None:
        """Give a broker that has died what it needs, and not again a file that it cannot read."""
        try:
            restored = broker.restore()
            if restored:
                self._output.say("the broker's configuration was gone or changed: it is restored")
            if not brokers.has_its_port(broker):
                self._output.say(f"the broker waits for its port {broker.port}, which is in use")
                self._excused = refusals + 1  # the start that follows as well
            elif restored:
                self._excused = refusals
            else:
                self._excused = min(self._excused, refusals)  # it was well meanwhile
            unexplained = refusals - self._excused
            aside = brokers.set_aside(broker) if unexplained >= _UNREADABLE else None
        except (OSError, DiskFull) as error:
            self._output.say(f"the broker cannot be mended: {error}")
            return
        if aside is not None:
            self._say_set_aside(aside)

    def _say_set_aside(self, aside: Path) -> None:
        self._output.say(f"the broker cannot read its file, which is now {aside}")

    def _wait_for_broker(self, seconds: float, alive: Callable[[], bool]) -> None:
        brokers.wait_until_it_answers(
            self._redis_url,
            timeout_seconds=seconds,
            alive=lambda: alive() and not self._signals.count,
        )

    def _watch(self, supervisor: Supervisor) -> int:
        self._write_state(supervisor)
        url = api_url(self._settings)
        started = time.monotonic()
        ready, ask_at, write_at = False, started, started + _WRITE_SECONDS
        with httpx.Client(base_url=url, timeout=1.0, trust_env=False) as client:
            while not self._signals.count:
                gone = not state_file(self._settings.paths.data_root).exists()
                if supervisor.tick() or (gone and time.monotonic() >= write_at):
                    write_at = time.monotonic() + _WRITE_SECONDS
                    self._write_state(supervisor)
                if not ready and time.monotonic() >= ask_at:
                    ask_at = time.monotonic() + _ASK_SECONDS
                    ready, reason = _readiness(client)
                    if ready:
                        more = f", Flower at {self._flower_url}" if self._flower_url else ""
                        self._output.plain(f"{READY_LINE}{url}  (docs at /docs{more})")
                    elif why := self._hopeless(supervisor, time.monotonic() - started, reason):
                        self._output.say(why)
                        return 1
                time.sleep(_TICK_SECONDS)
        return 0

    def _hopeless(self, supervisor: Supervisor, seconds: float, reason: str) -> str | None:
        """Why the stack will not come up, if it looks like that."""
        name, failures = supervisor.most_failures()
        log = self._settings.paths.data_root / "run" / "logs"
        if failures >= _HOPELESS:
            return f"{name} does not stay up: see {log / f'{name}.log'}"
        if seconds > READY_SECONDS:
            return f"not ready after {seconds:.0f} s ({reason}): see {log}"
        return None

    def _write_state(self, supervisor: Supervisor) -> None:
        problem = None
        try:
            write_state(
                self._settings.paths.data_root,
                supervisor.pids(),
                api_url=api_url(self._settings),
                flower_url=self._flower_url,
                redis_url=self._redis_url,
                database_url=self._settings.database_url,
            )
        except (OSError, DiskFull) as error:
            # A full disk is no reason to stop what runs.
            problem = f"stack.json could not be written: {error}"
        if problem is not None and problem != self._said:
            self._output.say(problem)
        self._said = problem


def api_url(settings: Settings) -> str:
    """Where a client on this machine reaches the API."""
    return local_url(settings.api.host, settings.api.port)


def _readiness(client: httpx.Client) -> tuple[bool, str]:
    try:
        answer = client.get("/readyz")
        return answer.status_code == 200, str(answer.json()["reason"])
    except (httpx.HTTPError, ValueError, KeyError):
        return False, "the API does not answer"


def _check_settings(settings: Settings) -> None:
    if not settings.redis.enabled:
        raise SettingsError("REDIS__ENABLED: must not be false for a stack, whose workers need it")
    check_exposure(settings)


def _check_data_root(root: Path) -> None:
    try:
        (root / "run").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root / "run"):
            pass
    except OSError as error:
        reason = f"cannot be written to: {error.strerror}"
        raise SettingsError(f"APP__DATA_ROOT: {root} {reason}") from error


def _end_leftovers(root: Path, output: Output) -> None:
    if is_damaged(root):
        output.say(
            f"{state_file(root)} is damaged and counts as none: what a killed stack may have left "
            "running is not known"
        )
    if is_of_another_root(root):
        output.say(
            f"{state_file(root)} is of another data root, of which this seems to be a copy: what "
            "serves that one is left running"
        )
    if left := end_leftovers(root, grace_seconds=_LEFTOVER_SECONDS):
        output.say(f"ended what a killed stack had left running: {', '.join(left)}")


@contextmanager
def locked_root(root: Path) -> Iterator[None]:
    """Raises SettingsError where another stack has locked it.

    By a file, and by the folders as well: somebody may delete the file, or ``run/`` with it.
    """
    run = root / "run"
    with (run / "lock").open("w") as lock, _opened(run) as inner, _opened(root) as outer:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _lock_folder(inner)
            _lock_folder(outer)
        except OSError as error:
            state = read_state(root)
            where = f" at {state['api_url']}" if state else ""
            if is_damaged(root):
                where = f"; where is not known, for {state_file(root)} is damaged"
            message = f"APP__DATA_ROOT: {root} is in use by a stack that runs{where}"
            raise SettingsError(message) from error
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock_folder(folder: int) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system over a network may lock files alone
        return


def _with_port(settings: Settings) -> Settings:
    host, port = settings.api.host, settings.api.port
    chosen = _listenable("API", host, port, advice="choose another one with --port")
    return replace(settings, api=replace(settings.api, port=chosen))


def _with_flower_port(settings: Settings) -> Settings:
    host, port = settings.flower.host, settings.flower.port
    chosen = _listenable("FLOWER", host, port, advice="choose another one with --flower-port")
    return replace(settings, flower=replace(settings.flower, port=chosen))


def _listenable(name: str, host: str, port: int, *, advice: str) -> int:
    """The port, a free one for 0; raises SettingsError where nobody can listen on it."""
    try:
        if port and not is_free(host, port):
            raise SettingsError(f"{name}__PORT: {port} is in use; {advice}")
        return port or free_port(host)
    except OSError as error:
        raise SettingsError(
            f"{name}__HOST: cannot listen on {host}:{port}: {error.strerror}"
        ) from error

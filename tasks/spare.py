"""The processes of a worker's pool: started ahead, so that one with torch imported takes over.

Each is a fresh interpreter, which inherits no state of CUDA or of torch's threads. It imports all
that a job needs, and then waits to be told through a socket what it is: until then it is a spare.
"""

from __future__ import annotations

import gc
import io
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final, Protocol, runtime_checkable

import psutil
import structlog
from billiard import context, popen_fork, reduction, spawn
from billiard.process import BaseProcess
from celery.concurrency import prefork

from tasks import process
from tasks.shells import ENGINE, TRAINING_ENGINE
from trainer_app import log as logs
from trainer_app.core.free_memory import free_memory

_COMMAND: Final = "from tasks.spare import main; main({}, trains={})"
_MOST_FILES: Final = 64  # that a child is given; billiard's pool gives it less than ten
# After a child was replaced: those that crash once are likely to again, and its run is going on
# by then.
_NEXT_SECONDS: Final = 5.0
# torch and what it imports take 0.4 GB: whoever is short of them needs them for training.
_BYTES: Final = 2 * 2**30  # that must be free for a spare to be started
_log = structlog.get_logger(__name__)
# Says to billiard whose duplicate_for_child() hears of the files in what is pickled.
_pickle_for: Final[Callable[[popen_fork.Popen | None], None]] = import_module(
    "billiard.context"
).set_spawning_popen
_files: list[int] = []  # that this process was given, in the order of the sender


class Spares:
    """Those of one worker: one at most, beside its children."""

    def __init__(
        self,
        *,
        free_bytes: Callable[[], float] = free_memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free_bytes = free_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._spare: Spare | None = None
        self._changed_at = clock()  # when one was started or taken
        self._has_child = False
        self._replaced = False  # a child was, and no spare was started since
        self.train = True  # what they are to be may train

    def keep(self, *, after_seconds: float) -> None:
        """Start a spare if there is none; to be called about once a second.

        Not sooner after the last one was started or taken: what starts is not to be held up, nor
        a machine that can start none to be kept busy. A little sooner once a child was replaced.
        Not where memory is short.
        """
        if self._replaced:
            after_seconds = min(after_seconds, _NEXT_SECONDS)
        with self._lock:
            if self._spare is not None and self._spare.process.poll() is None:
                return
            if self._clock() - self._changed_at < after_seconds or self._free_bytes() < _BYTES:
                return
            self._changed_at = self._clock()
            self._replaced = False
            if self._spare is not None:
                self._spare.end()
                self._spare = None
            self._spare = self.new()

    def take(self) -> Spare:
        """The spare, which may have died, or a new one; it is the caller's from now on."""
        with self._lock:
            taken, self._spare = self._spare, None
            self._changed_at = self._clock()
            self._replaced, self._has_child = self._has_child, True
        if taken is not None and taken.is_stopped():
            taken.end()
            taken = None
        return taken or self.new()

    def new(self) -> Spare:
        """One that is the caller's, and has just been started."""
        return Spare(trains=self.train)


class Spare:
    """A process that waits to be told what it is."""

    def __init__(self, *, trains: bool) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 (our own command)
                (sys.executable, "-c", _COMMAND.format(theirs.fileno(), trains)),
                pass_fds=[theirs.fileno()],
            )

    def become(self, files: Sequence[int], data: bytes) -> None:
        """Let it be what ``data`` says. Raises OSError where it has died."""
        with self._socket:
            reduction.sendfds(self._socket, list(files))
            self._socket.sendall(data)

    def is_stopped(self) -> bool:
        """Whether a signal has stopped it: it would not become anything."""
        if self.process.poll() is not None:
            return False
        return str(psutil.Process(self.process.pid).status()) == "stopped"

    def close(self) -> None:
        """Have no more use for it: it ends by itself."""
        self._socket.close()

    def end(self) -> None:
        """End it now, if it has not ended."""
        self.close()
        self.process.kill()
        self.process.wait()


spares: Final = Spares()


class _Popen(popen_fork.Popen):
    """How billiard starts a child, and asks what became of it."""

    method = "spawn"

    class DupFd:
        """A file of the parent's, as the child is told of it."""

        def __init__(self, place: int) -> None:
            self._place = place

        def detach(self) -> int:
            return _files[self._place]

    def __init__(self, process_obj: BaseProcess) -> None:
        self._sent: list[int] = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        self._sent.append(fd)
        return len(self._sent) - 1

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        # Popen of the standard library knows of its children what waitpid tells nobody twice.
        self.returncode = self._process.poll() if flag == os.WNOHANG else self._process.wait()
        return self.returncode

    def _launch(self, process_obj: BaseProcess) -> None:
        data = io.BytesIO()
        _pickle_for(self)
        try:
            reduction.dump(spawn.get_preparation_data(process_obj.name), data)
            reduction.dump(process_obj, data)
        finally:
            _pickle_for(None)
        self.sentinel, theirs = os.pipe()  # readable once the child has ended
        try:
            self._process = self._child([*self._sent, theirs], data.getvalue())
        finally:
            os.close(theirs)
        self.pid = self._process.pid

    def _child(self, files: Sequence[int], data: bytes) -> subprocess.Popen[bytes]:
        spare = spares.take()
        try:
            spare.become(files, data)
        except OSError:
            spare.end()
            spare = spares.new()
            spare.become(files, data)
        return spare.process


@runtime_checkable
class _PoolsWork(Protocol):
    """What a child of billiard's pool runs, as far as it is used here."""

    inqW_fd: int  # noqa: N815 - the file that the pool writes tasks into


class _Process(context.SpawnProcess):
    _Popen = staticmethod(_Popen)
    _target: object
    pid: int
    inqW_fd: int  # noqa: N815 - as the parent numbers it
    outqR_fd: int  # noqa: N815 - what the child tells is read from it, by the parent

    def run(self) -> None:
        # The pool knows who is free by its own number of this file, which the child tells it with
        # each result; billiard's children have the same number, and these have another.
        if isinstance(self._target, _PoolsWork):
            self._target.inqW_fd = self.inqW_fd
        super().run()


class SpareContext(context.SpawnContext):
    """billiard's ``spawn``, by way of spares."""

    Process = _Process


class _Pool(Protocol):
    """billiard's pool, as far as it is used here."""

    _pool: Sequence[_Process]


class TaskPool(prefork.TaskPool):
    """Celery's pool of processes; ``worker_pool`` in celeryconfig.py names it."""

    _pool: _Pool

    def on_start(self) -> None:
        self.options["context"] = SpareContext()
        super().on_start()

    def unheard(self) -> frozenset[int]:
        """The pids of the children that have told what this process has not read yet.

        At its task a child tells nothing between the start, and the end that makes it free for the
        next one. Celery reads neither while it waits for its broker.
        """
        children = list(self._pool._pool)  # noqa: SLF001 - as Celery's own info
        told = select.poll()
        for child in children:
            told.register(child.outqR_fd, select.POLLIN)
        # A file that has been closed meanwhile is one of a child that has ended.
        readable = {file for file, event in told.poll(0) if event & select.POLLIN}
        return frozenset(child.pid for child in children if child.outqR_fd in readable)


def main(number: int, *, trains: bool) -> None:
    """Be a spare, and then a child of the pool, whose socket has this ``number``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the worker's to heed
    logs.configure(process.settings())
    for module in ("tasks.worker", *(TRAINING_ENGINE if trains else ENGINE)):
        import_module(module)
    # Each job's end looks for garbage: not among 400,000 objects of libraries, which took 0.2 s.
    gc.collect()
    gc.freeze()
    _log.info("a process waits for work", pid=os.getpid())
    with socket.socket(fileno=number) as connection:
        try:
            _files[:] = reduction.recvfds(connection, _MOST_FILES)
        except EOFError:  # the worker has ended
            return
        # What billiard's own command for a child calls.
        code: int = import_module("billiard.spawn")._main(connection.detach())  # noqa: SLF001
    sys.exit(code)

import socket
from typing import Protocol

from gunicorn.http.message import Request

class _Source(Protocol):
    def recv(self, size: int, /) -> bytes: ...

class _Unreader:
    sock: _Source

class _Parser:
    unreader: _Unreader

class TConn:
    sock: socket.socket
    parser: _Parser

class ThreadWorker:
    def init_process(self) -> None: ...
    alive: bool
    def handle(self, conn: TConn) -> object: ...
    def handle_request(self, req: Request, conn: TConn) -> object: ...
    def handle_error(
        self, req: object, client: socket.socket, addr: object, exc: Exception
    ) -> None: ...
    def murder_pending(self) -> None: ...

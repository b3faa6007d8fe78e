"""The client, against a real server."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from trainer_app.client import Client
from trainer_app.errors import TimedOut
from trainer_app.settings import Security, Settings
from trainer_app.stack.ports import free_port
from trainer_app.store.tables import Status
from trainer_app.transport import ApiError, NotReachable

if TYPE_CHECKING:
    from tests.cli.conftest import Server


def test_a_text_is_uploaded_in_pieces_and_found_again(server: Server, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"one line of text\n" * 40_000)
    sent: list[int] = []
    with server.client() as client:
        corpus = client.upload_corpus(text, on_progress=sent.append)
        assert client.get_corpus(corpus["file_id"]) == corpus
        assert client.list_corpora(limit=1)["data"] == [corpus]
        client.delete_corpus(corpus["file_id"])
        assert client.list_corpora()["data"] == []
    assert corpus["lines"] == 40_000
    assert len(sent) > 1
    assert sent[-1] == text.stat().st_size


def test_a_run_is_started_once_for_a_key(server: Server) -> None:
    body = {
        "corpus_path": server.corpus(),
        "tokenizer_id": server.tokenizer(),
        "model_size": "tiny",
    }
    with server.client() as client:
        first = client.train_run(body, idempotency_key="once")
        assert client.train_run(body, idempotency_key="once") == first
        assert client.get_run(first["run_id"])["status"] == "queued"
        assert client.cancel_run(first["run_id"])["status"] == "cancellation-requested"
        assert client.list_runs(status="cancelled")["data"][0]["run_id"] == first["run_id"]


def test_waiting_ends_with_the_job(server: Server) -> None:
    run_id = server.run()

    def work() -> None:
        claim = server.claim(run_id)
        time.sleep(0.3)
        server.finish(claim)

    with server.client() as client:
        Thread(target=work).start()
        assert client.wait_for_run(run_id, timeout=20)["status"] == "completed"


def test_waiting_has_an_end(server: Server) -> None:
    run_id = server.run()
    with server.client() as client, pytest.raises(TimedOut, match=f"{run_id} has not ended"):
        client.wait_for_run(run_id, timeout=0.2)


def test_a_tokenizer_is_trained_and_listed(server: Server) -> None:
    corpus = server.corpus()
    with server.client() as client:
        accepted = client.train_tokenizer(
            {"method": "char", "vocab_size": 100, "corpus_path": corpus, "tokenizer_id": "letters"}
        )
        assert accepted["tokenizer_id"] == "letters"
        assert client.list_tokenizers()["data"][0]["status"] == "queued"
        name = server.tokenizer()
        assert client.wait_for_tokenizer(name, timeout=5)["status"] == "completed"


def test_a_log_is_read_and_followed_to_its_end(server: Server) -> None:
    run_id = server.run()
    claim = server.claim(run_id)
    server.log(run_id, "one", "two\u2028half", "three")

    def work() -> None:
        time.sleep(0.5)
        server.log(run_id, "four")
        server.finish(claim)

    with server.client() as client:
        assert len(client.run_logs(run_id, tail=2).splitlines()) >= 2
        Thread(target=work).start()
        lines = list(client.follow_logs(run_id, tail=2))
    assert [word in line for word, line in zip(("two", "three", "four"), lines, strict=True)]


def test_following_goes_on_where_a_broken_connection_left_off(server: Server) -> None:
    run_id = server.finished_run()
    server.log(run_id, *(f"event {number}" for number in range(200)))
    with Relay(server.url, cut_after=6_000) as relay, Client(relay.url) as client:
        lines = list(client.follow_logs(run_id, tail=200))
    assert relay.connections > 2
    assert [line.partition("event ")[2].partition('"')[0] for line in lines[-3:]]
    assert len(lines) == 200


def test_following_goes_on_when_a_server_that_stops_ends_the_stream() -> None:
    def answer(kind: str, body: str) -> bytes:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        return f"{head}Connection: close\r\n\r\n{body}".encode()

    answers = (
        answer("text/event-stream", "id: 1\ndata: one\n\n"),
        answer("application/json", '{"status": "running"}'),
        answer("text/event-stream", "id: 2\ndata: two\n\n"),
        answer("application/json", '{"status": "completed"}'),
    )
    with Scripted(*answers) as stopping, Client(stopping.url) as client:
        assert list(client.follow_logs("run-x")) == ["one", "two"]


def test_following_gives_up_on_a_server_that_is_gone() -> None:
    with (
        Client(f"http://127.0.0.1:{free_port('127.0.0.1')}") as client,
        pytest.raises(NotReachable),
    ):
        list(client.follow_logs("run-x"))


def test_a_curve_and_an_artifact_are_read(server: Server, tmp_path: Path) -> None:
    run_id = server.finished_run()
    server.model(run_id, weights=b"0123456789")
    with server.client() as client:
        curve = client.run_metrics(run_id, points=10)
        assert [point["step"] for point in curve["points"]] == [100]
        names = [file["name"] for file in client.run_artifact(run_id)["files"]]
        assert names == ["manifest.json", "weights"]
        client.download_artifact(run_id, "weights", tmp_path / "weights")
        with pytest.raises(ApiError) as missing:
            client.download_artifact(run_id, "nothing", tmp_path / "nothing")
    assert (tmp_path / "weights").read_bytes() == b"0123456789"
    assert missing.value.status == 404
    assert not (tmp_path / "nothing").exists()


def test_a_prompt_is_continued(server: Server) -> None:
    run_id = server.finished_run()
    server.model(run_id)
    with server.client() as client, pytest.raises(TimedOut):
        client.generate(run_id, {"prompt_text": "Once"}, timeout=0.2)


def test_a_refusal_says_what_is_wrong_with_each_field(server: Server) -> None:
    with server.client() as client, pytest.raises(ApiError) as refused:
        client.train_run({"max_seq_len": 7, "nonsense": 1})
    assert refused.value.status == 422
    assert refused.value.code == "INVALID_INPUT"
    assert {field for field, _ in refused.value.details} >= {"max_seq_len", "nonsense"}
    assert refused.value.request_id


def test_a_key_is_sent_where_one_is_asked_for(
    make_server_of: Callable[[Settings], Server], settings: Settings
) -> None:
    closed = replace(settings, security=Security(api_keys=("schlüssel",), allow_open=False))
    server = make_server_of(closed)
    with server.client(api_key="schlüssel") as client:
        assert client.list_runs()["data"] == []
    with server.client() as stranger, pytest.raises(ApiError) as refused:
        stranger.list_runs()
    assert refused.value.code == "UNAUTHORIZED"


def test_a_server_that_is_not_there_is_named_with_what_to_do() -> None:
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    with Client(url) as client, pytest.raises(NotReachable) as missing:
        client.list_runs()
    assert url in missing.value.message
    assert "trainer up" in missing.value.message


def test_an_answer_that_is_no_answer_of_ours_is_said_to_be_so() -> None:
    with (
        Scripted(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\nsorry") as proxy,
        Client(proxy.url) as client,
        pytest.raises(ApiError, match="502 Bad Gateway, not as this API does"),
    ):
        client.list_runs()


def test_a_connection_that_breaks_is_tried_again_and_then_said() -> None:
    with (
        Scripted(b"") as silent,
        Client(silent.url) as client,
        pytest.raises(NotReachable, match="broke"),
    ):
        client.list_runs()
    assert silent.connections > 1


def test_an_id_cannot_become_another_path(server: Server) -> None:
    with server.client() as client, pytest.raises(ApiError) as refused:
        client.get_run("../corpora")
    assert refused.value.status in {404, 422}


class Scripted:
    """A server that answers each connection with given bytes and closes it."""

    def __init__(self, *answers: bytes) -> None:
        self.connections = 0
        self._answers = answers  # in turn; the last one again and again
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                self.talk(connection)

    def talk(self, connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(self._answers[min(self.connections, len(self._answers)) - 1])


class Relay(Scripted):
    """A proxy that cuts each connection after so many bytes of the answer."""

    def __init__(self, url: str, *, cut_after: int) -> None:
        super().__init__()
        self._target = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._cut_after = cut_after

    def talk(self, connection: socket.socket) -> None:
        with socket.create_connection(self._target, timeout=10) as upstream:
            upstream.sendall(connection.recv(65_536))
            left = self._cut_after
            while left > 0 and (block := upstream.recv(min(left, 4_096))):
                connection.sendall(block)
                left -= len(block)


def test_status_words_are_those_of_the_store() -> None:
    assert {str(Status.COMPLETED), str(Status.FAILED), str(Status.CANCELLED)} == {
        "completed",
        "failed",
        "cancelled",
    }

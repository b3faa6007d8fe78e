"""A client of the API: what the command line, the demo and any Python script speak through."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar
from urllib.parse import quote

from trainer_app.errors import TimedOut
from trainer_app.replies import (
    Accepted,
    Artifact,
    Cancelled,
    Chat,
    ChatReply,
    Corpus,
    Curve,
    Evaluated,
    Generated,
    Moved,
    Page,
    Run,
    Scored,
    Tokenizer,
)
from trainer_app.transport import TRIES, Fields, NotReachable, Transport

DEFAULT_URL: Final = "http://127.0.0.1:8000"
FINAL: Final = frozenset({"completed", "failed", "cancelled"})
_UPLOAD_BLOCK: Final = 256 * 1024
_LONGEST_PAUSE_SECONDS: Final = 1.0

Reply = TypeVar("Reply")
Answer = TypeVar("Answer", Scored, Generated, ChatReply)


class Client:
    """Speaks to one server; every request has a time-out.

    Methods raise ApiError where the server refuses and NotReachable where none answers.
    """

    def __init__(
        self, base_url: str = DEFAULT_URL, *, api_key: str | None = None, timeout: float = 30.0
    ) -> None:
        self._transport = Transport(base_url, api_key=api_key, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._transport.close()

    # Corpora

    def upload_corpus(
        self, path: Path, *, on_progress: Callable[[int], None] = lambda _: None
    ) -> Corpus:
        """Send a text file as it is; the same bytes always get the same ``file_id``.

        ``on_progress`` hears how many bytes have been sent so far.
        """

        def blocks() -> Iterator[bytes]:
            sent = 0
            with path.open("rb") as file:
                while block := file.read(_UPLOAD_BLOCK):
                    yield block
                    sent += len(block)
                    on_progress(sent)

        headers = {"Content-Type": "text/plain", "Content-Length": str(path.stat().st_size)}
        corpus: Corpus = self._transport.send(
            "POST", "/corpora", content=blocks(), headers=headers
        ).json()
        return corpus

    def list_corpora(self, **filters: object) -> Page[Corpus]:
        """A page of the uploaded corpora; ``limit`` and ``after`` choose it."""
        page: Page[Corpus] = self._transport.get("/corpora", filters).json()
        return page

    def get_corpus(self, file_id: str) -> Corpus:
        """One uploaded corpus."""
        corpus: Corpus = self._transport.get(f"/corpora/{_id(file_id)}").json()
        return corpus

    def delete_corpus(self, file_id: str) -> None:
        """Delete an uploaded corpus."""
        self._transport.send("DELETE", f"/corpora/{_id(file_id)}")

    # Tokenizers

    def train_tokenizer(self, fields: Fields, *, idempotency_key: str | None = None) -> Tokenizer:
        """Queue the training of a tokenizer."""
        reply: Tokenizer = self._transport.post("/tokenizers/train", fields, idempotency_key).json()
        return reply

    def list_tokenizers(self, **filters: object) -> Page[Tokenizer]:
        """A page of the tokenizers; ``limit`` and ``after`` choose it."""
        page: Page[Tokenizer] = self._transport.get("/tokenizers", filters).json()
        return page

    def get_tokenizer(self, tokenizer_id: str) -> Tokenizer:
        """One tokenizer as it stands."""
        reply: Tokenizer = self._transport.get(f"/tokenizers/{_id(tokenizer_id)}").json()
        return reply

    def wait_for_tokenizer(self, tokenizer_id: str, *, timeout: float) -> Tokenizer:
        """The tokenizer once its training has ended, well or not; raises TimedOut."""
        return _until(
            lambda: self.get_tokenizer(tokenizer_id),
            lambda reply: reply["status"] in FINAL,
            timeout,
            f"tokenizer {tokenizer_id}",
        )

    # Runs

    def train_run(self, fields: Fields, *, idempotency_key: str | None = None) -> Accepted:
        """Queue a training run."""
        reply: Accepted = self._transport.post("/runs/train", fields, idempotency_key).json()
        return reply

    def get_run(self, run_id: str) -> Run:
        """A run as it stands."""
        run: Run = self._transport.get(f"/runs/{_id(run_id)}").json()
        return run

    def list_runs(self, **filters: object) -> Page[Run]:
        """A page of runs, newest first; filters are those of the API."""
        page: Page[Run] = self._transport.get("/runs", filters).json()
        return page

    def wait_for_run(self, run_id: str, *, timeout: float) -> Run:
        """The run once it has ended, well or not; raises TimedOut."""
        return _until(
            lambda: self.get_run(run_id),
            lambda run: run["status"] in FINAL,
            timeout,
            f"run {run_id}",
        )

    def cancel_run(self, run_id: str) -> Cancelled:
        """Ask for a run to be stopped."""
        reply: Cancelled = self._transport.post(f"/runs/{_id(run_id)}/cancel").json()
        return reply

    def pause_run(self, run_id: str) -> Moved:
        """Hold a run back, at a checkpoint if it runs, until it is resumed."""
        reply: Moved = self._transport.post(f"/runs/{_id(run_id)}/pause").json()
        return reply

    def resume_run(self, run_id: str) -> Moved:
        """Let a paused, cancelled or failed run go on from its last checkpoint."""
        reply: Moved = self._transport.post(f"/runs/{_id(run_id)}/resume").json()
        return reply

    def run_logs(self, run_id: str, *, tail: int = 200) -> str:
        """The last lines of a run's log, one JSON object each."""
        return self._transport.get(f"/runs/{_id(run_id)}/logs", {"tail": tail}).text

    def follow_logs(self, run_id: str, *, tail: int = 200) -> Iterator[str]:
        """The last lines of a run's log, then each new one until the run has ended.

        A connection that breaks is made again, and goes on after the last line that came.
        """
        path = f"/runs/{_id(run_id)}/logs/stream"
        last_id = ""
        failures = 0
        while True:
            try:
                for event in self._transport.events(path, {"tail": tail}, last_id):
                    failures = 0
                    last_id = event.id or last_id
                    yield event.data
                # The server also ends a stream when it is stopped.
                if self.get_run(run_id)["status"] in FINAL:
                    return
            except NotReachable:
                failures += 1
                if failures == TRIES:
                    raise
            time.sleep(0.25 * 2**failures)

    def run_metrics(self, run_id: str, *, points: int | None = None) -> Curve:
        """The curve of a run, thinned to about so many points."""
        curve: Curve = self._transport.get(
            f"/runs/{_id(run_id)}/metrics", {"points": points}
        ).json()
        return curve

    def run_artifact(self, run_id: str) -> Artifact:
        """What the finished model of a run consists of."""
        artifact: Artifact = self._transport.get(f"/runs/{_id(run_id)}/artifact").json()
        return artifact

    def run_manifest(self, run_id: str) -> dict[str, object]:
        """What the finished model of a run says of itself."""
        path = f"/runs/{_id(run_id)}/artifact/manifest.json"
        manifest: dict[str, object] = self._transport.get(path).json()
        return manifest

    def download_artifact(self, run_id: str, name: str, target: Path) -> None:
        """One file of a finished model, written to ``target`` when it is complete."""
        path = f"/runs/{_id(run_id)}/artifact/{quote(name)}"
        part = target.with_name(f".{target.name}.part")
        with self._transport.open(path) as response, part.open("wb") as file:
            for block in response.iter_bytes():
                file.write(block)
        part.replace(target)

    # Finished models

    def evaluate(self, run_id: str, fields: Fields, *, timeout: float = 3_600.0) -> Evaluated:
        """Evaluate on a split, or another text, and wait for the outcome; raises TimedOut."""
        first: Evaluated = self._transport.post(f"/runs/{_id(run_id)}/evaluate", fields).json()
        return _until(
            lambda: self.get_evaluation(run_id, first["split"]),
            _has_ended,
            timeout,
            f"evaluation {first['request_id']}",
        )

    def get_evaluation(self, run_id: str, split: str = "validation") -> Evaluated:
        """The last evaluation on a split."""
        reply: Evaluated = self._transport.get(f"/runs/{_id(run_id)}/eval", {"split": split}).json()
        return reply

    def score(self, run_id: str, fields: Fields, *, timeout: float = 600.0) -> Scored:
        """Score a text and wait for the outcome; raises TimedOut."""
        path = f"/runs/{_id(run_id)}/score"
        first: Scored = self._transport.post(path, fields).json()
        return self._outcome(f"{path}/{_id(first['request_id'])}", first, timeout)

    def generate(self, run_id: str, fields: Fields, *, timeout: float = 120.0) -> Generated:
        """Continue a prompt and wait for the outcome; raises TimedOut."""
        path = f"/runs/{_id(run_id)}/generate"
        first: Generated = self._transport.post(path, fields).json()
        return self._outcome(f"{path}/{_id(first['request_id'])}", first, timeout)

    def chat(self, run_id: str, fields: Fields, *, timeout: float = 120.0) -> ChatReply:
        """Say something and wait for the answer; raises TimedOut."""
        path = f"/runs/{_id(run_id)}/chat"
        first: ChatReply = self._transport.post(path, fields).json()
        place = f"{path}/{_id(first['session_id'])}/{_id(first['request_id'])}"
        return self._outcome(place, first, timeout)

    def get_chat(self, run_id: str, session_id: str) -> Chat:
        """What was said so far."""
        reply: Chat = self._transport.get(f"/runs/{_id(run_id)}/chat/{_id(session_id)}").json()
        return reply

    def delete_chat(self, run_id: str, session_id: str) -> None:
        """Stop what the model writes, and forget the chat."""
        self._transport.send("DELETE", f"/runs/{_id(run_id)}/chat/{_id(session_id)}")

    def _outcome(self, path: str, first: Answer, timeout: float) -> Answer:
        def ask() -> Answer:
            reply: Answer = self._transport.get(path).json()
            return reply

        return _until(ask, _has_ended, timeout, f"request {first['request_id']}")


def _id(value: str) -> str:
    """An id as a part of a path; it cannot become another path."""
    return quote(value, safe="")


def _has_ended(reply: Evaluated | Scored | Generated | ChatReply) -> bool:
    return reply["status"] in FINAL


def _until(
    ask: Callable[[], Reply], done: Callable[[Reply], bool], timeout: float, of: str
) -> Reply:
    """Ask until it is done, at first often; raises TimedOut."""
    deadline = time.monotonic() + timeout
    pause = 0.05
    while not done(reply := ask()):
        if time.monotonic() + pause > deadline:
            raise TimedOut(f"{of} has not ended after {timeout:g} s")
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
    return reply

"""Who starts runs, pauses, cancels and resumes them, while the stack is hurt."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.chaos_arena import Arena
from trainer_app.client import FINAL, Client
from trainer_app.errors import TimedOut
from trainer_app.replies import Run
from trainer_app.transport import ApiError, NotReachable

BACKLOG: Final = 3  # runs that have not ended, at most
_PATIENCE_SECONDS: Final = 5.0  # of one request
_PREPARE_SECONDS: Final = 300.0
_MOVES: Final = ("pause", "pause", "cancel", "resume", "resume")
_MOVE_SECONDS: Final = 6.0  # from one to the next, on average


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A run to ask for, and the run that nobody disturbed."""

    name: str
    body: Mapping[str, object]
    undisturbed: str  # its id


@dataclass(slots=True, kw_only=True)
class Accepted:
    """A run of which the API has said that it is accepted."""

    key: str
    run_id: str
    recipe: Recipe
    cancelled: bool = False  # by a user, for good
    resumes: int = 0  # that were asked for, and not refused
    seen: Run | None = field(default=None)  # as last seen


def prepare(arena: Arena) -> list[Recipe]:
    """Train a run of each kind, with nobody in its way."""
    text = arena.root / "text.txt"
    text.write_bytes((Path(os.__file__).parent / "argparse.py").read_bytes())
    with Client(arena.api_url) as client:
        corpus = client.upload_corpus(text)["file_id"]
        tokenizer = {"method": "bpe", "vocab_size": 300, "corpus_file_id": corpus}
        tokenizer_id = client.train_tokenizer(tokenizer)["tokenizer_id"]
        reply = client.wait_for_tokenizer(tokenizer_id, timeout=_PREPARE_SECONDS)
        assert reply["status"] == "completed", reply
        bodies = dict(_bodies(corpus, tokenizer_id))
        recipes = [
            Recipe(name=name, body=body, undisturbed=client.train_run(body)["run_id"])
            for name, body in bodies.items()
        ]
        for recipe in recipes:
            run = client.wait_for_run(recipe.undisturbed, timeout=_PREPARE_SECONDS)
            assert (run["status"], run["attempt"]) == ("completed", 1), run
    return recipes


def _bodies(corpus: str, tokenizer_id: str) -> list[tuple[str, dict[str, object]]]:
    everyone: dict[str, object] = {
        "model_size": "tiny",
        "corpus_file_id": corpus,
        "batch_size": 4,
        "num_epochs": 1_000,
        "test_split_ratio": 0.02,
        "holdout_fraction": 0.02,
        "early_stopping_patience": 0,
    }
    transformer = {"tokenizer_id": tokenizer_id, "max_seq_len": 32, "logging_steps": 1}
    return [
        ("gpt2", everyone | transformer | {"model_family": "gpt2", "max_steps": 160}),
        (
            "llama",
            everyone
            | transformer
            | {"model_family": "llama", "max_steps": 150, "eval_steps": 40, "seed": 7},
        ),
        (
            "qwen",
            everyone
            | transformer
            | {"model_family": "qwen", "max_steps": 80, "gradient_accumulation_steps": 2},
        ),
        (
            "char_lstm",
            everyone
            | {"model_family": "char_lstm", "max_seq_len": 48, "max_steps": 200}
            | {"logging_steps": 7, "eval_steps": 50},
        ),
    ]


class Users(threading.Thread):
    """Keeps a few runs waiting or running, and changes its mind about some of them."""

    def __init__(self, arena: Arena, recipes: list[Recipe], rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.accepted: list[Accepted] = []
        self.problems: list[str] = []  # answers that an API must not give
        self.moves: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._arena = arena
        self._recipes = recipes
        self._rng = rng
        self._asked = 0
        self._pending: tuple[str, Recipe] | None = None  # asked for, without an answer so far
        self._resting = threading.Event()
        self._stopped = threading.Event()

    def run(self) -> None:
        """Until ``stop``; whatever the API does or does not answer."""
        move_at = time.monotonic() + _MOVE_SECONDS
        while not self._stopped.wait(0.3):
            try:
                with Client(self._arena.api_url, timeout=_PATIENCE_SECONDS) as client:
                    self._look(client)
                    self._ask(client)
                    if time.monotonic() >= move_at and not self._resting.is_set():
                        self._move(client)
                        move_at = time.monotonic() + self._rng.expovariate(1 / _MOVE_SECONDS)
                    if self._resting.is_set():
                        self._resume_paused(client)
            except (NotReachable, TimedOut):
                self.refused["not reachable"] += 1
            except ApiError as error:
                self._judge(error)

    def rest(self) -> None:
        """Ask for nothing new, and let the paused runs go on."""
        self._resting.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join()

    def unfinished(self) -> int:
        """How many runs have not ended, as far as is known."""
        waiting = sum(not _has_ended(one) for one in self.accepted)
        return waiting + (self._pending is not None)

    def ends(self) -> Counter[str]:
        """How many runs have ended how."""
        return Counter(one.seen["status"] if one.seen else "unknown" for one in self.accepted)

    def attempts(self) -> int:
        """Of all runs together."""
        return sum(one.seen["attempt"] for one in self.accepted if one.seen)

    def told(self) -> str:
        """How it goes, in words."""
        ends = ", ".join(f"{count} {status}" for status, count in sorted(self.ends().items()))
        return f"{len(self.accepted)} runs ({ends}), {self.attempts()} attempts"

    def _look(self, client: Client) -> None:
        for one in [*self.accepted]:
            if not _has_ended(one):
                one.seen = client.get_run(one.run_id)

    def _ask(self, client: Client) -> None:
        """One run more; an answer that was lost is asked for again with the same key."""
        if self._pending is None:
            if self._resting.is_set() or self.unfinished() >= BACKLOG:
                return
            self._asked += 1
            self._pending = (f"chaos-{self._asked}", self._rng.choice(self._recipes))
        key, recipe = self._pending
        run_id = client.train_run(recipe.body, idempotency_key=key)["run_id"]
        self._pending = None
        self.accepted.append(Accepted(key=key, run_id=run_id, recipe=recipe))

    def _move(self, client: Client) -> None:
        """Pause, cancel or resume one run."""
        candidates = [
            one for one in self.accepted if one.seen is not None and not _has_ended(one)
        ] or None
        if candidates is None:
            return
        one = self._rng.choice(candidates)
        move = self._rng.choice(_MOVES)
        self.moves[move] += 1
        if move == "pause":
            client.pause_run(one.run_id)
        elif move == "resume":
            _resume(client, one)
        else:
            # Even a request without an answer may have been carried out.
            one.cancelled = one.cancelled or self._rng.random() < 0.3
            client.cancel_run(one.run_id)

    def _resume_paused(self, client: Client) -> None:
        for one in [*self.accepted]:
            if _has_ended(one):
                continue
            try:
                _resume(client, one)
            except ApiError as error:
                self._judge(error)

    def _judge(self, error: ApiError) -> None:
        self.refused[error.code] += 1
        if error.status >= 500 and error.status != 503:
            self.problems.append(f"{error.status} {error.code}: {error.message}")


def _resume(client: Client, one: Accepted) -> None:
    """Even a request without an answer may have been carried out."""
    one.resumes += 1
    try:
        client.resume_run(one.run_id)
    except ApiError as error:
        one.resumes -= error.status < 500
        raise


def _has_ended(one: Accepted) -> bool:
    """Whether nobody will do anything about it any more."""
    if one.seen is None:
        return False
    status = one.seen["status"]
    return status in FINAL and (status != "cancelled" or one.cancelled)

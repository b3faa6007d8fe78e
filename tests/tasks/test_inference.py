"""Requests to finished models, as the inference worker answers them."""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from sqlalchemy import update

from backends.contracts import CausalModel
from tasks import chat, models, process
from tasks.perform import perform
from tasks.shells import work_of
from tests.tasks.tiny_runs import QueueRun
from trainer_app import artifacts
from trainer_app.chat_sessions import ChatSession, ChatSessions, Turn
from trainer_app.core.chat_spec import ChatSpec
from trainer_app.core.device import ResolvedDevice
from trainer_app.core.evaluate_spec import EvaluateSpec
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.json_spec import JsonSpec
from trainer_app.core.loaded import LoadedModel, load_model
from trainer_app.core.score_spec import ScoreSpec
from trainer_app.queue import inference_queue, light_queue
from trainer_app.settings import Settings
from trainer_app.store import lease, requests
from trainer_app.store.lease import JobKind
from trainer_app.store.requests import Request
from trainer_app.store.tables import RunRow
from trainer_app.wishes import Wish


@pytest.fixture
def run_id(queue_run: QueueRun) -> str:
    """A run that this worker has trained for a moment."""
    run_id = queue_run(max_steps=3, holdout_fraction=0.1, test_split_ratio=0.1, device="cpu")
    perform(run_id, hostname="train@here", work=work_of(JobKind.TRAIN))
    return run_id


def queue(kind: JobKind, run_id: str, spec: JsonSpec, topic: str | None = None) -> str:
    made = requests.create(
        process.database(), kind, run_id, spec.to_json(), queue="q", user_id=0, topic=topic
    )
    return made.request_id


def answer(kind: JobKind, run_id: str, spec: JsonSpec, topic: str | None = None) -> Request:
    """Queue a request and work on it."""
    return work_on(kind, run_id, queue(kind, run_id, spec, topic))


def work_on(kind: JobKind, run_id: str, request_id: str) -> Request:
    perform(request_id, hostname="inference@here", work=work_of(kind))
    return requests.get(process.database(), kind, run_id, request_id)


def result(done: Request) -> dict[str, object]:
    assert done.status == "completed", done
    found: dict[str, object] = json.loads(done.result or "")
    return found


def evaluate(run_id: str, spec: EvaluateSpec = EvaluateSpec()) -> dict[str, object]:  # noqa: B008
    return result(answer(JobKind.EVALUATE, run_id, spec, spec.split))


def test_a_prompt_is_continued(run_id: str) -> None:
    spec = GenerateSpec(prompt_text="line", max_new_tokens=4, seed=1)
    done = result(answer(JobKind.GENERATE, run_id, spec))
    assert set(done) == {"outputs", "steps", "eos_terminated"}
    assert result(answer(JobKind.GENERATE, run_id, spec)) == done


def test_a_text_is_scored(run_id: str) -> None:
    done = result(answer(JobKind.SCORE, run_id, ScoreSpec(text="line 1", detail_level="per_char")))
    assert done["tokens"] == list("line 1")
    assert isinstance(done["surprisal"], list)
    assert len(done["surprisal"]) == 5


@pytest.mark.parametrize(("name_of", "is_kept"), [(inference_queue, True), (light_queue, False)])
def test_the_inference_worker_alone_keeps_a_model_for_the_next_request(
    run_id: str, monkeypatch: pytest.MonkeyPatch, name_of: Callable[[Settings], str], is_kept: bool
) -> None:
    loaded: list[weakref.ref[CausalModel]] = []

    def load(directory: Path, *, device: ResolvedDevice) -> LoadedModel:
        model = load_model(directory, device=device)
        loaded.append(weakref.ref(model.model))
        return model

    monkeypatch.setattr(models, "load_model", load)
    for _ in range(2):
        made = requests.create(
            process.database(),
            JobKind.SCORE,
            run_id,
            ScoreSpec(text="line 1").to_json(),
            queue=name_of(process.settings()),
            user_id=0,
        )
        result(work_on(JobKind.SCORE, run_id, made.request_id))

    assert [model() is not None for model in loaded] == ([True] if is_kept else [False, False])


def test_a_text_too_short_to_score_fails_with_the_number_and_is_not_retried(run_id: str) -> None:
    done = answer(JobKind.SCORE, run_id, ScoreSpec(text="l"))
    assert (done.status, done.error_code) == ("failed", "INVALID_INPUT")
    assert done.message == (
        "text: given, or read from path, has 1 tokens; a score needs at least 2"
    )
    assert done.result is None


def test_each_split_is_evaluated_as_the_run_itself_did(run_id: str) -> None:
    directory = artifacts.model_directory(process.settings(), run_id)
    manifest = artifacts.read_manifest(directory)
    before = artifacts.pointer(directory)
    validation, test = evaluate(run_id), evaluate(run_id, EvaluateSpec(split="test"))
    assert validation["loss"] == pytest.approx(manifest["best_val_loss"], rel=1e-5)
    assert test["loss"] == pytest.approx(manifest["test_loss"], rel=1e-5)
    assert artifacts.pointer(directory) == before  # what is published never changes


def test_a_config_with_another_context_is_refused_with_both_whatever_is_asked(
    run_id: str, session: ChatSession
) -> None:
    directory = artifacts.model_directory(process.settings(), run_id)
    config, sealed = directory / "config.json", directory / "manifest.json"
    config.write_text(config.read_text().replace('"max_seq_len": 16', '"max_seq_len": 8'))
    manifest = json.loads(sealed.read_text())
    manifest["files"]["config.json"] = {
        "bytes": config.stat().st_size,
        "sha256": sha256(config.read_bytes()).hexdigest(),
    }
    sealed.write_text(json.dumps(manifest))
    digest = sha256(sealed.read_bytes()).hexdigest()
    with process.database().write() as connection:  # nothing else shows it then
        connection.execute(update(RunRow).values(artifact_sha256=digest))
    for kind, spec, topic in (
        (JobKind.GENERATE, GenerateSpec(prompt_text="line"), None),
        (JobKind.SCORE, ScoreSpec(text="line 1"), None),
        (JobKind.EVALUATE, EvaluateSpec(), "validation"),
        (JobKind.CHAT, say(session), session.session_id),
    ):
        done = answer(kind, run_id, spec, topic)
        assert (done.status, done.error_code) == ("failed", "MODEL_INCOMPATIBLE")
        assert "a context of 8 tokens" in str(done.message)
        assert "max_seq_len 16" in str(done.message)


def test_a_second_evaluation_works_like_the_first(run_id: str) -> None:
    first = evaluate(run_id)
    assert evaluate(run_id) == first
    file = artifacts.evaluation_file(process.settings(), run_id, "validation")
    assert first["artifact_path"] == str(file)
    kept = artifacts.read_evaluation(process.settings(), run_id, "validation")
    assert kept is not None
    assert {name: kept[name] for name in first} == first
    assert [path.name for path in file.parent.iterdir()] == ["validation.json"]


def test_another_text_is_evaluated_in_place_of_the_split(run_id: str) -> None:
    root = process.settings().paths.corpus
    (root / "other.txt").write_bytes(b"line 5 of a text to learn from\n" * 20)
    (root / "noise.txt").write_bytes(b"xet ot nrael\n" * 20)
    losses = [
        evaluate(
            run_id,
            EvaluateSpec(
                path_override=name,
                text_sha256=sha256((root / name).read_bytes()).hexdigest(),
            ),
        )["loss"]
        for name in ("other.txt", "noise.txt")
    ]
    assert losses[0] != losses[1]
    assert evaluate(run_id)["loss"] not in losses


def test_a_text_that_was_edited_since_it_was_asked_for_fails(run_id: str) -> None:
    spec = EvaluateSpec(path_override="a.txt", text_sha256="0" * 64)
    done = answer(JobKind.EVALUATE, run_id, spec, "validation")
    assert (done.status, done.error_code) == ("failed", "CORPUS_CHANGED")


def test_a_split_is_evaluated_from_its_token_ids_when_its_text_is_gone(run_id: str) -> None:
    first = evaluate(run_id)
    (process.settings().paths.corpus / "a.txt").unlink()
    assert evaluate(run_id) == first


def test_without_text_and_token_ids_an_evaluation_says_what_is_missing(run_id: str) -> None:
    paths = process.settings().paths
    (paths.corpus / "a.txt").unlink()
    paths.tokens.rename(paths.tokens.with_name("lost"))
    done = answer(JobKind.EVALUATE, run_id, EvaluateSpec(), "validation")
    assert (done.status, done.error_code) == ("failed", "CORPUS_NOT_FOUND")


def sessions() -> ChatSessions:
    return ChatSessions(process.redis_client())


@pytest.fixture
def session(run_id: str) -> ChatSession:
    """A chat in which nothing was said."""
    return sessions().begin(run_id)


def say(session: ChatSession) -> ChatSpec:
    return ChatSpec(session_id=session.session_id, message="line", max_new_tokens=8, seed=1)


def turns(session: ChatSession) -> tuple[Turn, ...]:
    return sessions().get(session.run_id, session.session_id).turns


def test_a_message_is_answered_and_written_down(run_id: str, session: ChatSession) -> None:
    done = answer(JobKind.CHAT, run_id, say(session), session.session_id)
    response = result(done)["response"]
    [turn] = turns(session)
    assert (turn.request_id, turn.message, turn.response) == (done.request_id, "line", response)


def test_an_answer_depends_on_what_was_said_before_but_not_on_an_attempt_that_was_lost(
    run_id: str, session: ChatSession
) -> None:
    request_id = queue(JobKind.CHAT, run_id, say(session), session.session_id)
    left_behind = Turn(request_id=request_id, message="line", response="of an earlier attempt")
    unanswered = Turn(request_id="chat-0", message="nothing came of it")
    for turn in (left_behind, unanswered):
        assert sessions().put(session.session_id, turn)
    response = result(work_on(JobKind.CHAT, run_id, request_id))["response"]
    alone = sessions().begin(run_id)
    assert (
        response == result(answer(JobKind.CHAT, run_id, say(alone), alone.session_id))["response"]
    )
    assert [turn.response for turn in turns(session)] == [None, response]


def test_a_message_to_a_session_that_is_gone_is_cancelled(
    run_id: str, session: ChatSession
) -> None:
    sessions().forget(session.session_id)
    done = answer(JobKind.CHAT, run_id, say(session), session.session_id)
    assert (done.status, done.result) == ("cancelled", None)


def test_a_late_answer_brings_no_session_back(
    run_id: str, session: ChatSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = ChatSessions.put

    def deleted_before(self: ChatSessions, session_id: str, turn: Turn) -> bool:
        self.forget(session_id)
        return put(self, session_id, turn)

    monkeypatch.setattr(ChatSessions, "put", deleted_before)
    done = answer(JobKind.CHAT, run_id, say(session), session.session_id)
    assert (done.status, done.result) == ("cancelled", None)
    assert process.redis_client().keys("trainer:chat:*") == []


def test_an_answer_of_an_attempt_that_was_replaced_is_not_written_down(
    run_id: str, session: ChatSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = queue(JobKind.CHAT, run_id, say(session), session.session_id)

    def answer_late(*_: object, **__: object) -> str:
        # It slept for longer than its lease, and another attempt answers.
        lease.expire(process.database(), request_id, owner_prefix="inference")
        lease.reap(process.database(), max_crashes=3)
        assert lease.claim(process.database(), request_id, "other:1", lease_seconds=60)
        return "late"

    monkeypatch.setattr(chat, "reply", answer_late)
    assert work_on(JobKind.CHAT, run_id, request_id).status == "running"
    assert turns(session) == ()


@pytest.mark.parametrize("kind", [JobKind.CHAT, JobKind.GENERATE, JobKind.SCORE, JobKind.EVALUATE])
def test_a_request_that_the_system_failed_is_tried_again_at_once_and_then_frees_its_chat(
    worker: Settings, session: ChatSession, kind: JobKind
) -> None:
    def fail(_job: object) -> NoReturn:
        raise RuntimeError("something broke")

    specs: dict[JobKind, JsonSpec] = {
        JobKind.CHAT: say(session),
        JobKind.GENERATE: GenerateSpec(prompt_text="a"),
        JobKind.SCORE: ScoreSpec(text="some text"),
        JobKind.EVALUATE: EvaluateSpec(),
    }
    run_id = session.run_id
    request_id = queue(kind, run_id, specs[kind], session.session_id)
    perform(request_id, hostname="inference@here", work=fail)
    waiting = requests.get(process.database(), kind, run_id, request_id)
    assert waiting.status == "queued"

    give_up_at = time.monotonic() + 10
    while requests.get(process.database(), kind, run_id, request_id).status == "queued":
        perform(request_id, hostname="inference@here", work=fail)
        assert time.monotonic() < give_up_at
        time.sleep(0.05)

    failed = requests.get(process.database(), kind, run_id, request_id)
    assert (failed.status, failed.error_code) == ("failed", "INTERNAL_ERROR")
    done = answer(JobKind.CHAT, run_id, say(session), session.session_id)  # the next turn
    assert done.status == "completed"


@pytest.mark.parametrize(
    "where",
    [
        ["trainer_app.core.loaded.load_weights"],
        [f"backends.models.char_lstm.CharLSTM.{method}" for method in ("hidden", "decode")],
    ],
    ids=["load", "use"],
)
@pytest.mark.parametrize("kind", [JobKind.CHAT, JobKind.GENERATE, JobKind.SCORE, JobKind.EVALUATE])
def test_a_request_for_which_memory_is_too_short_fails_with_the_code_and_is_not_tried_again(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch, kind: JobKind, where: list[str]
) -> None:
    def allocate(*_: object, **__: object) -> NoReturn:
        torch.empty(1 << 60, dtype=torch.uint8)
        pytest.fail("there is more memory than there can be")

    for name in where:
        monkeypatch.setattr(name, allocate)
    specs: dict[JobKind, JsonSpec] = {
        JobKind.CHAT: say(session),
        JobKind.GENERATE: GenerateSpec(prompt_text="line"),
        JobKind.SCORE: ScoreSpec(text="line 1"),
        JobKind.EVALUATE: EvaluateSpec(),
    }
    done = answer(kind, session.run_id, specs[kind], session.session_id)
    assert (done.status, done.error_code) == ("failed", "OUT_OF_MEMORY"), done.message
    assert "GiB of memory" in str(done.message)


@pytest.mark.parametrize("kind", [JobKind.CHAT, JobKind.GENERATE, JobKind.SCORE])
def test_a_request_that_is_cancelled_while_it_runs_stops_within_two_seconds(
    run_id: str, session: ChatSession, kind: JobKind
) -> None:
    long = {
        JobKind.CHAT: replace(
            say(session), max_new_tokens=10_000_000, temperature=0
        ),  # it never ends
        JobKind.GENERATE: GenerateSpec(max_new_tokens=10_000_000, stop_on_eos=False),
        JobKind.SCORE: ScoreSpec(text="line 1 of a text" * 65_536),
    }[kind]
    request_id = queue(kind, run_id, long, session.session_id)
    asked: list[float] = []

    def cancel() -> None:
        time.sleep(0.5)
        lease.request_cancel(process.database(), request_id)
        process.queue().announce_cancel(request_id, Wish(up_to=1))
        asked.append(time.monotonic())

    thread = threading.Thread(target=cancel)
    thread.start()
    done = work_on(kind, run_id, request_id)
    thread.join()
    assert (done.status, done.result) == ("cancelled", None)
    assert time.monotonic() - asked[0] < 2

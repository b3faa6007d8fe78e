"""Section 2 of the contract, address by address, as a client sees it who knows nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stranger import Json, Stranger, code
from trainer_app.stack.launch import RunningStack

pytestmark = pytest.mark.slow

RUN_FIELDS = {
    "run_id",
    "status",
    "last_heartbeat_ts",
    "message",
    "attempt",
    "progress",
    "epoch",
    "step",
    "total_steps",
    "train_loss",
    "val_loss",
    "tokens_per_sec",
    "eta_sec",
    "queue_position",
    "created_at",
    "started_at",
    "completed_at",
    "error_code",
    "spec",
}
TOKENIZER_FIELDS = {
    "tokenizer_id",
    "artifact_path",
    "status",
    "coverage",
    "oov_rate",
    "token_count",
    "char_coverage",
    "bytes_per_token",
    "error",
}
EVALUATION_FIELDS = {
    "run_id",
    "split",
    "status",
    "loss",
    "perplexity",
    "bits_per_byte",
    "artifact_path",
}
POINT_FIELDS = {"step", "train_loss", "val_loss", "learning_rate", "grad_norm", "tokens_per_sec"}


@pytest.fixture(scope="module")
def stranger(stack: RunningStack) -> Iterator[Stranger]:
    with Stranger(stack.api_url) as stranger:
        yield stranger


@pytest.fixture(scope="module")
def corpus(stranger: Stranger, text: Path) -> str:
    file_id: str = stranger.upload(text.read_bytes()).json()["file_id"]
    return file_id


@pytest.fixture(scope="module")
def tokenizer(stranger: Stranger, corpus: str) -> str:
    body = {"method": "bpe", "vocab_size": 300, "corpus_file_id": corpus}
    tokenizer_id: str = stranger.post("/tokenizers/train", body).json()["tokenizer_id"]
    done = stranger.wait(f"/tokenizers/{tokenizer_id}")
    assert done["status"] == "completed", done
    return tokenizer_id


@pytest.fixture(scope="module")
def quick(corpus: str, tokenizer: str) -> Json:
    """A run of a few steps."""
    return {
        "model_size": "tiny",
        "corpus_file_id": corpus,
        "tokenizer_id": tokenizer,
        "max_seq_len": 32,
        "batch_size": 8,
        "max_steps": 12,
        "eval_steps": 6,
        "logging_steps": 1,
        "test_split_ratio": 0.05,
    }


@pytest.fixture(scope="module")
def run(stranger: Stranger, quick: Json) -> str:
    """A completed run."""
    body = {**quick, "user_id": 77, "tags": ["kept"]}
    run_id: str = stranger.post("/runs/train", body).json()["run_id"]
    done = stranger.wait(f"/runs/{run_id}")
    assert done["status"] == "completed", done
    return run_id


@pytest.fixture(scope="module")
def failed_run(stranger: Stranger, quick: Json) -> str:
    # Only who reads the lines finds that they are too few.
    short = stranger.upload(b"a line like every other\n" * 50).json()["file_id"]
    run_id: str = stranger.post("/runs/train", {**quick, "corpus_file_id": short}).json()["run_id"]
    assert stranger.wait(f"/runs/{run_id}")["status"] == "failed"
    return run_id


@pytest.fixture
def long_run(stranger: Stranger, quick: Json) -> Iterator[str]:
    """A run that trains until it is cancelled."""
    body = {**quick, "max_steps": 1_000_000, "early_stopping_patience": 0}
    run_id = stranger.post("/runs/train", body).json()["run_id"]
    give_up_at = time.monotonic() + 60
    while stranger.get(f"/runs/{run_id}").json()["step"] < 2 and time.monotonic() < give_up_at:
        time.sleep(0.2)
    yield run_id
    stranger.post(f"/runs/{run_id}/cancel", {})
    stranger.wait(f"/runs/{run_id}")


def unknown(kind: str = "run") -> str:
    return f"{kind}-{uuid.uuid4().hex}"


# Probes


def test_the_probes_say_that_all_is_well(stranger: Stranger) -> None:
    assert stranger.get("/healthz").json() == {"status": "ok"}
    ready = stranger.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "reason": None})


def test_documents_are_served(stranger: Stranger) -> None:
    assert stranger.get("/openapi.json").json()["openapi"].startswith("3.1")
    page = stranger.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "https://" not in page.text


# Corpora


def test_the_same_bytes_give_the_same_corpus_raw_or_as_a_form(stranger: Stranger) -> None:
    data = b"One line.\nAnother line.\n"
    raw = stranger.upload(data)
    form = stranger.http.post("/corpora", files={"file": ("a.txt", data, "text/plain")})
    assert (raw.status_code, form.status_code) == (201, 201)
    assert raw.json() == form.json()
    assert raw.json()["file_id"] == hashlib.sha256(data).hexdigest()
    assert (raw.json()["bytes"], raw.json()["lines"]) == (len(data), 2)
    assert abs(raw.json()["created_at"] - time.time()) < 120
    assert stranger.get(raw.headers["Location"]).json() == raw.json()
    assert raw.json() in stranger.get("/corpora").json()["data"]


def test_a_corpus_is_deleted_and_then_unknown(stranger: Stranger) -> None:
    file_id = stranger.upload(uuid.uuid4().hex.encode()).json()["file_id"]
    assert stranger.send("DELETE", f"/corpora/{file_id}").status_code == 204
    for method in ("GET", "DELETE"):
        assert code(stranger.send(method, f"/corpora/{file_id}")) == (404, "CORPUS_NOT_FOUND")


def test_a_corpus_without_text_is_refused(stranger: Stranger) -> None:
    assert code(stranger.upload(b" \n")) == (422, "CORPUS_EMPTY")
    assert code(stranger.upload(b"\xff\xfe binary")) == (422, "CORPUS_NOT_TEXT")


# Tokenizers


def test_a_tokenizer_is_accepted_and_shows_what_was_measured(
    stranger: Stranger, corpus: str
) -> None:
    name = f"mine-{uuid.uuid4().hex[:8]}"
    body = {"method": "char", "vocab_size": 200, "corpus_file_id": corpus, "tokenizer_id": name}
    accepted = stranger.post("/tokenizers/train", body)
    assert accepted.status_code == 202
    assert accepted.json().keys() >= {"tokenizer_id", "artifact_path"}
    assert accepted.json()["tokenizer_id"] == name
    assert accepted.json()["coverage"] is accepted.json()["oov_rate"] is None
    assert accepted.headers["Location"].endswith(f"/tokenizers/{name}")

    done = stranger.wait(accepted.headers["Location"])

    assert done.keys() >= TOKENIZER_FIELDS
    assert done["artifact_path"] == accepted.json()["artifact_path"]
    assert (done["status"], done["error"]) == ("completed", None)
    for share in ("coverage", "oov_rate", "char_coverage"):
        assert isinstance(done[share], float), share
    assert isinstance(done["token_count"], int)
    assert name in [one["tokenizer_id"] for one in stranger.get("/tokenizers").json()["data"]]
    assert code(stranger.post("/tokenizers/train", body)) == (409, "CONFLICT")


def test_unknown_tokenizers_and_corpora_have_codes_of_their_own(
    stranger: Stranger, quick: Json
) -> None:
    assert code(stranger.get(f"/tokenizers/{unknown('tok')}")) == (404, "TOKENIZER_NOT_FOUND")
    wanted = [
        ("tokenizer_id", unknown("tok"), "TOKENIZER_NOT_FOUND"),
        ("corpus_file_id", "0" * 64, "CORPUS_NOT_FOUND"),
        ("pretrained_run_id", unknown(), "RUN_NOT_FOUND"),
    ]
    for field, value, expected in wanted:
        assert code(stranger.post("/runs/train", {**quick, field: value})) == (404, expected)
    tokens = {"method": "char", "vocab_size": 200, "corpus_file_id": "0" * 64}
    assert code(stranger.post("/tokenizers/train", tokens)) == (404, "CORPUS_NOT_FOUND")


# Runs


def test_a_run_is_accepted_with_its_two_names(stranger: Stranger, quick: Json) -> None:
    accepted = stranger.post("/runs/train", quick)
    body = accepted.json()
    assert accepted.status_code == 202
    assert set(body) == {"run_id", "job_id"}
    assert body["run_id"] == body["job_id"]
    assert accepted.headers["Location"].endswith(f"/runs/{body['run_id']}")
    assert stranger.get(accepted.headers["Location"]).status_code == 200
    stranger.post(f"/runs/{body['run_id']}/cancel", {})


def test_a_completed_run_shows_every_field(stranger: Stranger, run: str) -> None:
    shown = stranger.get(f"/runs/{run}").json()

    assert shown.keys() >= RUN_FIELDS
    assert (shown["status"], shown["progress"], shown["step"]) == ("completed", 100, 12)
    assert (shown["total_steps"], shown["attempt"], shown["error_code"]) == (12, 1, None)
    assert shown["created_at"] <= shown["started_at"] <= shown["completed_at"]
    assert shown["queue_position"] is None
    for name in ("train_loss", "val_loss", "tokens_per_sec"):
        assert isinstance(shown[name], float), name
        assert math.isfinite(shown[name])
    assert (shown["spec"]["user_id"], shown["spec"]["tags"]) == (77, ["kept"])


def test_a_running_run_shows_its_heartbeat(stranger: Stranger, long_run: str) -> None:
    shown = stranger.get(f"/runs/{long_run}").json()
    assert shown["status"] == "running"
    assert abs(shown["last_heartbeat_ts"] - time.time()) < 60
    assert 0 <= shown["progress"] < 100


def test_runs_are_listed_newest_first_and_filtered(
    stranger: Stranger, run: str, failed_run: str
) -> None:
    def ids(query: str) -> list[str]:
        found = stranger.get(f"/runs?limit=1000&{query}").json()
        assert set(found) == {"data", "has_more", "next"}
        return [item["run_id"] for item in found["data"]]

    times = [item["created_at"] for item in stranger.get("/runs").json()["data"]]
    assert times == sorted(times, reverse=True)
    assert run in ids("status=completed")
    assert failed_run not in ids("status=completed")
    assert failed_run in ids("status=failed")
    assert ids("user_id=77&tag=kept") == [run]
    assert run in ids("model_family=gpt2")
    assert run not in ids("model_family=char_lstm")
    assert ids("tag=nobody-has-this") == []


@pytest.mark.parametrize("path", ["/runs", "/tokenizers", "/corpora"])
def test_a_cursor_leads_through_a_list_item_by_item(
    stranger: Stranger, run: str, failed_run: str, path: str
) -> None:
    whole = stranger.get(f"{path}?limit=1000").json()
    assert (whole["has_more"], whole["next"]) == (False, None)
    walked: list[Json] = []
    after = ""
    while True:
        page = stranger.get(f"{path}?limit=1{after}").json()
        walked += page["data"]
        if not page["has_more"]:
            break
        after = f"&after={page['next']}"
    assert [sorted(item) for item in walked] == [sorted(item) for item in whole["data"]]
    assert len(walked) == len(whole["data"])
    assert code(stranger.get(f"{path}?after=no-such-cursor")) == (422, "INVALID_INPUT")


@pytest.mark.parametrize("query", ["status=done", "model_family=gpt9", "user_id=-1", "colour=red"])
def test_a_filter_that_cannot_be_is_refused(stranger: Stranger, query: str) -> None:
    assert code(stranger.get(f"/runs?{query}")) == (422, "INVALID_INPUT")


def test_cancelling_answers_the_same_twice_and_not_after_the_end(
    stranger: Stranger, run: str, failed_run: str, long_run: str
) -> None:
    for _ in range(2):
        answer = stranger.post(f"/runs/{long_run}/cancel", {})
        assert (answer.status_code, answer.json()) == (200, {"status": "cancellation-requested"})
    ended = stranger.wait(f"/runs/{long_run}", seconds=30)
    assert ended["status"] == "cancelled"
    again = stranger.post(f"/runs/{long_run}/cancel", {})
    assert (again.status_code, again.json()) == (200, {"status": "cancellation-requested"})
    for over in (run, failed_run):
        assert code(stranger.post(f"/runs/{over}/cancel", {})) == (409, "ALREADY_FINISHED")
    assert code(stranger.post(f"/runs/{unknown()}/cancel", {})) == (404, "RUN_NOT_FOUND")


def test_a_corpus_shorter_than_a_sequence_is_refused_at_once(
    stranger: Stranger, quick: Json
) -> None:
    short = stranger.upload(b"one\ntwo\nthree\nfour\n").json()["file_id"]
    answer = stranger.post("/runs/train", {**quick, "corpus_file_id": short})
    assert code(answer) == (422, "INVALID_INPUT")
    (detail,) = answer.json()["details"]
    assert detail["field"] == "max_seq_len"
    assert "19 bytes" in detail["message"]


def test_a_failed_run_has_a_code_of_the_contract_and_a_reason(
    stranger: Stranger, failed_run: str
) -> None:
    shown = stranger.get(f"/runs/{failed_run}").json()
    assert shown["error_code"] == "CORPUS_TOO_SHORT"
    assert any(letter.isdigit() for letter in shown["message"])


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/artifact",
        "/artifact/model.safetensors",
        "/artifact.tar.gz",
        "/logs",
        "/logs/stream",
        "/metrics",
        "/metrics/stream",
        "/eval",
        "/score/x",
        "/generate/x",
        "/chat/x",
        "/chat/x/y",
    ],
)
def test_whatever_is_asked_of_an_unknown_run_it_is_unknown(stranger: Stranger, path: str) -> None:
    assert code(stranger.get(f"/runs/{unknown()}{path}")) == (404, "RUN_NOT_FOUND")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("evaluate", {}),
        ("score", {"text": "x"}),
        ("generate", {"prompt_text": "x"}),
        ("chat", {"message": "x"}),
    ],
)
def test_nothing_can_be_asked_of_a_run_without_a_model(
    stranger: Stranger, failed_run: str, path: str, body: Json
) -> None:
    assert code(stranger.post(f"/runs/{unknown()}/{path}", body)) == (404, "RUN_NOT_FOUND")
    assert code(stranger.post(f"/runs/{failed_run}/{path}", body)) == (409, "NOT_READY")


# Artifacts


def test_the_pointer_lists_every_file_with_its_digest_and_each_downloads(
    stranger: Stranger, run: str
) -> None:
    pointer = stranger.get(f"/runs/{run}/artifact").json()

    assert pointer.keys() >= {"storage", "file_id", "sha256", "files"}
    assert (pointer["storage"], len(pointer["sha256"])) == ("local", 64)
    for file in pointer["files"]:
        assert set(file) == {"name", "bytes", "sha256"}
        data = stranger.get(f"/runs/{run}/artifact/{file['name']}").content
        assert len(data) == file["bytes"]
        assert hashlib.sha256(data).hexdigest() == file["sha256"]
    packed = stranger.get(f"/runs/{run}/artifact.tar.gz").content
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        packed_names = {member.name.partition("/")[2] or member.name for member in archive}
    assert {"config.json", "model.safetensors", "manifest.json"} <= packed_names
    missing = stranger.get(f"/runs/{run}/artifact/optimizer.pt")
    assert code(missing) == (404, "DATA_NOT_FOUND")


def test_a_run_without_a_model_has_no_artifact(stranger: Stranger, failed_run: str) -> None:
    for path in ("artifact", "artifact.tar.gz", "artifact/config.json"):
        assert code(stranger.get(f"/runs/{failed_run}/{path}")) == (409, "NOT_READY")


# Logs and curves


def test_the_log_is_text_and_its_stream_has_the_same_lines(stranger: Stranger, run: str) -> None:
    logs = stranger.get(f"/runs/{run}/logs")
    assert logs.headers["Content-Type"].startswith("text/plain")
    lines = logs.text.splitlines()
    assert stranger.get(f"/runs/{run}/logs?tail=2").text.splitlines() == lines[-2:]

    with stranger.http.stream("GET", f"/runs/{run}/logs/stream?tail=10000") as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        events = parse_events(answer.iter_lines())
    assert [data for _, data in events] == lines
    middle = len(events) // 2
    resumed = {"Last-Event-ID": events[middle][0]}
    with stranger.http.stream("GET", f"/runs/{run}/logs/stream", headers=resumed) as answer:
        assert parse_events(answer.iter_lines()) == events[middle + 1 :]
    stopped = stranger.http.get(f"/runs/{run}/logs/stream?follow=false&tail=1").text.splitlines()
    assert [data for _, data in parse_events(iter(stopped))] == lines[-1:]


def parse_events(lines: Iterator[str]) -> list[tuple[str, str]]:
    """Ids and data of server-sent events."""
    events: list[tuple[str, str]] = []
    event_id, data = "", ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "id":
            event_id = value
        elif name == "data":
            data = value
        elif line == "" and data:
            events.append((event_id, data))
            data = ""
    return events


def test_a_stream_ends_when_its_run_does(stranger: Stranger, long_run: str) -> None:
    threading.Timer(1.0, lambda: stranger.post(f"/runs/{long_run}/cancel", {})).start()
    with stranger.http.stream("GET", f"/runs/{long_run}/logs/stream?tail=1") as answer:
        events = parse_events(answer.iter_lines())
    assert "cancelled" in events[-1][1]


def test_a_curve_has_every_field_is_thinned_and_followed(stranger: Stranger, run: str) -> None:
    points = stranger.get(f"/runs/{run}/metrics").json()["points"]
    assert [point["step"] for point in points] == list(range(1, 13))
    assert all(point.keys() >= POINT_FIELDS for point in points)
    assert [point["step"] for point in points if point["val_loss"] is not None] == [6, 12]
    assert len(stranger.get(f"/runs/{run}/metrics?points=4").json()["points"]) == 4
    with stranger.http.stream("GET", f"/runs/{run}/metrics/stream") as answer:
        followed = [json.loads(data) for _, data in parse_events(answer.iter_lines())]
    assert followed == points


# Evaluate, score, generate, chat


def test_an_evaluation_is_asked_for_and_found_under_its_split(stranger: Stranger, run: str) -> None:
    for body, split in (({}, "validation"), ({"split": "test"}, "test")):
        asked = stranger.post(f"/runs/{run}/evaluate", body)
        assert asked.status_code == 202, asked.text
        assert asked.json().keys() >= EVALUATION_FIELDS
        assert (asked.json()["run_id"], asked.json()["split"]) == (run, split)
        done = stranger.wait(f"/runs/{run}/eval?split={split}")
        assert done.keys() >= EVALUATION_FIELDS
        assert done["status"] == "completed", done
        loss, perplexity = done["loss"], done["perplexity"]
        assert isinstance(loss, float)
        assert isinstance(perplexity, float)
        assert math.isclose(math.exp(loss), perplexity, rel_tol=1e-6)
        assert isinstance(done["bits_per_byte"], float)
    assert stranger.get(f"/runs/{run}/eval").json()["split"] == "validation"


def test_an_evaluation_is_made_again_and_agrees_with_the_run(stranger: Stranger, run: str) -> None:
    losses = []
    for _ in range(2):
        stranger.post(f"/runs/{run}/evaluate", {})
        losses.append(stranger.wait(f"/runs/{run}/eval")["loss"])
    assert losses[0] == losses[1]
    best = min(
        point["val_loss"]
        for point in stranger.get(f"/runs/{run}/metrics").json()["points"]
        if point["val_loss"] is not None
    )
    assert isinstance(losses[0], float)
    assert math.isclose(losses[0], best, rel_tol=1e-3)


def test_a_run_that_was_not_evaluated_says_so(stranger: Stranger, failed_run: str) -> None:
    assert code(stranger.get(f"/runs/{failed_run}/eval")) == (404, "EVAL_NOT_FOUND")


def test_a_text_is_scored_and_the_figures_agree(stranger: Stranger, run: str) -> None:
    body = {"text": "def main() -> None:", "detail_level": "per_char", "top_k": 3}
    asked = stranger.post(f"/runs/{run}/score", body)
    assert asked.status_code == 202
    done = stranger.wait(asked.headers["Location"])

    fields = {"request_id", "status", "loss", "perplexity", "surprisal", "topk", "tokens"}
    assert done.keys() >= fields
    assert done["status"] == "completed", done
    surprisal, tokens, topk, loss = (done[n] for n in ("surprisal", "tokens", "topk", "loss"))
    assert isinstance(surprisal, list)
    assert isinstance(tokens, list)
    assert isinstance(topk, list)
    assert isinstance(loss, float)
    assert len(surprisal) == len(tokens) - 1 == len(topk)
    assert math.isclose(sum(surprisal) / len(surprisal) * math.log(2), loss, rel_tol=1e-4)
    assert isinstance(done["perplexity"], float)
    assert math.isclose(done["perplexity"], math.exp(loss), rel_tol=1e-4)
    summary = stranger.post(f"/runs/{run}/score", {"text": "def main() -> None:"})
    brief = stranger.wait(summary.headers["Location"])
    assert (brief["surprisal"], brief["topk"], brief["tokens"]) == (None, None, None)
    assert brief["loss"] == loss


def test_a_long_text_is_scored_whole(stranger: Stranger, run: str, text: Path) -> None:
    long = text.read_text()[:5_000]
    asked = stranger.post(f"/runs/{run}/score", {"text": long, "detail_level": "per_char"})
    done = stranger.wait(asked.headers["Location"])
    assert done["status"] == "completed", done
    assert isinstance(done["tokens"], list)
    assert isinstance(done["surprisal"], list)
    assert len(done["tokens"]) > 32
    assert len(done["surprisal"]) == len(done["tokens"]) - 1


def test_a_model_writes_and_says_how(stranger: Stranger, run: str) -> None:
    body = {
        "prompt_text": "def ",
        "max_new_tokens": 40,  # past the context of 32
        "num_return_sequences": 2,
        "seed": 1,
        "stop_on_eos": False,
    }
    asked = stranger.post(f"/runs/{run}/generate", body)
    assert asked.status_code == 202
    done = stranger.wait(asked.headers["Location"])
    assert done.keys() >= {"request_id", "status", "outputs", "steps", "eos_terminated"}
    assert done["status"] == "completed", done
    assert done["steps"] == 80
    outputs, ended = done["outputs"], done["eos_terminated"]
    assert isinstance(outputs, list)
    assert len(outputs) == 2
    assert not any(output.startswith("def def") for output in outputs)
    assert ended == [False, False]
    missing = stranger.get(f"/runs/{run}/generate/{unknown('gen')}")
    assert code(missing) == (404, "DATA_NOT_FOUND")


def test_a_greedy_model_writes_the_same_each_time_and_stops_at_a_string(
    stranger: Stranger, run: str
) -> None:
    def write(**fields: object) -> str:
        body = {"prompt_text": "import ", "temperature": 0, "max_new_tokens": 20, **fields}
        asked = stranger.post(f"/runs/{run}/generate", body)
        done = stranger.wait(asked.headers["Location"])
        assert done["status"] == "completed", done
        assert isinstance(done["outputs"], list)
        output: str = done["outputs"][0]
        return output

    whole = write()
    assert write() == whole
    stop = whole[3:5]
    assert write(stop_sequences=[stop]) == whole[: whole.index(stop)]


def test_a_chat_has_a_history_until_it_is_deleted(stranger: Stranger, run: str) -> None:
    first = stranger.post(f"/runs/{run}/chat", {"message": "import os", "max_new_tokens": 8})
    assert first.status_code == 202, first.text
    assert set(first.json()) >= {"session_id", "request_id", "status", "response"}
    session_id = first.json()["session_id"]
    turn = f"/runs/{run}/chat/{session_id}/{first.json()['request_id']}"
    answered = stranger.wait(turn)
    assert answered["status"] == "completed", answered
    assert isinstance(answered["response"], str)
    again = stranger.post(
        f"/runs/{run}/chat",
        {"message": "import sys", "session_id": session_id, "max_new_tokens": 8},
    )
    stranger.wait(f"/runs/{run}/chat/{session_id}/{again.json()['request_id']}")

    history = stranger.get(f"/runs/{run}/chat/{session_id}").json()

    assert history.keys() >= {"session_id", "run_id", "messages", "created_at"}
    assert (history["session_id"], history["run_id"]) == (session_id, run)
    roles = [message["role"] for message in history["messages"]]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert history["messages"][0]["content"] == "import os"
    assert history["messages"][1]["content"] == answered["response"]
    assert stranger.send("DELETE", f"/runs/{run}/chat/{session_id}").status_code in {200, 204}
    for path in (turn, f"/runs/{run}/chat/{session_id}"):
        assert code(stranger.get(path)) == (404, "DATA_NOT_FOUND")


def test_a_chat_that_is_not_there_cannot_be_gone_on_with(stranger: Stranger, run: str) -> None:
    body = {"message": "hello", "session_id": unknown("chat")}
    assert code(stranger.post(f"/runs/{run}/chat", body)) == (404, "DATA_NOT_FOUND")


def test_a_model_answers_while_a_run_trains(stranger: Stranger, run: str, long_run: str) -> None:
    asked = stranger.post(f"/runs/{run}/chat", {"message": "import os", "max_new_tokens": 8})
    assert stranger.wait(asked.headers["Location"], seconds=30)["status"] == "completed"
    assert stranger.get(f"/runs/{long_run}").json()["status"] == "running"


# Fine-tuning


def test_a_run_goes_on_from_a_run_of_the_same_kind_alone(
    stranger: Stranger, run: str, failed_run: str, quick: Json
) -> None:
    tuned = stranger.post("/runs/train", {**quick, "pretrained_run_id": run, "max_steps": 2})
    done = stranger.wait(tuned.headers["Location"])
    assert done["status"] == "completed", done
    other = {**quick, "pretrained_run_id": run, "model_size": "mini"}
    assert code(stranger.post("/runs/train", other)) == (409, "MODEL_INCOMPATIBLE")
    early = {**quick, "pretrained_run_id": failed_run}
    assert code(stranger.post("/runs/train", early)) == (409, "NOT_READY")

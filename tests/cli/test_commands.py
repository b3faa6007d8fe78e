"""The commands that speak to a server."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from tests.damaged import ASKED_LOST, damage
from trainer_app.cli import main as mains
from trainer_app.log import JobLog
from trainer_app.settings import Redis, Settings
from trainer_app.stack.ports import free_port
from trainer_app.store.database import Database
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from tests.cli.conftest import Server, Trainer


def train_options(server: Server) -> list[str]:
    corpus, tokenizer = server.corpus(), server.tokenizer()
    return ["--corpus-path", corpus, "--tokenizer-id", tokenizer, "--model-size", "tiny"]


def test_a_text_is_added_listed_shown_and_deleted(
    server: Server, trainer: Trainer, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one line of text\n" * 100)
    added = trainer("corpora", "add", str(text), url=server.url)
    assert added.code == 0
    file_id = added.out.split()[0]
    assert file_id in trainer("corpora", "list").out
    assert json.loads(trainer("corpora", "list", "--json").out)["data"][0]["file_id"] == file_id
    assert json.loads(trainer("corpora", "show", file_id).out)["lines"] == 100
    assert trainer("corpora", "delete", file_id, "--json").out == ""
    assert trainer("corpora", "show", file_id).code == 2


def test_with_json_stdout_is_json_alone(server: Server, trainer: Trainer, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one line of text\n")
    added = trainer("corpora", "add", str(text), "--json", url=server.url)
    assert json.loads(added.out)["lines"] == 1


def test_a_tokenizer_is_queued(server: Server, trainer: Trainer) -> None:
    options = ["--method", "bpe", "--vocab-size", "300", "--corpus-path", server.corpus()]
    named = trainer("tokenizers", "train", *options, "--tokenizer-id", "mine", url=server.url)
    assert (named.code, named.out) == (0, "mine\n")
    unnamed = trainer("tokenizers", "train", *options, "--json")
    assert json.loads(unnamed.out)["tokenizer_id"]
    assert trainer("tokenizers", "train", *options, "--wait", "--timeout", "0.1").code == 1


def test_waiting_for_a_tokenizer_mirrors_its_end(
    server: Server, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.tokenizer("words")
    # The training itself is a worker's: the name of one that has ended stands for it.
    monkeypatch.setattr(
        "trainer_app.client.Client.train_tokenizer",
        lambda *_args, **_options: {"tokenizer_id": "words"},
    )
    options = ["--method", "bpe", "--vocab-size", "300", "--corpus-path", server.corpus()]
    waited = trainer("tokenizers", "train", *options, "--wait", "--json", url=server.url)
    assert waited.code == 0
    assert json.loads(waited.out)["status"] == "completed"


def test_tokenizers_are_listed_and_shown(server: Server, trainer: Trainer) -> None:
    name = server.tokenizer()
    assert trainer("tokenizers", "list", url=server.url).out.splitlines()[1].split() == [
        name,
        "completed",
        "2.5",
        "0.5",
    ]
    assert json.loads(trainer("tokenizers", "list", "--json").out)["has_more"] is False
    assert json.loads(trainer("tokenizers", "show", name).out)["vocab_size"] == 300


def test_a_run_whose_row_is_damaged_is_listed_shown_and_cancelled(
    server: Server, trainer: Trainer
) -> None:
    whole, run_id = server.run(), server.run()
    damage(server.database, run_id, spec="[]")

    listed = trainer("runs", "list", url=server.url).out.splitlines()[1:]
    assert [line.split()[:4] for line in listed] == [
        [run_id, "queued", "-", "0%"],
        [whole, "queued", "gpt2/small", "0%"],
    ]
    assert json.loads(trainer("runs", "show", run_id).out)["spec"] is None
    assert trainer("runs", "pause", run_id).code == 0
    refused = trainer("runs", "resume", run_id)
    assert (refused.code, ASKED_LOST in refused.err.replace("\n", " ")) == (2, True)
    assert trainer("runs", "cancel", run_id).out == "cancellation-requested\n"


def test_a_run_is_started_from_options_and_cancelled(server: Server, trainer: Trainer) -> None:
    options = train_options(server)
    started = trainer(
        *("runs", "train", *options, "--learning-rate", "0.25", "--tags", "a", "--tags", "b"),
        *("--freeze-embed", "--seed", "0", "--json"),
        url=server.url,
    )
    assert started.code == 0
    run_id = json.loads(started.out)["run_id"]
    spec = json.loads(trainer("runs", "show", run_id).out)["spec"]
    assert (spec["learning_rate"], spec["tags"], spec["freeze_embed"], spec["seed"]) == (
        0.25,
        ["a", "b"],
        True,
        0,
    )
    assert trainer("runs", "cancel", run_id).out == "cancellation-requested\n"
    assert json.loads(trainer("runs", "cancel", run_id, "--json").out)["status"]
    watched = trainer("runs", "watch", run_id)
    assert watched.code == 3
    assert "cancelled" in watched.out


def test_starting_a_run_says_how_to_watch_it(server: Server, trainer: Trainer) -> None:
    started = trainer("runs", "train", *train_options(server), url=server.url)
    run_id, *hint = started.out.splitlines()
    assert hint == [f"watch it: trainer runs watch {run_id}"]


def test_runs_are_listed_and_chosen(server: Server, trainer: Trainer) -> None:
    done, queued = server.finished_run(), server.run()
    listed = trainer("runs", "list", url=server.url).out
    assert [line.split()[0] for line in listed.splitlines()[1:]] == [queued, done]
    chosen = json.loads(trainer("runs", "list", "--status", "completed", "--json").out)
    assert [run["run_id"] for run in chosen["data"]] == [done]


def test_a_run_is_watched_to_its_end(server: Server, trainer: Trainer) -> None:
    options = train_options(server)

    def work() -> None:
        [run] = server.client().list_runs(status="queued")["data"]
        claim = server.claim(run["run_id"])
        server.step(claim, 50, val_loss=3.5)
        Timer(0.8, server.finish, [claim]).start()

    Timer(0.8, work).start()
    watched = trainer("runs", "train", *options, "--watch", "--json", url=server.url)
    assert watched.code == 0
    assert json.loads(watched.out)["status"] == "completed"
    assert "step 50/100  loss 4.500  val 3.500  12.3k tok/s  eta 1:15" in watched.err
    assert f"validation loss 3.500 (perplexity {math.exp(3.5):.1f})" in watched.err


def test_a_run_that_failed_says_why_and_where_its_log_is(server: Server, trainer: Trainer) -> None:
    run_id = server.finished_run(
        Status.FAILED, error_code="LOSS_NOT_FINITE", message="the loss became NaN"
    )
    watched = trainer("runs", "watch", run_id, url=server.url)
    assert watched.code == 1
    assert "the loss became NaN (LOSS_NOT_FINITE)" in watched.out
    assert f"trainer runs logs {run_id}" in watched.out


def test_a_log_is_printed_for_people_and_for_programs(server: Server, trainer: Trainer) -> None:
    run_id = server.finished_run()
    server.log(run_id, "started", "ended")
    assert trainer("runs", "logs", run_id, url=server.url).out.splitlines() == [
        "03:04:05 info    started  step=7 loss=0.125",
        "03:04:05 info    ended  step=7 loss=0.125",
    ]
    [last] = trainer("runs", "logs", run_id, "--tail", "1", "--json").out.splitlines()
    assert json.loads(last)["event"] == "ended"
    assert len(trainer("runs", "logs", run_id, "--follow").out.splitlines()) == 2


def test_a_line_separator_within_a_log_line_ends_no_line(server: Server, trainer: Trainer) -> None:
    run_id = server.finished_run()
    log = JobLog(server.settings.paths.logs / f"{run_id}.jsonl")
    log.info("a\u2028b\x85c")
    log.close()
    for follow in ((), ("--follow",)):
        printed = trainer("runs", "logs", run_id, "--json", *follow, url=server.url).out
        assert json.loads(printed)["event"] == "a\u2028b\x85c"


def test_a_curve_is_printed(server: Server, trainer: Trainer) -> None:
    run_id = server.finished_run()
    heading, point = trainer("runs", "metrics", run_id, url=server.url).out.splitlines()
    assert heading.split()[:3] == ["step", "loss", "val"]
    assert point.split()[:3] == ["100", "4", "3"]
    assert json.loads(trainer("runs", "metrics", run_id, "--json").out)["points"]


def test_a_model_is_listed_and_downloaded(server: Server, trainer: Trainer, tmp_path: Path) -> None:
    run_id = server.finished_run()
    server.model(run_id, weights=b"0123456789")
    listed = trainer("runs", "artifact", run_id, url=server.url).out
    assert [line.split()[0] for line in listed.splitlines()] == ["file", "manifest.json", "weights"]
    assert len(json.loads(trainer("runs", "artifact", run_id, "--json").out)["files"]) == 2
    target = tmp_path / "new" / "folder"
    assert trainer("runs", "artifact", run_id, "--output", str(target)).code == 0
    assert (target / "weights").read_bytes() == b"0123456789"


def test_a_download_that_is_not_what_was_promised_is_an_error(
    server: Server, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = server.finished_run()
    server.model(run_id)
    promised = {"files": [{"name": "weights", "bytes": 10, "sha256": "0" * 64}]}
    monkeypatch.setattr("trainer_app.client.Client.run_artifact", lambda *_: promised)
    broken = trainer("runs", "artifact", run_id, "-o", str(tmp_path), url=server.url)
    assert broken.code == 1
    assert "does not have the sha256" in broken.err


def test_a_server_cannot_choose_a_place_outside_the_folder(
    server: Server, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "trainer_app.client.Client.run_artifact",
        lambda *_: {"files": [{"name": "../../evil", "bytes": 1, "sha256": ""}]},
    )
    refused = trainer("runs", "artifact", "run-x", "-o", str(tmp_path), url=server.url)
    assert refused.code == 1
    assert "outside the folder" in refused.err


def test_a_prompt_is_continued(server: Server, trainer: Trainer) -> None:
    run_id = server.finished_run()
    server.model(run_id)
    result = {"outputs": [" two", " \x1b[2J"], "steps": 2, "eos_terminated": [True, False]}
    server.answer_soon(result=json.dumps(result))
    text = trainer("generate", run_id, "--prompt", "One [b]", url=server.url)
    assert text.code == 0
    first, *_, last = text.out.splitlines()
    assert (first, last) == ("One [b] two", "One [b] \\x1b[2J")
    server.answer_soon(result=json.dumps(result))
    printed = trainer("generate", run_id, "--prompt-text", "One", "--json")
    assert json.loads(printed.out)["outputs"] == result["outputs"]


def test_a_prompt_that_cannot_be_continued_says_why(server: Server, trainer: Trainer) -> None:
    run_id = server.finished_run()
    server.model(run_id)
    server.answer_soon(Status.FAILED, message="no room")
    failed = trainer("generate", run_id, "--prompt", "One", url=server.url)
    assert failed.code == 1
    assert "no room" in failed.out


def test_a_model_is_evaluated_on_a_split_or_on_another_text(
    server: Server, trainer: Trainer
) -> None:
    server.corpus()
    run_id = server.finished_run()
    server.model(run_id)
    result = json.dumps({"loss": 1.5, "perplexity": 4.5, "bits_per_byte": 0.75})
    server.answer_soon(result=result)
    printed = trainer("evaluate", run_id, "--split", "test", url=server.url)
    assert printed.code == 0
    heading, figures = printed.out.splitlines()
    assert heading.split() == ["loss", "perplexity", "bits_per_byte"]
    assert figures.split() == ["1.5", "4.5", "0.75"]
    server.answer_soon(result=result)
    told = json.loads(trainer("evaluate", run_id, "--path", "tale.txt", "--json").out)
    assert (told["path_override"], told["loss"]) == ("tale.txt", 1.5)
    server.answer_soon(Status.FAILED, message="no room")
    failed = trainer("evaluate", run_id)
    assert failed.code == 1
    assert "failed: INTERNAL_ERROR: no room" in failed.out


def test_a_text_is_scored_as_a_whole_and_by_token(server: Server, trainer: Trainer) -> None:
    run_id = server.finished_run()
    server.model(run_id)
    result: dict[str, object] = {"loss": 1.5, "perplexity": 4.5}
    server.answer_soon(result=json.dumps(result))
    printed = trainer("score", run_id, "--text", "a\x1b", url=server.url)
    assert [line.split() for line in printed.out.splitlines()] == [
        ["loss", "perplexity"],
        ["1.5", "4.5"],
    ]
    candidate = {"token": "\x1b", "token_id": 5, "probability": 0.25, "bits": 2.0}
    result |= {"tokens": ["a", "\x1b"], "surprisal": [2.0], "topk": [[candidate]]}
    server.answer_soon(result=json.dumps(result))
    detailed = trainer(
        "score", run_id, "--text", "a\x1b", "--detail-level", "per_char", "--top-k", "1"
    )
    assert [line.split() for line in detailed.out.splitlines()[2:]] == [
        ["token", "bits", "likeliest"],
        ["'a'", "-", "-"],
        ["'\\x1b'", "2", "'\\x1b'", "0.250"],
    ]
    server.answer_soon(result=json.dumps(result))
    assert json.loads(trainer("score", run_id, "--text", "ab", "--json").out)["topk"]


def test_one_message_is_answered(server: Server, trainer: Trainer) -> None:
    run_id = server.finished_run()
    server.model(run_id)
    server.answer_soon(result=json.dumps({"response": "[b] \x1b[2J"}))
    said = trainer("chat", run_id, "--message", "hello", url=server.url)
    assert said.code == 0
    answer, hint = said.out.splitlines()
    assert answer == "[b] \\x1b[2J"
    session_id = hint.rpartition(" ")[2]
    server.answer_soon(result=json.dumps({"response": "again"}))
    more = trainer("chat", run_id, "--message", "more", "--session-id", session_id, "--json")
    told = json.loads(more.out)
    assert (told["session_id"], told["response"]) == (session_id, "again")
    assert len(server.client().get_chat(run_id, session_id)["messages"]) == 2
    server.client().delete_chat(run_id, session_id)
    gone = trainer("chat", run_id, "--message", "more", "--session-id", session_id)
    assert (gone.code, "DATA_NOT_FOUND" in gone.err) == (2, True)


def test_a_talk_goes_on_line_by_line_until_the_input_ends(
    server: Server, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = server.finished_run()
    server.model(run_id)

    class Keyboard(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Keyboard("one\n\n  \ntwo\n"))
    server.answer_soon(result=json.dumps({"response": "first"}), times=2)
    talk = trainer("chat", run_id, url=server.url)
    assert talk.code == 0
    assert talk.out.splitlines()[:2] == ["first", "first"]
    assert talk.err == "you> " * 5
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    silent = trainer("chat", run_id)
    assert (silent.code, silent.out, silent.err) == (0, "", "")


def test_a_talk_ends_with_the_answer_that_failed(
    server: Server, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = server.finished_run()
    server.model(run_id)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    server.answer_soon(Status.FAILED, message="no room")
    talk = trainer("chat", run_id, url=server.url)
    assert (talk.code, talk.out) == (1, "failed: INTERNAL_ERROR: no room\n")


def test_a_refusal_names_each_field(server: Server, trainer: Trainer) -> None:
    refused = trainer("runs", "train", "--max-seq-len", "7", url=server.url)
    assert refused.code == 2
    assert refused.out == ""
    assert "error: max_seq_len: 7 is not within 8 to 65536" in refused.err


def test_what_is_not_found_is_bad_input(server: Server, trainer: Trainer) -> None:
    missing = trainer("runs", "show", "run-none", url=server.url)
    assert missing.code == 2
    assert "RUN_NOT_FOUND" in missing.err


def test_no_server_is_one_line_and_a_code_of_its_own(trainer: Trainer) -> None:
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    missing = trainer("runs", "list", "--url", url)
    assert missing.code == 4
    assert missing.err.count("\n") == 1
    assert url in missing.err


def test_a_server_without_its_redis_is_not_reachable(
    make_server_of: Callable[[Settings], Server], settings: Settings, trainer: Trainer
) -> None:
    away = Redis(url=f"redis://127.0.0.1:{free_port('127.0.0.1')}/0", given=True, enabled=True)
    server = make_server_of(replace(settings, redis=away))
    refused = trainer("runs", "train", *train_options(server), url=server.url)
    assert refused.code == 4
    assert "request id" in refused.err


def test_a_key_of_several_opens_the_door(
    make_server_of: Callable[[Settings], Server],
    settings: Settings,
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECURITY__API_KEY", "one, two")
    closed = replace(settings, security=replace(settings.security, api_keys=("one", "two")))
    server = make_server_of(closed)
    assert trainer("runs", "list", url=server.url).code == 0
    assert trainer("runs", "list", "--api-key", "three").code == 2


def test_a_file_that_cannot_be_read_is_one_line(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/nowhere")

    monkeypatch.setattr(mains, "app", fail)
    assert trainer().err == "error: /nowhere: No such file or directory\n"


def test_the_database_is_brought_up_to_date(settings: Settings, trainer: Trainer) -> None:
    assert trainer("db", "upgrade").out == "the database is up to date\n"


def test_a_database_of_a_later_version_is_left_as_it_is(
    settings: Settings, sqlite_database: Database, trainer: Trainer
) -> None:
    with sqlite_database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    said = trainer("db", "upgrade").out

    assert said.endswith("the database is of a later version, and left as it is\n")


def test_every_command_says_its_exit_codes(trainer: Trainer) -> None:
    for command in (
        [],
        ["runs", "train"],
        ["corpora", "add"],
        ["up"],
        ["demo"],
        ["generate"],
        ["chat"],
    ):
        assert "4 not reachable" in trainer(*command, "--help").out


def test_each_field_of_a_run_is_an_option(trainer: Trainer) -> None:
    text = trainer("runs", "train", "--help").out
    for option in ("--max-seq-len", "--warmup-ratio", "--sample-prompts", "--no-freeze-embed"):
        assert option in text

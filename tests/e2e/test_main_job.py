"""From a text to a model that writes: over HTTP, through the broker, by the workers."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import redis
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer_app import events
from trainer_app.client import Client
from trainer_app.stack.launch import RunningStack

VOCABULARY = 512
WAIT_SECONDS = 90.0


def test_a_run_learns_what_an_untrained_model_cannot_know(
    client: Client, trained: tuple[str, str]
) -> None:
    run = client.get_run(trained[1])

    assert (run["progress"], run["step"], run["total_steps"]) == (100, 150, 150)
    assert run["val_loss"] is not None
    assert run["val_loss"] < math.log(VOCABULARY) - 1.0


def test_the_artifact_loads_in_transformers_with_the_loss_that_was_reported(
    client: Client, stack: RunningStack, trained: tuple[str, str], text: Path
) -> None:
    directory = stack.data_root / "artifacts" / "models" / trained[1]

    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids: list[int] = tokenizer(text.read_text()[:100_000])["input_ids"]
    windows = torch.tensor(ids[: 256 * 65]).view(256, 65)
    with torch.inference_mode():
        logits = model(windows[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    assert float(loss) < math.log(VOCABULARY) - 1.0
    manifest = json.loads((directory / "manifest.json").read_bytes())
    assert manifest["spec"]["tags"] == ["e2e"]
    assert manifest["test_loss"] < math.log(VOCABULARY) - 1.0


def test_every_file_of_the_artifact_has_the_digest_that_the_pointer_gives(
    client: Client, trained: tuple[str, str], tmp_path: Path
) -> None:
    pointer = client.run_artifact(trained[1])

    names = {file["name"] for file in pointer["files"]}
    assert names >= {
        "README.md",
        "config.json",
        "eval/metrics.json",
        "generation_config.json",
        "logs.jsonl",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
    }
    for file in pointer["files"]:
        client.download_artifact(trained[1], file["name"], tmp_path / "file")
        data = (tmp_path / "file").read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])


def test_the_curve_has_training_and_validation_points(
    client: Client, trained: tuple[str, str]
) -> None:
    points = client.run_metrics(trained[1])["points"]

    steps = [point["step"] for point in points]
    assert steps == sorted(set(steps))
    assert steps[-1] == 150
    losses = [point["train_loss"] for point in points if point["train_loss"] is not None]
    assert losses[-1] < losses[0] - 1.5
    assert [point["step"] for point in points if point["val_loss"] is not None] == [75, 150]


def test_the_log_tells_the_story_and_its_stream_ends_with_the_run(
    client: Client, trained: tuple[str, str]
) -> None:
    lines = client.run_logs(trained[1]).splitlines()
    followed = list(client.follow_logs(trained[1], tail=1_000))

    assert followed == lines
    told = [json.loads(line)["event"] for line in lines]
    assert told[0] == "started"
    assert told[-1] == "completed"
    assert {"training", "evaluation", "step"} <= set(told)


def test_events_come_in_the_contracts_order(stack: RunningStack, trained: tuple[str, str]) -> None:
    with redis.Redis.from_url(stack.state["redis_url"], decode_responses=True) as client:
        entries = client.xrange(events.STREAM) or []
    heard = [json.loads(fields["event"]) for _, fields in entries if fields]

    mine = [event for event in heard if event["job_id"] == trained[1]]
    assert all(event["user_id"] == 7 for event in mine)
    types = [event["type"].removeprefix("trainer.").removesuffix(".v1") for event in mine]
    assert types[:2] == ["job.started", "metrics.config"]
    assert types[-2:] == ["job.completed", "metrics.completed"]
    assert set(types[2:-2]) == {"job.progress", "metrics.progress"}
    assert any("val_loss" in event for event in mine)


def test_a_finished_model_writes_and_the_same_seed_writes_the_same(
    client: Client, trained: tuple[str, str]
) -> None:
    fields = {"prompt_text": "The ", "max_new_tokens": 16, "seed": 3, "num_return_sequences": 2}

    first = client.generate(trained[1], fields)
    second = client.generate(trained[1], fields)

    assert first["status"] == "completed", first
    assert first["outputs"] == second["outputs"]
    assert first["outputs"] is not None
    assert len(first["outputs"]) == 2


def test_a_character_lstm_trains_its_own_tokenizer(client: Client, text: Path) -> None:
    corpus = client.upload_corpus(text)
    accepted = client.train_run(
        {
            "model_family": "char_lstm",
            "model_size": "tiny",
            "corpus_file_id": corpus["file_id"],
            "max_seq_len": 32,
            "batch_size": 16,
            "max_steps": 60,
            "learning_rate": 5e-3,
            "test_split_ratio": 0.01,
        }
    )

    run = client.wait_for_run(accepted["run_id"], timeout=WAIT_SECONDS)

    assert run["status"] == "completed", run
    assert run["val_loss"] is not None
    assert run["val_loss"] < 3.6  # nats a character; about 4.6 before
    output = client.generate(run["run_id"], {"prompt_text": "de", "max_new_tokens": 8})
    assert output["status"] == "completed", output


def test_a_corpus_that_is_too_short_fails_its_run_with_both_numbers(
    client: Client, trained: tuple[str, str], tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    # Bytes enough, which only the tokenizer makes into fewer tokens.
    short.write_text("".join(f"line {number}\n" for number in range(80)))
    corpus = client.upload_corpus(short)
    accepted = client.train_run(
        {
            "model_size": "tiny",
            "corpus_file_id": corpus["file_id"],
            "tokenizer_id": trained[0],
            "max_seq_len": 512,
        }
    )

    run = client.wait_for_run(accepted["run_id"], timeout=WAIT_SECONDS)

    assert (run["status"], run["error_code"]) == ("failed", "CORPUS_TOO_SHORT")
    assert "51" in run["message"]

"""What a finished model is used for: over HTTP, through the broker, by the inference worker."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from trainer_app.client import Client
from trainer_app.stack.launch import RunningStack
from trainer_app.transport import ApiError


def test_a_finished_model_is_evaluated_twice_with_the_loss_that_its_manifest_has(
    client: Client, stack: RunningStack, trained: tuple[str, str]
) -> None:
    artifacts = stack.data_root / "artifacts"
    manifest = json.loads((artifacts / "models" / trained[1] / "manifest.json").read_bytes())

    first = client.evaluate(trained[1], {"split": "test"})
    second = client.evaluate(trained[1], {"split": "test"})
    validation = client.evaluate(trained[1], {})

    assert first["status"] == second["status"] == "completed", first
    assert first["loss"] == second["loss"] == pytest.approx(manifest["test_loss"], rel=1e-4)
    assert validation["loss"] == pytest.approx(manifest["best_val_loss"], rel=1e-4)
    path = artifacts / "evaluations" / trained[1] / "test.json"
    assert first["artifact_path"] == str(path)
    assert json.loads(path.read_bytes())["loss"] == second["loss"]


def test_a_finished_model_finds_its_own_language_likely(
    client: Client, trained: tuple[str, str], text: Path
) -> None:
    words = text.read_text()[:4_000]
    known = client.score(trained[1], {"text": words, "detail_level": "per_char", "top_k": 2})
    summary = client.score(trained[1], {"text": words})

    assert known["status"] == summary["status"] == "completed", known
    assert known["loss"] is not None
    assert known["loss"] < math.log(512) - 1.0
    assert known["tokens"] is not None
    assert known["surprisal"] is not None
    assert known["topk"] is not None
    assert "".join(known["tokens"]) == words
    assert len(known["surprisal"]) == len(known["topk"]) == len(known["tokens"]) - 1
    mean = math.fsum(known["surprisal"]) / len(known["surprisal"])
    assert mean * math.log(2) == pytest.approx(known["loss"])
    assert summary["loss"] == pytest.approx(known["loss"])
    assert (summary["surprisal"], summary["tokens"], summary["topk"]) == (None, None, None)


def test_a_chat_goes_on_and_is_forgotten(client: Client, trained: tuple[str, str]) -> None:
    first = client.chat(trained[1], {"message": "What is a list?", "max_new_tokens": 12, "seed": 1})
    session_id = first["session_id"]
    again = {"message": "And then?", "session_id": session_id, "max_new_tokens": 12}
    second = client.chat(trained[1], again)

    assert first["status"] == second["status"] == "completed", first
    assert client.get_chat(trained[1], session_id)["messages"] == [
        {"role": "user", "content": "What is a list?"},
        {"role": "assistant", "content": first["response"]},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": second["response"]},
    ]
    client.delete_chat(trained[1], session_id)
    with pytest.raises(ApiError, match="has no such chat"):
        client.get_chat(trained[1], session_id)

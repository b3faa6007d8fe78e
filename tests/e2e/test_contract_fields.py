"""Section 2 of the contract, field by field: defaults, bounds, and what lies outside of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract_defaults import TRAIN_DEFAULTS
from tests.e2e.stranger import Json, Stranger, refused_fields
from trainer_app.stack.launch import RunningStack

pytestmark = pytest.mark.slow

MAX_SEED = 2**32 - 1
TRAIN_ACCEPTED: dict[str, list[object]] = {
    "model_size": ["tiny", "mini", "small"],
    "max_seq_len": [8, 1024],
    "num_epochs": [1, 1000],
    "batch_size": [1, 64],
    "learning_rate": [0, 1, 0.001],
    "user_id": [0, 2**53],
    "device": ["cpu", "auto"],
    "precision": ["fp32", "auto"],
    "data_num_workers": [0, 4, None],
    "data_pin_memory": [True, False, None],
    "holdout_fraction": [0, 0.5],
    "test_split_ratio": [0, 0.5],
    "seed": [0, MAX_SEED],
    "pretrained_run_id": [None],
    "freeze_embed": [True, False],
    "gradient_clipping": [0, 10.5],
    "optimizer": ["adamw", "adam", "sgd", "muon"],
    "early_stopping_patience": [0, 100],
    "finetune_lr_cap": [0, 0.1],
    "max_steps": [1, 10_000],
    "gradient_accumulation_steps": [1, 8],
    "weight_decay": [0, 0.1],
    "warmup_ratio": [0, 1],
    "lr_scheduler_type": ["cosine", "linear", "constant"],
    "eval_steps": [1, 500],
    "logging_steps": [1, 100],
    "queue": ["trainer"],
    "priority": [0, 9],
    "tags": [[], ["one", "two"]],
    "sample_prompts": [[], ["Once upon a time"]],
}
NOT_INTEGERS: list[object] = [1.9, 1.0, "12", "1_000", "١٢", True, 2**70, [1], {}]
NOT_NUMBERS: list[object] = ["0.1", True, [], {}]
NOT_BOOLEANS: list[object] = [0, 1, "true", []]
NOT_TEXTS: list[object] = [1, True, [], {}, "a\0b", "\ud800"]
TRAIN_REFUSED: dict[str, list[object]] = {
    "model_family": ["gpt3", "GPT2", "", None, *NOT_TEXTS],
    "model_size": ["huge", "", None, "../tiny", *NOT_TEXTS],
    "max_seq_len": [7, 0, -8, None, *NOT_INTEGERS],
    "num_epochs": [0, -1, None, *NOT_INTEGERS],
    "batch_size": [0, -4, None, *NOT_INTEGERS],
    "learning_rate": [-0.1, None, *NOT_NUMBERS],
    "user_id": [-1, 2**63, None, *NOT_INTEGERS],
    "device": ["tpu", "cuda:0", None, *NOT_TEXTS],
    "precision": ["fp8", None, *NOT_TEXTS],
    "data_num_workers": [-1, *NOT_INTEGERS],
    "data_pin_memory": NOT_BOOLEANS,
    "holdout_fraction": [-0.01, 0.51, None, *NOT_NUMBERS],
    "test_split_ratio": [-0.01, 0.51, None, *NOT_NUMBERS],
    "seed": [-1, MAX_SEED + 1, None, *NOT_INTEGERS],
    "freeze_embed": [None, *NOT_BOOLEANS],
    "gradient_clipping": [-1, None, *NOT_NUMBERS],
    "optimizer": ["lamb", None, *NOT_TEXTS],
    "early_stopping_patience": [-1, None, *NOT_INTEGERS],
    "finetune_lr_cap": [-1, None, *NOT_NUMBERS],
    "gradient_accumulation_steps": [0, *NOT_INTEGERS],
    "weight_decay": [-0.1, *NOT_NUMBERS],
    "warmup_ratio": [-0.1, 1.1, *NOT_NUMBERS],
    "lr_scheduler_type": ["polynomial", *NOT_TEXTS],
    "eval_steps": [0, *NOT_INTEGERS],
    "logging_steps": [0, *NOT_INTEGERS],
    "priority": [-1, 10, *NOT_INTEGERS],
    "tags": ["one", [1], [""], None],
    "sample_prompts": ["one", [1]],
    "queue": ["trainer.nowhere.gpu9", *NOT_TEXTS],
    "corpus_path": NOT_TEXTS,
}
TOKENIZER_REFUSED: dict[str, list[object]] = {
    "method": ["wordpiece", None, *NOT_TEXTS],
    "vocab_size": [99, 0, -1, None, *NOT_INTEGERS],
    "min_frequency": [0, -1, None, *NOT_INTEGERS],
    "holdout_fraction": [-0.1, 0.51, *NOT_NUMBERS],
    "seed": [-1, MAX_SEED + 1, *NOT_INTEGERS],
    "tokenizer_id": ["../x", "a/b", "", "x" * 5_000, "a\nb", *NOT_TEXTS],
}
GENERATE_REFUSED: dict[str, list[object]] = {
    "prompt_text": NOT_TEXTS,
    "max_new_tokens": [0, 1_025, None, *NOT_INTEGERS],
    "temperature": [-0.1, 2.1, None, *NOT_NUMBERS],
    "top_k": [-1, None, *NOT_INTEGERS],
    "top_p": [-0.1, 1.1, None, *NOT_NUMBERS],
    "stop_on_eos": [None, *NOT_BOOLEANS],
    "stop_sequences": ["one", [1], None],
    "seed": [-1, MAX_SEED + 1, *NOT_INTEGERS],
    "num_return_sequences": [0, 17, None, *NOT_INTEGERS],
}
GENERATE_ACCEPTED: dict[str, list[object]] = {
    "max_new_tokens": [1, 1_024],
    "temperature": [0, 2],
    "top_k": [0, 50],
    "top_p": [0, 1],
    "stop_on_eos": [True, False],
    "stop_sequences": [[], ["\n"]],
    "seed": [None, 0, MAX_SEED],
    "num_return_sequences": [1, 16],
}
SCORE_REFUSED: dict[str, list[object]] = {
    "text": NOT_TEXTS,
    "detail_level": ["per_word", None, *NOT_TEXTS],
    "top_k": [-1, *NOT_INTEGERS],
    "seed": [-1, MAX_SEED + 1, *NOT_INTEGERS],
}
CHAT_REFUSED: dict[str, list[object]] = {
    "message": [None, *NOT_TEXTS],
    "session_id": NOT_TEXTS,
    "max_new_tokens": [0, 1_025, *NOT_INTEGERS],
    "temperature": [-0.1, 2.1, *NOT_NUMBERS],
    "top_k": [-1, *NOT_INTEGERS],
    "top_p": [-0.1, 1.1, *NOT_NUMBERS],
    "seed": [-1, MAX_SEED + 1, *NOT_INTEGERS],
}
EVALUATE_REFUSED: dict[str, list[object]] = {
    "split": ["train", "", None, *NOT_TEXTS],
    "path_override": NOT_TEXTS,
}


@pytest.fixture(scope="module")
def stranger(stack: RunningStack) -> Iterator[Stranger]:
    with Stranger(stack.api_url) as stranger:
        yield stranger


@pytest.fixture(scope="module")
def smallest(stranger: Stranger, text: Path) -> Json:
    """The least that POST /runs/train takes."""
    corpus = stranger.upload(text.read_bytes()).json()["file_id"]
    return {"model_family": "char_lstm", "model_size": "tiny", "corpus_file_id": corpus}


@pytest.fixture(scope="module")
def smallest_gpt2(stranger: Stranger, smallest: Json) -> Json:
    accepted = stranger.post(
        "/tokenizers/train",
        {"method": "char", "vocab_size": 100, "corpus_file_id": smallest["corpus_file_id"]},
    ).json()
    done = stranger.wait(f"/tokenizers/{accepted['tokenizer_id']}")
    assert done["status"] == "completed", done
    corpus = smallest["corpus_file_id"]
    return {"corpus_file_id": corpus, "tokenizer_id": accepted["tokenizer_id"]}


@pytest.fixture(scope="module")
def busy(stranger: Stranger, smallest: Json, model: str) -> Iterator[None]:
    """A run that keeps the one worker busy, so that what is posted meanwhile stays queued."""
    body = {**smallest, "num_epochs": 10_000, "early_stopping_patience": 0, "priority": 9}
    run_id = stranger.post("/runs/train", body).json()["run_id"]
    yield
    stranger.post(f"/runs/{run_id}/cancel", {})
    stranger.wait(f"/runs/{run_id}")


@pytest.fixture(scope="module")
def model(stranger: Stranger, smallest: Json) -> str:
    """A finished model, as small and as quick as it gets."""
    body = {**smallest, "max_steps": 2, "max_seq_len": 8, "holdout_fraction": 0.02}
    run_id: str = stranger.post("/runs/train", body).json()["run_id"]
    done = stranger.wait(f"/runs/{run_id}")
    assert done["status"] == "completed", done
    return run_id


def post_and_cancel(stranger: Stranger, body: Json) -> Json:
    """The spec of a run that was accepted; it is not to run."""
    answer = stranger.post("/runs/train", body)
    assert answer.status_code == 202, answer.text
    run_id = answer.json()["run_id"]
    assert stranger.post(f"/runs/{run_id}/cancel", {}).status_code == 200
    spec: Json = stranger.get(f"/runs/{run_id}").json()["spec"]
    return spec


def test_train_fills_in_the_defaults_and_shows_them_under_spec(
    stranger: Stranger, busy: None, smallest_gpt2: Json
) -> None:
    spec = post_and_cancel(stranger, smallest_gpt2)
    assert {name: spec[name] for name in TRAIN_DEFAULTS} == TRAIN_DEFAULTS
    assert {name: spec[name] for name in smallest_gpt2} == smallest_gpt2
    assert spec["corpus_sha256"] == smallest_gpt2["corpus_file_id"]


@pytest.mark.parametrize("name", TRAIN_ACCEPTED)
def test_train_takes_a_field_at_its_bounds_and_shows_it_under_spec(
    stranger: Stranger, busy: None, smallest_gpt2: Json, name: str
) -> None:
    for value in TRAIN_ACCEPTED[name]:
        spec = post_and_cancel(stranger, {**smallest_gpt2, "model_size": "tiny", name: value})
        assert spec[name] == value


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen", "char_lstm"])
def test_train_takes_every_family(
    stranger: Stranger, busy: None, smallest_gpt2: Json, family: str
) -> None:
    body = {**smallest_gpt2, "model_family": family, "model_size": "tiny"}
    assert post_and_cancel(stranger, body)["model_family"] == family


@pytest.mark.parametrize("name", TRAIN_REFUSED)
def test_train_refuses_a_field_outside_its_bounds_and_names_it(
    stranger: Stranger, smallest: Json, name: str
) -> None:
    for value in TRAIN_REFUSED[name]:
        answer = stranger.post("/runs/train", {**smallest, name: value})
        assert name in refused_fields(answer), value


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
@pytest.mark.parametrize(
    "name", [name for name, values in TRAIN_REFUSED.items() if "0.1" in values]
)
def test_train_refuses_numbers_that_are_none(
    stranger: Stranger, smallest: Json, name: str, literal: str
) -> None:
    content = f'{{"corpus_file_id": "{smallest["corpus_file_id"]}", "{name}": {literal}}}'
    answer = stranger.send(
        "POST",
        "/runs/train",
        content=content.encode(),
        headers={"Content-Type": "application/json"},
    )
    assert name in refused_fields(answer)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_on_a_cpu_is_refused(
    stranger: Stranger, smallest: Json, precision: str
) -> None:
    body = {**smallest, "device": "cpu", "precision": precision}
    assert "precision" in refused_fields(stranger.post("/runs/train", body))


def test_train_wants_exactly_one_corpus(stranger: Stranger, smallest: Json) -> None:
    both = {**smallest, "corpus_path": "text.txt"}
    none = {"model_family": "char_lstm", "model_size": "tiny"}
    for body in (both, none):
        assert refused_fields(stranger.post("/runs/train", body)) & {
            "corpus_file_id",
            "corpus_path",
        }


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen"])
def test_a_tokenizer_is_required_for_all_but_the_character_model(
    stranger: Stranger, smallest: Json, family: str
) -> None:
    body = {**smallest, "model_family": family}
    assert "tokenizer_id" in refused_fields(stranger.post("/runs/train", body))


def test_an_unknown_field_is_refused_with_a_suggestion(stranger: Stranger, smallest: Json) -> None:
    answer = stranger.post("/runs/train", {**smallest, "learning_rates": 0.1})
    assert refused_fields(answer) == {"learning_rates"}
    assert "did you mean" in answer.text
    assert "learning_rate" in answer.text


@pytest.mark.parametrize("name", TOKENIZER_REFUSED)
def test_tokenizers_refuse_a_field_outside_its_bounds(
    stranger: Stranger, smallest: Json, name: str
) -> None:
    good = {
        "method": "char",
        "vocab_size": 100,
        "corpus_file_id": smallest["corpus_file_id"],
    }
    for value in TOKENIZER_REFUSED[name]:
        answer = stranger.post("/tokenizers/train", {**good, name: value})
        assert name in refused_fields(answer), value


@pytest.mark.parametrize(("method", "least"), [("bpe", 260), ("char", 100), ("sentencepiece", 100)])
def test_each_kind_of_tokenizer_is_taken_from_its_smallest_size_on(
    stranger: Stranger, smallest: Json, method: str, least: int
) -> None:
    body: Json = {"method": method, "corpus_file_id": smallest["corpus_file_id"]}
    accepted = stranger.post("/tokenizers/train", {**body, "vocab_size": least})
    assert accepted.status_code == 202, accepted.text
    done = stranger.wait(f"/tokenizers/{accepted.json()['tokenizer_id']}")
    assert done["status"] == "completed", done
    refused = stranger.post("/tokenizers/train", {**body, "vocab_size": least - 1})
    assert "vocab_size" in refused_fields(refused)


@pytest.mark.parametrize("name", GENERATE_REFUSED)
def test_generate_refuses_a_field_outside_its_bounds(
    stranger: Stranger, model: str, name: str
) -> None:
    for value in GENERATE_REFUSED[name]:
        answer = stranger.post(f"/runs/{model}/generate", {"prompt_text": "def ", name: value})
        assert name in refused_fields(answer), value


@pytest.mark.parametrize("name", GENERATE_ACCEPTED)
def test_generate_takes_a_field_at_its_bounds(stranger: Stranger, model: str, name: str) -> None:
    for value in GENERATE_ACCEPTED[name]:
        body = {"prompt_text": "def ", "max_new_tokens": 2, name: value}
        accepted = stranger.post(f"/runs/{model}/generate", body)
        assert accepted.status_code == 202, (value, accepted.text)
        done = stranger.wait(f"/runs/{model}/generate/{accepted.json()['request_id']}")
        assert done["status"] == "completed", (value, done)


@pytest.mark.parametrize("name", SCORE_REFUSED)
def test_score_refuses_a_field_outside_its_bounds(
    stranger: Stranger, model: str, name: str
) -> None:
    for value in SCORE_REFUSED[name]:
        answer = stranger.post(f"/runs/{model}/score", {"text": "def main", name: value})
        assert name in refused_fields(answer), value


@pytest.mark.parametrize("name", CHAT_REFUSED)
def test_chat_refuses_a_field_outside_its_bounds(stranger: Stranger, model: str, name: str) -> None:
    for value in CHAT_REFUSED[name]:
        answer = stranger.post(f"/runs/{model}/chat", {"message": "def main", name: value})
        assert name in refused_fields(answer), value


@pytest.mark.parametrize("name", EVALUATE_REFUSED)
def test_evaluate_refuses_a_field_outside_its_bounds(
    stranger: Stranger, model: str, name: str
) -> None:
    for value in EVALUATE_REFUSED[name]:
        answer = stranger.post(f"/runs/{model}/evaluate", {name: value})
        assert name in refused_fields(answer), value


@pytest.mark.parametrize(
    ("path", "first", "second"),
    [("generate", "prompt_text", "prompt_path"), ("score", "text", "path")],
)
def test_a_text_is_given_once_as_text_or_as_a_path(
    stranger: Stranger, model: str, path: str, first: str, second: str
) -> None:
    for body in ({}, {first: "a", second: "b"}):
        assert refused_fields(stranger.post(f"/runs/{model}/{path}", body)) & {first, second}


@pytest.mark.parametrize("path", ["/runs", "/tokenizers", "/corpora"])
@pytest.mark.parametrize("limit", ["0", "1001", "-1", "1.5", "x", "", "\u0661", "true"])
def test_a_limit_outside_its_bounds_is_refused(stranger: Stranger, path: str, limit: str) -> None:
    assert refused_fields(stranger.get(f"{path}?limit={limit}")) == {"limit"}


@pytest.mark.parametrize("path", ["/runs", "/tokenizers", "/corpora"])
@pytest.mark.parametrize("limit", ["1", "1000"])
def test_a_limit_at_its_bounds_is_taken(stranger: Stranger, path: str, limit: str) -> None:
    assert stranger.get(f"{path}?limit={limit}").status_code == 200


@pytest.mark.parametrize("tail", ["0", "-1", "10001", "1000000000", "x"])
def test_a_tail_outside_its_bounds_is_refused(stranger: Stranger, model: str, tail: str) -> None:
    for path in ("logs", "logs/stream"):
        assert refused_fields(stranger.get(f"/runs/{model}/{path}?tail={tail}")) == {"tail"}

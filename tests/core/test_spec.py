"""The specs' way through JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.damaged import ASKED_LOST, NO_OBJECTS
from trainer_app.core.evaluate_spec import EvaluateSpec
from trainer_app.core.json_spec import DIGEST_PENDING, JsonSpec, json_object
from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.errors import RowDamaged

TRAIN = TrainSpec(corpus_sha256="0" * 64, tags=("a", "b"), sample_prompts=("once",), eval_steps=7)
TOKENIZER = TokenizerSpec(method="bpe", vocab_size=300, corpus_sha256="0" * 64)


def test_a_spec_survives_the_round_trip() -> None:
    assert TrainSpec.from_json(TRAIN.to_json()) == TRAIN
    assert TokenizerSpec.from_json(TOKENIZER.to_json()) == TOKENIZER


def test_fields_of_another_version_are_left_out_and_missing_ones_are_defaults() -> None:
    older = {"corpus_sha256": "0" * 64, "once_known": 1}
    assert TrainSpec.from_json(json.dumps(older)) == TrainSpec(corpus_sha256="0" * 64)
    newer = json.loads(TOKENIZER.to_json()) | {"not_yet_known": 1}
    assert TokenizerSpec.from_json(json.dumps(newer)) == TOKENIZER


def test_a_digest_that_the_worker_is_to_ask_for_is_no_work_for_the_version_before() -> None:
    text = replace(TRAIN, corpus_sha256="").to_json()
    assert json.loads(text)[DIGEST_PENDING] is True  # which that version does not know
    assert TrainSpec.asked_beyond(text) == []
    assert TrainSpec.from_json(text) == replace(TRAIN, corpus_sha256="")
    assert DIGEST_PENDING not in json.loads(TRAIN.to_json())


def test_the_peak_is_capped_when_fine_tuning_alone() -> None:
    assert TRAIN.peak_learning_rate == TRAIN.learning_rate
    tuned = replace(TRAIN, pretrained_run_id="run-1")
    assert tuned.peak_learning_rate == tuned.finetune_lr_cap
    assert replace(tuned, learning_rate=1e-6).peak_learning_rate == 1e-6


@pytest.mark.parametrize("text", NO_OBJECTS)
def test_what_is_no_json_object_is_no_spec(text: str) -> None:
    assert json_object(text) is None
    for over in (None, TRAIN.to_json()):
        with pytest.raises(RowDamaged, match="it holds no JSON object"):
            TrainSpec.from_json(text, over=over)
    with pytest.raises(RowDamaged, match="it holds no JSON object"):
        TrainSpec.from_json(TRAIN.to_json(), over=text)
    assert TrainSpec.read(text) is None
    assert TrainSpec.asked_beyond(text) == []  # no later version could do it, either


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("max_seq_len", "abc", "is no int"),
        ("max_seq_len", True, "is no int"),
        ("max_seq_len", None, "is no int"),
        ("learning_rate", "1e-3", "is no float or int"),
        ("freeze_embed", 1, "is no bool"),
        ("optimizer", 3, "is no str"),
        ("eval_steps", 1.5, "is no NoneType or int"),
        ("tags", "a", "is no list"),
        ("tags", ["a", 3], "is no list of texts"),
        ("corpus_path", ["a.txt"], "is no NoneType or str"),
    ],
)
def test_a_value_of_another_type_is_named(field: str, value: object, why: str) -> None:
    text = json.dumps(json.loads(TRAIN.to_json()) | {field: value})

    with pytest.raises(RowDamaged) as raised:
        TrainSpec.from_json(text)

    assert str(raised.value) == f"{ASKED_LOST} ({field} {why})"


@pytest.mark.parametrize("spec", [TrainSpec, TokenizerSpec])
def test_a_spec_without_a_field_that_it_needs_is_damaged(spec: type[JsonSpec]) -> None:
    with pytest.raises(RowDamaged, match="a field is missing"):
        spec.from_json("{}")


def test_whole_numbers_and_nulls_are_taken_where_they_belong() -> None:
    values = {"learning_rate": 1, "eval_steps": None, "tags": [], "sample_prompts": ["a"]}
    spec = TrainSpec.from_json(json.dumps({"corpus_sha256": "", **values}))
    assert (spec.learning_rate, spec.sample_prompts) == (1, ("a",))
    assert EvaluateSpec.from_json("{}") == EvaluateSpec()

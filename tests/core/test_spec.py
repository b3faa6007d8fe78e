"""The specs' way through JSON."""

from __future__ import annotations

import json
from dataclasses import replace

from trainer_app.core.json_spec import DIGEST_PENDING
from trainer_app.core.spec import TokenizerSpec, TrainSpec

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

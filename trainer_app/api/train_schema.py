"""What a training run is asked for: the body of POST /runs/train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from marshmallow import ValidationError, post_load, validates_schema

from backends.registry import MODEL_FAMILIES, MODEL_SIZES, OWN_TOKENIZERS
from trainer_app.api import examples, job_fields
from trainer_app.api.fields import (
    EMPTY_BY_DEFAULT,
    StrictBoolean,
    StrictInteger,
    StrictList,
    StrictNumber,
    StrictString,
    about,
    between,
    length,
    one_of,
)
from trainer_app.api.ids import DOCUMENTED
from trainer_app.api.rules import among, below, where, with_text
from trainer_app.api.schema import StrictSchema
from trainer_app.core.corpus_size import SHORTEST_SEQUENCE
from trainer_app.core.spec import (
    COMPILE_CHOICES,
    DEVICES,
    HALF_PRECISIONS,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULERS,
    WEIGHT_DECAY,
    TrainSpec,
)

# One source for the defaults: the spec's own.
DEFAULTS: Final = asdict(TrainSpec(corpus_sha256=""))
_SIZES: Final = tuple(dict.fromkeys(size for sizes in MODEL_SIZES.values() for size in sizes))
_ON_CPU: Final = tuple(name for name in PRECISIONS if name not in HALF_PRECISIONS)
_MOST_HELD: Final = 0.5  # of the corpus, for validation and for the test
_DECAYS: Final = ", ".join(f"{decay:g} for {name}" for name, decay in WEIGHT_DECAY.items())
_COUNT: Final = 1_000_000_000  # steps, epochs: more than any run has

_FAMILY_RULES: Final = tuple(
    where(
        "model_family",
        family,
        among("model_size", sizes),
        *([] if family in OWN_TOKENIZERS else [with_text("tokenizer_id")]),
        is_default=family == DEFAULTS["model_family"],
    )
    for family, sizes in MODEL_SIZES.items()
)
_OTHER_RULES: Final = (
    where("device", "cpu", among("precision", _ON_CPU)),
    where("holdout_fraction", _MOST_HELD, below("test_split_ratio", _MOST_HELD)),
)


class TrainSchema(StrictSchema):
    """The body of POST /runs/train. Every field has a default but the corpus and tokenizer."""

    either = job_fields.CORPUS
    rules = (*_FAMILY_RULES, *_OTHER_RULES)

    model_family = StrictString(
        load_default=DEFAULTS["model_family"],
        validate=one_of(tuple(MODEL_FAMILIES)),
        metadata=about("The architecture.", "gpt2"),
    )
    model_size = StrictString(
        load_default=DEFAULTS["model_size"],
        validate=one_of(_SIZES),
        metadata=about(
            "Width and depth. "
            + "; ".join(f"{family}: {', '.join(sizes)}" for family, sizes in MODEL_SIZES.items()),
            "tiny",
        ),
    )
    max_seq_len = StrictInteger(
        load_default=DEFAULTS["max_seq_len"],
        validate=between(SHORTEST_SEQUENCE, 65_536),
        metadata=about("Tokens per sequence; a corpus of fewer bytes than that holds none.", 256),
    )
    num_epochs = StrictInteger(
        load_default=DEFAULTS["num_epochs"],
        validate=between(1, _COUNT),
        metadata=about(
            "Passes over all of the training split; the last step of one is filled up with what "
            "the pass began with.",
            3,
        ),
    )
    max_steps = StrictInteger(
        load_default=DEFAULTS["max_steps"],
        validate=between(0, _COUNT),
        metadata=about("Optimizer steps; 0: as many as num_epochs needs."),
    )
    batch_size = StrictInteger(
        load_default=DEFAULTS["batch_size"],
        validate=between(1, 65_536),
        metadata=about("Sequences per forward pass.", 16),
    )
    gradient_accumulation_steps = StrictInteger(
        load_default=DEFAULTS["gradient_accumulation_steps"],
        validate=between(1, 65_536),
        metadata=about("Forward passes per optimizer step."),
    )
    learning_rate = StrictNumber(
        load_default=DEFAULTS["learning_rate"],
        validate=between(0, 1_000),
        metadata=about("The peak, before any schedule.", 0.0005),
    )
    lr_scheduler_type = StrictString(
        load_default=DEFAULTS["lr_scheduler_type"],
        validate=one_of(SCHEDULERS),
        metadata=about("How the learning rate falls after its peak."),
    )
    warmup_ratio = StrictNumber(
        load_default=DEFAULTS["warmup_ratio"],
        validate=between(0, 1),
        metadata=about(
            "Of all steps, how many rise to the peak; the first of n has 1 / (n + 1) of it."
        ),
    )
    weight_decay = StrictNumber(
        validate=between(0, 1_000),
        metadata=about(
            "Of matrices alone: decoupled for adamw and muon, added to the gradient (L2) for adam "
            f"and sgd. Where it is left out, {_DECAYS}.",
            DEFAULTS["weight_decay"],
        ),
    )
    optimizer = StrictString(
        load_default=DEFAULTS["optimizer"],
        validate=one_of(OPTIMIZERS),
        metadata=about("muon: Muon for the matrices of hidden layers, AdamW for the rest."),
    )
    gradient_clipping = StrictNumber(
        load_default=DEFAULTS["gradient_clipping"],
        validate=between(0, _COUNT),
        metadata=about("The largest gradient norm; 0: off."),
    )
    corpus_file_id = job_fields.corpus_file_id()
    corpus_path = job_fields.corpus_path()
    tokenizer_id = StrictString(
        load_default=None,
        validate=length(1, 128),
        metadata=about(
            "A finished tokenizer. Families that train their own where there is none: "
            + ", ".join(OWN_TOKENIZERS),
            examples.TOKENIZER_ID,
        )
        | DOCUMENTED,
    )
    holdout_fraction = job_fields.held_out(
        DEFAULTS["holdout_fraction"], "Of the corpus, for validation; 0: none."
    )
    test_split_ratio = job_fields.held_out(
        DEFAULTS["test_split_ratio"], "Of the corpus, for the test at the end; 0: none."
    )
    seed = job_fields.seed("Of all that is random.", DEFAULTS["seed"])
    device = StrictString(
        load_default=DEFAULTS["device"],
        validate=one_of(DEVICES),
        metadata=about("Where to train; auto: CUDA where there is one."),
    )
    precision = StrictString(
        load_default=DEFAULTS["precision"],
        validate=one_of(PRECISIONS),
        metadata=about(
            "auto: fp16 on CUDA, fp32 on a CPU, which has no other. fp8: bf16, but most "
            "products in 8 bits; needs an H100 or later."
        ),
    )
    deterministic = StrictBoolean(
        load_default=DEFAULTS["deterministic"],
        metadata=about(
            "The same bytes from each run of a spec on a kind of GPU, interrupted or not, at some "
            "cost of speed. A CPU gives them anyway."
        ),
    )
    torch_compile = StrictString(
        load_default=DEFAULTS["torch_compile"],
        validate=one_of(COMPILE_CHOICES),
        metadata=about(
            "auto: on CUDA, once the rest of the run wins more by compiling than it costs."
        ),
    )
    data_num_workers = StrictInteger(
        load_default=None,
        validate=between(0, 256),
        metadata=about(
            "Threads that prepare batches ahead; null: as many as there are cores, up to 4, on "
            "CUDA, none on a CPU."
        ),
    )
    data_pin_memory = StrictBoolean(
        load_default=None, metadata=about("Pinned memory for data; null: as the device needs.")
    )
    eval_steps = StrictInteger(
        load_default=None,
        validate=between(1, _COUNT),
        metadata=about("Steps between evaluations; null: at the end of each epoch."),
    )
    logging_steps = StrictInteger(
        load_default=DEFAULTS["logging_steps"],
        validate=between(1, _COUNT),
        metadata=about("Steps between points of the curve."),
    )
    early_stopping_patience = StrictInteger(
        load_default=DEFAULTS["early_stopping_patience"],
        validate=between(0, _COUNT),
        metadata=about("Evaluations without improvement before it stops; 0: off."),
    )
    pretrained_run_id = StrictString(
        load_default=None,
        validate=length(1, 128),
        metadata=about("A completed run to start from: same architecture and tokenizer.")
        | DOCUMENTED,
    )
    freeze_embed = StrictBoolean(
        load_default=DEFAULTS["freeze_embed"],
        metadata=about("Keep the token embedding as it is."),
    )
    finetune_lr_cap = StrictNumber(
        load_default=DEFAULTS["finetune_lr_cap"],
        validate=between(0, 1_000),
        metadata=about("The highest learning rate when fine-tuning."),
    )
    sample_prompts = StrictList(
        StrictString(validate=length(1, 2_000)),
        load_default=list,
        validate=length(0, 16),
        metadata=about("Continued at each evaluation, into the log.", ["Once upon a time"])
        | EMPTY_BY_DEFAULT,
    )
    user_id = job_fields.user_id(DEFAULTS["user_id"], "Whose run it is; a label.")
    gpus = StrictInteger(  # no field of the spec: there is no choice to be kept
        load_default=1,
        dump_default=1,
        validate=between(1, 1),
        metadata=about(
            "One, with device cuda: several GPUs train a run each, side by side (queue says which)."
        ),
    )
    queue = StrictString(
        load_default=None,
        validate=length(1, 255),
        metadata=about("One worker's own queue, to pin the run to its device."),
    )
    priority = StrictInteger(
        load_default=DEFAULTS["priority"],
        validate=between(0, 9),
        metadata=about("Higher first."),
    )
    tags = StrictList(
        StrictString(validate=length(1, 64)),
        load_default=list,
        validate=length(0, 16),
        metadata=about("Words to find the run by.", ["baseline"]) | EMPTY_BY_DEFAULT,
    )

    @validates_schema
    def check(self, data: Mapping[str, object], **_: object) -> None:
        """What two fields must agree on; each message is at the field to change."""
        family, size = str(data["model_family"]), data["model_size"]
        wrong: dict[str, list[str]] = {}
        if size not in MODEL_SIZES[family]:
            wrong["model_size"] = [f"{family} has the sizes {', '.join(MODEL_SIZES[family])}"]
        if data["tokenizer_id"] is None and family not in OWN_TOKENIZERS:
            wrong["tokenizer_id"] = [f"is needed for {family}"]
        if data["device"] == "cpu" and data["precision"] in HALF_PRECISIONS:
            wrong["precision"] = [f"{data['precision']} needs CUDA; a CPU trains in fp32"]
        if data["holdout_fraction"] == data["test_split_ratio"] == _MOST_HELD:
            wrong["test_split_ratio"] = ["with holdout_fraction it leaves nothing to train on"]
        if wrong:
            raise ValidationError(wrong)

    @post_load
    def to_spec(self, data: dict[str, object], **_: object) -> TrainSpec:
        """The spec; its corpus_sha256 is known once the corpus has been read."""
        decay = WEIGHT_DECAY[str(data["optimizer"])]
        return TrainSpec.from_fields({"weight_decay": decay, **data, "corpus_sha256": ""})

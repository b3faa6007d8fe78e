"""What a training run is asked to do. The names are those of the API and of transformers'
TrainingArguments; the API's schema, the manifest and the database hold the same shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from trainer_app.core.json_spec import JsonSpec

RequestedDevice = Literal["cpu", "cuda", "auto"]
RequestedPrecision = Literal["fp32", "fp16", "bf16", "fp8", "auto"]
OptimizerName = Literal["adamw", "adam", "sgd", "muon"]
SchedulerName = Literal["cosine", "linear", "constant"]
CompileChoice = Literal["auto", "on", "off"]

DEVICES: Final[tuple[str, ...]] = get_args(RequestedDevice)
PRECISIONS: Final[tuple[str, ...]] = get_args(RequestedPrecision)
HALF_PRECISIONS: Final = ("fp16", "bf16", "fp8")  # that a CPU does not train in
OPTIMIZERS: Final[tuple[str, ...]] = get_args(OptimizerName)
SCHEDULERS: Final[tuple[str, ...]] = get_args(SchedulerName)
COMPILE_CHOICES: Final[tuple[str, ...]] = get_args(CompileChoice)
# Where none is asked for. In the gradient of adam and sgd a decay that is usual for the decoupled
# ones outweighs the loss: nothing is learnt.
WEIGHT_DECAY: Final[Mapping[str, float]] = {
    "adamw": 0.1,
    "adam": 0.0,
    "sgd": 0.0,
    "muon": 0.1,
}
# What a request may leave to the worker, by auto or null.
LEFT_TO_WORKER: Final = (
    "device",
    "precision",
    "torch_compile",
    "data_num_workers",
    "data_pin_memory",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec(JsonSpec):
    """One run, as resolved: parsed once at the edge, never validated again."""

    model_family: str = "gpt2"
    model_size: str = "small"
    max_seq_len: int = 512  # tokens per sequence
    num_epochs: int = 1  # passes over all of the training split
    max_steps: int = 0  # optimizer steps; 0: as many as num_epochs needs
    batch_size: int = 4  # sequences per forward pass
    gradient_accumulation_steps: int = 1  # forward passes per optimizer step
    learning_rate: float = 5e-4  # peak, before any schedule
    lr_scheduler_type: SchedulerName = "cosine"
    warmup_ratio: float = 0.05  # of all steps: n of them rise, the first to peak / (n + 1)
    # on matrices alone: decoupled for adamw and muon, a part of the gradient (L2) for adam and sgd
    weight_decay: float = WEIGHT_DECAY["adamw"]
    optimizer: OptimizerName = "adamw"
    gradient_clipping: float = 1.0  # largest gradient norm; 0: off
    corpus_file_id: str | None = None  # sha256 of an uploaded corpus
    corpus_path: str | None = None  # relative to the corpus root
    corpus_sha256: str  # of the bytes meant at the POST; empty: the data bank is yet to tell it
    tokenizer_id: str | None = None  # None: char_lstm trains its own
    holdout_fraction: float = 0.01  # of the corpus, by bytes, for validation; 0: none
    test_split_ratio: float = 0.15  # of the corpus, by bytes, for the final test; 0: none
    seed: int = 42
    device: RequestedDevice = "auto"
    precision: RequestedPrecision = "auto"
    deterministic: bool = False  # the same bytes from every GPU of a kind, at some cost of speed
    torch_compile: CompileChoice = "auto"  # where what is left of a run wins more than it costs
    # threads that prepare batches ahead; None: as many as there are cores, up to 4, on CUDA, else 0
    data_num_workers: int | None = None
    data_pin_memory: bool | None = None  # None: pinned on CUDA
    eval_steps: int | None = None  # None: at the end of each epoch
    logging_steps: int = 10  # a point of the curve every so many steps
    early_stopping_patience: int = 5  # evaluations without improvement; 0: off
    pretrained_run_id: str | None = None  # start from this run's weights
    freeze_embed: bool = False  # keep the token embedding as it is
    finetune_lr_cap: float = 5e-5  # upper bound of the learning rate when fine-tuning
    sample_prompts: tuple[str, ...] = ()  # continued at each evaluation, into the log
    user_id: int = 0
    queue: str | None = None  # a worker's own queue, to pin the run
    priority: int = 0  # 0 to 9, higher first
    tags: tuple[str, ...] = ()

    @property
    def worker_choices(self) -> dict[str, object]:
        """The fields that a request may leave to the worker: in a spec it has resolved, its choice.

        ``torch_compile`` stays auto there where it depends on how long the steps will take.
        """
        return {name: getattr(self, name) for name in LEFT_TO_WORKER}

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate that the schedule rises to: capped when fine-tuning."""
        if self.pretrained_run_id is None:
            return self.learning_rate
        return min(self.learning_rate, self.finetune_lr_cap)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec(JsonSpec):
    """One tokenizer to train, as resolved."""

    method: str  # of backends.registry.TOKENIZER_KINDS
    vocab_size: int  # exactly; for char an upper bound
    min_frequency: int = 2  # of a pair of tokens to be merged, of a character to be known
    corpus_file_id: str | None = None  # sha256 of an uploaded corpus
    corpus_path: str | None = None  # relative to the corpus root
    corpus_sha256: str  # of the bytes meant at the POST; empty: the data bank is yet to tell it
    holdout_fraction: float = 0.01  # of the corpus, by bytes, for the statistics; 0: none
    seed: int = 42  # of the split
    tokenizer_id: str | None = None  # its name; None: the job's
    user_id: int = 0

"""A worker's whole life in a process where unpickling anything is an offence.

Run as a program by test_no_pickle; its settings come from the environment. Prints each offence
with its traceback, and exits with 1 where there was one.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from hashlib import sha256

FORBIDDEN = {"pickle.find_class", "marshal.load", "marshal.loads"}
IMPORTER = "<frozen importlib._bootstrap_external>"  # reads compiled modules by marshal
offences: list[str] = []


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if event in FORBIDDEN and sys._getframe(1).f_code.co_filename != IMPORTER:
        offences.append(f"{event} {arguments[:2]}\n{''.join(traceback.format_stack(limit=12))}")


sys.addaudithook(watch)

import torch  # noqa: E402

from backends.registry import MODEL_FAMILIES, OWN_TOKENIZERS  # noqa: E402
from tasks import process  # noqa: E402
from tasks.held import draining  # noqa: E402
from tasks.perform import perform  # noqa: E402
from tasks.shells import work_of  # noqa: E402
from trainer_app.chat_sessions import ChatSessions  # noqa: E402
from trainer_app.core.chat_spec import ChatSpec  # noqa: E402
from trainer_app.core.evaluate_spec import EvaluateSpec  # noqa: E402
from trainer_app.core.generation_spec import GenerateSpec  # noqa: E402
from trainer_app.core.score_spec import ScoreSpec  # noqa: E402
from trainer_app.core.spec import TokenizerSpec, TrainSpec  # noqa: E402
from trainer_app.store import requests, runs, tokenizers  # noqa: E402
from trainer_app.store.tables import JobKind  # noqa: E402

TEXT = "\n".join(f"line {number} of a text to learn from" for number in range(400)).encode()


def no_load(*_: object, **__: object) -> None:
    raise AssertionError("torch.load was called")


def do(job_id: str, kind: JobKind) -> None:
    perform(job_id, hostname="train-0@here", work=work_of(kind))


def train_tokenizer(method: str) -> str:
    spec = TokenizerSpec(
        method=method,
        vocab_size=300,
        corpus_path="a.txt",
        corpus_sha256=sha256(TEXT).hexdigest(),
        tokenizer_id=method,
    )
    do(tokenizers.create(process.database(), spec, queue="light").job_id, JobKind.TOKENIZER)
    return method


def train(family: str, tokenizer_id: str | None, base: str | None = None) -> str:
    """Train, be stopped with a checkpoint, and go on to the end."""
    spec = TrainSpec(
        model_family=family,
        model_size="tiny",
        tokenizer_id=tokenizer_id,
        pretrained_run_id=base,
        max_seq_len=16,
        batch_size=8,
        max_steps=120,
        corpus_path="a.txt",
        corpus_sha256=sha256(TEXT).hexdigest(),
        holdout_fraction=0.1,
        eval_steps=40,
        logging_steps=1,
        sample_prompts=("line",),
    )
    run_id = runs.create(process.database(), spec, queue="trainer").run_id
    stopper = threading.Thread(target=stop_soon, args=(run_id,))
    stopper.start()
    do(run_id, JobKind.TRAIN)
    stopper.join()
    draining.clear()
    do(run_id, JobKind.TRAIN)
    run = runs.get(process.database(), run_id)
    assert (run.status, run.attempt) == ("completed", 2), run
    return run_id


def stop_soon(run_id: str) -> None:
    while runs.get(process.database(), run_id).step < 1:
        time.sleep(0.001)
    draining.set()


def use(run_id: str) -> None:
    session = ChatSessions(process.redis_client()).begin(run_id).session_id
    asked = [
        (JobKind.GENERATE, GenerateSpec(prompt_text="line", max_new_tokens=4), None),
        (JobKind.SCORE, ScoreSpec(text="line 1 of", detail_level="per_char", top_k=2), None),
        (JobKind.EVALUATE, EvaluateSpec(split="test"), "test"),
        (JobKind.CHAT, ChatSpec(session_id=session, message="line", max_new_tokens=4), session),
    ]
    for kind, spec, topic in asked:
        created = requests.create(
            process.database(), kind, run_id, spec.to_json(), queue="q", user_id=0, topic=topic
        )
        do(created.request_id, kind)
        done = requests.get(process.database(), kind, run_id, created.request_id)
        assert done.status == "completed", done


def main() -> int:
    torch.load = no_load
    corpus = process.settings().paths.corpus
    corpus.mkdir(parents=True)
    (corpus / "a.txt").write_bytes(TEXT)
    methods = {family: "sentencepiece" if family == "llama" else "bpe" for family in MODEL_FAMILIES}
    made = {method: train_tokenizer(method) for method in set(methods.values())}
    for family, method in methods.items():
        tokenizer_id = None if family in OWN_TOKENIZERS else made[method]
        run_id = train(family, tokenizer_id)
        use(run_id)
        if family == "gpt2":
            train(family, tokenizer_id, base=run_id)
    sys.stdout.write("\n\n".join(offences))
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())

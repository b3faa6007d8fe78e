"""When a model goes through the compiler, and what comes of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeAlias, TypeVar

import pytest
import torch

from backends.contracts import CausalModel, ModelConfig
from backends.loading import model_family
from backends.models.transformer import Transformer
from trainer_app.core import fit, loop, samples, step_log
from trainer_app.core.compilation import (
    COLD_SECONDS,
    GAIN,
    LEAST_SHARE,
    TOO_SHORT,
    Compilation,
    Execution,
    resolve_compile,
)
from trainer_app.core.evaluate import evaluate
from trainer_app.core.generate import generate
from trainer_app.core.observer import StopReason
from trainer_app.core.run_files import Finished, Stopped
from trainer_app.core.spec import CompileChoice
from trainer_app.core.stopping import StopRequested

if TYPE_CHECKING:
    from tests.training_bench import Bench, Recorder
    from trainer_app.core.device import ResolvedPrecision

MakeRecorder: TypeAlias = "type[Recorder]"
P = ParamSpec("P")
R = TypeVar("R")
IDS_BT = torch.arange(16).reshape(2, 8)


@pytest.fixture(autouse=True)
def _quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's compiler, which runs what it has traced instead of making code of it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.fixture(autouse=True)
def _caches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
    yield
    torch.compiler.reset()


def never() -> None:
    """Nothing asks for a stop."""


def tiny(family: str = "gpt2") -> CausalModel:
    config = ModelConfig(family=family, size="tiny", vocab_size=300, max_seq_len=64)
    return model_family(family).build(config)


def compilation(
    choice: CompileChoice, *, cache: Path | None = None, family: str = "gpt2", name: str = "a model"
) -> Compilation:
    return Compilation(tiny(family), choice=choice, name=name, cache=cache)


def test_auto_never_compiles_on_a_cpu_nor_where_equal_bytes_are_asked_for() -> None:
    on_cpu = resolve_compile("auto", "cpu", "fp32", deterministic=False)
    assert on_cpu == ("off", "on a CPU that wins nothing")
    halves: tuple[ResolvedPrecision, ...] = ("bf16", "fp8")
    for precision in halves:
        equal = resolve_compile("auto", "cuda", precision, deterministic=True)
        assert equal == ("off", "it is to be deterministic")
    assert resolve_compile("auto", "cuda", "bf16", deterministic=False) == ("auto", None)
    assert resolve_compile("on", "cpu", "fp32", deterministic=True) == ("on", None)
    assert resolve_compile("off", "cuda", "fp8", deterministic=False) == ("off", None)


def test_fp8_is_compiled_from_the_first_step() -> None:
    assert resolve_compile("auto", "cuda", "fp8", deterministic=False) == ("on", None)


def test_auto_compiles_where_the_rest_of_the_run_wins_more_than_it_costs() -> None:
    auto = compilation("auto")
    assert not auto.is_due(step_seconds=None, steps_left=1_000_000_000)
    assert auto.is_due(step_seconds=0.1, steps_left=int(1_000 * COLD_SECONDS))


def test_auto_decides_once_for_there_is_ever_less_left_to_win() -> None:
    auto = compilation("auto")
    assert not auto.is_due(step_seconds=0.1, steps_left=int(10 * COLD_SECONDS))
    assert auto.why_not == "it would take 30 s, and win 1 s of what is left"
    assert not auto.is_due(step_seconds=0.1, steps_left=int(1_000 * COLD_SECONDS))


def test_short_steps_are_expected_to_win_more() -> None:
    seconds = 12 * COLD_SECONDS  # of training that are left
    assert compilation("auto").is_due(step_seconds=0.001, steps_left=int(seconds / 0.001))
    assert not compilation("auto").is_due(step_seconds=0.01, steps_left=int(seconds / 0.01))


def test_by_request_it_compiles_at_once_or_never() -> None:
    assert compilation("on").is_due(step_seconds=None, steps_left=1)
    assert not compilation("off").is_due(step_seconds=1.0, steps_left=1_000_000_000)


def test_a_model_that_is_one_call_already_is_not_compiled() -> None:
    assert not compilation("on", family="char_lstm").is_due(step_seconds=None, steps_left=1)


@pytest.mark.parametrize(
    ("family", "asked", "deterministic", "why"),
    [
        ("char_lstm", "on", False, "what this model calls is fused already"),
        ("gpt2", "off", False, "torch_compile is off"),
        ("gpt2", "auto", False, "on a CPU that wins nothing"),
        ("gpt2", "auto", True, "it is to be deterministic"),
    ],
)
def test_a_run_that_is_not_compiled_tells_why_once(
    bench: Bench,
    recorder: MakeRecorder,
    family: str,
    asked: CompileChoice,
    deterministic: bool,
    why: str,
) -> None:
    observer = recorder()
    spec = replace(
        bench.spec,
        model_family=family,
        torch_compile=asked,
        deterministic=deterministic,
        max_steps=2,
    )
    outcome = bench.fit(spec, observer, run="run")
    assert isinstance(outcome, Finished)
    assert outcome.execution == Execution(why_not_compiled=why)
    said = [text for text in observer.messages if "compiled" in text]
    assert said == [f"goes uncompiled: {why}"]


@pytest.mark.parametrize(
    ("seconds", "why"),
    [(0.001, "it would take 30 s, and win 0 s of what is left"), (None, TOO_SHORT)],
)
def test_a_run_in_which_auto_stays_as_it_is_tells_why_once(
    bench: Bench,
    recorder: MakeRecorder,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float | None,
    why: str,
) -> None:
    monkeypatch.setattr(fit, "resolve_compile", lambda *_, **__: ("auto", None))
    monkeypatch.setattr(step_log, "READ_SECONDS", 3_600.0 if seconds is None else 0.0)
    monkeypatch.setattr(step_log, "STEADY_AFTER", 2)
    observer = recorder()
    spec = replace(bench.spec, eval_steps=100, holdout_fraction=0.0)
    outcome = bench.fit(spec, observer, run="run")
    assert isinstance(outcome, Finished)
    assert outcome.execution == Execution(why_not_compiled=why)
    assert observer.messages.count(f"goes uncompiled: {why}") == 1


def test_the_compiled_form_is_called_inside_alone_and_gives_the_same() -> None:
    model = tiny()
    made = Compilation(model, choice="on", name="a model")
    plain = model.hidden(IDS_BT)
    said = made.compile(lambda: torch.autograd.backward(model.hidden(IDS_BT).sum()), never)
    assert said.startswith("compiled the model in ")
    assert made.done
    assert not made.is_due(step_seconds=1.0, steps_left=1_000_000)
    with made.in_use():
        assert "hidden" in vars(model)
        torch.testing.assert_close(model.hidden(IDS_BT), plain)
    assert "hidden" not in vars(model)


def test_a_compiled_form_that_is_dropped_is_neither_called_nor_made_again() -> None:
    model = tiny()
    made = Compilation(model, choice="on", name="a model")
    made.compile(lambda: None, never)
    assert made.drop("it cannot be recorded") == "goes uncompiled: it cannot be recorded"
    assert not made.done
    assert not made.is_due(step_seconds=1.0, steps_left=1_000_000_000)
    with made.in_use():
        assert "hidden" not in vars(model)


def test_what_compiling_cost_is_what_the_next_run_expects(tmp_path: Path) -> None:
    first = compilation("auto", cache=tmp_path)
    left = int(20 * COLD_SECONDS)
    assert not compilation("auto", cache=tmp_path).is_due(step_seconds=0.1, steps_left=left)
    first.compile(lambda: None, never)
    assert compilation("auto", cache=tmp_path).is_due(step_seconds=0.1, steps_left=left)
    assert not compilation("auto", cache=tmp_path, name="another").is_due(
        step_seconds=0.1, steps_left=left
    )
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")


def test_what_compiling_has_cost_is_read_once_not_before_each_step(tmp_path: Path) -> None:
    noted = tmp_path / "compiling.json"
    noted.write_text('{"a model": {"seconds": 1.0}}')
    auto = compilation("auto", cache=tmp_path)
    assert not auto.is_due(step_seconds=0.1, steps_left=100)
    noted.write_text('{"a model": {"seconds": 0.1}}')
    assert not auto.is_due(step_seconds=0.1, steps_left=99)


def test_a_stop_is_heeded_while_it_compiles() -> None:
    made = compilation("on")
    began = time.monotonic()

    def rehearse() -> None:
        while time.monotonic() - began < 30:
            with suppress(Exception):  # as a compiler handles errors of its own
                time.sleep(0.01)

    said = made.compile(rehearse, lambda: "cancel" if time.monotonic() - began > 0.5 else None)
    assert said == "was to stop while it compiled"
    assert not made.done
    assert time.monotonic() - began < 5


def test_what_compiling_won_is_what_the_next_run_expects(tmp_path: Path) -> None:
    first = compilation("auto", cache=tmp_path)
    assert first.is_due(step_seconds=0.1, steps_left=int(1_000 * COLD_SECONDS))
    assert first.gained(0.1) is None  # it is not compiled yet
    first = compilation("auto", cache=tmp_path)
    assert first.is_due(step_seconds=0.1, steps_left=int(1_000 * COLD_SECONDS))
    first.compile(lambda: None, never)
    assert first.gained(0.06) == "a compiled step takes 60 ms, 100 ms before"
    assert first.gained(0.05) is None
    noted = tmp_path / "compiling.json"
    figures = json.loads(noted.read_text())
    assert figures["a model"]["saved_ms"] == pytest.approx(40)
    figures["a model"]["seconds"] = 10.0
    noted.write_text(json.dumps(figures))

    due = [
        compilation("auto", cache=tmp_path).is_due(step_seconds=0.1, steps_left=steps)
        for steps in (374, 376)  # of 0.04 s each that are won
    ]

    assert due == [False, True]


def test_what_a_forward_pass_saves_counts_as_often_as_a_step_has_them(tmp_path: Path) -> None:
    notes = {"a model": {"saved_ms": 10.0, "seconds": 10.0}}
    (tmp_path / "compiling.json").write_text(json.dumps(notes))

    def is_due(passes: int, steps: int) -> bool:
        auto = Compilation(tiny(), choice="auto", name="a model", passes=passes, cache=tmp_path)
        return auto.is_due(step_seconds=1.0, steps_left=steps)

    assert [is_due(1, 1_499), is_due(1, 1_501)] == [False, True]
    assert [is_due(5, 299), is_due(5, 301)] == [False, True]


def test_a_compiler_that_has_won_nothing_is_not_given_up_for_good(tmp_path: Path) -> None:
    first = compilation("auto", cache=tmp_path)
    assert first.is_due(step_seconds=0.1, steps_left=int(1_000 * COLD_SECONDS))
    first.compile(lambda: None, never)
    first.gained(0.2)  # other work had come

    noted = json.loads((tmp_path / "compiling.json").read_text())
    assert noted["a model"]["saved_ms"] == pytest.approx(100 * GAIN * LEAST_SHARE)


def test_by_request_nothing_is_said_of_what_compiling_wins(tmp_path: Path) -> None:
    made = compilation("on", cache=tmp_path)
    assert made.is_due(step_seconds=None, steps_left=1)
    made.compile(lambda: None, never)
    assert made.gained(0.1) is None


def test_a_run_that_compiles_by_itself_says_and_notes_what_that_won(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer_app.core.compilation.COLD_SECONDS", 0.0)
    monkeypatch.setattr("trainer_app.core.fit.resolve_compile", lambda *_, **__: ("auto", None))
    monkeypatch.setattr("trainer_app.core.step_log.READ_SECONDS", 0.05)
    hidden = Transformer.hidden
    is_compiled = False

    def slow(model: Transformer, ids_BT: torch.Tensor) -> torch.Tensor:
        time.sleep(0.2 if model.training and not is_compiled else 0)
        return hidden(model, ids_BT)

    def compiler(
        uncompiled: Callable[[torch.Tensor], torch.Tensor], **_: object
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        def compiled(ids_BT: torch.Tensor) -> torch.Tensor:
            nonlocal is_compiled
            is_compiled = True
            x_BTD = uncompiled(ids_BT)
            is_compiled = False
            return x_BTD

        return compiled

    monkeypatch.setattr(Transformer, "hidden", slow)
    monkeypatch.setattr(torch, "compile", compiler)
    observer = recorder()
    spec = replace(bench.spec, torch_compile="auto", max_steps=60)

    outcome = bench.fit(spec, observer, run="compiled", compiled=bench.folder / "compiled")

    assert isinstance(outcome, Finished)
    assert outcome.execution == Execution(compiled=True)
    said = [text.split(" ")[0:3] for text in observer.messages if "compiled" in text]
    assert said == [["compiled", "the", "model"], ["a", "compiled", "step"]]
    notes = bench.folder / "compiled" / "compiling.json"
    [noted] = json.loads(notes.read_text()).values()
    assert noted["saved_ms"] > 50  # of 200, however busy the machine is


def test_a_fifo_in_the_place_of_the_notes_counts_as_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "compiling.json")
    auto = compilation("auto", cache=tmp_path)
    assert not auto.is_due(step_seconds=0.1, steps_left=int(20 * COLD_SECONDS))


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"a model": "long"}', '{"a model": {"seconds": []}}', "[" * 100_000]
)
def test_a_damaged_note_of_costs_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "compiling.json").write_text(content)
    auto = compilation("auto", cache=tmp_path)
    assert not auto.is_due(step_seconds=0.1, steps_left=int(20 * COLD_SECONDS))
    auto.compile(lambda: None, never)
    assert json.loads((tmp_path / "compiling.json").read_text())["a model"]["seconds"] >= 0.0


@pytest.mark.parametrize("error", [RuntimeError("no compiler here\nat all"), KeyError()])
def test_a_compiler_that_fails_is_done_without(error: Exception) -> None:
    made = compilation("on")

    def fail() -> None:
        raise error

    reason = "no compiler here" if isinstance(error, RuntimeError) else "KeyError"
    assert made.compile(fail, never) == f"goes uncompiled: {reason}"
    assert not made.done
    assert not made.is_due(step_seconds=None, steps_left=1)


def test_a_compiled_run_on_a_cpu_learns_the_same_and_says_so(
    bench: Bench, recorder: MakeRecorder
) -> None:
    observer = recorder()
    compiled = bench.fit(replace(bench.spec, torch_compile="on"), observer, run="compiled")
    assert isinstance(compiled, Finished)
    plain = bench.finish(bench.spec, run="plain")
    assert any(text.startswith("compiled the model in") for text in observer.messages)
    assert compiled.execution == Execution(compiled=True)
    assert plain.execution == Execution(why_not_compiled="on a CPU that wins nothing")
    assert compiled.final_loss == pytest.approx(plain.final_loss, rel=1e-4)


def test_a_compiler_that_fails_leaves_no_trace_in_the_run(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = bench.finish(bench.spec, run="plain")

    def broken(grad: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"no code for a gradient of {grad.ndim} dimensions")

    def compiler(hidden: Callable[[torch.Tensor], torch.Tensor], **_: object) -> object:
        def compiled(ids_BT: torch.Tensor) -> torch.Tensor:
            torch.rand(3)
            x_BTD = hidden(ids_BT)
            methodcaller("register_hook", broken)(x_BTD)
            return x_BTD

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    observer = recorder()
    spec = replace(bench.spec, torch_compile="on")
    outcome = bench.fit(spec, observer, run="broken")
    assert isinstance(outcome, Finished)
    said = "goes uncompiled: no code for a gradient of 3 dimensions"
    assert said in observer.messages
    assert outcome.weights_sha256 == plain.weights_sha256


def test_a_run_that_is_to_stop_while_it_compiles_keeps_a_checkpoint_first(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(*_: object) -> None:
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: endless)
    observer = recorder(stop_after=2)
    outcome = bench.fit(replace(bench.spec, torch_compile="on"), observer, run="stopped")
    assert isinstance(outcome, Stopped)
    assert observer.messages[-1] == "was to stop while it compiled"
    assert len(observer.checkpoints) == 1


def test_what_a_compiler_keeps_is_no_pickle(tmp_path: Path) -> None:
    inductor = import_module("torch._inductor.config")
    inside = []
    made = compilation("on", cache=tmp_path)
    made.compile(lambda: inside.append(inductor.fx_graph_cache), never)
    assert inside == [False]
    assert inductor.fx_graph_cache


def without_room_at_first(call: Callable[P, R], tries: list[int]) -> Callable[P, R]:
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("no room")
        return call(*args, **kwargs)

    return called


def test_an_evaluation_for_which_there_is_no_room_beside_a_recorded_step_is_tried_again(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    monkeypatch.setattr(loop, "evaluate", without_room_at_first(evaluate, tries))
    observer = recorder()
    assert isinstance(bench.fit(bench.spec, observer, run="short of memory"), Finished)
    assert len(tries) > len(observer.evaluations) > 0


def test_a_sample_for_which_there_is_no_room_is_tried_again_and_told_once(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(bench.spec, sample_prompts=("the river", "past a mill"))
    undisturbed, short = recorder(), recorder()
    plain = bench.fit(spec, undisturbed, run="undisturbed")
    tries: list[int] = []
    monkeypatch.setattr(samples, "generate", without_room_at_first(generate, tries))
    outcome = bench.fit(spec, short, run="short of memory")
    assert isinstance(plain, Finished)
    assert isinstance(outcome, Finished)
    assert outcome.weights_sha256 == plain.weights_sha256
    said = [text for text in short.messages if text.startswith("sample: ")]
    assert said == [text for text in undisturbed.messages if text.startswith("sample: ")]
    assert len(tries) == 1 + len(said) == 1 + 2 * len(short.evaluations)


def test_an_interruption_while_it_compiles_is_no_failure_of_the_compiler() -> None:
    def interrupted() -> None:
        raise StopRequested(StopReason.CANCEL)

    with pytest.raises(StopRequested):
        compilation("on").compile(interrupted, never)

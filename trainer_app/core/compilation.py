"""Whether and when a model goes through torch's compiler.

Compiling takes seconds to minutes, and wins a part of each step after that: a run that is soon
over must not wait for it.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from trainer_app.core.files import write_atomically
from trainer_app.core.stopping import StopRequested
from trainer_app.errors import first_line

if TYPE_CHECKING:
    from torch import Tensor

    from backends.contracts import CausalModel
    from trainer_app.core.device import ResolvedDevice, ResolvedPrecision
    from trainer_app.core.spec import CompileChoice

# Of a step's time, what to expect where that was never measured on this machine: what it was
# elsewhere, see docs/performance.md.
GAIN: Final = 0.03
SHORT_STEP_SECONDS: Final = 0.006  # where more of the time goes into small kernels
GAIN_OF_SHORT_STEPS: Final = 0.15
LEAST_SHARE: Final = 0.5  # of that, whatever was measured: other work may have had a part in it
MARGIN: Final = 1.5  # times its cost that compiling must win
COLD_SECONDS: Final = 30.0  # expected of a model that was never compiled on this machine
STOP_POLL_SECONDS: Final = 0.25
NOTES_FILE: Final = "compiling.json"
TOO_SHORT: Final = "the run is over before its steps are timed"
_SECONDS: Final = "seconds"  # that compiling took
_SAVED: Final = "saved_ms"  # by each forward pass, with what belongs to it of the backward one


@dataclass(slots=True, kw_only=True)
class Execution:
    """How the steps of a run are computed, for its log and its manifest."""

    cuda_graph: bool = False  # each step is one launch
    why_no_graph: str | None = None
    compiled: bool = False  # the model went through torch's compiler
    why_not_compiled: str | None = None


def resolve_compile(
    choice: CompileChoice,
    device: ResolvedDevice,
    precision: ResolvedPrecision,
    *,
    deterministic: bool,
) -> tuple[CompileChoice, str | None]:
    """What auto means, and why where that is off: where equal bytes are asked for, which must not
    hang on when a run was compiled, and on a CPU, where torch's compiler wins nothing for these
    models. On for fp8, which pays where the compiler makes it together with what it is made of.
    """
    if choice != "auto":
        return choice, None
    if deterministic:
        return "off", "it is to be deterministic"
    if device == "cpu":
        return "off", "on a CPU that wins nothing"
    return "on" if precision == "fp8" else "auto", None


class _Left(BaseException):
    """Raised out of a compiler: no Exception, for it handles those of its own."""


@contextmanager
def _left_on(should_stop: Callable[[], object]) -> Iterator[None]:
    """Raise _Left in the block soon after ``should_stop``, asked from a thread, gives a reason.

    Compiling is one call of many seconds in which nobody asks, but for the most part in Python,
    where a thread can raise for another one.
    """
    here = ctypes.c_ulong(threading.get_ident())
    ended = threading.Event()
    raise_here = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def watch() -> None:
        while not ended.wait(STOP_POLL_SECONDS):
            if should_stop() is not None:
                raise_here(here, ctypes.py_object(_Left))
                return

    watcher = threading.Thread(target=watch, name="compiling", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        for _ in range(2):  # where a loop turns, what waits to be raised is raised: here, not later
            pass


@contextmanager
def _settings() -> Iterator[None]:
    """Let the compiler keep its sources and binaries, but no graphs: those are pickles. Let it
    make one kernel of small ones that do not wait for each other, as are the casts of all weights.
    """
    settings = {"fx_graph_cache": False, "combo_kernels": True}
    with import_module("torch._inductor.config").patch(settings):
        yield


def _fits(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


class Compilation:
    """The compiled form of a model's ``hidden``, called inside ``in_use`` alone.

    The loss has a kernel of its own. Evaluation and sampling have other shapes, for each of which
    all would be compiled again.
    """

    def __init__(
        self,
        model: CausalModel,
        *,
        choice: CompileChoice,
        name: str,
        passes: int = 1,
        why_off: str | None = None,
        cache: Path | None = None,
    ) -> None:
        """``name``: of model, shapes and precision; ``passes``: forward ones of a step;
        ``cache``: where compiled code is kept.
        """
        self._model = model
        self._choice = choice
        self._name = name
        self._passes = passes
        self._notes = None if cache is None else cache / NOTES_FILE
        self._uncompiled_seconds: float | None = None  # a step's, until its gain is known
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self.decided = False  # whether nothing will change that it is not compiled
        self.why_not: str | None = TOO_SHORT  # None: it was compiled
        if not model.gains_by_compiling:
            self.drop("what this model calls is fused already")
        elif choice == "off":
            self.drop(why_off or "torch_compile is off")
        if cache is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")
            os.environ["TRITON_CACHE_DIR"] = str(cache / "triton")

    def is_due(self, *, step_seconds: float | None, steps_left: int) -> bool:
        """Whether to compile before the next step; ``step_seconds``: None where not yet measured.

        ``auto`` compiles if the rest of the run wins more by it than it costs. That is decided
        once, when the first steps are timed: there is ever less left to win.
        """
        if self.decided or self.done:
            return False
        if self._choice == "on":
            return True
        if step_seconds is None:
            if steps_left == 1:
                self.drop(TOO_SHORT)
            return False
        noted = self._noted().get(self._name, {})
        saved = noted.get(_SAVED, self._usually_saved(step_seconds))
        wins = steps_left * self._passes * saved / 1e3
        costs = noted.get(_SECONDS, COLD_SECONDS)
        if wins > MARGIN * costs:
            self._uncompiled_seconds = step_seconds
            return True
        self.drop(f"it would take {costs:.0f} s, and win {wins:.0f} s of what is left")
        return False

    def compile(self, rehearse: Callable[[], None], should_stop: Callable[[], object]) -> str:
        """Compile; ``rehearse`` calls the model forward and backward as a step does.

        Returns what came of it, in a sentence: a compiler that fails ends no run. It is left as
        soon as ``should_stop`` gives a reason.
        """
        torch.compiler.reset()  # the shapes of the run before would make this one's sizes variable
        self._compiled = torch.compile(self._model.hidden, dynamic=False)
        began = time.monotonic()
        try:
            with self.in_use(), _settings(), _left_on(should_stop):
                rehearse()
        except _Left:
            self.drop(said := "was to stop while it compiled")
            return said
        except StopRequested:  # an interruption, no failure
            raise
        except Exception as error:  # whatever a compiler may raise
            return self.drop(first_line(error))
        seconds = time.monotonic() - began
        self._note(_SECONDS, seconds)
        self.why_not = None
        return f"compiled the model in {seconds:.1f} s"

    def gained(self, step_seconds: float) -> str | None:
        """Note what compiling has won, for runs to come; said in a sentence, once.

        ``step_seconds``: of a compiled step. None: that is known, or not what it was before.
        """
        before, self._uncompiled_seconds = self._uncompiled_seconds, None
        if before is None or not self.done:
            return None
        saved = 1e3 * (before - step_seconds) / self._passes
        self._note(_SAVED, max(saved, LEAST_SHARE * self._usually_saved(before)))
        return f"a compiled step takes {1e3 * step_seconds:.3g} ms, {1e3 * before:.3g} ms before"

    def _usually_saved(self, step_seconds: float) -> float:
        """Milliseconds of a forward pass, as measured elsewhere."""
        gain = GAIN_OF_SHORT_STEPS if step_seconds <= SHORT_STEP_SECONDS else GAIN
        return 1e3 * gain * step_seconds / self._passes

    def drop(self, why: str) -> str:
        """Go on with the model as it is, for good; returns that in a sentence."""
        self._compiled = None
        self.decided = True
        self.why_not = why
        return f"goes uncompiled: {why}"

    @property
    def done(self) -> bool:
        """Whether there is a compiled form."""
        return self._compiled is not None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the compiled form be called, where there is one."""
        if self._compiled is None:
            yield
            return
        setattr(self._model, "hidden", self._compiled)  # noqa: B010 - of this instance alone
        try:
            yield
        finally:
            del self._model.hidden

    def _noted(self) -> dict[str, dict[str, float]]:
        """Figures by name, as they were the last time; compiled code is kept, so that is less."""
        if self._notes is None or not self._notes.is_file():
            return {}
        try:
            noted = json.loads(self._notes.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(noted, dict):
            return {}
        return {
            str(name): {str(figure): value for figure, value in figures.items() if _fits(value)}
            for name, figures in noted.items()
            if isinstance(figures, dict)
        }

    def _note(self, figure: str, value: float) -> None:
        if self._notes is None:
            return
        noted = self._noted()
        noted.setdefault(self._name, {})[figure] = round(value, 3)
        with suppress(OSError):  # it is a guess for the next run, no more
            self._notes.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._notes, json.dumps(noted, indent=2).encode())

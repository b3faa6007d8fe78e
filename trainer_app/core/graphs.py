"""A whole training step as one launch: recorded as a CUDA graph, then replayed.

Small models starve on launches: hundreds of kernels of a few microseconds each, which Python can
not start as fast as the GPU ends them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import torch

from trainer_app.errors import first_line

if TYPE_CHECKING:
    from torch import Tensor

    from trainer_app.core.compilation import Execution

WARM_UP_STEPS: Final = 3  # taken kernel by kernel first: libraries choose, load and allocate


class RecordedStep:  # pragma: needs cuda
    """Computes a step on a GPU: kernel by kernel at first, then by replaying what was recorded.

    Replayed steps give the bytes that the others give. What cannot be recorded goes on kernel by
    kernel; ``execution`` says why.
    """

    def __init__(
        self,
        compute: Callable[[], Tensor],
        *,
        undo: Callable[[], None],
        recorded: Callable[[], None],
        simplify: Callable[[str], bool],
        execution: Execution,
        tell: Callable[[str], None],
    ) -> None:
        """``compute``: loss and norm (2,) of the step that the feed has loaded; ``undo`` takes
        back what a ``compute`` that was broken off has left, ``recorded`` does what one that was
        recorded has left for later. ``simplify`` is told why recording failed, and says whether
        it has changed ``compute`` so that it may be tried again.
        """
        self._compute = compute
        self._undo = undo
        self._recorded = recorded
        self._simplify = simplify
        self._execution = execution
        self._tell = tell
        self._aside = torch.Stream(device="cuda")
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outcome: Tensor | None = None
        self._warm = 0

    def __call__(self) -> Tensor:
        """What ``compute`` returns."""
        if self._graph is None and self._execution.why_no_graph is None:
            if self._warm < WARM_UP_STEPS:
                self._warm += 1
                return self._warming_up()
            self._record()
        if self._graph is None or self._outcome is None:
            return self._compute()
        self._graph.replay()
        return self._outcome.clone()

    def forget(self) -> None:
        """Record anew: something that the step calls has changed."""
        self._graph = self._outcome = None
        self._warm = 0

    def go_without(self, why: str) -> None:
        """Never record, or never again."""
        self._execution.cuda_graph = False  # it was one, if this is a recording anew
        self._execution.why_no_graph = why
        self._tell(f"steps run kernel by kernel, not as one CUDA graph: {why}")

    def _warming_up(self) -> Tensor:
        """Aside, as recording asks for: autograd keeps the stream on which it first ran."""
        usual = torch.accelerator.current_stream()
        self._aside.wait_stream(usual)
        with self._aside:
            outcome = self._compute()
        usual.wait_stream(self._aside)
        return outcome

    def _record(self) -> None:
        torch.cuda.empty_cache()  # what the steps so far have freed serves the recording
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: other threads may copy batches meanwhile, which is no part of the step
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                outcome = self._compute()
            # torch sets the graph's place among the random numbers to 0 aside before it records,
            # and here to the right one before it replays: a busy GPU may do that first.
            torch.cuda.synchronize()
        except RuntimeError as error:
            _leave_the_recording()
            self._undo()
            why = first_line(error)
            # where memory is short, what is simpler needs more of it
            if not isinstance(error, torch.OutOfMemoryError) and self._simplify(why):
                self.forget()
                return
            self.go_without(why)
            return
        self._recorded()
        self._graph, self._outcome = graph, outcome
        if not self._execution.cuda_graph:
            self._tell("recorded a step as one CUDA graph, to be replayed")
        self._execution.cuda_graph = True


def _leave_the_recording() -> None:  # pragma: needs cuda
    """Let random numbers be drawn again.

    Where a recording breaks, torch's generator is not told that it is over, and refuses to draw for
    as long as the process lives. A copy of its state knows nothing of a recording.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())

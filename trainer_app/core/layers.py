"""Which layers of a model train by kernels of our own, in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer_app.core import fp8, gelu, residual

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.contracts import CausalModel
    from trainer_app.core.device import ResolvedPrecision


def use_kernels(
    model: CausalModel, precision: ResolvedPrecision, tell: Callable[[str], None]
) -> None:
    """Let the layers of a model, which is on its device, train as fast as they can.

    ``tell`` hears where there is no kernel for what would have one.
    """
    if precision == "fp32":
        return
    if precision == "fp8":  # pragma: needs cuda
        if (why := fp8.why_unfused()) is not None:
            tell(f"fp8 has no kernels of its own: {why}")
        fp8.use_fp8(model, fused=why is None)
    elif (why := gelu.why_not()) is not None:  # pragma: needs cuda
        tell(f"GELU's gradient has no kernel of its own: {why}")
    else:  # pragma: needs cuda
        gelu.use_gelu_kernel(model)
    if (why := residual.why_not()) is not None:  # pragma: needs cuda
        tell(f"the residual stream's gradient has no kernel of its own: {why}")
    else:  # pragma: needs cuda
        residual.use_norm_kernel(model)

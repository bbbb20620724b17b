"""The errors that transferred profiles state, in percent."""

from __future__ import annotations

from qsim.calibrate.transfer.compose import TABLE_OF
from qsim.calibrate.transfer.learn import LEARNT_ON, base_method
from qsim.catalog.gpus import gpu_type

__all__ = ["estimated_errors"]


#: kernels of larger matrices take other tiles: AWQ's products at 8B were no guide to those at 70B
_FAR = 6.0


def estimated_errors(
    gpu: str, method: str, tensor_parallel_size: int, grown: float = 1.0
) -> tuple[dict[str, float], str]:
    """Estimated error by quantity, and where the estimate comes from (docs/transfer.md).

    ``grown`` is the model's size over that of the largest on which the method was measured.
    """
    spec, base = gpu_type(gpu), base_method(method)
    if gpu == LEARNT_ON:
        errors = {"decode": 8.0, "prefill": 12.0, "power": 10.0, "kv_tokens": 3.0}
    elif spec.hopper:
        errors = {"decode": 10.0, "prefill": 12.0, "power": 10.0, "kv_tokens": 4.0}
    else:
        errors = {"decode": 15.0, "prefill": 15.0, "power": 15.0, "kv_tokens": 4.0}
    tabled = base == "bf16" or (spec.hopper and base in TABLE_OF)
    if not tabled:
        errors |= {k: errors[k] + 10.0 for k in ("decode", "prefill", "power")}
        if spec.hopper and grown > _FAR:
            errors |= {k: errors[k] + 10.0 for k in ("decode", "prefill", "power")}
    if tensor_parallel_size > 1:
        errors |= {k: errors[k] + 5.0 for k in ("decode", "prefill", "power")}
    how = (
        "composed against measured profiles on H200, the model left out"
        if gpu == LEARNT_ON
        else "composed against measured profiles on H200 and against published measurements"
    )
    return errors, how

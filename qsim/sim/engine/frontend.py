"""Between client and engine: when the engine has a request, and the client its tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.arrays import FloatArray, IntArray
from qsim.profiles.schema import FrontEnd
from qsim.sim.engine.timing import PS_PER_MS

#: a front end that takes no time
FREE = FrontEnd(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def receive_ps(frontend: FrontEnd, prompt_tokens: npt.NDArray[Any]) -> FloatArray:
    """How long each request takes to the engine's queue, in whole ps."""
    token_ps = frontend.receive_ms_per_1k_prompt_tokens * PS_PER_MS / 1000
    prompt = prompt_tokens.astype(np.float64)
    return np.rint(frontend.receive_ms * PS_PER_MS + token_ps * prompt)


def client_last_ps(
    frontend: FrontEnd,
    prompt_tokens: int,
    output_tokens: int,
    first_ps: int,
    first_rows: int,
    last_ps: int,
    last_rows: int,
    late_ps: int,
) -> int:
    """When the client has the last token of one request, ps: as :func:`client_times`."""
    f = frontend
    token_ps = f.first_token_ms_per_1k_prompt_tokens * PS_PER_MS / 1000
    first = f.first_token_ms * PS_PER_MS + token_ps * float(prompt_tokens)
    first += f.first_token_ms_per_running * PS_PER_MS * first_rows
    first_token_ps = first_ps + round(first)
    if output_tokens == 1:
        return first_token_ps
    last = f.last_token_ms * PS_PER_MS + f.last_token_ms_per_running * PS_PER_MS * last_rows
    return max(last_ps + round(last) + late_ps, first_token_ps)


def client_times(
    frontend: FrontEnd,
    prompt_tokens: IntArray,
    output_tokens: IntArray,
    first_ps: IntArray,
    first_rows: IntArray,
    last_ps: IntArray,
    last_rows: IntArray,
    late_ps: IntArray,
) -> tuple[IntArray, IntArray]:
    """When the client has the first and the last token of each request, ps.

    Parameters
    ----------
    prompt_tokens, output_tokens : int64 array
    first_ps, last_ps : int64 array
        When the engine had these tokens.
    first_rows, last_rows : int64 array
        Requests in the engine's steps that made them.
    late_ps : int64 array
        How much the API server's process was behind when the last tokens came.
    """
    f = frontend
    token_ps = f.first_token_ms_per_1k_prompt_tokens * PS_PER_MS / 1000
    row_ps = f.first_token_ms_per_running * PS_PER_MS
    first = f.first_token_ms * PS_PER_MS + token_ps * prompt_tokens.astype(np.float64)
    first += row_ps * first_rows
    first_token_ps = first_ps + np.rint(first).astype(np.int64)
    row_ps = f.last_token_ms_per_running * PS_PER_MS
    last = f.last_token_ms * PS_PER_MS + row_ps * last_rows
    last_token_ps = last_ps + np.rint(last).astype(np.int64) + late_ps
    last_token_ps = np.maximum(last_token_ps, first_token_ps)
    return first_token_ps, np.where(output_tokens == 1, first_token_ps, last_token_ps)

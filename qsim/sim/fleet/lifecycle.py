"""The states of a server that is switched on and off, and what it draws and costs in each.

::

    off -> starting -> on -> draining -> off
                       ^        |
                    waking <- asleep

    on, draining -> failed -> starting

A failed server has lost its requests and its KV cache; it draws idle power until it starts again.
A draining server takes no new request, finishes its own and stops; it cannot be called back.
Asleep, the process lives on with its weights in the host's memory (``vllm serve
--enable-sleep-mode``, level 1) and an empty KV cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from qsim.checks import is_number
from qsim.errors import ScenarioError

OFF, STARTING, ON, DRAINING, ASLEEP, WAKING, FAILED = range(7)
#: names of the states, by number
STATES = ("off", "starting", "on", "draining", "asleep", "waking", "failed")


@dataclass(frozen=True)
class Lifecycle:
    """Times and powers outside of serving.

    Attributes
    ----------
    start_s : float
        From the start of the process until it answers. 50 to 105 s were measured on H200s (weights
        on a local disk or drawn); the default is the largest. fp8-block took 239 s once, because
        DeepGEMM compiled its kernels.
    start_w : float, optional
        Mean power meanwhile; the profile's idle power unless given: an assumption, loading keeps
        the host busy and not the GPU, but graph capture and warm-up are not idle.
    stop_s : float
        From the last token of a draining server until it is off or asleep, at idle power; an
        assumption.
    wake_s : float
        From asleep to on: 0.1 to 6 s were published for level 1 (blog.vllm.ai, 26 October 2025,
        models of 0.6B to 235B parameters); the default is the largest.
    sleep_w : float, optional
        Power asleep; the profile's idle power unless given, because the process keeps its CUDA
        context and no measurement of less is known to us.
    off_w : float
        Power of a GPU without a server: 0 for one that was given back. An empty H200 that is kept
        draws 74 to 80 W (nvidia-smi; conservemode.com/case-studies, serialalice.pt).
    off_billed : bool
        Whether a GPU without a server is paid for.
    """

    start_s: float = 105.0
    start_w: float | None = None
    stop_s: float = 5.0
    wake_s: float = 6.0
    sleep_w: float | None = None
    off_w: float = 0.0
    off_billed: bool = False

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "off_billed" or value is None:
                continue
            if not is_number(value) or not 0 <= value < math.inf:
                raise ScenarioError(f"{f.name} is {value!r}; must be a finite number >= 0")

    def power_w(self, state: int, idle_w: float) -> float:
        """Power in a state in which no request is served, W."""
        if state == OFF:
            return self.off_w
        if state == STARTING:
            return idle_w if self.start_w is None else self.start_w
        if state == ASLEEP:
            return idle_w if self.sleep_w is None else self.sleep_w
        return idle_w

    def start_energy_j(self, idle_w: float) -> float:
        """Energy of one start, J."""
        return self.start_s * self.power_w(STARTING, idle_w)

    def billed(self, state: int) -> bool:
        """Whether the GPUs are paid for in a state."""
        return state != OFF or self.off_billed

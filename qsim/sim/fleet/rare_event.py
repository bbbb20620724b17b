"""An event of SimPy, which is imported only for what is rare: it takes as long as 500 requests."""

from __future__ import annotations

import simpy

__all__ = ["At"]


class At(simpy.Event):
    """An event after a delay, in order of planning among those of one time."""

    def __init__(self, env: simpy.Environment, delay: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, delay=delay)

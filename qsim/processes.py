"""Cores, and a call that a second process makes while this one does something else."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Iterable
from typing import Generic, NoReturn, TypeVar

from qsim.interrupts import ENDING_SIGNALS

T = TypeVar("T")

#: the threads of this process, those of libraries included
_THREADS = "/proc/self/task"


def available_cores() -> int:
    """The number of cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def can_fork() -> bool:
    """Whether a forked process has a core of its own, and nothing that a thread left locked."""
    if available_cores() < 2:
        return False
    try:
        return len(os.listdir(_THREADS)) == 1
    except OSError:  # not Linux: system libraries of macOS do not bear a fork
        return False


def _end_here(*warning: object, **more: object) -> NoReturn:
    os._exit(1)


class Beside(Generic[T]):
    """What a call returns, which a forked process makes meanwhile if this one can fork.

    Otherwise, and whenever nothing comes of the other process (an error, a warning, no memory), the
    call is made here when its value is asked for: value, errors and warnings are the same. The call
    depends on nothing that changes, and changes nothing; what it returns can be pickled. It is
    ``worth`` it if what is done meanwhile takes longer than a fork: 10 ms for both.
    """

    def __init__(self, call: Callable[[], T], worth: bool = True) -> None:
        self._call = call
        self._child = 0
        self._pipe = -1
        if worth and can_fork():
            self._fork()

    def __enter__(self) -> Beside[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def value(self) -> T:
        """Wait for what the call returns. To be asked for once."""
        if not self._child:
            return self._call()
        with open(self._pipe, "rb", closefd=False) as pipe:
            data = pipe.read()
        if self._end() != 0:
            return self._call()
        value: T = pickle.loads(data)
        return value

    def close(self) -> None:
        """End the other process, if it still runs."""
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            self._end()

    def _fork(self) -> None:
        parent = os.getpid()
        try:
            self._pipe, into = os.pipe()
        except OSError:  # too many open files
            return
        # a signal finds either no other process or one that is known here
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
        try:
            self._child = os.fork()
            if not self._child:
                self._work(into, mask)
        except OSError:  # too many processes, or no memory for one
            os.close(self._pipe)
        finally:
            if os.getpid() != parent:
                os._exit(1)
            os.close(into)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        except KeyboardInterrupt:  # one that came meanwhile
            self.close()
            raise

    def _work(self, into: int, mask: Iterable[int]) -> NoReturn:
        """Make the call, as the other process, and end without cleaning up after this one."""
        code = 1
        try:
            for number in ENDING_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(self._pipe)  # so that writing fails where nobody reads any more
            gc.freeze()  # a look through what was there before would copy it
            warnings.showwarning = _end_here  # it is the other one's to tell
            with open(into, "wb") as pipe:
                pickle.dump(self._call(), pipe)
            code = 0
        finally:
            os._exit(code)

    def _end(self) -> int:
        """Wait for the end of the other process; 0 if it made the call."""
        child, self._child = self._child, 0
        os.close(self._pipe)
        try:
            return os.waitpid(child, 0)[1]
        except ChildProcessError:  # whoever started us ignores children, and so nobody knows
            return 1

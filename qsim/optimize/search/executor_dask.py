"""The workers of a Dask cluster."""

from __future__ import annotations

import json
import logging
import pickle
import platform
import re
import socket
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from qsim import __version__
from qsim.errors import MissingExtraError, QsimError, ScenarioError
from qsim.optimize.search.executor import TaskExecutor
from qsim.optimize.search.shared_values import Shelf, run_with

T = TypeVar("T")

#: how long to wait for the scheduler to answer, and for a worker to be there, s
_PATIENCE_S = 60


class DaskExecutor(TaskExecutor):
    """Tasks of a Dask cluster as ``concurrent.futures`` ones.

    A task whose worker dies is run again by Dask, up to ``distributed.scheduler.
    allowed-failures`` times (3 unless the cluster is configured otherwise). Shared values are
    results of tasks: Dask hands them from worker to worker, and makes them again where they were
    lost.

    ``address`` is ``tcp://host:8786``, or a scheduler file that ends in ``.json``.
    """

    window = 64  # how many workers a cluster has changes

    def __init__(self, address: str) -> None:
        try:
            import distributed
        except ImportError as e:
            raise MissingExtraError("distributed", "distributed", "--dask") from e
        self._address = address
        # that a connection is lost is told by the error that comes of it
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        where = _listening(address)
        try:
            client: Any = distributed.Client  # half of its methods have no types
            self._client = client(where, timeout=_PATIENCE_S / 6, set_as_default=False)
        except Exception as e:  # of the network, of another protocol, of another version of Dask
            raise _no_scheduler(address, e) from e
        self._lock = threading.Lock()
        self._running: dict[Any, Future[Any]] = {}
        self._shelf = Shelf()
        self._shared: dict[str, Any] = {}
        try:
            self._check_workers(address)
        except BaseException:
            self._close()
            raise

    def _check_workers(self, address: str) -> None:
        """Wait for a worker, and let all say which qsim they run."""
        here = _versions()
        first = self._client.submit(_versions, pure=False)  # an adaptive cluster grows for a task
        try:
            first.result(timeout=_PATIENCE_S)
            there = self._client.run(_versions)
        except TimeoutError as e:
            raise ScenarioError(
                f"dask is {address!r}: the scheduler has had no free worker for {_PATIENCE_S} s; "
                "start some with 'dask worker ADDRESS'"
            ) from e
        except Exception as e:  # whatever importing qsim raises over there
            raise ScenarioError(
                f"dask is {address!r}: its workers cannot run qsim ({type(e).__name__}: {e}); "
                f"install qsim {__version__} where they run"
            ) from e
        for worker, versions in there.items():
            if versions != here:
                raise ScenarioError(
                    f"dask worker {worker} runs {versions}, this is {here}; results would differ: "
                    "install the same there"
                )

    def share(self, value: T) -> T:
        """As :meth:`TaskExecutor.share`."""
        with self._lock:
            key = self._shelf.put(value)
            data = self._shelf.pickled.pop(key, None)
            if data is not None and key not in self._shared:
                with warnings.catch_warnings():
                    # not scattered: scattered data are gone with the workers that hold them
                    warnings.filterwarnings("ignore", message="Sending large graph")
                    self._shared[key] = self._client.submit(pickle.loads, data, key=f"qsim-{key}")
        return value

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send ``fn(*args, **kwargs)``; the future's error is a QsimError if its workers die."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            payload, used = self._shelf.pack((fn, args, kwargs))
            values = {key: self._shared[key] for key in used}
            remote: Any = self._client.submit(run_with, payload, values, pure=False)
            self._running[remote] = future
        remote.add_done_callback(partial(self._finish, future))
        return future

    def _finish(self, future: Future[Any], remote: Any) -> None:
        """Called in a thread of the client when ``remote`` is done."""
        with self._lock:
            self._running.pop(remote, None)
        if future.done():
            return
        from distributed.client import FutureCancelledError
        from distributed.comm.core import CommClosedError
        from distributed.scheduler import KilledWorker

        try:
            future.set_result(remote.result())
        except (FutureCancelledError, CancelledError, CommClosedError) as e:
            gone = QsimError(
                f"the Dask scheduler {self._address!r} is gone; start it again with its workers, "
                "or simulate here (--jobs). What was kept (--study, a sweep's --out) goes on with "
                "--resume"
            )
            gone.__cause__ = e
            future.set_exception(gone)
        except KilledWorker as e:
            gone = QsimError(
                "the same task cost several Dask workers their lives, for lack of memory perhaps; "
                "try again with fewer threads or more memory a worker, or a shorter trace "
                "(--head, --end)"
            )
            gone.__cause__ = e
            future.set_exception(gone)
        except BaseException as e:
            future.set_exception(e)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Finish what was submitted, or drop it; then leave the cluster, which goes on."""
        if cancel_futures:
            self.abort()
            return
        with self._lock:
            left = list(self._running.values())
        for future in left if wait else ():
            future.exception()
        self._close()

    def abort(self) -> None:
        """Drop what waits. What runs on a worker cannot be stopped; its result is thrown away."""
        with self._lock:
            remotes = list(self._running)
            for future in self._running.values():
                if not future.done():
                    future.set_exception(QsimError("the run was given up"))
        if self._client.status != "running":  # without a scheduler it would try for long
            self._close()
            return
        self._client.cancel(remotes, force=True)
        self._close()

    def _close(self) -> None:
        """Leave the cluster; what goes wrong with that does not matter any more."""
        with suppress(Exception):
            self._client.close(timeout=5)


def _listening(address: str) -> str:
    """The address of a scheduler at which something listens.

    Dask waits for a scheduler file that does not exist for ever, and tries an address at which
    nobody answers for as long as it may.

    Raises
    ------
    ScenarioError
        If the file is none of a scheduler, the address is none, or nobody answers there.
    """
    if address.endswith(".json"):
        try:
            found = json.loads(Path(address).read_text(encoding="utf-8"))["address"]
            if not isinstance(found, str):
                raise TypeError
        except OSError as e:
            raise ScenarioError(
                f"dask is {address!r}: {e.strerror or e}; give the file that 'dask scheduler "
                "--scheduler-file' writes, or an address such as tcp://host:8786"
            ) from e
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise ScenarioError(
                f"dask is {address!r}: this is no scheduler file; give the one that 'dask "
                "scheduler --scheduler-file' writes, or an address such as tcp://host:8786"
            ) from e
        address = found
    match = re.fullmatch(r"(?:(tcp|tls)://)?(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})", address)
    if match is None:
        if re.fullmatch(r"(ws|wss|ucx|inproc)://\S+", address):
            return address
        raise ScenarioError(
            f"dask is {address!r}; must be an address such as tcp://host:8786, or a scheduler file "
            "that ends in .json"
        )
    try:
        port = (match[2].strip("[]"), int(match[3]))
        socket.create_connection(port, timeout=_PATIENCE_S / 6).close()
    except (OSError, OverflowError, UnicodeError) as e:
        raise _no_scheduler(address, e) from e
    return address if match[1] else f"tcp://{address}"


def _no_scheduler(address: str, error: Exception) -> ScenarioError:
    return ScenarioError(
        f"dask is {address!r}: no scheduler answers there "
        f"({' '.join(str(error).split()) or type(error).__name__}); start one with "
        "'dask scheduler', and workers with 'dask worker ADDRESS'"
    )


def _versions() -> str:
    """What results depend on."""
    import numpy as np

    python = ".".join(platform.python_version_tuple()[:2])
    return f"qsim {__version__}, Python {python}, numpy {np.__version__}"

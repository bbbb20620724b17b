"""Big values that many tasks need: each worker gets them once, by their content.

A task is pickled with a key in the place of every shared object that it holds, however deep. This
module is all that a worker process imports before its first task.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

#: shared values that a worker process keeps; an older one is read again when it is needed
_KEPT = 64


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, keys: Mapping[int, str]) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self._keys = keys
        self.used: list[str] = []

    def persistent_id(self, obj: Any) -> str | None:
        """The key that stands for a shared object; None for any other."""
        key = self._keys.get(id(obj))
        if key is not None and key not in self.used:
            self.used.append(key)
        return key


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, find: Callable[[str], Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._find = find

    def persistent_load(self, pid: Any) -> Any:
        """The shared object that a key stands for."""
        return self._find(pid)


class Shelf:
    """The values that were shared, by identity, and their pickled form by a hash of it."""

    def __init__(self) -> None:
        self._keys: dict[int, str] = {}
        self._values: list[Any] = []  # keeps them alive, so that no id comes twice
        self.pickled: dict[str, bytes] = {}

    def put(self, value: Any) -> str:
        """Share ``value`` and return its key; equal content has the same key."""
        known = self._keys.get(id(value))
        if known is not None:
            return known
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        key = hashlib.sha256(data).hexdigest()
        self._values.append(value)
        self._keys[id(value)] = key
        self.pickled[key] = data
        return key

    def pack(self, call: tuple[Any, ...]) -> tuple[bytes, list[str]]:
        """``(fn, args, kwargs)`` as bytes, and the keys of the shared values that it needs."""
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, self._keys)
        pickler.dump(call)
        return buffer.getvalue(), pickler.used


def run_from_folder(payload: bytes, folder: str) -> Any:
    """Run what :meth:`Shelf.pack` packed; shared values lie in ``folder``, named by their keys."""
    return _run(payload, lambda key: _read(str(Path(folder, key))))


def run_with(payload: bytes, values: Mapping[str, Any]) -> Any:
    """Run what :meth:`Shelf.pack` packed, with the shared values at hand."""
    return _run(payload, values.__getitem__)


def _run(payload: bytes, find: Callable[[str], Any]) -> Any:
    fn, args, kwargs = _Unpickler(payload, find).load()
    return fn(*args, **kwargs)


@lru_cache(maxsize=_KEPT)
def _read(path: str) -> Any:
    return pickle.loads(Path(path).read_bytes())

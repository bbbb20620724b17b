"""The profiles that come with qsim, ``<gpu>/<model>/<method>.json``, and how one is found."""

from __future__ import annotations

import difflib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qsim.documents import read_json
from qsim.errors import ProfileError
from qsim.profile import Profile

__all__ = [
    "ProfileEntry",
    "find_profiles",
    "list_profiles",
    "load_profile",
    "stated_errors",
    "transfer_note",
]

#: of a shipped profile
_ID = re.compile(r"[a-z0-9_.+-]+(/[a-z0-9_.+-]+){2,3}", re.ASCII)


@dataclass(frozen=True)
class ProfileEntry:
    """A shipped profile: its id and its file."""

    id: str
    path: Path

    @property
    def transferred(self) -> bool:
        """Whether it was carried over from other measurements (read from the file)."""
        identity = read_json(self.path, ProfileError)["identity"]
        return bool(identity["source"] == "transferred")

    @property
    def gpu(self) -> str:
        """The GPU's id, e.g. ``h200_sxm``."""
        return self.id.split("/")[0]

    @property
    def model(self) -> str:
        """The model's id, e.g. ``llama-3.1-8b``."""
        return self.id.split("/")[1]

    @property
    def method(self) -> str:
        """The quantization method, e.g. ``fp8-w8a8``."""
        return self.id.split("/")[2]


def list_profiles() -> list[ProfileEntry]:
    """All shipped profiles, sorted by id."""
    folder = Path(__file__).parent
    entries = [
        ProfileEntry(path.relative_to(folder).with_suffix("").as_posix(), path)
        for path in folder.rglob("*.json")
    ]
    # <gpu>/<model>/<method>[/tpN]: any other file in the package is not a profile
    return sorted((e for e in entries if len(e.id.split("/")) in (3, 4)), key=lambda e: e.id)


def load_profile(id_or_path: str | os.PathLike[str]) -> Profile:
    """Read a shipped profile by id, or any profile from a file.

    Parameters
    ----------
    id_or_path : str or path
        ``<gpu>/<model>/<method>`` of a shipped profile, or the path of a profile file. A text
        that ends in ``.json`` is always a path.

    Raises
    ------
    ProfileError
        If no shipped profile has this id (the message names the nearest ones), or the file
        cannot be read or is not a valid profile.
    """
    text = os.fspath(id_or_path)
    if text.endswith(".json") or not isinstance(id_or_path, str):
        return Profile.load(text)
    shipped = Path(__file__).parent / f"{text}.json"
    if ".." not in text and _ID.fullmatch(text) and shipped.is_file():
        return Profile.load_shipped(shipped)
    with suppress(ValueError):  # a zero byte in the name
        if Path(text).is_file():
            return Profile.load(text)
    entries = {e.id: e for e in list_profiles()}
    parts = text.split("/")
    strange = len(parts) in (3, 4) and parts[1] not in {e.model for e in entries.values()}
    raise ProfileError(
        f"unknown profile {text!r}; {_nearest(text, list(entries))}"
        "'qsim profiles' lists them all; a profile of your own is given as a path to its .json file"
        + (f". {_other_model(parts[1])}" if strange else "")
    )


def find_profiles(
    model: str, gpus: tuple[str, ...] = (), methods: tuple[str, ...] = ()
) -> list[ProfileEntry]:
    """The shipped profiles of ``model``, on any of ``gpus``, by any of ``methods``.

    No methods stand for all. No GPUs stand for those on which the model was measured, and for the
    measured profiles there; only if it was measured nowhere, for all. Transferred profiles beside
    measured ones are chosen by naming their GPU.

    Raises
    ------
    ProfileError
        If there is no profile of ``model``, or one of ``gpus`` or ``methods`` has none.
    """
    entries = list_profiles()
    of_model = [e for e in entries if e.model == model]
    if not of_model:
        models = sorted({e.model for e in entries})
        raise ProfileError(
            f"no profile of model {model!r}; {_nearest(model, models)}{_other_model(model)}"
        )
    for word, wanted, known in (
        ("gpu", gpus, {e.gpu for e in of_model}),
        ("method", methods, {e.method for e in of_model}),
    ):
        for value in wanted:
            if value not in known:
                raise ProfileError(
                    f"no profile of model {model!r} for {word} {value!r}; "
                    + _nearest(value, sorted(known))
                )
    found = [
        e for e in of_model if (not gpus or e.gpu in gpus) and (not methods or e.method in methods)
    ]
    if not found:
        have = ", ".join(e.id for e in of_model)
        raise ProfileError(
            f"no profile of model {model!r} for gpu {'/'.join(gpus)} and method "
            f"{'/'.join(methods)} together; there are: {have}"
        )
    if not gpus:
        # what was measured takes precedence over what was carried over
        found = [e for e in found if not e.transferred] or found
    return found


def left_out_note(model: str, methods: tuple[str, ...] = ()) -> str | None:
    """What :func:`find_profiles` without GPUs leaves out, and how to have it; None if nothing."""
    taken = {e.id for e in find_profiles(model, (), methods)}
    left = [
        e
        for e in list_profiles()
        if e.model == model and (not methods or e.method in methods) and e.id not in taken
    ]
    if not left:
        return None
    gpus = ", ".join(sorted({e.gpu for e in left}))
    return (
        f"{len(left)} transferred profiles of {model} took no part beside the {len(taken)} "
        f"measured ones; --gpu brings in those of a GPU ({gpus})"
    )


def stated_errors(profile: Profile) -> dict[str, float]:
    """The largest errors that the profile states, in percent: of mean, median, p99 and energy."""
    return {
        key.removeprefix("worst_"): float(value)
        for key, value in profile.fit_error.items()
        if key.startswith("worst_") and isinstance(value, int | float)
    }


def transfer_note(profile: Profile) -> str | None:
    """What to know before relying on a transferred profile, and what would remove the doubt.

    None for a measured one.
    """
    t, i = profile.transfer, profile.identity
    if t is None:
        return None
    errors = ", ".join(f"{k.replace('_', ' ')} {v:.0f}%" for k, v in t.error_percent.items())
    tp = f" --tensor-parallel-size {i.tensor_parallel_size}" if i.tensor_parallel_size > 1 else ""
    return (
        f"{profile.id} is transferred, not measured: its estimated errors are {errors}. Before you "
        f"rely on it, measure a server: qsim calibrate run --model {i.model} --dummy-weights "
        f"--methods {i.method}{tp} --out DIR on a {i.gpu}, then plan with --profile"
    )


def _other_model(model: str) -> str:
    """How to get profiles of a model that none is shipped of."""
    id_ = model if "/" in model else f"ORG/{model}"
    return (
        f"For another model, 'qsim calibrate transfer --to h200_sxm --model {id_} --out DIR' "
        "(a Hugging Face id or a config.json) makes profiles from kernel times, and "
        "'qsim calibrate run' measures them; give them with --profile"
    )


def _parts_begun(text: str, known: str) -> int:
    return sum(k.startswith(t) for t, k in zip(text.split("/"), known.split("/"), strict=False))


def _nearest(text: str, known: list[str]) -> str:
    """``did you mean 'a' or 'b'?; `` or, when nothing is near, what is known."""
    wanted = text.lower()
    near = difflib.get_close_matches(wanted, known, n=6, cutoff=0.5)
    if near:
        # an id that begins each part as the text does is meant more likely than one of equal length
        near = sorted(near, key=lambda n: -_parts_begun(wanted, n))[:3]
        return "did you mean " + " or ".join(repr(n) for n in near) + "? "
    return f"known: {', '.join(known) or 'none'}. "

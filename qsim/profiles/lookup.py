"""The profiles that come with qsim, ``<gpu>/<model>/<method>.json``, and how one is found.

A server that was measured under several versions of vLLM has a file for each: ``@0.33`` stands
behind the name of all but the first. An id without a version means the newest.
"""

from __future__ import annotations

import difflib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qsim.documents import read_json
from qsim.errors import ProfileError, ScenarioError
from qsim.profiles.carry import carry, release
from qsim.profiles.schema import Profile

#: of a shipped profile
_ID = re.compile(r"[a-z0-9_.+-]+(/[a-z0-9_.+-]+){2,3}", re.ASCII)
#: of transferred tensor-parallel servers that plans do not choose among
SHARDED_FOLDER = "sharded"
#: the version in the name of a file without one
_FIRST = "0.24"


@dataclass(frozen=True)
class ProfileEntry:
    """A shipped profile: its id, its file, and vLLM's version as ``"0.33"``."""

    id: str
    path: Path
    version: str = _FIRST

    @property
    def name(self) -> str:
        """What :func:`load_profile` takes for this very file."""
        return f"{self.id}@{self.version}"

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


def list_profiles(all_versions: bool = False) -> list[ProfileEntry]:
    """All shipped profiles, sorted by id, of each its newest version or all of them."""
    folder = Path(__file__).parent
    entries = []
    for path in folder.rglob("*.json"):
        name, _, version = path.relative_to(folder).as_posix().removesuffix(".json").partition("@")
        # <gpu>/<model>/<method>[/tpN]: any other file in the package is not a profile
        if name.count("/") in (2, 3):
            entries.append(ProfileEntry(name, path, version or _FIRST))
    entries.sort(key=lambda e: (e.id, release(e.version)))
    if all_versions:
        return entries
    return list({e.id: e for e in entries}.values())


def list_sharded(model: str | None = None) -> list[ProfileEntry]:
    """Transferred profiles of tensor-parallel servers that a study compares, sorted by id.

    They are found by their id like all others, but are not among those that
    :func:`list_profiles` names and plans choose from.
    """
    folder = Path(__file__).parent / SHARDED_FOLDER
    found = [
        ProfileEntry(path.relative_to(folder).as_posix().removesuffix(".json"), path)
        for path in folder.rglob("tp*.json")
    ]
    return sorted((e for e in found if model in (None, e.model)), key=lambda e: e.id)


def load_profile(id_or_path: str | os.PathLike[str], vllm_version: str | None = None) -> Profile:
    """Read a shipped profile by id, or any profile from a file.

    Parameters
    ----------
    id_or_path : str or path
        ``<gpu>/<model>/<method>`` of a shipped profile, with ``@0.24`` behind it or not, or the
        path of a profile file. A text that ends in ``.json`` is always a path.
    vllm_version : str, optional
        The version of vLLM that it is to be of, see :func:`version_of`; by default the newest that
        was measured.

    Raises
    ------
    ProfileError
        If no shipped profile has this id (the message names the nearest ones), or the file
        cannot be read or is not a valid profile.
    """
    text = os.fspath(id_or_path)
    if text.endswith(".json") or not isinstance(id_or_path, str):
        return version_of(Profile.load(text), vllm_version)
    name, at, version = text.partition("@")
    if _ID.fullmatch(name) and ".." not in name:
        of_server = [e for e in _versions(name) if not at or release_is(e, version)]
        if of_server:
            return version_of(
                Profile.load_shipped(_choose(of_server, vllm_version).path), vllm_version
            )
        if at and (known := _versions(name)):
            have = ", ".join(e.version for e in known)
            raise ProfileError(
                f"no profile {text!r}; {name} was measured under vLLM {have}; "
                f"--vllm-version carries it to another"
            )
    with suppress(ValueError):  # a zero byte in the name
        if Path(text).is_file():
            return version_of(Profile.load(text), vllm_version)
    entries = {e.id: e for e in list_profiles()}
    parts = text.split("/")
    strange = len(parts) in (3, 4) and parts[1] not in {e.model for e in entries.values()}
    raise ProfileError(
        f"unknown profile {text!r}; {_nearest(text, list(entries))}"
        "'qsim profiles' lists them all; a profile of your own is given as a path to its .json file"
        + (f". {_other_model(parts[1])}" if strange else "")
    )


def file_name(profile: Profile) -> str:
    """``<gpu>/<model>/<method>[/tpN][@VERSION].json``, as profiles are shipped."""
    found = re.match(r"v?(\d+\.\d+)(?!\d)", profile.identity.vllm_version)
    version = found[1] if found else _FIRST
    return f"{profile.id}.json" if version == _FIRST else f"{profile.id}@{version}.json"


def _versions(name: str) -> list[ProfileEntry]:
    """The files of one server, the oldest version first."""
    folder = Path(__file__).parent
    path = folder / name
    files = [path.with_name(f"{path.name}.json"), *path.parent.glob(f"{path.name}@*.json")]
    if name.count("/") == 3:
        files.append(folder / SHARDED_FOLDER / f"{name}.json")
    found = [
        ProfileEntry(name, f, f.name.removesuffix(".json").partition("@")[2] or _FIRST)
        for f in files
        if f.is_file()
    ]
    return sorted(found, key=lambda e: release(e.version))


def release_is(entry: ProfileEntry, version: str) -> bool:
    """Whether an entry is of a version, ``"0.33"`` or ``"0.33.0"``."""
    try:
        return release(entry.version) == release(version)
    except ScenarioError as e:
        raise ProfileError(f"{entry.id}@{version}: {e}") from None


def _choose(entries: list[ProfileEntry], version: str | None) -> ProfileEntry:
    """The newest that is not newer than ``version``; else the oldest."""
    if version is None:
        return entries[-1]
    wanted = release(version)
    return [entries[0], *(e for e in entries if release(e.version) <= wanted)][-1]


def version_of(profile: Profile, vllm_version: str | None) -> Profile:
    """The profile for a version of vLLM: itself, or carried by measured factors.

    Where nothing measured tells how it would be, it is returned as it is: a run by the rules of
    another version than its profile's says so.
    """
    have = profile.identity.vllm_version
    if vllm_version is None or not have or release(have) == release(vllm_version):
        return profile
    return carry(profile, vllm_version) or profile


def carry_note(profile: Profile) -> str | None:
    """What to know of a profile that was carried to its version; None of all others."""
    c = profile.carried
    if c is None:
        return None
    errors = ", ".join(f"{k.replace('_', ' ')} {v:.0f}%" for k, v in c.error_percent.items())
    return (
        f"the profile was measured under vLLM {c.vllm_version} and carried to "
        f"{profile.identity.vllm_version} by factors measured on {len(c.servers)} servers; their "
        f"errors are {errors}, beside its own"
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

    Or on one that was carried to another version of vLLM. None for a measured one.
    """
    t, i = profile.transfer, profile.identity
    if t is None:
        return carry_note(profile)
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

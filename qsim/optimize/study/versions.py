"""Like with like: profiles of one version of vLLM, and the same limits of a batch, in a comparison.

What differs between profiles of two versions is also what vLLM changed in between, and what differs
between servers of two limits is also what these allow. Neither is an effect of a method, of a GPU
type or of sharding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qsim.optimize.study.comparing import listed
from qsim.optimize.study.contenders import Contender, Line
from qsim.profiles.carry import release

#: settings of which vLLM's default depends on the GPU type or that a profile's range lowers
_LIMITS = ("max_num_seqs", "max_num_batched_tokens")

#: the same server under another version of vLLM; None if nothing measured tells
Remake = Callable[[Contender, str], Contender | None]


def alike(contenders: Sequence[Contender]) -> tuple[Contender, ...]:
    """The same servers, all with the lowest limits of a batch that one of them has."""
    engines = [c.options.resolve(c.profile) for c in contenders]
    lowest: dict[str, Any] = {n: min((getattr(e, n) for e in engines), default=0) for n in _LIMITS}
    found = []
    for contender, engine in zip(contenders, engines, strict=True):
        changed: dict[str, Any] = {n: v for n, v in lowest.items() if getattr(engine, n) > v}
        if changed:
            options = replace(contender.options, **changed)
            seats = options.resolve(contender.profile).seats
            contender = replace(contender, options=options, seats=seats)
        found.append(contender)
    return tuple(found)


def of_one_version(
    contenders: Sequence[Contender], part: Callable[[Contender], Hashable], remake: Remake
) -> tuple[Contender, ...]:
    """The same servers of the version under which most of them can be compared, the newest of such.

    ``part`` is what is compared: servers of one method whose part differs, such as their GPU type.
    ``remake`` gives a server under a version; those that it cannot make stay as they are.
    """
    versions = sorted({c.version for c in contenders if c.version}, key=release, reverse=True)
    if len(versions) < 2:
        return tuple(contenders)
    best: tuple[Contender, ...] = tuple(contenders)
    most = -1
    for version in versions:
        made = tuple(c if c.version == version else (remake(c, version) or c) for c in contenders)
        parts: dict[str, set[Hashable]] = {}
        same = [c for c in made if c.version == version]
        for c in same:
            parts.setdefault(c.method, set()).add(part(c))
        count = sum(len(parts[c.method]) > 1 for c in same)
        if count > most:
            best, most = made, count
    return best if most > 0 else tuple(contenders)


def usual_version(versions: Sequence[str]) -> str:
    """The one that most have, the newest of such; "" of none."""
    counts = Counter(v for v in versions if v)
    return max(counts, key=lambda v: (counts[v], release(v)), default="")


def version_notes(
    lines: Mapping[str, Line],
    groups: Mapping[str, Sequence[Contender]],
    machines: Mapping[str, Line],
) -> list[str]:
    """What a reader must know of versions, where they are not the same everywhere."""
    notes = []
    told: dict[str, set[str]] = {}
    for gpu, line in lines.items():
        told[gpu] = {c.version for c in line}
        usual = usual_version([c.version for c in line])
        others = [c for c in line if c.version != usual]
        if others:
            notes.append(
                f"on {gpu} the profiles are of vLLM {usual}, but {_named(others)}: a finding "
                "across versions names them and stands behind the others"
            )
    levels = [
        (f"parallelism on {g}", "sizes", tuple(some), told.get(g, set()))
        for g, some in groups.items()
    ]
    everywhere = tuple(c for line in machines.values() for c in line)
    levels.append(("hardware", "GPU types", everywhere, set().union(*told.values())))
    for level, what, some, elsewhere in levels:
        usual = usual_version([c.version for c in some])
        others = [c for c in some if c.version != usual]
        if others:
            notes.append(
                f"{level}: the profiles are of vLLM {usual}, but {_named(others)}; {what} are not "
                "compared across versions"
            )
        elif some and elsewhere and elsewhere != {usual}:
            notes.append(f"{level}: all profiles are of vLLM {usual}, which all {what} have")
    return notes


def _named(contenders: Sequence[Contender]) -> str:
    return listed([f"{c.id} of {c.version or 'an unknown version'}" for c in contenders])

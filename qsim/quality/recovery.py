"""How much of the 16-bit model's quality a method keeps on a mix of tasks.

``recovery`` answers from the best evidence there is, task by task:

1. ``measured``: the profile's own measurement (``qsim calibrate quality``), as it is;
2. ``published``: a number for this very model and method, shrunk towards what its relatives show by
   as much as its sampling error demands; the interval always reaches the published number;
3. ``estimated``: relatives alone; the note names the nearest one.

A mix has the status of its weakest task. bf16 is 100 by definition. An FP8 KV cache multiplies the
recovery of the weights' method by its own; so do FP8 activations on 4-bit weights (``w4a8-fp8``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from qsim.catalog.methods import KV_FP8, find_method
from qsim.errors import ProfileError, ScenarioError
from qsim.quality.models import ModelKey, model_key
from qsim.quality.pool import KIN, Z90, posterior
from qsim.quality.stored import read_quality
from qsim.quality.table import Row, recovery_table
from qsim.quality.tasks import TASKS, normalise_mix

#: best first
STATUSES = ("measured", "published", "estimated")
KV_EFFECT = "kv-fp8"
#: methods whose recovery is the product of others', and the standard deviation that this adds, in
#: points. FP8 activations on 4-bit weights: the two published cases, on AWQ's weights, give 99.64%
#: and 99.87% of the same weights with 16-bit activations, as fp8-w8a8 does of bf16.
COMPOSED: dict[str, tuple[tuple[str, ...], float]] = {
    "w4a8-fp8": (("awq-w4a16", "fp8-w8a8"), 0.8),
}
_QWEN_KV = (
    "collapsed answers were reported for Qwen2.5 with FP8 KV scales that were not calibrated "
    "(github.com/verl-project/verl/pull/4435): measure before use"
)


@dataclass(frozen=True)
class TaskRecovery:
    """Recovery on one task; percent of the 16-bit score, with a 90% interval."""

    task: str
    weight: float
    mean_pct: float
    low_pct: float
    high_pct: float
    status: str
    #: the published value(s) for this very model and method, before shrinkage
    published_pct: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "task": self.task,
            "weight": self.weight,
            **_rounded(self),
            "published_pct": list(self.published_pct),
            "sources": list(self.sources),
            "note": self.note,
        }


@dataclass(frozen=True)
class Recovery:
    """Recovery of a method on a task mix."""

    #: Percent of the 16-bit model's score, and a 90% interval. The mean may pass 100: noise in
    #: published numbers goes both ways and is not cut off.
    mean_pct: float
    low_pct: float
    high_pct: float
    #: ``measured``, ``published`` or ``estimated``: that of the weakest task.
    status: str
    sources: tuple[str, ...] = ()
    note: str = ""
    model: str = ""
    method: str = ""
    #: The parts, in the order of the mix.
    tasks: tuple[TaskRecovery, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "model": self.model,
            "method": self.method,
            **_rounded(self),
            "sources": list(self.sources),
            "note": self.note,
            "tasks": [t.to_dict() for t in self.tasks],
        }


def _rounded(r: TaskRecovery | Recovery) -> dict[str, Any]:
    """The interval to three digits, and the status."""
    percent = {k: round(getattr(r, k), 3) for k in ("mean_pct", "low_pct", "high_pct")}
    return {**percent, "status": r.status}


def recovery(
    model: str,
    method: str,
    tasks: Mapping[str, float] | None = None,
    measured: Mapping[str, Any] | None = None,
) -> Recovery:
    """Recovery of ``model`` under ``method`` on a mix of tasks.

    Parameters
    ----------
    model : str
        qsim's id or a Hugging Face name; base and instruct count as one model.
    method : str
        Id of ``qsim methods``, with ``+kv-fp8`` after it or not.
    tasks : mapping, optional
        Shares by task or task family, scaled to 1; :data:`qsim.quality.tasks.DEFAULT_MIX` if not
        given.
    measured : mapping, optional
        ``profile.quality`` of a profile of this model and method.

    Raises
    ------
    ScenarioError
        For an unknown method or task, or a share that is not > 0.
    ProfileError
        If ``measured`` is malformed.
    """
    return _recovery(
        model,
        find_method(method).id,
        tuple(normalise_mix(tasks).items()),
        _measured(measured, method),
    )


def _measured(
    quality: Mapping[str, Any] | None, method: str
) -> tuple[tuple[str, float, float, str], ...]:
    """(task, recovery, its standard error, source) of each task with a measured recovery."""
    if quality is None or method == "bf16":
        return ()
    checked = read_quality(quality)
    if checked["method"] != method:
        raise ProfileError(
            f"the measured quality is of method {checked['method']!r}, not of {method!r}; "
            "give the profile of that method"
        )
    harness = checked["harness"]
    source = f"measured {checked['date']} with {harness['name']} {harness['version']}"
    return tuple(
        (task, float(e["recovery_pct"]), float(e["recovery_stderr_pct"]), source)
        for task, e in checked["tasks"].items()
    )


@lru_cache(maxsize=4096)
def _recovery(
    model: str,
    method: str,
    mix: tuple[tuple[str, float], ...],
    measured: tuple[tuple[str, float, float, str], ...],
) -> Recovery:
    key = model_key(model)
    names = [t for t, _ in mix]
    weights = np.array([w for _, w in mix])
    if method == "bf16":
        parts = tuple(
            TaskRecovery(t, w, 100.0, 100.0, 100.0, "published", note="100 by definition")
            for t, w in mix
        )
        return Recovery(100.0, 100.0, 100.0, "published", (), "the baseline: 100 by definition",
                        key.id, method, parts)  # fmt: skip
    mean = np.full(len(names), 100.0)
    base = method.removesuffix(KV_FP8)
    parts_of, spread = COMPOSED.get(base, ((base,), 0.0))
    cov = np.full((len(names), len(names)), spread**2)
    for effect in [m for m in parts_of if m != "bf16"] + [KV_EFFECT] * (base != method):
        m, c = posterior(key.id, effect, names)
        # a product of recoveries: relative variances add (first order)
        cov = cov * np.outer(m, m) / 1e4 + c * np.outer(mean, mean) / 1e4
        mean = mean * m / 100
    evidence = [_evidence(key, method, t) for t in names]
    own = {t: (r, se, source) for t, r, se, source in measured}
    for i, t in enumerate(names):
        if t in own:
            mean[i], se, source = own[t]
            cov[i, :] = cov[:, i] = 0.0
            cov[i, i] = se**2
            evidence[i] = ("measured", (), (source,), "")
    # an interval that leaves out what was published of this very case would be hard to believe
    sd = np.sqrt(np.diag(cov))
    reach = [max((abs(p - mean[i]) for p in e[1]), default=0.0) for i, e in enumerate(evidence)]
    widen = np.maximum(1.0, np.array(reach) / np.maximum(Z90 * sd, 1e-9))
    cov, sd = cov * np.outer(widen, widen), sd * widen
    parts = tuple(
        TaskRecovery(
            t, float(w), float(mean[i]), float(mean[i] - Z90 * sd[i]), float(mean[i] + Z90 * sd[i]),
            *evidence[i],
        )
        for i, (t, w) in enumerate(mix)
    )  # fmt: skip
    middle = float(weights @ mean)
    half = Z90 * float(np.sqrt(max(0.0, weights @ cov @ weights)))
    guessed = [p.task for p in parts if p.status == "estimated"]
    notes = [f"estimated from relatives for {', '.join(guessed)}"] if guessed else []
    if guessed and base != method and key.lineage == "qwen2":
        notes.append(_QWEN_KV)
    return Recovery(
        middle,
        middle - half,
        middle + half,
        max((p.status for p in parts), key=STATUSES.index),
        _unique(s for p in parts for s in p.sources),
        "; ".join(notes),
        key.id,
        method,
        parts,
    )


def _evidence(
    key: ModelKey, method: str, task: str
) -> tuple[str, tuple[float, ...], tuple[str, ...], str]:
    """Status, published values, sources and note of one task without a measurement."""
    exact = [
        r
        for r in recovery_table()
        if r.same and (r.model, r.method, r.task) == (key.id, method, task)
    ]
    if exact:
        return (
            "published",
            tuple(r.recovery_pct for r in exact),
            _unique(r.cite for r in exact),
            "",
        )
    base = method.removesuffix(KV_FP8)
    effects = ([base] if base != "bf16" else []) + ([KV_EFFECT] if base != method else [])
    notes, sources = [], []
    for effect in effects:
        row = _nearest(key, effect, task)
        if row is not None:
            what = "FP8 KV cache" if effect == KV_EFFECT else effect
            notes.append(
                f"no number for {what} on {task}: nearest is {row.variant}, {row.scheme}, "
                f"{row.task}"
            )
            sources.append(row.cite)
    return "estimated", (), _unique(sources), "; ".join(notes)


def _nearest(key: ModelKey, method: str, task: str) -> Row | None:
    """The published number that is nearest to a case.

    In this order: same model; same lineage and size class; same lineage; any. In each of them the
    task before its family before others, then the method before its relatives and the same scheme
    before a near one.
    """
    kin = [method, *KIN.get(method, {})]

    def distance(r: Row) -> tuple[int, int, int, int, str, str]:
        k = r.key
        alike = bool(key.lineage) and k.lineage == key.lineage
        rung = (
            0
            if k.id == key.id
            else 1
            if alike and k.size_class == key.size_class
            else 2
            if alike
            else 3
        )
        near = 0 if r.task == task else 1 if r.family == TASKS[task].family else 2
        if kin.index(r.method) and rung == 0:
            rung = 2  # a relative of the method says less than a relative of the model
        return (rung, near, kin.index(r.method), int(not r.same), r.variant, r.scheme)

    rows = [r for r in recovery_table() if r.method in kin]
    return min(rows, key=distance) if rows else None


def fleet_recovery(parts: Sequence[tuple[Recovery, float]]) -> Recovery:
    """Quality of a fleet with several methods: the mean over requests as they were routed.

    Parameters
    ----------
    parts : sequence of (Recovery, share)
        The recovery of each method and the requests (or their share) that it answered.

    Returns
    -------
    Recovery
        With the status of the weakest part that answered anything. The interval is the mean of the
        parts' intervals: their errors are taken as fully correlated, which is the wide side.

    Raises
    ------
    ScenarioError
        If a share is negative or all are 0.
    """
    for r, share in parts:
        if not (isinstance(share, int | float) and 0 <= share < float("inf")):
            raise ScenarioError(f"the share of {r.method} is {share!r}; must be a number >= 0")
    total = float(sum(share for _, share in parts))
    if total == 0:
        raise ScenarioError("no requests were routed: the shares of all methods are 0")
    used = [(r, share / total) for r, share in parts if share > 0]

    def mean(name: str) -> float:
        return float(sum(getattr(r, name) * w for r, w in used))

    return Recovery(
        mean("mean_pct"),
        mean("low_pct"),
        mean("high_pct"),
        max((r.status for r, _ in used), key=STATUSES.index),
        _unique(s for r, _ in used for s in r.sources),
        "; ".join(_unique(f"{w:.1%} by {r.method}" for r, w in used)),
        "/".join(_unique(r.model for r, _ in used)),
        "+".join(_unique(r.method for r, _ in used)) if len(used) == 1 else "mixed",
    )


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))

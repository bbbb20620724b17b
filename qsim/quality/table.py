"""The shipped table of published scores, ``data/recovery.csv``.

Every row is a fact with its source: a model, a scheme, a benchmark, the score and the score of the
16-bit model by the same people with the same harness. Scores of different sources are not
comparable; recoveries (score over baseline) are what is used.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from qsim.quality.models import ModelKey, model_key
from qsim.quality.tasks import TASKS

#: names of one publisher: Neural Magic became Red Hat AI, and wrote the paper on its checkpoints
_PUBLISHERS = {
    "neuralmagic": "RedHatAI",
    "neuralmagic-ent": "RedHatAI",
    "arXiv:2411.02355": "RedHatAI",
}


@dataclass(frozen=True)
class Row:
    """One published number."""

    #: qsim's id, as those of method and task are
    model: str
    variant: str
    #: or a stand-in that qsim does not serve (``kv-int8``, ``nvfp4-w4a4``, ``mxfp4-w4a4``), or an
    #: effect (``kv-fp8``)
    method: str
    #: Whether the source's ``scheme`` is the method itself: same number format, same algorithm.
    same: bool
    scheme: str
    task: str
    #: In percent; None where the source gives the recovery alone.
    score: float | None
    baseline: float | None
    #: ``100 * score / baseline``.
    recovery_pct: float
    #: Answers behind the score.
    items: int
    source: str
    commit: str
    license_class: str
    note: str

    @property
    def key(self) -> ModelKey:
        """What the model's name says."""
        return model_key(self.model)

    @property
    def family(self) -> str:
        """The task's family."""
        return TASKS[self.task].family

    @property
    def publisher(self) -> str:
        """Who published it: the repository, the owner of a model card, the paper.

        The numbers of one publisher share a harness and a way to quantize.
        """
        place = self.source.split(" ", 1)[0]
        if place.startswith("arXiv"):
            owner = place
        else:
            site, *path = [x for x in place.split("/") if x != "datasets"]
            owner = path[0] if site == "huggingface.co" else "/".join(path[:2])
        return _PUBLISHERS.get(owner, owner or place)

    @property
    def cite(self) -> str:
        """Source and commit."""
        return f"{self.source}@{self.commit}" if self.commit else self.source


@lru_cache(maxsize=1)
def recovery_table() -> tuple[Row, ...]:
    """The shipped table, in the file's order."""
    text = (resources.files("qsim.quality") / "data" / "recovery.csv").read_text("utf-8")
    return tuple(_row(**r) for r in csv.DictReader(text.splitlines()))


def _row(fit: str, score: str, baseline: str, recovery_pct: str, items: str, **texts: Any) -> Row:
    return Row(
        **texts,
        same=fit == "same",
        score=float(score) if score else None,
        baseline=float(baseline) if baseline else None,
        recovery_pct=float(recovery_pct),
        items=int(items),
    )

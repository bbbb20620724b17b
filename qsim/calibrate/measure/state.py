"""What a campaign has done so far, kept in its folder."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from qsim.documents import read_json
from qsim.errors import ScenarioError
from qsim.files import write_text

__all__ = ["COMPLETE", "FAILED", "REFUSED", "CampaignState", "JobState", "is_complete"]

COMPLETE, FAILED, REFUSED = "complete", "failed", "refused"
#: what a recording consists of
FILES = ("server.json", "phases.json", "steps.csv.gz", "requests.csv.gz", "power.csv.gz")


@dataclass(frozen=True)
class JobState:
    """How a job ended."""

    status: str
    seconds: float = 0.0
    reason: str = ""


class CampaignState:
    """``campaign.json`` of a folder; safe to use from several threads."""

    def __init__(self, out: Path) -> None:
        self.path = out / "campaign.json"
        self._lock = threading.Lock()
        self.jobs: dict[str, JobState] = {}
        try:
            data = read_json(self.path)
            self.jobs = {k: JobState(**v) for k, v in data["jobs"].items()}
        except (ScenarioError, KeyError, TypeError, AttributeError):
            self.jobs = {}  # no campaign yet, or one of another version: folders tell what is done

    def record(self, name: str, state: JobState) -> None:
        """Remember how a job ended, whole or not at all."""
        with self._lock:
            self.jobs[name] = state
            jobs = {k: asdict(v) for k, v in self.jobs.items()}
            write_text(self.path, json.dumps({"jobs": jobs}, indent=1) + "\n")


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a whole recording: it gets its name only when it does."""
    return all((folder / name).is_file() for name in FILES)

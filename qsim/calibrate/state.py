"""What a campaign has done so far, kept in its folder."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["COMPLETE", "FAILED", "REFUSED", "CampaignState", "JobState", "is_complete"]

COMPLETE, FAILED, REFUSED = "complete", "failed", "refused"


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
            data = json.loads(self.path.read_text(encoding="utf-8"))
            self.jobs = {k: JobState(**v) for k, v in data["jobs"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            self.jobs = {}  # no campaign yet, or one of another version: folders tell what is done

    def record(self, name: str, state: JobState) -> None:
        """Remember how a job ended, whole or not at all."""
        with self._lock:
            self.jobs[name] = state
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".campaign.")
            with os.fdopen(handle, "w", encoding="utf-8") as f:
                json.dump({"jobs": {k: asdict(v) for k, v in self.jobs.items()}}, f, indent=1)
                f.write("\n")
            os.replace(temporary, self.path)


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a whole recording: it gets its name only when it does."""
    return all((folder / n).is_file() for n in ("server.json", "phases.json", "steps.csv.gz"))

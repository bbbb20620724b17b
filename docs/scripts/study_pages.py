"""Write docs/study: the study of each shipped model on H200, H100 and A100.

    python docs/scripts/study_pages.py [--out docs/study] [--journals FOLDER] [MODEL ...]

With journals an interrupted run goes on, and a finished one is only written again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import qsim
from qsim.files import write_text
from qsim.processes import available_cores
from qsim.report.text.study import study_csvs, study_markdown

MODELS = ("llama-3.1-8b", "qwen2.5-14b", "qwen2.5-32b", "llama-3.1-70b")
GPUS = ("h200_sxm", "h100_sxm", "a100_sxm")
#: what is kept beside the page; every other number is a command away
KEPT = ("findings.csv", "decisions.csv")


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "study")
    parser.add_argument("--journals", type=Path)
    given = parser.parse_args()
    for model in given.models:
        journal = None if given.journals is None else given.journals / f"{model}.jsonl"
        found = qsim.study(
            model=model,
            gpus=GPUS,
            journal=journal,
            resume=journal is not None,
            jobs=available_cores(),
        )
        write_text(given.out / f"{model}.md", study_markdown(found))
        for name, text in study_csvs(found).items():
            if name in KEPT:
                write_text(given.out / "data" / f"{model}-{name}", text)
        print(f"{model}: {len(found.runs):,} runs, {len(found.findings)} findings")


if __name__ == "__main__":
    main()

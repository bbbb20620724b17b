"""A stand-in for lm-eval: ``simple_evaluate`` with the results format of 0.4.9.

The answers are drawn from a seeded generator by model name, with a chance of being right of 0.8
for names without "quantized" and slightly less with it.
"""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

SIZES = {"gsm8k": 200, "mmlu_law": 120, "mmlu_physics": 80, "arc_challenge": 150, "own-tickets": 90}
GROUPS = {"mmlu": ["mmlu_humanities", "mmlu_stem"], "mmlu_humanities": ["mmlu_law"],
          "mmlu_stem": ["mmlu_physics"]}  # fmt: skip
METRICS = {
    "gsm8k": [("exact_match", "strict-match"), ("exact_match", "flexible-extract")],
    "arc_challenge": [("acc", "none"), ("acc_norm", "none")],
    "own-tickets": [("solved", "number"), ("solved", "loose")],
}


class FakeTasks(ModuleType):
    """Put into ``sys.modules["lm_eval.tasks"]``; keeps the folders."""

    def __init__(self) -> None:
        super().__init__("lm_eval.tasks")
        self.folders: list[str] = []

    def TaskManager(self, include_path: str) -> str:  # noqa: N802
        """As lm-eval's, as far as it is called."""
        self.folders.append(include_path)
        return include_path


class FakeLmEval(ModuleType):
    """Put into ``sys.modules["lm_eval"]``; keeps the calls."""

    __version__ = "0.4.9"

    def __init__(self) -> None:
        super().__init__("lm_eval")
        self.calls: list[dict[str, Any]] = []
        self.failure: Exception | None = None
        self.tasks = FakeTasks()
        self.edition = ""  # of the questions

    def simple_evaluate(self, model: str, **options: Any) -> dict[str, Any]:
        """Answer all questions of the tasks."""
        self.calls.append({"model": model, **options})
        if self.failure:
            raise self.failure
        name = options["model_args"]["model"]
        found: dict[str, Any] = {k: {} for k in ("results", "versions", "n-shot", "n-samples",
                                                 "samples", "group_subtasks")}  # fmt: skip
        for task in options["tasks"]:
            self._run(task, name, options, found)
        return found

    def _run(self, task: str, name: str, options: dict[str, Any], found: dict[str, Any]) -> None:
        found["versions"][task] = 3
        found["n-shot"][task] = 5 if options.get("num_fewshot") is None else options["num_fewshot"]
        if task in GROUPS:
            found["group_subtasks"][task] = GROUPS[task]
            for member in GROUPS[task]:
                self._run(member, name, options, found)
            leaves = [s for leaf in self._leaves(task) for s in found["samples"][leaf]]
            mean = sum(s["acc"] for s in leaves) / len(leaves)
            found["results"][task] = {"acc,none": mean, "acc_stderr,none": 0.02, "alias": task}
            return
        size = min(SIZES[task], options.get("limit") or 10**9)
        found["n-samples"][task] = {"original": SIZES[task], "effective": size}
        easy = random.Random(task)
        luck = random.Random(task + name)
        entry: dict[str, Any] = {"alias": task}
        samples = []
        # half of the answers flip by luck alone; quantized models lose some more
        right = [easy.random() < 0.8 for _ in range(size)]
        right = [r and not ("quantized" in name and luck.random() < 0.05) for r in right]
        for metric, filtering in METRICS.get(task, [("acc", "none")]):
            values = [float(r and filtering != "strict-match") for r in right]
            entry[f"{metric},{filtering}"] = sum(values) / size
            entry[f"{metric}_stderr,{filtering}"] = 0.03
            samples += [{"doc_id": i, "filter": filtering, metric: v} for i, v in enumerate(values)]
        if len({m for m, _ in METRICS.get(task, [])}) > 1:  # several metrics share a sample
            samples = [{"doc_id": i, "filter": "none", "acc": float(r), "acc_norm": float(r)}
                       for i, r in enumerate(right)]  # fmt: skip
        for sample in samples:
            sample["doc_hash"] = f"{task}{sample['doc_id']}{self.edition}"
        found["results"][task] = entry
        if options["log_samples"]:
            found["samples"][task] = samples

    def _leaves(self, task: str) -> list[str]:
        return [x for m in GROUPS.get(task, []) for x in self._leaves(m)] or [task]

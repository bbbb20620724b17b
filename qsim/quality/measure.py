"""Measure quality on one's own server: lm-eval against an OpenAI-compatible endpoint.

lm-eval's ``local-completions`` model is used, since multiple-choice tasks need log-probabilities of
prompts, which the chat endpoint does not give.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from qsim.bounds import Closed, Count, Line, Number, PlainObject
from qsim.documents import read_json
from qsim.errors import CalibrationError, MissingExtraError, ScenarioError
from qsim.files import write_text
from qsim.quality.stored import QUALITY_SCHEMA, read_quality
from qsim.quality.tasks import OWN, TASKS, Task, find_task, own_tasks

#: deepest nesting of lm-eval's groups
_NESTED = 8
RUN_SCHEMA = "qsim-quality-run/1"
#: largest file of scores, bytes: MMLU has 14,000 questions
_MAX_FILE = 64 << 20

_Percent = Annotated[float, Number(0.0, 100.0)]


@dataclass(frozen=True)
class TaskScore(Closed):
    """Score of one task.

    ``outcomes`` are the points of single questions by their key, 0 to 1; ``questions`` is a digest
    of the questions, where lm-eval says what they were.
    """

    task: Line
    lm_eval_task: Line
    score_pct: _Percent
    stderr_pct: _Percent
    metric: Line
    version: Line
    num_fewshot: Count | None
    items: Count
    outcomes: dict[Line, Annotated[float, Number(0.0, 1.0)]] | None = None
    questions: Line | None = None


@dataclass(frozen=True)
class Run(Closed):
    """One run of lm-eval."""

    served_model: Line
    base_url: Line
    date: Line
    harness_version: Line
    tasks: dict[Line, TaskScore]
    settings: PlainObject = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, whole or not at all; ``load_run`` reads it."""
        data = {"schema": RUN_SCHEMA, **asdict(self)}
        write_text(path, json.dumps(data, indent=1) + "\n")


def parse_tasks(text: str, include_path: str | os.PathLike[str] | None = None) -> list[str]:
    """Task ids from ``gsm8k,mmlu``, checked to be ones that lm-eval can run.

    Names of one's own task files in the folder ``include_path`` are tasks, too.

    Raises
    ------
    ScenarioError
        For an unknown task, one that lm-eval has not, one that comes twice, or none.
    """
    own = own_tasks(include_path) if include_path is not None else {}
    names = [p.strip() for p in text.split(",") if p.strip()]
    if not names:
        raise ScenarioError("--tasks is empty; write for example gsm8k,mmlu")
    for name in names:
        if ":" in name:
            raise ScenarioError(f"--tasks {name!r}: measuring takes names alone, without shares")
        if names.count(name) > 1:
            raise ScenarioError(f"--tasks names {name!r} twice; give each task once")
        if name in own:
            continue
        if name not in TASKS and include_path is not None:
            have = ", ".join(own) or "no task"
            raise ScenarioError(
                f"--tasks {name!r} is neither a task of qsim nor of --include-path "
                f"{os.fspath(include_path)!r}, which has {have}"
            )
        if not find_task(name).lm_eval:
            able = ", ".join(t.id for t in TASKS.values() if t.lm_eval)
            raise ScenarioError(f"lm-eval cannot run the task {name!r} as qsim knows it; "
                                f"it can run {able}")  # fmt: skip
    return names


def _asked(name: str) -> Task:
    """A task of qsim, or one of the user's own, whose first metric is the score."""
    return TASKS.get(name) or Task(name, OWN, 0, "a task of one's own", name, "")


def evaluate(
    base_url: str,
    model: str,
    tasks: Sequence[str],
    *,
    date: str,
    num_fewshot: int | None = None,
    limit: int | None = None,
    num_concurrent: int = 32,
    max_model_len: int = 8192,
    tokenizer: str | None = None,
    apply_chat_template: bool = False,
    confirm_run_unsafe_code: bool = False,
    include_path: str | os.PathLike[str] | None = None,
) -> Run:
    """Run lm-eval on ``tasks`` (qsim's ids) against a server.

    ``base_url`` is ``http://host:port``, with ``/v1`` or ``/v1/completions`` after it or not,
    ``model`` the name under which it serves the model, ``date`` today's, as it will be stored.
    Prompts longer than ``max_model_len`` lose their beginning. ``tokenizer`` is a Hugging Face name
    or folder, where it is not the served name; ``include_path`` the folder of one's own task files.

    Raises
    ------
    MissingExtraError
        Without lm-eval.
    CalibrationError
        If lm-eval fails or does not report what is needed.
    """
    try:
        import lm_eval
    except ImportError:
        raise MissingExtraError("lm-eval", "quality", "qsim calibrate quality") from None
    arguments: dict[str, Any] = {
        "model": model,
        "base_url": completions_url(base_url),
        "num_concurrent": num_concurrent,
        "max_retries": 3,
        "max_length": max_model_len,  # lm-eval cuts prompts at 2048 tokens otherwise
        # token ids, so that the context of a log-probability ends where the tokenizer says
        "tokenized_requests": True,
        "tokenizer_backend": "huggingface",
        # a chat template writes the first token itself
        "add_bos_token": not apply_chat_template,
    }
    if tokenizer:
        arguments["tokenizer"] = tokenizer
    options: dict[str, Any] = {"num_fewshot": num_fewshot, "limit": limit}
    if apply_chat_template:
        options.update(apply_chat_template=True, fewshot_as_multiturn=True)
    if confirm_run_unsafe_code:
        options["confirm_run_unsafe_code"] = True
    if include_path is None:
        for task in tasks:
            find_task(task)
    try:
        if include_path is not None:
            from lm_eval.tasks import TaskManager

            options["task_manager"] = TaskManager(include_path=os.fspath(include_path))
        with redirect_stdout(sys.stderr):  # stdout is for the result
            results = lm_eval.simple_evaluate(
                model="local-completions",
                model_args=arguments,
                tasks=[_asked(t).lm_eval for t in tasks],
                log_samples=True,
                **options,
            )
    except ModuleNotFoundError as e:
        raise MissingExtraError(e.name or "lm-eval[api]", "quality", "lm-eval") from e
    except Exception as e:  # lm-eval raises whatever its tasks, data sets and HTTP client raise
        raise CalibrationError(
            f"lm-eval failed on {completions_url(base_url)}: {type(e).__name__}: {e}; check that "
            f"the server answers and serves {model!r}, and that the tasks' data can be loaded"
        ) from e
    options.pop("task_manager", None)
    version = str(getattr(lm_eval, "__version__", "") or _installed_version())
    scores = {t: _score(results, t) for t in tasks}
    return Run(model, base_url, date, version, scores, options)


def completions_url(base_url: str) -> str:
    """The completions endpoint of a server given in any of the usual ways.

    Raises
    ------
    ScenarioError
        If it does not begin with http:// or https://.
    """
    if not base_url.startswith(("http://", "https://")):
        raise ScenarioError(
            f"--base-url is {base_url!r}; must begin with http:// or https://, as in "
            "http://localhost:8000"
        )
    url = base_url.rstrip("/").removesuffix("/completions").removesuffix("/v1")
    return url + "/v1/completions"


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lm-eval")
    except PackageNotFoundError:
        return "unknown"


def _score(results: Mapping[str, Any], task: str) -> TaskScore:
    """Read one task out of lm-eval's results."""
    name, metric = _asked(task).lm_eval, _asked(task).metric
    entry = results.get("results", {}).get(name)
    if entry is None:
        raise CalibrationError(f"lm-eval reported nothing for its task {name!r}")
    metric = metric or _first_metric(results, name)
    if not isinstance(entry.get(metric), int | float):
        have = ", ".join(k for k, v in entry.items() if isinstance(v, int | float) and "," in k)
        raise CalibrationError(
            f"lm-eval reports no {metric!r} for {name!r}, but {have or 'no numbers'}: its version "
            "differs from the ones that qsim knows (0.4.8 and later)"
        )
    score = float(entry[metric])
    if not 0 <= score <= 1:
        raise CalibrationError(f"lm-eval's {metric} of {name} is {score}; expected 0 to 1")
    measure, _, filtering = metric.partition(",")
    outcomes = _outcomes(results, name, measure, filtering)
    items = len(outcomes) if outcomes else _items(results, name)
    stderr = entry.get(f"{measure}_stderr,{filtering}")
    if not isinstance(stderr, int | float) or math.isnan(stderr):
        stderr = math.sqrt(score * (1 - score) / max(items, 1))
    shots = results.get("n-shot", {}).get(name)
    return TaskScore(
        task,
        name,
        100 * score,
        100 * float(stderr),
        metric,
        str(results.get("versions", {}).get(name, "")),
        shots if isinstance(shots, int) else None,
        items,
        outcomes,
        _questions(results, name),
    )


def _first_metric(results: Mapping[str, Any], name: str) -> str:
    """The score of one's own task: the first metric of its file, with the first filter."""
    higher = results.get("higher_is_better", {}).get(name) or {}
    for key, value in results["results"][name].items():
        measure, comma, _ = key.partition(",")
        if comma and isinstance(value, int | float) and not measure.endswith("_stderr"):
            if higher.get(measure) is False:
                raise CalibrationError(
                    f"the first metric of the task {name!r} is {measure!r}, where lower is better: "
                    "a recovery is a share of what was right; put such a metric first"
                )
            return str(key)
    raise CalibrationError(f"lm-eval reports no metric that is a number for the task {name!r}")


def _questions(results: Mapping[str, Any], name: str) -> str | None:
    """A digest of a task's questions; None where lm-eval does not keep theirs."""
    found = {
        (leaf, str(sample.get("doc_id")), str(sample.get("doc_hash") or ""))
        for leaf in _leaves(results, name)
        for sample in results.get("samples", {}).get(leaf) or []
    }
    if not found or not all(digest for _, _, digest in found):
        return None
    return hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest()[:16]


def _leaves(results: Mapping[str, Any], name: str, depth: int = 0) -> list[str]:
    """The tasks of a group (lm-eval nests groups); the task itself if it is none."""
    members = results.get("group_subtasks", {}).get(name) or []
    if not members or depth > _NESTED:
        return [name]
    return [leaf for m in members for leaf in _leaves(results, m, depth + 1)]


def _items(results: Mapping[str, Any], name: str) -> int:
    counts = results.get("n-samples", {})
    return sum(int(counts.get(t, {}).get("effective", 0)) for t in _leaves(results, name))


def _outcomes(
    results: Mapping[str, Any], name: str, measure: str, filtering: str
) -> dict[str, float] | None:
    """Points of single questions; None if lm-eval did not keep them."""
    found: dict[str, float] = {}
    for leaf in _leaves(results, name):
        samples = results.get("samples", {}).get(leaf)
        if not samples:
            return None
        for sample in samples:
            if sample.get("filter", filtering) != filtering:
                continue
            value = sample.get(measure)
            if not isinstance(value, int | float):
                return None
            found[f"{leaf}/{sample.get('doc_id')}"] = float(value)
    return found or None


def load_run(path: str | os.PathLike[str], tasks: Sequence[str]) -> Run:
    """Read the scores of a baseline: a file of ``--save-scores``, or lm-eval's own results JSON.

    Raises
    ------
    ScenarioError
        If the file cannot be read or lacks one of ``tasks``.
    """
    from qsim.edge import build
    from qsim.quality.results import check_results

    where = f"baseline {os.fspath(path)!r}"
    data = read_json(path, most=_MAX_FILE)
    if isinstance(data, dict) and data.get("schema") == RUN_SCHEMA:
        rest = {k: v for k, v in data.items() if k != "schema"}
        run = build(Run, rest, where, ScenarioError)
    elif isinstance(data, dict) and "results" in data:
        check_results(data, where)
        present = [t for t in tasks if _asked(t).lm_eval in data["results"]]
        config = data.get("config") or {}
        run = Run(
            str(data.get("model_name") or config.get("model") or ""),
            "",
            str(data.get("date", "")),
            str(data.get("lm_eval_version", "unknown")),
            {t: _score(data, t) for t in present},
        )
    else:
        raise ScenarioError(
            f"{where} is neither a file of 'qsim calibrate quality --save-scores' nor lm-eval's "
            "results JSON"
        )
    missing = [t for t in tasks if t not in run.tasks]
    if missing:
        raise ScenarioError(f"{where} has no score for {', '.join(missing)}; measure it there, too")
    return run


def compare(run: Run, baseline: Run | None, method: str, source: str = "") -> dict[str, Any]:
    """``profile.quality`` from a run and the baseline's.

    The standard error of a recovery is that of a ratio estimator over the same questions where both
    runs kept the outcome of each (``paired``), else that of two independent runs, which is wider.

    Raises
    ------
    ScenarioError
        If the two runs are not comparable: another version, prompt, metric, number of questions or
        other questions of a task, or a baseline score of 0.
    """
    tasks: dict[str, Any] = {}
    for task, score in run.tasks.items():
        entry = {
            k: v
            for k, v in asdict(score).items()
            if k not in ("task", "outcomes") and not (k == "questions" and v is None)
        }
        if task not in TASKS:
            entry["family"] = OWN
        if baseline is not None:
            base = baseline.tasks[task]
            same = run.harness_version == baseline.harness_version  # versions may digest otherwise
            if same and score.questions and base.questions not in (None, score.questions):
                raise ScenarioError(
                    f"{task} is not comparable with its baseline: other questions here than there; "
                    "measure both with the same task file and data"
                )
            entry.update(_recovery(score, base))
        tasks[task] = entry
    quality: dict[str, Any] = {
        "schema": QUALITY_SCHEMA,
        "method": method,
        "served_model": run.served_model,
        "date": run.date,
        "harness": {"name": "lm-eval", "version": run.harness_version, **run.settings},
        "tasks": tasks,
    }
    if baseline is not None:
        quality["baseline"] = {
            "served_model": baseline.served_model,
            "date": baseline.date,
            "harness_version": baseline.harness_version,
            "source": source,
        }
    return read_quality(quality)


def _recovery(score: TaskScore, base: TaskScore) -> dict[str, Any]:
    for name in ("version", "num_fewshot", "metric", "items"):
        ours, theirs = getattr(score, name), getattr(base, name)
        if ours != theirs:
            raise ScenarioError(
                f"{score.task} is not comparable with its baseline: {name} is {ours!r} here and "
                f"{theirs!r} there; measure both the same way"
            )
    if base.score_pct <= 0:
        raise ScenarioError(f"the baseline's score on {score.task} is 0: there is no recovery")
    ratio = score.score_pct / base.score_pct
    paired = bool(
        score.outcomes and base.outcomes and score.outcomes.keys() == base.outcomes.keys()
    )
    if paired and score.outcomes and base.outcomes:
        n, mean = len(base.outcomes), base.score_pct / 100
        squares = sum((s - ratio * base.outcomes[k]) ** 2 for k, s in score.outcomes.items())
        stderr = math.sqrt(squares / max(n - 1, 1) / n) / mean
    else:
        parts = [x.stderr_pct / x.score_pct for x in (score, base) if x.score_pct > 0]
        stderr = ratio * math.hypot(*parts)
    # equal answers to all questions do not prove equality: half an answer remains in doubt
    floor = 0.5 / (max(base.items, 1) * base.score_pct / 100)
    return {
        "baseline_pct": base.score_pct,
        "baseline_stderr_pct": base.stderr_pct,
        "recovery_pct": 100 * ratio,
        "recovery_stderr_pct": 100 * max(stderr, floor),
        "paired": paired,
    }

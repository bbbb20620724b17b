"""Benchmarks that stand for kinds of work, and mixes of them.

A workload is described by a *mix*: shares of tasks, ``gsm8k:0.3,mmlu:0.7``. A task belongs to a
family (``maths``, ``code``, ...); a family's name in a mix stands for its tasks in equal shares.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qsim.checks import is_number
from qsim.errors import ScenarioError


@dataclass(frozen=True)
class Task:
    """One benchmark."""

    #: qsim's name.
    id: str
    #: Kind of work, one of :data:`FAMILIES`.
    family: str
    #: Number of questions: what the sampling error of a published score is worked out from. For an
    #: average over benchmarks the number of questions whose plain mean would be as precise.
    items: int
    #: One line for people.
    what: str
    #: The task's name in lm-eval, "" if ``qsim calibrate quality`` cannot run it.
    lm_eval: str = ""
    #: lm-eval's metric and filter that count as the score.
    metric: str = "acc,none"
    #: Names in the published tables.
    aliases: tuple[str, ...] = ()


FAMILIES: dict[str, str] = {
    "knowledge": "exam questions, facts, short reasoning",
    "maths": "word problems",
    "code": "short programs that are run against tests",
    "reasoning": "hard maths, science and contests, with long chains of thought",
    "chat": "following instructions, open questions",
    "commonsense": "everyday reasoning and reading",
    "long-context": "finding and using facts in long prompts",
    "overall": "averages over several benchmarks, published without their parts",
}

#: family of a task of one's own, which is in no published table, and how it may be named
OWN = "own"
OWN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_ALL = (
    Task("mmlu", "knowledge", 14042, "57 subjects, four choices", "mmlu",
         aliases=("mmlu_5shot", "mmlu_llama")),
    Task("mmlu-pro", "knowledge", 12032, "harder, ten choices", "mmlu_pro",
         "exact_match,custom-extract",
         ("mmlu_pro", "leaderboard_mmlu_pro_5shot", "mmlu_pro_llama")),
    Task("ceval", "knowledge", 1346, "exams in Chinese", "ceval-valid",
         aliases=("c-eval", "ceval-valid")),
    Task("cmmlu", "knowledge", 11582, "67 subjects in Chinese", "cmmlu"),
    Task("triviaqa", "knowledge", 17944, "trivia", "triviaqa", "exact_match,remove_whitespace"),
    Task("gsm8k", "maths", 1319, "school maths in words", "gsm8k", "exact_match,flexible-extract",
         ("gsm8k_5shot", "gsm8k_5shot_flexible", "gsm8k_5shot_strict", "gsm8k_strict",
          "gsm8k_llama")),
    Task("math", "maths", 5000, "competition maths", "minerva_math", "math_verify,none"),
    Task("aime", "reasoning", 30, "olympiad qualifier", "aime25", "exact_match,none",
         ("aime2025",)),
    Task("humaneval", "code", 164, "Python functions", "humaneval", "pass@1,create_test",
         ("humaneval_pass1",)),
    Task("humaneval-plus", "code", 164, "the same with more tests", "humaneval_plus",
         "pass@1,create_test", ("humaneval_plus_pass1",)),
    Task("mbpp", "code", 500, "short Python programs", "mbpp", "pass_at_1,none"),
    Task("livecodebench", "reasoning", 175, "contest problems", aliases=("lcbcodegeneration",)),
    Task("gpqa", "reasoning", 198, "graduate science (diamond)", "gpqa_diamond_cot_zeroshot",
         "exact_match,flexible-extract"),
    Task("bbh", "knowledge", 6511, "BIG-bench hard", "bbh", "exact_match,get-answer"),
    Task("musr", "knowledge", 756, "murder mysteries and the like", "leaderboard_musr",
         "acc_norm,none"),
    Task("reasoning-avg", "reasoning", 223, "mean of AIME 2024, MATH-500 and GPQA diamond",
         aliases=("reasoning_avg(AIME24,MATH500,GPQA-D)",)),
    Task("ifeval", "chat", 541, "instructions that can be checked", "ifeval",
         "prompt_level_strict_acc,none",
         ("ifeval_strict_prompt", "leaderboard_ifeval_prompt_level_strict_acc")),
    Task("arena-hard", "chat", 500, "open questions, judged by a model", aliases=("arena_hard",)),
    Task("arc-c", "commonsense", 1172, "school science, hard part", "arc_challenge",
         "acc_norm,none", ("arc_challenge", "arc_challenge_25shot", "arc_c", "arc-c")),
    Task("arc-e", "commonsense", 2376, "school science, easy part", "arc_easy", "acc_norm,none",
         ("arc_easy", "arc_e", "arc-e")),
    Task("hellaswag", "commonsense", 10042, "how a scene goes on", "hellaswag", "acc_norm,none",
         ("hellaswag_10shot", "hella")),
    Task("winogrande", "commonsense", 1267, "who is meant", "winogrande",
         aliases=("winogrande_5shot", "winog", "wino")),
    Task("truthfulqa", "commonsense", 817, "common errors", "truthfulqa_mc2",
         aliases=("truthfulqa_mc1", "truthfulqa_mc2", "truthfulqa_0shot", "tfq", "truth")),
    Task("boolq", "commonsense", 3270, "yes or no about a text", "boolq"),
    Task("piqa", "commonsense", 1838, "everyday physics", "piqa", "acc_norm,none"),
    Task("openbookqa", "commonsense", 500, "school science with facts", "openbookqa",
         "acc_norm,none", ("obqa",)),
    Task("rte", "commonsense", 277, "does it follow", "rte"),
    Task("lambada", "commonsense", 5153, "the last word of a passage", "lambada_openai",
         aliases=("lambada_openai", "lamb")),
    Task("race-middle", "commonsense", 1436, "reading, middle school"),
    Task("race-high", "commonsense", 3498, "reading, high school"),
    Task("ruler", "long-context", 6500, "needles and counting in long prompts"),
    Task("mrcr", "long-context", 500, "telling alike requests apart in long chats"),
    Task("multi-needle", "long-context", 180, "several needles in one long prompt"),
    Task("openllm-v1", "overall", 9470, "Open LLM Leaderboard 1, mean of six",
         aliases=("openllm_v1_avg",)),
    Task("openllm-v2", "overall", 7200, "Open LLM Leaderboard 2, mean of six",
         aliases=("openllm_v2_avg",)),
)  # fmt: skip

TASKS: dict[str, Task] = {t.id: t for t in _ALL}

#: one task of each of five kinds of work, in equal shares: used where no mix is given
DEFAULT_MIX = dict.fromkeys(("mmlu", "gsm8k", "humaneval", "ifeval", "arc-c"), 0.2)


def find_task(name: str) -> Task:
    """The task of a name.

    Raises
    ------
    ScenarioError
        If there is none; near names are given.
    """
    if name in TASKS:
        return TASKS[name]
    raise ScenarioError(f"task is {name!r}; {_known(name, list(TASKS))}")


def family_mix(family: str) -> dict[str, float]:
    """The tasks of a family in equal shares.

    Raises
    ------
    ScenarioError
        If there is no such family.
    """
    members = [t.id for t in _ALL if t.family == family]
    if not members:
        raise ScenarioError(f"task family is {family!r}; must be one of {', '.join(FAMILIES)}")
    return {t: 1 / len(members) for t in members}


def parse_mix(text: str) -> dict[str, float]:
    """Read ``task:share,task:share``; shares are scaled to a sum of 1, and may be left out.

    >>> parse_mix("gsm8k:3,mmlu:1")
    {'gsm8k': 0.75, 'mmlu': 0.25}
    >>> parse_mix("gsm8k,mmlu")
    {'gsm8k': 0.5, 'mmlu': 0.5}

    Raises
    ------
    ScenarioError
        For an unknown task (near ones are named), a share that is not a number > 0, a task that
        comes twice or an empty mix.
    """
    given: dict[str, float] = {}
    parts = [p.strip() for p in str(text).split(",")]
    if not any(parts):
        raise ScenarioError("--tasks is empty; write for example gsm8k:0.3,mmlu:0.7")
    for part in parts:
        name, colon, share = (p.strip() for p in part.partition(":"))
        if name in given:
            raise ScenarioError(f"--tasks names {name!r} twice; give each task once")
        try:
            given[name] = float(share) if colon else 1.0
        except ValueError:
            raise ScenarioError(
                f"--tasks: the share of {name!r} is {share!r}; must be a number > 0, "
                "as in gsm8k:0.3,mmlu:0.7"
            ) from None
    return normalise_mix(given)


#: shares of tasks before they are scaled to a sum of 1: their sums and ratios stay finite
LEAST_SHARE, MOST_SHARE = 1e-9, 1e9


def normalise_mix(shares: Mapping[str, float] | None) -> dict[str, float]:
    """Check a mix, put the tasks of families in their place, scale to a sum of 1.

    ``None`` stands for :data:`DEFAULT_MIX`.

    Raises
    ------
    ScenarioError
        As :func:`parse_mix`.
    """
    if shares is None:
        return dict(DEFAULT_MIX)
    if not shares:
        raise ScenarioError("the task mix is empty; name at least one task, as in {'mmlu': 1.0}")
    for name, share in shares.items():
        if not is_number(share) or not LEAST_SHARE <= share <= MOST_SHARE:
            raise ScenarioError(
                f"the share of task {name!r} is {share!r}; must be a number > 0, from "
                f"{LEAST_SHARE:g} to {MOST_SHARE:g}"
            )
    total = math.fsum(shares.values())
    mix: dict[str, float] = {}
    for name, share in shares.items():
        if name not in TASKS and name not in FAMILIES:
            raise ScenarioError(f"task is {name!r}; {_known(name, [*TASKS, *FAMILIES])}")
        for task, part in (family_mix(name) if name in FAMILIES else {name: 1.0}).items():
            mix[task] = mix.get(task, 0.0) + share / total * part
    return mix


def _known(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name.lower().replace("_", "-"), names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}? 'qsim quality --list-tasks' lists all"
    return f"must be one of {', '.join(names)}"


#: lm-eval's own key at the beginning of a line; its files hold tags (``!function``) and includes
#: that only it can read
_KEY = re.compile(
    r"""^(?:task|group):[ \t]*(["']?)([^"'#\[{\s][^"'#]*?)\1[ \t]*(?:#.*)?$""", re.MULTILINE
)
#: task files that are looked at, and the largest of them, bytes
_MOST_FILES, _MOST_BYTES = 10_000, 1 << 20


def own_tasks(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Names of the tasks and groups in a folder, with the file of each.

    Raises
    ------
    ScenarioError
        If it is no folder, or a name is one that cannot be stored or given to ``--tasks``.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ScenarioError(
            f"--include-path {os.fspath(folder)!r} is no folder; give the one that holds the task "
            "files (*.yaml)"
        )
    found: dict[str, Path] = {}
    for i, path in enumerate(sorted(root.rglob("*.yaml"))):
        if i >= _MOST_FILES or path.stat().st_size > _MOST_BYTES:
            raise ScenarioError(f"--include-path {os.fspath(folder)!r} holds more than task files")
        for match in _KEY.finditer(path.read_text("utf-8", errors="replace")):
            name = match.group(2).strip()
            if not OWN_NAME.fullmatch(name):
                raise ScenarioError(
                    f"{path}: task {name!r}: must be of letters, digits, '-', '_' and '.', at most "
                    "64, and begin with a letter or digit"
                )
            if name in TASKS or any(name == t.lm_eval for t in TASKS.values()):
                raise ScenarioError(
                    f"{path}: {name!r} is the name of a public task, whose published numbers it "
                    "would be compared with; give yours another name"
                )
            found[name] = path
    return found

"""What is tried: each command with good inputs, of which something is then changed."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import re
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import click
import yaml

from qsim.profiles.schema import Profile
from tests.fuzz.mutate import OPTION_VALUES, OPTION_WORDS, mutate

__all__ = ["Case", "command_at", "draw", "plain", "seeds"]

#: a file of a command line, as in ``--pool profile={profile.json}``
_FILE = re.compile(r"\{([a-z0-9_./+-]+)\}")


@dataclass(frozen=True)
class Case:
    """A command line, and the files that it is given in its folder."""

    argv: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    note: str = ""

    def to_json(self) -> str:
        """As a corpus file; texts as such, other bytes in base 64."""
        files: dict[str, Any] = {}
        for name, data in self.files.items():
            try:
                files[name] = {"text": data.decode("utf-8")}
            except UnicodeDecodeError:
                files[name] = {"base64": base64.b64encode(data).decode()}
        return json.dumps({"note": self.note, "argv": self.argv, "files": files}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Case:
        """Read a corpus file."""
        data = json.loads(text)
        files = {
            name: base64.b64decode(f["base64"]) if "base64" in f else f["text"].encode()
            for name, f in data["files"].items()
        }
        return cls(data["argv"], files, data.get("note", ""))


#: good command lines. A word in braces is a file of :func:`seeds`; --jobs 1: no other processes
COMMANDS: list[str] = [
    "simulate {trace.csv} --profile {profile.json}",
    "simulate {trace.csv} --profile {profile.json} --replicas 2 --slo ttft:p99:500 "
    "--json out/a.json",
    "simulate {mooncake.jsonl} --profile {profile.json} --router prefix-affinity",
    "simulate {trace.csv} --profile {profile.json} --concurrency 3 --think-time 0.5",
    "simulate {trace.csv} --profile {profile.json} --concurrency 2 --text-prompts",
    "simulate {trace.csv} --profile {profile.json} --requests out/r.csv --steps out/s.jsonl",
    "simulate {trace.csv} --profile {profile.json} --stream",
    "simulate {trace.csv} --profile {profile.json} --autoscale requests=2,min=0,max=3,up-window=0 "
    "--start-s 5 --export kubernetes=out/k8s.yaml",
    "simulate --scenario {simulate.yaml}",
    "simulate {chat.yaml}",
    "simulate {chat.yaml} --set fleet.pools.other.replicas=2 --set slos=[ttft:p99:500]",
    "simulate {chat.json} --save-scenario out/s.yaml",
    "plan {chat.yaml} --jobs 1",
    "tune {chat.yaml} --jobs 1",
    'sweep {chat.yaml} --jobs 1 --set fleet.pools=[{"profile":"profile.json"}]',
    "schema",
    "plan {trace.csv} --profile {profile.json} --slo ttft:p99:9000 --no-headroom --jobs 1",
    "plan {trace.csv} --profile {profile.json} --slo ttft:p99:9000 --no-headroom --jobs 1 "
    "--prices {prices.csv} --region DEU --export vllm --max-replicas 4",
    "plan {trace.csv} --profile {profile.json} --slo ttft:p99:9000 --no-headroom --jobs 1 "
    "--export kubernetes",
    "plan {trace.csv} --profile {profile.json} --slo ttft:p99:9000 --jobs 1 --replications 2 "
    "--bottlenecks --max-replicas 3",
    "plan {trace.csv} --profile {profile.json} --slo ttft:p99:9000 --no-headroom --jobs 1 "
    "--survive 1 --max-replicas 4 --replications 0",
    "plan {trace.csv} --profile {profile.json} --slo ttft:p99:9000 --no-headroom --jobs 1 "
    "--stock h200_sxm=2 --replications 0",
    "plan --scenario {plan.yaml} --jobs 1",
    "plan {trace.csv} --profile {profile.json} --slo ttft:p99:9000 --no-headroom --jobs 1 "
    "--text-prompts --replications 0",
    "capacity {trace.csv} --gpus h200_sxm=1 --profile {profile.json} --slo ttft:p50:9000 --jobs 1 "
    "--users --think-time 0.5",
    "capacity {capacity.yaml} --jobs 1",
    "curve {capacity.yaml} --jobs 1 --set traffic.think_time_s=",
    "capacity {trace.csv} --gpus h200_sxm=2 --profile {profile.json} --slo ttft:p50:9000 --jobs 1 "
    "--precision 0.3",
    "curve {trace.csv} --profile {profile.json} --slo ttft:p50:9000 --jobs 1 --rates 1,5 "
    "--csv out/c.csv",
    "tune {trace.csv} --profile {profile.json} --objective energy --slo ttft:p99:9000 --trials 3 "
    "--batch 2 --max-replicas 2 --jobs 1",
    "tune {trace.csv} --profile {profile.json} --objective energy --trials 3 --batch 2 "
    "--max-replicas 2 --jobs 1 --search beside=none --search beside_replicas=1:2 "
    "--stock h200_sxm=2",
    "tune {trace.csv} --profile {profile.json} --objective energy --trials 2 --batch 2 "
    "--max-replicas 2 --jobs 1 --study {study.journal} --resume",
    "tune {trace.csv} --profile {profile.json} --objective cost --trials 2 --batch 2 "
    "--constraint gpus<=2 --pick knee --jobs 1 --max-replicas 2",
    "sweep {trace.csv} --profile {profile.json} --grid max_num_seqs=2,4 --jobs 1",
    "sweep {trace.csv} --profile {profile.json} --grid text_prompts=true,false --jobs 1",
    "sweep {trace.csv} --pool profile={profile.json},replicas=2 --pool profile={profile.json} "
    "--grid fleet.pools.1.replicas=1,2 --jobs 1",
    "sweep {trace.csv} --profile {profile.json} --grid seed=0:3 --lhs 2 --jobs 1 --out out/s.csv",
    "study --profile {profile.json} --task code --level application --jobs 1 --out out/study",
    "study {study.yaml} --set seed=2 --jobs 1 --out out/study",
    "schedule {hours.csv} --profile {profile.json} --slo ttft:p99:9000 --max-replicas 2 --jobs 1",
    "schedule {hours.csv} --profile {profile.json} --slo ttft:p99:9000 --max-replicas 2 --jobs 1 "
    "--carbon-series {carbon.csv} --objective carbon --export csv",
    "traces info {trace.csv}",
    "traces info {trace.csv} --json",
    "traces info {azure.csv}",
    "traces info {burstgpt.csv}",
    "traces info {mooncake.jsonl}",
    "traces info {bench.json}",
    "traces info {guidellm.json}",
    "traces info {aiperf.jsonl}",
    "traces info {sglang.jsonl}",
    "traces info {openai.jsonl}",
    "traces info {vidur.csv}",
    "traces info {semicolon.csv}",
    "traces info {array.json}",
    "traces info {sessions.jsonl}",
    "traces info {trace.parquet}",
    "simulate {sessions.jsonl} --profile {profile.json} --replicas 2",
    "traces info {own.csv} --columns arrival=when,prompt=in,output=out",
    "traces info {clients.csv}:model=deepseek-r1",
    "traces info azure-conv-2023:duration=20,rate=2",
    "traces info mooncake-conversation:requests=20",
    "simulate burstgpt:requests=20,rate=2 --profile {profile.json}",
    "traces convert {trace.csv} out/t.csv",
    "traces convert {mooncake.jsonl} out/t.jsonl",
    "traces synth azure-conv-2023 out/s.csv --rate 2 --duration 20",
    "traces synth out/s.csv --arrivals gamma --cv 2 --rate 2 --requests 20 --prompt-tokens 100 "
    "--output-tokens lognormal:50,1",
    "traces synth out/s.csv --arrivals diurnal --rate 0.01 --duration 90000 "
    "--rate-profile {rate.csv}",
    "profiles show {profile.json}",
    "profiles show {profile.json} --json",
    "profiles show h200_sxm/llama-3.1-8b/fp8-w8a8",
    "profiles",
    "quality llama-3.1-8b --tasks gsm8k:0.3,mmlu:0.7",
    "quality toy-1b --profile {profile.json}",
    "prices",
    "methods --model {config/config.json}",
    "methods --gpu h100_sxm",
    "calibrate run --model {config/config.json} --dummy-weights --gpu-type h200_sxm --gpus 0 "
    "--methods bf16 --dry-run --out out",
    "calibrate table {rec/server.json} {rec/phases.json} {rec/steps.csv.gz} {rec/requests.csv.gz} "
    "{rec/power.csv.gz}",
    "calibrate fit {rec/server.json} {rec/phases.json} {rec/steps.csv.gz} {rec/requests.csv.gz} "
    "{rec/power.csv.gz} --no-validation --out out",
    "calibrate validate {rec/server.json} {rec/phases.json} {rec/steps.csv.gz} "
    "{rec/requests.csv.gz} {rec/power.csv.gz} --profile {profile.json}",
    "calibrate host --against {host.json} --seconds 0.1",
    "calibrate adapt --telemetry {range.json} --profile {profile.json} --out out/a.json --jobs 1",
    "@replay {replay.json}",
    "@baseline {baseline.json}",
    "@results {results.json}",
]
#: options that a mutation leaves alone: they start processes, servers or wait
LEFT_ALONE = {
    "jobs", "dask", "help", "version", "serve_command", "base_url", "baseline_url", "seconds",
    "prometheus_url", "watch_s", "serve",
}  # fmt: skip


def command_at(argv: list[str]) -> tuple[click.Command, int]:
    """The command that a line names, and how many words that took."""
    from qsim.cli import main

    command: click.Command = main
    at = 0
    context = click.Context(main)
    while isinstance(command, click.Group) and at < len(argv):
        following = command.get_command(context, argv[at])
        if following is None:
            break
        command = following
        at += 1
    return command, at


@cache
def _options(line: str) -> tuple[click.Option, ...]:
    if line.startswith("@"):
        return ()
    command, _ = command_at(line.split())
    return tuple(
        p for p in command.params if isinstance(p, click.Option) and p.name not in LEFT_ALONE
    )


def _value(rng: random.Random, option: click.Option) -> str:
    name = max(option.opts, key=len).lstrip("-")
    words = [v for part, values in OPTION_WORDS.items() if part in name for v in values]
    if words and rng.random() < 0.6:
        return rng.choice(words)
    if rng.random() < 0.25 and option.default not in (None, ()):
        return str(option.default)
    return rng.choice(OPTION_VALUES)


def plain(line: str) -> Case:
    """One of :data:`COMMANDS` as it is."""
    words = line.split()
    good = seeds()
    names = [n for w in words for n in _FILE.findall(w)]
    if any(n.endswith(".yaml") or n == "chat.json" for n in names):
        names += ["trace.csv", "profile.json"]
    return Case(_argv(words), {n: good[n] for n in names})


def draw(rng: random.Random, line: str | None = None) -> Case:
    """A case: a good command line of which a file, options or both were changed."""
    if line is None:
        line = rng.choices(COMMANDS, [_weight(c) for c in COMMANDS])[0]
    words = line.split()
    files = dict(plain(line).files)
    options = _options(line)
    how = rng.random()
    notes = []
    if files and (how < 0.6 or not options):
        name = rng.choice(sorted(files))
        files[name] = _mutated(rng, name, files[name])
        notes.append(name)
    argv = _argv(words)
    if options and how > 0.5:
        for _ in range(rng.choice((1, 1, 2, 3))):
            option = rng.choice(options)
            flag = rng.choice([*option.opts, *option.secondary_opts])
            given = argv.index(flag) if flag in argv else None
            if option.is_flag:
                if given is None:
                    argv.append(flag)
            else:
                value = _value(rng, option)
                if given is not None and not option.multiple:
                    argv[given + 1] = value
                else:
                    argv += [flag, value]
            notes.append(flag)
    elif not files and not notes and len(argv) > 1:
        at = rng.randrange(1, len(argv))
        argv[at] = rng.choice(OPTION_VALUES) if rng.random() < 0.5 else _edited(rng, argv[at])
        notes.append(f"word {at}")
    _little_work(argv)
    argv[1:] = [_inside(word) for word in argv[1:]]
    return Case(argv, files, f"{words[0]}: {', '.join(notes)}")


def _inside(word: str) -> str:
    """A path that was made absolute is relative again: to write there is what was asked for."""
    return word.lstrip("/") if word.startswith("/out") else word


def _little_work(argv: list[str]) -> None:
    """No more runs than 20: a thousand take their time, which is no fault."""
    for flag in {"--trials", "--startup", "--replications", "--lhs", "--machines"} & set(argv):
        at = argv.index(flag) + 1
        with contextlib.suppress(IndexError, ValueError):
            if int(argv[at]) > 20 and len(argv[at]) < 12:
                argv[at] = "20"


def _weight(line: str) -> float:
    """How often a command is drawn: seldom where a good run takes seconds."""
    command, _, rest = line.partition(" ")
    if rest.startswith(("fit", "validate")) or command == "quality":
        return 0.1
    return {"schedule": 0.15, "tune": 0.5, "calibrate": 0.5}.get(command, 1.0)


def _edited(rng: random.Random, word: str) -> str:
    at = rng.randrange(len(word) + 1)
    return (
        word[:at]
        + rng.choice(["", ":", ",", "=", "9" * 30, "nan", "-", "\x1b", "/", "é"])
        + (word[at + rng.randrange(3) :])
    )


def _mutated(rng: random.Random, name: str, data: bytes) -> bytes:
    if not name.endswith(".gz"):
        return mutate(rng, name, data)
    import gzip

    if rng.random() < 0.2:
        return mutate(rng, name, data)
    inner = mutate(rng, name.removesuffix(".gz"), gzip.decompress(data))
    return gzip.compress(inner, 1, mtime=0)


def _argv(words: list[str]) -> list[str]:
    argv: list[str] = []
    for word in words:
        if not word.startswith("{"):
            argv.append(_FILE.sub(r"\1", word))
            continue
        name, _, behind = word[1:].partition("}")
        if behind:
            argv.append(name + behind)
            continue
        if "/" in name and not name.endswith("config.json"):
            name = name.partition("/")[0]
        if name not in argv:
            argv.append(name)
    return argv


#: a scenario of all sections
CHAT = """traffic:
  trace: trace.csv
  speed: 2
  growth: 1.5
fleet:
  router: random
  pools:
  - name: one
    profile: profile.json
    replicas: 2
    engine: {max_num_seqs: 8, enable_prefix_caching: false}
  - name: other
    profile: profile.json
    weight: 2
    engine: {max_num_seqs: 8, enable_prefix_caching: false}
    lifecycle: {start_s: 10}
slos: ['ttft:p99:9000']
accounts: {prices: {h200_sxm: 2.5}, region: DEU, tasks: 'gsm8k:0.3,mmlu:0.7'}
seed: 1
plan: {profiles: [profile.json], headroom: false, max_replicas: 3, replications: 0}
tune:
  profiles: [profile.json]
  objectives: [energy]
  trials: 2
  batch: 2
  max_replicas: 2
  fix: {router: random}
schedule: {window: 1min, policies: []}
sweep:
  over: {max_num_seqs: [2, 4], seed: '0:1'}
"""
STUDY = """traffic: {trace: trace.csv}
study: {profiles: [profile.json], levels: [workload]}
"""


def _telemetry(profile: Profile) -> str:
    """Metrics of 70 s of a small server."""
    import numpy as np

    from qsim.profiles.factors import Factors
    from qsim.traces.trace import Trace
    from tests.calibrate.adapt.served import answer, served

    i = np.arange(420)
    trace = Trace(arrival_s=i * 0.2, prompt_tokens=i % 90 + 30, output_tokens=i % 20 + 2)
    return answer(served(trace, profile, Factors(launch=1.5), step_s=10.0))


@lru_cache(maxsize=1)
def seeds() -> dict[str, bytes]:
    """The good files, by name."""
    from tests.calibrate.synthetic import SERVER, write_recording
    from tests.make_profile import make_profile
    from tests.traces.test_formats import AZURE_2023, BURSTGPT, MOONCAKE, VLLM_BENCH
    from tests.traces.test_servegen import TABLE

    profile = make_profile()
    data = profile.to_dict()
    data["fit_error"] = {
        "unit": "percent", "worst_mean": 2.5, "worst_p99": 7.0, "worst_median": None,
        "phases": {"val": {"rec--a": {"mean_ttft_ms": 1.0, "energy_j": -2.0}}},
    }  # fmt: skip
    data["measured_range"] = {"decode_rows": [1, 512], "step_tokens": [1, 8192],
                              "decode_context_tokens": [0, 400000], "decode_steps": 5}  # fmt: skip
    data["identity"]["vllm_args"] = ["--dtype", "bfloat16"]
    data["latency"]["graph_sizes"] = [1, 2, 4, 8]
    rows = [(0.0, 200, 20), (0.0, 1500, 30), (0.4, 90, 1), (1.1, 700, 25), (1.15, 30, 5)]
    trace = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
        f"{a},{p},{o}\n" for a, p, o in rows
    )
    hours = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
        f"{t * 720},{100 + t},5\n" for t in range(11)
    )
    found: dict[str, Any] = {
        "profile.json": json.dumps(data),
        "host.json": json.dumps(
            {"schema": "qsim-host/1", "step_ms": 0.1, "low_ms": 0.09, "high_ms": 0.12,
             "rounds": 80, "cpu": "a CPU, 4 CPUs", "python": "3.11.7"}
        ),
        "range.json": _telemetry(profile),
        "trace.csv": trace,
        "hours.csv": hours,
        "azure.csv": AZURE_2023,
        "burstgpt.csv": BURSTGPT,
        "mooncake.jsonl": MOONCAKE,
        "bench.json": VLLM_BENCH,
        "clients.csv": TABLE,
        "guidellm.json": json.dumps({"metadata": {"version": 2}, "benchmarks": [
            {"config": {}, "requests": {"successful": [
                {"request_start_time": 1700000000.0 + t, "prompt_tokens": 256, "output_tokens": 64}
                for t in range(3)], "incomplete": [], "errored": []}}]}),
        "aiperf.jsonl": "".join(json.dumps({
            "metadata": {"request_start_ns": 1700000000000000000 + t * 10**9,
                         "benchmark_phase": "profiling", "was_cancelled": False},
            "metrics": {"input_sequence_length": {"value": 256, "unit": "tokens"},
                        "output_sequence_length": {"value": 64, "unit": "tokens"}}}) + "\n"
            for t in range(3)),
        "sglang.jsonl": json.dumps({
            "backend": "sglang", "dataset_name": "random", "request_rate": 4.0, "completed": 3,
            "duration": 1.2, "input_lens": [100, 200, 300], "output_lens": [10, 20, 30],
            "ttfts": [0.05, 0.06, 0.07], "errors": ["", "", ""]}) + "\n",
        "openai.jsonl": "".join(json.dumps({
            "created": 1700000000 + t, "model": "m",
            "usage": {"prompt_tokens": 100 + t, "completion_tokens": 20}}) + "\n"
            for t in range(4)),
        "vidur.csv": "arrived_at,num_prefill_tokens,num_decode_tokens\n0,100,20\n1.5,200,3\n",
        "semicolon.csv": "Arrival_s;Prompt_tokens;Output_tokens\n0,5;100;10\n1,25;20;3\n",
        "own.csv": "when,in,out,note\n0.0,100,10,a\n1.5,20,3,b\n",
        "array.json": json.dumps([
            {"arrival_s": t / 2, "prompt_tokens": 100 + t, "output_tokens": 5} for t in range(3)]),
        "sessions.jsonl":
        '{"session_id": 1, "timestamp": 0, "input_length": 9, "output_length": 1}\n'
        '{"session_id": 1, "delay": 1500, "input_length": 19, "output_length": 2}\n'
        '{"session_id": 2, "timestamp": 700, "input_length": 9, "output_length": 1}\n',
        "trace.parquet": _parquet(),
        "rate.csv": "t_s,rate_rps\n" + "".join(f"{3600 * h},{h + 1}\n" for h in range(24)),
        "prices.csv": "gpu,usd_per_hour\nh200_sxm,2.5\nh100_sxm,2\n",
        "carbon.csv": "hour,gco2e_per_kwh\n" + "".join(f"{h},{300 + h}\n" for h in range(24)),
        "simulate.yaml": "trace: trace.csv\nprofile: profile.json\nreplicas: 2\nseed: 1\n"
        "slo: [ttft:p99:500]\nmax_num_seqs: 8\nrouter: random\ntoo_long: error\n",
        "chat.yaml": CHAT,
        "study.yaml": STUDY,
        "capacity.yaml": "traffic: {trace: trace.csv, think_time_s: 1}\nslos: ['ttft:p50:9000']\n"
        "capacity: {profiles: [profile.json], gpus: {h200_sxm: 1}, users: true, precision: 0.3}\n"
        "curve: {profiles: [profile.json], rates: [1, 5]}\n",
        "chat.json": json.dumps(yaml.safe_load(CHAT)),
        "plan.yaml": "trace: trace.csv\nprofile: [profile.json]\nslo:\n- ttft:p99:9000\n"
        "headroom: false\nprice: {h200_sxm: 2.5}\nmax_replicas: 4\n",
        "config/config.json": json.dumps({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", **SERVER["model_config"],
            "tie_word_embeddings": False, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
        }),
        "replay.json": json.dumps({
            "name": "a",
            "config": {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 256,
                       "block_size": 16, "num_gpu_blocks": 32, "enable_prefix_caching": True,
                       "async_scheduling": True, "long_prefill_token_threshold": 0,
                       "policy": "fcfs"},
            "arrivals": [{"turn": 0, "id": "a", "prompt_tokens": 40, "output_tokens": 5,
                          "hash_ids": [1, 2]},
                         {"turn": 3, "id": "b", "prompt_tokens": 70, "output_tokens": 3}],
        }),
        "baseline.json": json.dumps({
            "schema": "qsim-quality-run/1", "served_model": "m", "base_url": "http://x",
            "date": "2026-11-20", "harness_version": "0.4.9", "settings": {"limit": None},
            "tasks": {"gsm8k": {
                "task": "gsm8k", "lm_eval_task": "gsm8k", "score_pct": 76.5, "stderr_pct": 1.2,
                "metric": "exact_match,strict-match", "version": "3", "num_fewshot": 5,
                "items": 2, "outcomes": {"gsm8k/0": 1.0, "gsm8k/1": 0.0}}},
        }),
        "results.json": json.dumps({
            "results": {"gsm8k": {"exact_match,strict-match": 0.76, "exact_match,flexible-extract":
                                  0.77, "exact_match_stderr,strict-match": 0.01}},
            "versions": {"gsm8k": 3}, "n-shot": {"gsm8k": 5},
            "n-samples": {"gsm8k": {"original": 10, "effective": 10}},
            "group_subtasks": {"gsm8k": []}, "config": {"model": "m"}, "lm_eval_version": "0.4.9",
        }),
    }  # fmt: skip
    files = {k: v if isinstance(v, bytes) else str(v).encode() for k, v in found.items()}
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        folder = write_recording(Path(scratch) / "rec")
        for path in folder.iterdir():
            files[f"rec/{path.name}"] = path.read_bytes()
        files["study.journal"] = _study(Path(scratch), files)
    return files


def _parquet() -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    columns = {"arrival_s": [0.0, 1.5], "prompt_tokens": [600, 70], "output_tokens": [1, 2]}
    pq.write_table(pa.table({**columns, "hash_ids": [[1, 2], None]}), out)
    return out.getvalue()


def _study(scratch: Path, files: dict[str, bytes]) -> bytes:
    """The journal of a short tuning."""
    from click.testing import CliRunner

    from qsim.cli import main

    for name in ("trace.csv", "profile.json"):
        (scratch / name).write_bytes(files[name])
    journal = scratch / "study.journal"
    line = (
        f"tune {scratch}/trace.csv --profile {scratch}/profile.json --objective energy --trials 2 "
        f"--batch 2 --max-replicas 2 --jobs 1 --study {journal}"
    )
    CliRunner().invoke(main, line.split(), catch_exceptions=False)
    return journal.read_bytes()

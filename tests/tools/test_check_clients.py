"""tools/check_clients.py: the simulation itself, written as a benchmark writes it, has no error."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import qsim
from qsim.sim.results.result import SimulationResult
from qsim.traces import Trace
from qsim.traces.trace import Turns
from tests.calibrate.stub import script

ROOT = Path(__file__).parents[2]
PROFILE = "h200_sxm/llama-3.1-8b/fp8-w8a8"


@pytest.fixture(name="tool")
def check_clients() -> ModuleType:
    return script("check_clients")


def benchmark(run: SimulationResult, concurrency: int) -> dict[str, Any]:
    """A run as ``vllm bench serve --save-detailed`` writes it, in no order of starts."""
    order = np.random.default_rng(0).permutation(len(run.arrival_s))
    gaps = (run.e2el_ms - run.ttft_ms) / 1000 / np.maximum(run.output_tokens - 1, 1)
    start_s = 1000 + run.arrival_s + 1e-9 * np.arange(len(order))  # none at the same time
    itls = [[g] * (int(n) - 1) for g, n in zip(gaps, run.output_tokens, strict=True)]
    return {
        "date": "20261130-120000",
        "endpoint_type": "openai",
        "backend": "openai",
        "num_prompts": len(order),
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": concurrency,
        "completed": len(order),
        "failed": 0,
        "input_lens": run.prompt_tokens[order].tolist(),
        "output_lens": run.output_tokens[order].tolist(),
        "ttfts": (run.ttft_ms[order] / 1000).tolist(),
        "itls": [itls[i] for i in order],
        "start_times": start_s[order].tolist(),
        "errors": [""] * len(order),
    }


def errors(printed: str) -> dict[str, float]:
    """By figure, percent."""
    rows = [[c.strip() for c in line.split("|")] for line in printed.splitlines()[2:]]
    return {row[3]: float(row[6].rstrip("%")) for row in rows}


def test_a_closed_loop(
    tool: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(1)
    n = 60
    trace = Trace(np.zeros(n), rng.integers(400, 1200, n), rng.integers(50, 150, n))
    run = qsim.simulate(trace, PROFILE, concurrency=8, text_prompts=True)
    path = tmp_path / "closed8.json"
    path.write_text(json.dumps(benchmark(run, 8)))
    for more, most in (([], 0.05), (["--at-recorded-times"], 1.0)):
        monkeypatch.setattr(sys, "argv", ["check", str(path), "--profile", PROFILE, *more])
        assert tool.main() == 0
        found = errors(capsys.readouterr().out)
        assert list(found) == ["output tokens/s", "mean TTFT, ms", "mean TPOT, ms"]
        assert max(abs(e) for e in found.values()) <= most
    # half the clients: a figure is off
    path.write_text(json.dumps(benchmark(run, 4)))
    monkeypatch.setattr(sys, "argv", ["check", str(path), "--profile", PROFILE])
    assert tool.main() == 0
    assert errors(capsys.readouterr().out)["output tokens/s"] < -20


def test_sessions(
    tool: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(2)
    sessions, turns = 12, 4
    prompt, output = rng.integers(300, 900, sessions), rng.integers(20, 90, (turns, sessions))
    prompts = [prompt]
    for k in range(1, turns):
        prompts.append(prompts[-1] + output[k - 1] + rng.integers(10, 99, sessions))
    previous = np.concatenate([np.full(sessions, -1), np.arange(sessions * (turns - 1))])
    trace = Trace(
        np.repeat(np.arange(turns) * 1.0, sessions) + np.tile(np.arange(sessions) * 0.05, turns),
        np.concatenate(prompts),
        output.reshape(-1),
        turns=Turns(previous, np.where(previous >= 0, 0.3, 0.0)),
    )
    run = qsim.simulate(trace, PROFILE, options=qsim.EngineOptions(num_gpu_blocks_override=3000))
    at = {(int(p), int(o)): i for i, (p, o) in enumerate(
        zip(run.prompt_tokens, run.output_tokens, strict=True))}  # fmt: skip
    rows = []
    for i in range(len(trace)):
        j = at[int(trace.prompt_tokens[i]), int(trace.output_tokens[i])]
        rows.append({
            "session": i % sessions, "turn": i // sessions, "t": 5.0 + run.arrival_s[j],
            "ttft_s": run.ttft_ms[j] / 1000, "e2e_s": run.e2el_ms[j] / 1000,
            "prompt": int(run.prompt_tokens[j]), "output": int(run.output_tokens[j]),
            "usage": {"prompt_tokens_details": {"cached_tokens": int(run.cached_tokens[j])}},
        })  # fmt: skip
    path = tmp_path / "sessions.json"
    path.write_text(json.dumps(rows))
    (tmp_path / "info.json").write_text(json.dumps({"facts": {"num_gpu_blocks": 3000}}))
    monkeypatch.setattr(sys, "argv", ["check", str(path), "--profile", PROFILE])
    assert tool.main() == 0
    printed = capsys.readouterr().out
    found = errors(printed)
    assert "prefix hits, %" in found
    assert max(abs(e) for e in found.values()) <= 0.05
    # a server that found nothing of the answers
    for row in rows:
        row["usage"] = {"prompt_tokens_details": {"cached_tokens": 0}}
    path.write_text(json.dumps(rows))
    assert tool.main() == 0
    assert "nan" in capsys.readouterr().out


def test_what_is_neither(
    tool: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "x.json"
    for text in ("[]", "{}", "nothing", '[{"a": 1}]'):
        path.write_text(text)
        monkeypatch.setattr(sys, "argv", ["check", str(path), "--profile", PROFILE])
        assert tool.main() == 1
        assert "error: " in capsys.readouterr().err


MEASURED = ROOT / "measurements" / "clients" / "llama-3.1-8b--fp8-w8a8--v0.33--2026-11-30b"


@pytest.mark.parametrize("sessions", ["48", "48-again", "96", "160"])
def test_every_hit_is_that_of_the_real_server(tool: ModuleType, sessions: str) -> None:
    run = tool.read(MEASURED / f"sessions-{sessions}.json.gz")
    options = qsim.EngineOptions(num_gpu_blocks_override=60146)
    ours = qsim.simulate(run.trace, PROFILE, options=options)

    def hits(*columns: Any) -> list[tuple[int, ...]]:
        return sorted(zip(*(c.tolist() for c in columns), strict=True))

    measured = hits(run.trace.prompt_tokens, run.trace.output_tokens, run.cached_tokens)
    assert measured == hits(ours.prompt_tokens, ours.output_tokens, ours.cached_tokens)
    assert sum(row[2] for row in measured) > 0


def test_the_table_in_the_documentation(
    tool: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "fidelity.md").read_text()
    shown = text.partition("<!-- clients -->\n")[2].partition("<!-- end -->")[0].splitlines()[2:]
    profile = str(MEASURED / "adapted.profile.json")
    paths = [str(p) for p in sorted(MEASURED.glob("*.json.gz"))]
    monkeypatch.setattr(sys, "argv", ["check", *paths, "--profile", profile])
    assert tool.main() == 0
    printed = capsys.readouterr().out.splitlines()[2:]
    # without the last column, the errors of the shipped profile
    assert sorted(line.rsplit("|", 2)[0] + "|" for line in shown) == sorted(printed)


def test_loads_that_were_sent_twice(
    tool: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join((ROOT / "docs" / "fidelity.md").read_text().split())
    paths = sorted(str(p) for p in MEASURED.parent.glob("*/*.json.gz"))
    monkeypatch.setattr(sys, "argv", ["check", *paths, "--repeats"])
    assert tool.main() == 0
    *rows, _, said = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + 8
    assert said == "48 means and medians: half within 6.3%, 42% within 5%; of TTFT 12%"
    assert "42% are within 5%" in text
    assert "half within 6.3%; of those of TTFT 12%" in text
    once = str(MEASURED.with_name(MEASURED.name[:-1]) / "max-concurrency-8.json.gz")
    monkeypatch.setattr(sys, "argv", ["check", once, "--repeats"])
    assert tool.main() == 1
    assert "none of these loads has a second run" in capsys.readouterr().err


def test_the_fourth_server_in_the_documentation(
    tool: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = MEASURED.with_name("llama-3.1-8b--fp8-w8a8--v0.33--2026-12-01")
    names = {
        "32 clients, four processes": "max-concurrency-32-driven",
        "32 clients, `vllm bench serve`": "max-concurrency-32",
        "128 clients, four processes": "max-concurrency-128-driven",
        "128 clients, `vllm bench serve`": "max-concurrency-128",
        "160 sessions, four processes": "sessions-160",
    }
    text = (ROOT / "docs" / "fidelity.md").read_text()
    for said, name in names.items():
        profile = str(folder / "adapted.profile.json")
        given = [str(folder / f"{name}.json.gz"), "--profile", profile]
        monkeypatch.setattr(sys, "argv", ["check", *given])
        assert tool.main() == 0
        found = errors(capsys.readouterr().out)
        order = ("output tokens/s", "mean TPOT, ms", "mean TTFT, ms")
        assert f"| {said} | {' | '.join(f'{found[k]:+.1f}%' for k in order)} |" in text
    flat = " ".join(text.split())
    seen = []
    for size in ("0.8", "1.0", "1.2", "1.5"):
        given = ["--profile", str(folder / "adapted.profile.json"), "--api-times", size]
        monkeypatch.setattr(
            sys, "argv", ["check", str(folder / "max-concurrency-128-driven.json.gz"), *given]
        )
        assert tool.main() == 0
        rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
        seen.append([float(row[5].replace(",", "")) for row in rows[:2]])
    ttft = [f"{row[1]:.0f}" for row in seen]
    assert f"a mean TTFT of {', '.join(ttft[:3])} and {ttft[3]} ms" in flat
    tokens = [row[0] for row in seen]
    assert f"between {min(tokens):,.0f} and {max(tokens):,.0f} tokens/s" in flat
    info = json.loads((folder / "info.json").read_text())["loads"]
    for name, more_ms in (
        ("max-concurrency-128", 36),
        ("max-concurrency-128-driven", 21),
        ("max-concurrency-32", 8),
        ("max-concurrency-32-driven", 5),
    ):
        seen_ms = tool.read(folder / f"{name}.json.gz").figures()["mean TTFT, ms"]
        assert seen_ms - info[name]["mean_time_to_first_token_ms"] == pytest.approx(
            more_ms, abs=0.6
        )

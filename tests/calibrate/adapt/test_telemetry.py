"""Metrics of simulated servers whose machines are known: what they tell, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from click.testing import CliRunner

from qsim import load_trace
from qsim.calibrate.adapt import telemetry_fit
from qsim.calibrate.adapt.telemetry import Window, of_one_server, windows_of
from qsim.calibrate.adapt.telemetry_fit import adapt_to_windows, drawn_trace
from qsim.calibrate.adapt.watch import watch_server
from qsim.cli import main
from qsim.errors import CalibrationError
from qsim.profiles.factors import FACTORS, Factors, apply
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import Profile
from qsim.profiles.spread import shipped_spread
from qsim.sim.simulate import simulate
from qsim.traces.reconstruct.metrics import read_metrics
from qsim.traces.trace import Trace, merge
from tests.calibrate.adapt.served import answer, served

ID = "h200_sxm/llama-3.1-8b/fp8-w8a8"
PROFILE = load_profile(ID, "0.33")
#: slower in all that takes time than the mean of machines, as far as one standard deviation
PRIOR = shipped_spread().prior(PROFILE)
TRUE = Factors.of(np.exp(PRIOR.mean + 1.0 * np.sqrt(np.diag(PRIOR.covariance))))


def traffic(*rates: float, seconds: float = 60.0) -> Trace:
    """Stretches of different rates, one after another."""
    parts = []
    for i, rate in enumerate(rates):
        t = load_trace(f"azure-conv-2023:duration={seconds},rate={rate},seed={i}")
        parts.append(replace(t, arrival_s=t.arrival_s + i * seconds))
    return merge(parts)


@pytest.fixture(scope="module")
def told() -> list[dict[str, Any]]:
    """Metrics of a server on a slow machine, under three loads."""
    return served(traffic(5, 12, 18), PROFILE, TRUE)


def windows(result: list[dict[str, Any]], folder: Path) -> tuple[list[Window], list[str]]:
    path = folder / "range.json"
    path.write_text(answer(result))
    return windows_of(of_one_server(read_metrics([path]), {}, [0]))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the work."""
    monkeypatch.setattr(telemetry_fit, "_ROUNDS", 2)
    monkeypatch.setattr(telemetry_fit, "_LEFT_OUT_ROUNDS", 1)
    monkeypatch.setattr(telemetry_fit, "_DRAWS", 24)
    monkeypatch.setattr(telemetry_fit, "_REPLAYS", 2)


def test_windows_hold_what_the_server_did(told: list[dict[str, Any]], tmp_path: Path) -> None:
    found, lost = windows(told, tmp_path)
    assert lost == []
    assert len(found) >= 3
    trace = traffic(5, 12, 18)
    result = simulate(trace, apply(PROFILE, TRUE), frontend=False)
    done = result.arrival_s + result.e2el_ms / 1e3
    for w in found:
        begin, end = (float(x.replace(",", "")) for x in w.name.removesuffix(" s").split(" to "))
        mine = (done > begin) & (done <= end)
        assert w.finished == mine.sum()
        assert w.measured["first_ms"] == pytest.approx(result.ttft_ms[mine].mean(), rel=1e-6)
        assert w.prompt.mean == pytest.approx(trace.prompt_tokens[mine].mean(), rel=0.02)
        assert w.engine
        drawn = drawn_trace(w, 1.0, 0.0, 1)
        share = (drawn.arrival_s >= w.begin_s).sum()
        came = (trace.arrival_s >= begin) & (trace.arrival_s < end)
        assert share == pytest.approx(came.sum(), abs=3)
        assert drawn.prompt_tokens.mean() == pytest.approx(w.prompt.mean, rel=0.01)


def test_lengths_go_together_as_asked(told: list[dict[str, Any]], tmp_path: Path) -> None:
    window = windows(told, tmp_path)[0][-1]
    for rho in (-0.5, 0.0, 0.5):
        trace = drawn_trace(window, 1.0, rho, 3)
        ranks = [np.argsort(np.argsort(x)) for x in (trace.prompt_tokens, trace.output_tokens)]
        assert np.corrcoef(*ranks)[0, 1] == pytest.approx(rho, abs=0.12)
    gaps = [np.diff(drawn_trace(window, cv, 0.0, 3).arrival_s) for cv in (0.5, 2.0)]
    assert np.std(gaps[0]) / np.mean(gaps[0]) < 0.9 < 1.4 < np.std(gaps[1]) / np.mean(gaps[1])


@pytest.mark.usefixtures("quick")
def test_a_machine_is_found_again_and_foretells_other_traffic(
    told: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = adapt_to_windows(windows(told, tmp_path)[0], PROFILE)
    inside = sum(low <= getattr(TRUE, n) <= high for n, (_, low, high) in found.factors.items())
    assert inside >= len(FACTORS) - 2
    assert found.error_left_percent < 8
    assert found.profile.adapted is not None
    assert found.profile.adapted.profile == ID
    found.profile.save(tmp_path / "a.json")
    assert Profile.load(tmp_path / "a.json") == found.profile
    # traffic that it has not seen
    trace = load_trace("azure-code-2023:duration=60,rate=9,seed=5")
    true = simulate(trace, apply(PROFILE, TRUE))
    off, before = (
        abs(simulate(trace, p).e2el_ms.mean() / true.e2el_ms.mean() - 1)
        for p in (found.profile, PROFILE)
    )
    assert off < 0.08
    assert off < 0.75 * before


def test_without_engine_times_and_with_watts(tmp_path: Path) -> None:
    result = served(traffic(12), PROFILE, TRUE, power="watts", engine_times=False)
    found, lost = windows(result, tmp_path)
    assert not found[0].engine
    assert any("API server's" in text for text in lost)
    counted, _ = windows(served(traffic(12), PROFILE, TRUE), tmp_path)
    assert counted[0].power_sd == 0.0 < found[0].power_sd < 0.5
    off = np.log(found[0].measured["power_w"] / counted[0].measured["power_w"])
    assert abs(off) < 3 * found[0].power_sd
    found, lost = windows(served(traffic(12), PROFILE, TRUE, power=None), tmp_path)
    assert "power_w" not in found[0].measured
    assert any("no power of DCGM" in text for text in lost)


def test_a_prefix_cache_is_drawn_too(told: list[dict[str, Any]], tmp_path: Path) -> None:
    plain = windows(told, tmp_path)[0][-1]
    half = replace(plain, cached=0.5)
    trace = drawn_trace(half, 1.0, 0.0, 1)
    result = simulate(trace, PROFILE)
    assert result.cached_tokens.sum() / trace.prompt_tokens.sum() == pytest.approx(0.5, abs=0.05)


def run(*args: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["calibrate", "adapt", *map(str, args)])
    return done.exit_code, done.output


@pytest.mark.usefixtures("quick")
def test_the_command(told: list[dict[str, Any]], tmp_path: Path) -> None:
    path, out = tmp_path / "range.json", tmp_path / "mine.json"
    path.write_text(answer(told))
    code, text = run("--telemetry", path, "--profile", ID, "--out", out)
    assert code == 0, text
    assert "rank correlation of prompt and output" in " ".join(text.split())
    assert "0 to 45 s" in text or "0 to 60 s" in text
    assert Profile.load(out).adapted is not None


def changed(told: list[dict[str, Any]], **labels: str) -> list[dict[str, Any]]:
    return [{**s, "metric": s["metric"] | labels} for s in told]


def test_what_cannot_be_told_is_refused(told: list[dict[str, Any]], tmp_path: Path) -> None:
    path, out = tmp_path / "range.json", tmp_path / "mine.json"
    common = ("--telemetry", path, "--profile", ID, "--out", out)
    few = served(traffic(1, seconds=90), PROFILE, TRUE)
    own = [s for s in told if s["metric"]["__name__"].startswith("vllm:")]
    latency = "vllm:e2e_request_latency_seconds"
    cases = [
        (few, "not enough traffic to tell"),
        ([*told, *changed(own, instance="gpu2:8000")], "metrics of 2 servers"),
        ([*told, *changed(own, engine="1")], "metrics of 2 servers or engines"),
        (changed(told, cache_dtype="fp8_e4m3"), "KV cache is of type 'fp8_e4m3'"),
        (changed(told, num_gpu_blocks="9000"), "room for 144,000 tokens"),
        ([s for s in told if latency not in s["metric"]["__name__"]], f"no {latency}"),
        ([{**s, "values": s["values"][:2]} for s in told], "2 moments"),
    ]
    for result, message in cases:
        path.write_text(answer(result))
        code, text = run(*common)
        assert code == 4, text
        assert message in " ".join(text.split())
        assert not out.exists()
    path.write_text(answer([*told, *changed(own, instance="gpu2:8000")]))
    code, text = run(*common, "--label", "instance=gpu3:8000")
    assert (code, "no series of vLLM with instance=gpu3:8000" in text) == (4, True)


@pytest.mark.usefixtures("quick")
def test_speeds_of_another_server_are_refused(told: list[dict[str, Any]], tmp_path: Path) -> None:
    path, out = tmp_path / "range.json", tmp_path / "mine.json"
    path.write_text(answer([s for s in told if "cache_config" not in s["metric"]["__name__"]]))
    profile = "h200_sxm/llama-3.1-8b/bf16"
    code, text = run("--telemetry", path, "--profile", profile, "--out", out)
    assert code == 4, text
    assert f"this is not the server of {profile}" in " ".join(text.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "no server: give --base-url"),
        (("--telemetry", "a", "--prometheus-url", "http://x"), "come from one place"),
        (("--watch", "60"), "come from one place"),
        (("--telemetry", "a", "--base-url", "http://x:1"), "come from one place"),
        (("--telemetry", "a", "--label", "x"), "--label is 'x'"),
        (("--telemetry", "/no/such/file"), "no such file"),
        (("--telemetry", "a", "--gpus", "x"), "--gpus is 'x'"),
    ],
)
def test_wrong_options(args: tuple[str, ...], message: str, tmp_path: Path) -> None:
    code, text = run("--profile", ID, "--out", tmp_path / "o.json", *args)
    assert code in (1, 2, 3), text
    assert message.lower() in text.lower()


@contextmanager
def prometheus(vllm: str, dcgm: str) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query).get("query", [""])[0]
            asked.append(query)
            text = dcgm if "DCGM" in query else vllm
            known = parts.path == "/api/v1/query_range"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write((text if known else "not here").encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_prometheus_is_asked(told: list[dict[str, Any]], tmp_path: Path) -> None:
    from qsim.calibrate.adapt.watch import ask_prometheus

    names = [s["metric"]["__name__"] for s in told]
    vllm = [s for s, n in zip(told, names, strict=True) if n.startswith("vllm:")]
    gpu = [s for s, n in zip(told, names, strict=True) if n.startswith("DCGM")]
    with prometheus(answer(vllm), answer(gpu)) as (url, asked):
        metrics = ask_prometheus(url, 3600.0, 15.0, labels={"job": "vllm"})
        assert len(metrics.series) == len(told)
        assert 'job="vllm"' in asked[0]
        assert "DCGM" in asked[1]
        code, text = run("--prometheus-url", f"{url}/wrong", "--profile", ID, "--out",
                         tmp_path / "o.json")  # fmt: skip
        assert (code, "HTTP 404" in text) == (4, True)
    code, text = run("--prometheus-url", "http://127.0.0.1:9", "--profile", ID, "--out",
                     tmp_path / "o.json")  # fmt: skip
    assert (code, "does not answer" in text) == (4, True)


def test_a_server_is_watched(told: list[dict[str, Any]]) -> None:
    """Scrapes are the moments of a range; power is put beside them."""
    moments = iter(range(2, 9))
    answers: dict[int, str] = {}
    for k in range(9):
        lines = []
        for s in told:
            name = s["metric"]["__name__"]
            if name.startswith("vllm:"):
                labels = ",".join(f'{a}="{b}"' for a, b in s["metric"].items() if a != "__name__")
                lines.append(f"{name}{{{labels}}} {s['values'][k][1]}")
        answers[k] = "\n".join(lines) + "\n"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[next(moments)].encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/metrics"
    try:
        metrics = watch_server(url, 0.3, 0.1, joules=lambda: 5.0)
    finally:
        server.shutdown()
        server.server_close()
    assert metrics.scrapes == 4
    count = metrics.of("request_prompt_tokens_count")[0]
    assert [v for _, v in count.samples] == sorted(v for _, v in count.samples)
    assert len(count.samples) == 4
    assert metrics.of("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION")[0].samples[0][1] == 5000.0
    with pytest.raises(CalibrationError, match="does not answer"):
        watch_server(url, 0.2, 0.1)

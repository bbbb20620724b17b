"""Workloads from metrics and from a few numbers: what was told comes back, the rest is stated."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.cli import main
from qsim.errors import QsimError, TraceError
from qsim.traces import load_trace
from qsim.traces.reconstruct.histogram import (
    Histogram,
    lengths_of_histogram,
    lengths_of_mean_and_p95,
)
from qsim.traces.reconstruct.metrics import read_metrics
from qsim.traces.reconstruct.reconstruct import reconstruct_from_metrics, reconstruct_from_numbers
from qsim.traces.synth.synthesize import Span

#: as vLLM's build_1_2_5_buckets makes them for a model of 32,768 tokens
EDGES = [m * 10**e for e in range(5) for m in (1, 2, 5)][:-1]
LABELS = 'engine="{engine}",model_name="{model}"'


def scrape(
    prompts: list[int], outputs: list[int], *, engine: int = 0, model: str = "m", running: int = 0,
    time_ms: int | None = None, hits: float = 0.0,
) -> str:  # fmt: skip
    """A scrape of /metrics, made by hand after those of a vLLM 0.33 server."""
    labels = LABELS.format(engine=engine, model=model)
    stamp = "" if time_ms is None else f" {time_ms}"
    lines = ["# HELP vllm:num_requests_running Number of requests in execution batches."]
    lines.append(f"vllm:num_requests_running{{{labels}}} {float(running)}{stamp}")
    for name, values in (("prompt", prompts), ("generation", outputs)):
        metric = f"vllm:request_{name}_tokens"
        for le in [*map(float, EDGES), float("inf")]:
            count = sum(v <= le for v in values)
            text = "+Inf" if le == float("inf") else repr(le)
            lines.append(
                f'{metric}_bucket{{engine="{engine}",le="{text}",model_name="{model}"}} '
                f"{float(count)}{stamp}"
            )
        lines.append(f"{metric}_count{{{labels}}} {float(len(values))}{stamp}")
        lines.append(f"{metric}_sum{{{labels}}} {float(sum(values)):e}{stamp}")
    lines.append(f"vllm:prefix_cache_queries_total{{{labels}}} {float(sum(prompts))}{stamp}")
    lines.append(f"vllm:prefix_cache_hits_total{{{labels}}} {hits}{stamp}")
    return "\n".join(lines) + "\n"


def answer(*scrapes: tuple[float, str]) -> str:
    """The same as the answer to a range query."""
    series: dict[str, dict[str, object]] = {}
    for time, text in scrapes:
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            key, value = line.rsplit(" ", 1)
            name, _, labels = key.rstrip("}").partition("{")
            pairs = [p.split("=") for p in labels.split(",")]
            metric = {"__name__": name, **{k: v.strip('"') for k, v in pairs}}
            found = series.setdefault(key, {"metric": metric, "values": []})
            found["values"].append([time, value])  # type: ignore[attr-defined]
    data = {"resultType": "matrix", "result": list(series.values())}
    return json.dumps({"status": "success", "data": data})


RNG = np.random.default_rng(7)
PROMPTS = RNG.integers(400, 1200, 2000).tolist()
OUTPUTS = RNG.integers(100, 300, 2000).tolist()


def test_one_scrape(tmp_path: Path) -> None:
    path = tmp_path / "metrics.txt"
    path.write_text(scrape(PROMPTS, OUTPUTS, hits=0.25 * sum(PROMPTS)))
    with pytest.raises(TraceError, match=r"since the server's start, .*give --seconds"):
        reconstruct_from_metrics([path])
    made = reconstruct_from_metrics([path], seconds=200.0)
    assert made.workload.profile.mean_rps == 10.0
    assert made.workload.lengths.prompt.mean == pytest.approx(np.mean(PROMPTS), rel=1e-3)
    assert made.workload.lengths.output.mean == pytest.approx(np.mean(OUTPUTS), rel=1e-3)
    assert made.notes[0].startswith("a reconstruction from metrics.txt: 2,000 requests in 200 s")
    assert any("Poisson arrivals at a constant rate" in text for text in made.notes)
    assert any("25% of the prompt tokens" in text for text in made.notes)
    trace = made.draw(1)
    assert trace.meta["format"] == "reconstruction"
    assert trace.meta["notes"] == list(made.notes)
    assert len(trace) == pytest.approx(2000, rel=0.1)
    many = replace(made, span=Span(requests=20_000)).draw(1)
    for seen, drawn in ((PROMPTS, many.prompt_tokens), (OUTPUTS, many.output_tokens)):
        assert np.mean(drawn) == pytest.approx(np.mean(seen), rel=0.01)
        assert np.median(drawn) == pytest.approx(np.median(seen), rel=0.15)
        for le in EDGES:
            assert np.mean(drawn <= le) == pytest.approx(np.mean(np.array(seen) <= le), abs=0.015)


def test_two_scrapes_of_two_engines(tmp_path: Path) -> None:
    before, after = tmp_path / "a.txt", tmp_path / "b.txt"
    before.write_text(scrape([9] * 50, [9] * 50, running=4))
    second = scrape([30] * 100, [40] * 100, engine=1, running=30)  # started in between
    after.write_text(scrape([9] * 50 + PROMPTS, [9] * 50 + OUTPUTS, running=4) + second)
    made = reconstruct_from_metrics([before, after], seconds=100.0)
    # those that came: 2,100 that finished, and 30 that are under way
    assert made.workload.profile.mean_rps == pytest.approx(21.3)
    mean = (sum(PROMPTS) + 3000) / 2100
    assert made.workload.lengths.prompt.mean == pytest.approx(mean, rel=1e-3)
    with pytest.raises(TraceError, match="goes down from 274 to 50"):
        reconstruct_from_metrics([after, before], seconds=100.0)
    before.write_text(scrape([9] * 50, [9] * 50) + second)
    after.write_text(scrape([9] * 60, [9] * 60))
    with pytest.raises(TraceError, match="is in the first scrape alone"):
        reconstruct_from_metrics([before, after], seconds=100.0)
    before.write_text(scrape([9] * 50, [9] * 50))
    after.write_text(scrape([9] * 40, [9] * 40))
    with pytest.raises(TraceError, match="goes down from 50 to 40: give the earlier scrape first"):
        reconstruct_from_metrics([before, after], seconds=100.0)
    with pytest.raises(TraceError, match="3 scrapes; give one, or the earlier and the later"):
        reconstruct_from_metrics([after] * 3, seconds=100.0)


def test_times_in_the_scrapes(tmp_path: Path) -> None:
    before, after = tmp_path / "a.txt", tmp_path / "b.txt"
    before.write_text(scrape([9] * 50, [9] * 50, time_ms=1_700_000_000_000))
    after.write_text(scrape([9] * 90, [9] * 90, time_ms=1_700_000_020_000))
    made = reconstruct_from_metrics([before, after])
    assert made.workload.profile.mean_rps == 2.0
    assert made.workload.duration_s == 20.0


def test_a_range_keeps_the_course_of_the_rate(tmp_path: Path) -> None:
    path = tmp_path / "range.json"
    path.write_text(
        answer(
            (100.0, scrape(PROMPTS[:10], OUTPUTS[:10])),
            (160.0, scrape(PROMPTS[:70], OUTPUTS[:70])),
            (220.0, scrape(PROMPTS[:670], OUTPUTS[:670])),
            (280.0, scrape(PROMPTS[:30], OUTPUTS[:30])),  # restarted
        )
    )
    made = reconstruct_from_metrics([path])
    assert made.workload.profile.rates_rps.tolist() == [1.0, 10.0, 0.5]
    assert made.workload.profile.edges_s.tolist() == [0.0, 60.0, 120.0, 180.0]
    assert "690 requests in 180 s, in 3 steps of 0.5 to 10 requests/s" in made.notes[0]
    assert any("within each step" in text for text in made.notes)
    scaled = reconstruct_from_metrics([path], rate_rps=7.0)
    assert scaled.workload.profile.mean_rps == pytest.approx(7.0)
    assert reconstruct_from_metrics([path], rate_rps=7.0).draw(3).duration_s < 180


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x 1\n", "no vllm:request_prompt_tokens"),
        ("vllm:request_prompt_tokens_count{ 1\n", "line 1: .* is not a metric with a number"),
        ("vllm:request_prompt_tokens_count -1\n", "line 1: .* is -1.0; must be >= 0"),
        ("vllm:request_prompt_tokens_count 5\n", "no vllm:request_prompt_tokens_bucket"),
        ('vllm:request_prompt_tokens_bucket{le="x"} 5\n', "without a label le that is a number"),
        (scrape([5], [5]) + scrape([5], [5], model="other"), "2 models; .*--model-name: m, other"),
        (scrape([], []), "no request in the histogram"),
        (scrape([5] * 9, [5] * 9).replace("tokens_sum", "tokens_sun"), None),
        (scrape([5] * 9, [5] * 9).replace("4.500000e+01", "9e9"), "is not that of the buckets"),
        (scrape([5] * 9, [5] * 9).replace('le="20.0",model_name="m"} 9', 'le="20.0"} 2'),
         "go down with le"),
        (scrape([5], [5]) * 2, "is there twice"),
        ('{"status": "error", "error": "bad query"}', "it says 'bad query'"),
        ('{"data": {"result": [{"metric": {}, "values": [[0, "1"]]}]}}', "as after rate"),
        ('{"data": {"result": [{"metric": {"__name__": "vllm:request_prompt_tokens_count"}, '
         '"values": [[0]]}]}}', "is not \\[time, value\\]"),
    ],
)  # fmt: skip
def test_metrics_that_do_not_tell(tmp_path: Path, text: str, message: str | None) -> None:
    path = tmp_path / "metrics.txt"
    path.write_text(text)
    if message is None:
        made = reconstruct_from_metrics([path], seconds=5.0)
        assert any("no sum in the metrics" in note for note in made.notes)
        return
    with pytest.raises(TraceError, match=message):
        reconstruct_from_metrics([path], seconds=5.0)


def test_a_model_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "metrics.txt"
    path.write_text(scrape([5] * 9, [5] * 9) + scrape([50] * 20, [5] * 20, model="other"))
    made = reconstruct_from_metrics([path], seconds=10.0, model_name="other")
    assert made.workload.profile.mean_rps == 2.0
    with pytest.raises(TraceError, match="'x'; must be one of m, other"):
        read_metrics([path], "x")


lengths = st.lists(st.integers(1, 20_000), min_size=1, max_size=60)


@given(lengths, st.booleans())
def test_counts_and_mean_of_any_histogram_come_back(values: list[int], endless: bool) -> None:
    edges = [*EDGES, float("inf")] if endless else EDGES
    below = [0, *edges]
    counts = [sum(a < v <= b for v in values) for a, b in pairwise(below)]
    table, _ = lengths_of_histogram("x", Histogram(tuple(edges), tuple(counts), sum(values)))
    assert table.mean == pytest.approx(np.mean(values), rel=0.03, abs=0.6)
    for le in EDGES:
        at = np.interp(np.log(le + 0.5), np.log(table.values), table.p)
        assert at == pytest.approx(np.mean(np.array(values) <= le), abs=1e-6)


@given(st.floats(20, 1e5), st.floats(1.001, 3.7))
def test_mean_and_p95_come_back(mean: float, ratio: float) -> None:
    table = lengths_of_mean_and_p95("x", mean, ratio * mean)
    assert table.mean == pytest.approx(mean, rel=0.02)
    assert table.at(np.array([0.95]))[0] == pytest.approx(ratio * mean, rel=1e-6)


@pytest.mark.parametrize(
    ("mean", "p95"), [(100, 99), (100, 400), (1, 3), (0, 5), (float("nan"), 5)]
)
def test_a_p95_that_no_log_normal_has(mean: float, p95: float) -> None:
    with pytest.raises(TraceError, match=r"prompt: "):
        lengths_of_mean_and_p95("prompt", mean, p95)


def test_from_numbers() -> None:
    made = reconstruct_from_numbers(
        rate_rps=5.0, prompt=(800, 2500), output=(200, 600), cv=2.0, correlation=0.5,
        span=Span(duration_s=20_000.0),
    )  # fmt: skip
    assert "p95 2500 tokens" in made.notes[0]
    assert "gaps of CV 2" in made.notes[1]
    assert "rank correlation of 0.5" in made.notes[1]
    trace = made.draw()
    assert len(trace) / trace.duration_s == pytest.approx(5.0, rel=0.05)
    assert trace.prompt_tokens.mean() == pytest.approx(800, rel=0.02)
    assert np.percentile(trace.prompt_tokens, 95) == pytest.approx(2500, rel=0.03)
    assert np.percentile(trace.output_tokens, 95) == pytest.approx(600, rel=0.03)
    constant = reconstruct_from_numbers(rate_rps=1.0, prompt=(9, 9), output=(3, 3)).draw()
    assert set(constant.prompt_tokens.tolist()) == {9}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.txt").write_text(scrape(PROMPTS, OUTPUTS))
    asked = ["traces", "reconstruct", "m.txt", "out.csv", "--seconds", "400", "--duration", "60"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.stderr
    assert "Note: a reconstruction from m.txt" in done.stderr
    assert "Note: assumed:" in done.stderr
    assert len(load_trace("out.csv")) == pytest.approx(300, rel=0.25)
    for wrong, message in (
        ([], "give OUT"),
        (["out.csv", "--rate", "5"], "without METRICS, give --rate, --prompt and --output"),
        (["m.txt", "out.csv", "--prompt", "5,6"], "--prompt is told by METRICS"),
        (["out.csv", "--rate", "5", "--prompt", "5", "--output", "5,6"], "must be MEAN,P95"),
        (["out.csv", "--rate", "-5", "--prompt", "5,6", "--output", "5,6"], "rate is -5.0"),
        (["missing.txt", "out.csv"], "missing.txt: cannot be opened"),
    ):
        done = CliRunner().invoke(main, ["traces", "reconstruct", *wrong])
        assert done.exit_code != 0
        assert message in done.stderr, done.stderr


@given(
    st.sampled_from([scrape([5, 900], [7, 3]), answer((0.0, scrape([5], [3])),
                                                      (9.0, scrape([5, 6], [3, 3])))]),
    st.lists(
        st.tuples(
            st.floats(0, 1),
            st.integers(0, 12),
            st.sampled_from([b"", b"-", b"nan", b"1e999", b'"', b"{", b"}", b"\n", b"\xff", b"0"]),
        ),
        max_size=4,
    ),
)  # fmt: skip
@settings(max_examples=150)
def test_damaged_metrics(
    tmp_path_factory: pytest.TempPathFactory, text: str, edits: list[tuple[float, int, bytes]]
) -> None:
    data = text.encode()
    for place, width, piece in edits:
        at = int(place * len(data))
        data = data[:at] + piece + data[at + width :]
    path = tmp_path_factory.mktemp("m") / "f.dat"
    path.write_bytes(data)
    try:
        made = reconstruct_from_metrics([path], seconds=10.0)
        trace = replace(made, span=Span(requests=5)).draw()
    except QsimError:
        return
    assert len(trace) == 5

"""ServeGen's client windows: drawn with a seed, at the stated rates and gap distributions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qsim.errors import TraceError
from qsim.traces import load_trace
from qsim.traces.formats.servegen import Window, client_gaps

SHARED = Path(__file__).resolve().parents[3] / "shared" / "traces"
TABLE = (
    "model,client,t_s,rate_rps,cv,pattern,shape,scale\n"
    "deepseek-r1,0,1200,2.0,1.0,Gamma,1.0,0.5\n"
    "deepseek-r1,0,1800,4.0,2.0,Gamma,0.25,1.0\n"
    "deepseek-r1,7,1800,1.0,0.6,Weibull,1.7,1.1\n"
    "mm-image,0,1200,9.0,1.0,,,\n"
)


def folder(tmp_path: Path, *, dataset: bool = True) -> Path:
    root = tmp_path / "m-small"
    root.mkdir()
    (root / "chunk-0-trace.csv").write_text("0,1.0,1.0,Gamma,1.0,1.0\n600,0.0,0.0,,0,0\n")
    (root / "chunk-3-trace.csv").write_text("0,0.5,1.0,,,\n600,0.5,1.2,Weibull,0.8,1.9\n")
    if dataset:
        for client, tokens in ((0, 11), (3, 33)):
            data = {
                "0": {
                    "input_tokens": f"{{{tokens}: 1.0}}",
                    "output_tokens": "{2: 0.5, 4: 0.5}",
                },
                "21600": {},
            }
            (root / f"chunk-{client}-dataset.json").write_text(json.dumps(data))
    return root


def table(tmp_path: Path) -> Path:
    path = tmp_path / "windows.csv"
    path.write_text(TABLE)
    return path


def test_a_table_gives_the_stated_number_of_requests(tmp_path: Path) -> None:
    trace = load_trace(f"{table(tmp_path)}:model=deepseek-r1")
    assert len(trace) == 600 * (2 + 4 + 1)
    assert trace.meta["format"] == "servegen"
    assert trace.arrival_s[0] >= 0
    assert trace.arrival_s[-1] < 1200
    first = (trace.arrival_s < 600).sum()
    assert first == 1200


def test_a_part_at_another_rate(tmp_path: Path) -> None:
    path = table(tmp_path)
    half = load_trace(f"{path}:model=deepseek-r1,start=600,duration=300")
    assert len(half) == pytest.approx(5 * 300, rel=0.1)
    slow = load_trace(f"{path}:model=deepseek-r1,rate=1")
    assert len(slow) == pytest.approx(1200, abs=3)
    assert len(load_trace(f"{path}:model=deepseek-r1,scale=0.5")) == pytest.approx(2100, abs=3)


def test_the_same_seed_gives_the_same_trace(tmp_path: Path) -> None:
    path = f"{table(tmp_path)}:model=deepseek-r1"
    one, two, other = (load_trace(path, seed=s) for s in (4, 4, 5))
    assert one.arrival_s.tobytes() == two.arrival_s.tobytes()
    assert one.prompt_tokens.tobytes() == two.prompt_tokens.tobytes()
    assert one.arrival_s.tobytes() != other.arrival_s.tobytes()


def test_a_folder_of_clients_uses_their_own_lengths(tmp_path: Path) -> None:
    trace = load_trace(folder(tmp_path))
    assert set(trace.prompt_tokens.tolist()) == {11, 33}
    assert set(trace.output_tokens.tolist()) == {2, 4}
    assert (trace.prompt_tokens == 11).sum() == 600
    assert (trace.prompt_tokens == 33).sum() == 600
    assert (trace.prompt_tokens[trace.arrival_s >= 600] == 33).all()


def test_one_client_file(tmp_path: Path) -> None:
    trace = load_trace(folder(tmp_path) / "chunk-3-trace.csv")
    assert set(trace.prompt_tokens.tolist()) == {33}
    assert len(trace) == 600


def test_lengths_must_come_from_somewhere(tmp_path: Path) -> None:
    root = folder(tmp_path, dataset=False)
    with pytest.raises(TraceError, match=r"client 0 has no chunk-0-dataset.json.*lengths=NAME"):
        load_trace(root)
    trace = load_trace(f"{root}:lengths=azure-code-2023")
    assert trace.prompt_tokens.max() <= 7437
    assert trace.meta["lengths"] == "table of azure-code-2023"
    with pytest.raises(TraceError, match="no length table for 'mm-image'"):
        load_trace(f"{table(tmp_path)}:model=mm-image")
    assert len(load_trace(f"{table(tmp_path)}:model=mm-image,lengths=m-small")) == 5400


@pytest.mark.parametrize(
    ("change", "params", "message"),
    [
        (("", ""), "", "windows of 2 models; choose one with model=NAME.*deepseek-r1, mm-image"),
        (("", ""), ":model=gpt", "model is 'gpt'; must be one of deepseek-r1"),
        (("4.0,2.0", "-4,2.0"), ":model=deepseek-r1", r"line 3, column 'rate_rps': '-4' is not"),
        (("Weibull", "Pareto"), ":model=deepseek-r1", "line 4, column 'pattern': 'Pareto' is not"),
        (("1.7", "0"), ":model=deepseek-r1", "line 4, column 'shape': '0' is not"),
        (("", ""), ":model=deepseek-r1,rate=0", "rate is '0'; must be a number"),
        (("", ""), ":model=deepseek-r1,start=9999", "no client sends anything"),
        (("", ""), ":model=deepseek-r1,scale=1e6", "more than 50000000"),
    ],
)
def test_bad_windows(tmp_path: Path, change: tuple[str, str], params: str, message: str) -> None:
    path = tmp_path / "w.csv"
    path.write_text(TABLE.replace(*change) if change[0] else TABLE)
    with pytest.raises(TraceError, match=message):
        load_trace(f"{path}{params}")


def test_a_malformed_dataset_names_window_and_column(tmp_path: Path) -> None:
    root = folder(tmp_path)
    bad = {"0": {"input_tokens": "{1: x}", "output_tokens": "{1: 1}"}}
    (root / "chunk-3-dataset.json").write_text(json.dumps(bad))
    with pytest.raises(TraceError, match=r"chunk-3-dataset.json, window 0, column 'input_tokens'"):
        load_trace(root)


@pytest.mark.parametrize(
    ("pattern", "shape", "cv"), [("Gamma", 0.25, 2.0), ("Weibull", 2.0, 0.5227), ("", 1.0, 1.0)]
)
def test_gaps_have_the_windows_distribution(pattern: str, shape: float, cv: float) -> None:
    window = Window("0", 0.0, 100.0, pattern, shape)
    arrival = client_gaps(window, 600.0, 1.0, np.random.default_rng(1))
    gaps = np.diff(arrival)
    assert len(arrival) == 60_000
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_a_shape_that_underflows_still_gives_the_requests() -> None:
    arrival = client_gaps(Window("0", 0, 1.0, "Gamma", 1e-9), 600, 1.0, np.random.default_rng(0))
    assert len(arrival) == 600
    assert np.isfinite(arrival).all()
    assert (arrival < 600).all()


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/traces is not there")
def test_the_published_windows_of_one_day() -> None:
    source = f"{SHARED / 'servegen_client_windows_24h.csv.gz'}:model=deepseek-r1,duration=7200"
    trace = load_trace(source)
    assert len(trace) == pytest.approx(16.0 * 7200, rel=0.5)
    # the summary of all clients: p50 900 in, 1014 out; the table's mean 1575.7 in, 2133.5 out
    assert trace.prompt_tokens.mean() == pytest.approx(1575.7, rel=0.1)
    assert trace.output_tokens.mean() == pytest.approx(2133.5, rel=0.1)

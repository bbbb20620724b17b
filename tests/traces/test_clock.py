"""Clocks, units, block sizes and silent windows: what files leave to be understood."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.errors import TraceError
from qsim.traces import load_trace, trace_statistics
from qsim.traces.prefix_ids import fitting_block_tokens

HEADER = "arrival_s,prompt_tokens,output_tokens\n"


def write(tmp_path: Path, text: str, name: str = "a.dat") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("stamps", "unit"),
    [
        (("1700000000.5", "1700000001.5"), None),
        (("1700000000", "1700000001"), None),
        (("1700000000500", "1700000001500"), "ms"),
        (("1700000000500000", "1700000001500000"), "us"),
        (("1700000000500000000", "1700000001500000000"), "ns"),
    ],
)
def test_unix_times_count_from_the_first_arrival(
    tmp_path: Path, stamps: tuple[str, str], unit: str | None
) -> None:
    path = write(tmp_path, HEADER + "".join(f"{s},100,10\n" for s in stamps))
    trace = load_trace(path)
    assert trace.arrival_s.tolist() == [0.0, 1.0]
    notes = trace.meta.get("notes", [])
    assert (unit is None) == (notes == [])
    assert all(f"Unix time in {unit}" in note for note in notes)


def test_mooncake_takes_unix_times_too(tmp_path: Path) -> None:
    for stamps in ((1700000000.5, 1700000002.5), (1700000000500, 1700000002500)):
        rows = [{"timestamp": s, "input_length": 5, "output_length": 1} for s in stamps]
        path = write(tmp_path, "".join(json.dumps(r) + "\n" for r in rows))
        assert load_trace(path).arrival_s.tolist() == [0.0, 2.0]


def test_times_from_a_start_of_their_own_stay_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "3.25,1,1\n9000000,1,1\n")
    assert load_trace(path).arrival_s.tolist() == [3.25, 9_000_000.0]


def test_a_simulation_counts_from_the_first_arrival(tmp_path: Path) -> None:
    outputs = []
    for first in (0, 1_700_000_000):
        path = write(tmp_path, HEADER + f"{first}.5,100,10\n{first + 1}.5,100,10\n")
        run = CliRunner().invoke(
            main, ["simulate", str(path), "--profile", "h200_sxm/llama-3.1-8b/fp8-w8a8"]
        )
        assert run.exit_code == 0, run.stderr
        outputs.append(run.stdout)
    assert outputs[0] == outputs[1]


def mooncake(block: int, lengths: list[int]) -> str:
    rows = [
        {"timestamp": i * 1000, "input_length": n, "output_length": 2,
         "hash_ids": [0, *range(100 * i, 100 * i + -(-n // block) - 1)]}
        for i, n in enumerate(lengths)
    ]  # fmt: skip
    return "".join(json.dumps(r) + "\n" for r in rows)


@pytest.mark.parametrize("block", [16, 64, 100, 512, 1024])
def test_the_block_size_is_told_by_the_lengths(tmp_path: Path, block: int) -> None:
    path = write(tmp_path, mooncake(block, [655, 3000, 7001, 2049]))
    trace = load_trace(path)
    assert trace.hash_ids is not None
    assert trace.hash_ids.block_tokens == block
    assert bool(trace.meta.get("notes")) == (block != 512)


def test_too_many_ids_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, mooncake(16, [655, 655]))
    with pytest.raises(TraceError, match=r"line 1, column 'hash_ids': 41 ids for 655 .*:block=N"):
        load_trace(f"{path}:block=512")
    odd = '{"timestamp": 0, "input_length": %d, "output_length": 2, "hash_ids": [%s]}\n'
    path = write(tmp_path, odd % (655, "1,2") + odd % (1000, "1,2,3,4,5,6,7") + odd % (99, "1"))
    with pytest.raises(TraceError, match="more than one for each 512"):
        load_trace(path)


def test_a_later_block_that_contradicts_is_an_error() -> None:
    assert fitting_block_tokens([512, 1024], [1, 2], 512) == 512
    assert fitting_block_tokens([20], [2], 512) == 16
    assert fitting_block_tokens([2000, 2000], [1, 2], 512) == 512  # ids of the shared part alone
    assert fitting_block_tokens([100, 100], [7, 9], 512) is None


def test_seconds_that_are_read_as_milliseconds_are_questioned(tmp_path: Path) -> None:
    rows = [{"timestamp": t, "input_length": 5, "output_length": 1} for t in (0, 1.5, 2.75, 4.0)]
    path = write(tmp_path, "".join(json.dumps(r) + "\n" for r in rows))
    trace = load_trace(path)
    assert "1,000 requests/s" in trace.meta["notes"][0]
    assert ":unit=s" in trace.meta["notes"][0]
    right = load_trace(f"{path}:unit=s")
    assert right.arrival_s.tolist() == [0.0, 1.5, 2.75, 4.0]
    assert "notes" not in right.meta
    run = CliRunner().invoke(main, ["traces", "info", str(path)])
    assert "look like seconds" in run.stderr


@pytest.mark.parametrize("written", [True, False])
def test_silent_windows_are_silent(tmp_path: Path, written: bool) -> None:
    silent = {"input_tokens": "{}", "output_tokens": "{}"}
    busy = {"input_tokens": "{100:0.5,200:0.5}", "output_tokens": "{10:1.0}"}
    sets = {"0": busy, "600": silent, "1200": busy, "1800": silent}
    rows = [
        "0,0.5,1.1,Gamma,0.8,2.5",
        "600,nan,nan,,nan,nan",
        "1200,0.5,1.1,Gamma,0.8,2.5",
        "1800,0,0,,0,0",
    ]
    if not written:
        rows = [r for r in rows if ",0.5," in r]
    (tmp_path / "chunk-0-trace.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "chunk-0-dataset.json").write_text(json.dumps(sets))
    trace = load_trace(tmp_path)
    assert len(trace) == 600
    at = trace.arrival_s
    assert not ((at >= 600) & (at < 1200)).any()
    assert at.max() < 1800
    assert set(np.unique(trace.prompt_tokens)) == {100, 200}
    assert bool(trace.meta.get("notes")) == (not written)
    if not written:
        assert len(load_trace(f"{tmp_path}:window=1200")) == 1200


def test_totals_do_not_overflow(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "0,1000000000,1\n" * 12)
    assert trace_statistics(load_trace(path))["prompt_tokens_total"] == 12_000_000_000

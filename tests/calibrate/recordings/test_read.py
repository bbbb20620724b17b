"""Reading recordings: the columns, and an error for everything that is wrong."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsim.calibrate.recordings.data import Recording
from qsim.calibrate.recordings.read import read_recording
from qsim.errors import RecordingError


def test_reads_every_column(recorded: Recording) -> None:
    assert recorded.name == "toy--bf16"
    assert recorded.server.num_gpu_blocks == 40000
    assert [p.label for p in recorded.phases][:3] == ["warm", "dec1", "dec4"]
    s = recorded.steps
    assert s.has_gpu_spans
    assert (np.diff(s.schedule_s) >= 0).all()
    for k in (0, len(s) // 2, len(s) - 1):
        chunks = s.chunks[k]
        assert s.num_chunks[k] == len(chunks)
        assert s.prefill_tokens[k] == sum(n for n, _ in chunks)
        # the definition: query i of a chunk sees what was computed before, and i keys of its own
        assert s.pairs[k] == sum(c + i for n, c in chunks for i in range(1, n + 1))
    # every prompt token is prefilled once, every output token but the first is a decode
    assert s.prefill_tokens.sum() == recorded.requests.prompt_tokens.sum()
    assert s.decodes.sum() == (recorded.requests.output_tokens - 1).sum()


def test_how_phases_are_used(recorded: Recording) -> None:
    use = {p.label: p.use for p in recorded.phases}
    assert use["warm"] == "skip"
    assert use["dec1"] == use["mixlo"] == "fit"
    assert use["val_mix"] == "holdout"


def test_a_phase_may_say_how_it_is_used(copy: Path) -> None:
    phases = json.loads((copy / "phases.json").read_text())
    phases[1] |= {"use": "holdout", "clients": 8}
    (copy / "phases.json").write_text(json.dumps(phases))
    first, second = read_recording(copy).phases[:2]
    assert (second.use, second.clients) == ("holdout", 8)
    assert first.clients is None


def test_without_gpu_spans(plain_folder: Path) -> None:
    s = read_recording(plain_folder).steps
    assert not s.has_gpu_spans
    assert np.isnan(s.gpu_ms).all()
    assert np.isnan(s.launch_start_s).all()


def test_columns_beyond_the_known_ones_are_ignored(copy: Path) -> None:
    _edit(copy / "power.csv.gz", lambda rows: [r + (",more" if i == 0 else ",1")
                                               for i, r in enumerate(rows)])  # fmt: skip
    assert len(read_recording(copy).power.t_s) > 10


def test_unknown_phase(recorded: Recording) -> None:
    with pytest.raises(RecordingError, match=r"no phase 'dec9'; it has: warm, dec1"):
        recorded.phase_index("dec9")


@pytest.fixture
def copy(recording_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recording_folder, tmp_path / "rec"))


def _edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    rows = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress(("\n".join(change(rows)) + "\n").encode()))


def _cell(file: str, line: int, column: str, value: str) -> Callable[[Path], None]:
    def change(rows: list[str]) -> list[str]:
        cells = rows[line - 1].split(",")
        cells[rows[0].split(",").index(column)] = value
        rows[line - 1] = ",".join(cells)
        return rows

    return lambda folder: _edit(folder / file, change)


def _drop_column(file: str, column: str) -> Callable[[Path], None]:
    def change(rows: list[str]) -> list[str]:
        i = rows[0].split(",").index(column)
        return [",".join(c for j, c in enumerate(r.split(",")) if j != i) for r in rows]

    return lambda folder: _edit(folder / file, change)


def _set(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = json.loads((folder / file).read_text())
        change(data)
        (folder / file).write_text(json.dumps(data))

    return apply


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "steps.csv.gz").unlink(), r"cannot read .*steps\.csv\.gz: no such file"),
        (lambda f: (f / "server.json").unlink(), r"cannot read .*server\.json"),
        (lambda f: (f / "phases.json").write_text("[{"), r"phases\.json: not JSON"),
        (lambda f: (f / "phases.json").write_text("{}"), r"must hold a list of phases"),
        (lambda f: (f / "steps.csv.gz").write_bytes(b""), r"steps\.csv\.gz: the file is empty"),
        (lambda f: (f / "steps.csv.gz").write_bytes(b"x"), r"cannot read .*steps\.csv\.gz"),
        (_drop_column("steps.csv.gz", "gpu_ms"), r"steps.*line 1: column 'gpu_ms' is missing"),
        (_cell("steps.csv.gz", 7, "update_s", "soon"),
         r"steps\.csv\.gz: line 7, column 'update_s': 'soon' is not a number"),
        (_cell("steps.csv.gz", 7, "update_s", "nan"), r"line 7.*'nan' is not a finite number"),
        (_cell("steps.csv.gz", 7, "update_s", ""), r"line 7, column 'update_s': '' is not"),
        (_cell("steps.csv.gz", 9, "update_s", "0.0"), r"line 9, column 'update_s'.*before"),
        (_cell("steps.csv.gz", 5, "num_decode", "1.5"), r"line 5.*'1\.5' is not a whole number"),
        (_cell("steps.csv.gz", 5, "num_decode", "-1"), r"line 5.*'-1' must be >= 0"),
        (_cell("steps.csv.gz", 5, "phase", "dec0"), r"line 5, column 'phase': 'dec0' is not in"),
        (_cell("steps.csv.gz", 2, "prefill_chunks", "5+0"), r"line 2.*new@computed"),
        (_cell("steps.csv.gz", 2, "num_prefill_tokens", "1"), r"line 2.*not the sum"),
        (_cell("requests.csv.gz", 3, "prompt_tokens", "0"), r"requests.*line 3.*must be >= 1"),
        (_cell("requests.csv.gz", 3, "first_token_s", "-9"), r"line 3.*is before sent_s"),
        (_cell("requests.csv.gz", 3, "last_token_s", "0"), r"line 3.*is before first_token_s"),
        (_cell("power.csv.gz", 4, "energy_mj", "inf"), r"power.*line 4.*not a finite number"),
        (lambda f: _edit(f / "power.csv.gz", lambda rows: rows[:2]), r"1 readings; .*at least 2"),
        (lambda f: _edit(f / "steps.csv.gz", lambda rows: [*rows, "a,b"]), r"2 fields; the header"),
        (_set("server.json", lambda d: d.update(num_gpu_blocks="many")),
         r"num_gpu_blocks is 'many'; must be a whole number"),
        (_set("server.json", lambda d: d.update(num_gpu_blocks=1)), r"num_gpu_blocks is 1; must"),
        (_set("server.json", lambda d: d.pop("gpu")), r"server\.json: gpu is missing"),
        (_set("server.json", lambda d: d.update(model="../../../escaped/m")),
         r"server\.json: model is '\.\./\.\./\.\./escaped/m'; must be a name"),
        (_set("server.json", lambda d: d.update(method="/abs/m")),
         r"method is '/abs/m'; must be a"),
        (_set("server.json", lambda d: d.update(gpu="x\ntouch PWNED #")), r"gpu is 'x\\ntouch"),
        (_set("server.json", lambda d: d.update(tensor_parallel=0)), r"tensor_parallel is 0; must"),
        (_set("server.json", lambda d: d.update(num_gpu_blocks=10**18)), r"num_gpu_blocks is 1000"),
        (_set("server.json", lambda d: d.update(power_limit_w="a")), r"power_limit_w is 'a'; must"),
        (_set("server.json", lambda d: d.update(graph_sizes=[1e300])),
         r"graph_sizes\[0\] is 1e\+300"),
        (_set("server.json", lambda d: d.update(x=[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]])),
         "deeper than"),
        (_set("phases.json", lambda d: d[2].update(end_s=1e300)), r"end_s is 1e\+300; must be a"),
        (_set("phases.json", lambda d: d[2].update(label="a\nb")),
         r"label is 'a\\nb'; must be a text"),
        (_cell("steps.csv.gz", 5, "running", "9" * 30), r"line 5.*must be <= 9007199254740992"),
        (_cell("steps.csv.gz", 5, "running", "9" * 5000), r"line 5.*is not a whole number"),
        (_cell("steps.csv.gz", 5, "running", "1_0"), r"line 5.*'1_0' is not a whole number"),
        (_cell("steps.csv.gz", 5, "gpu_ms", "1e300"), r"line 5.*must be within 1e\+18"),
        (_cell("steps.csv.gz", 2, "prefill_chunks", "9" * 20 + "@0"), r"line 2.*new@computed"),
        (_cell("requests.csv.gz", 3, "request_id", "x" * 200_000),
         r"field larger than field limit"),
        (_cell("requests.csv.gz", 3, "request_id", "x" * 2_000_000),
         r"line 3 is longer than 1 MiB"),
        (_set("phases.json", lambda d: d[2].update(use="maybe")),
         r"phase 2 \(dec4\): use is 'maybe'; must be one of fit, holdout, skip"),
        (_set("phases.json", lambda d: d[2].update(label="dec1")), r"'dec1' was used before"),
        (_set("phases.json", lambda d: d[2].update(end_s=-5)), r"end_s is -5.0; must be >= "),
    ],
)  # fmt: skip
def test_errors_name_file_line_column_and_value(
    copy: Path, break_it: Callable[[Path], None], message: str
) -> None:
    break_it(copy)
    with pytest.raises(RecordingError, match=message):
        read_recording(copy)


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"nowhere' is not a folder: give the folder"):
        read_recording(tmp_path / "nowhere")


def test_a_recording_that_was_cut_off_says_what_it_lacks() -> None:
    from qsim.calibrate.fit.fitting import fit
    from qsim.errors import CalibrationError

    own = Path(__file__).parents[3] / "recordings"
    read = read_recording(own / "llama-3.1-8b--fp8-w8a8--h100--2026-11-25")
    assert len(read.requests) == 0
    assert len(read.steps) > 5000
    assert read.server.gpu == "h100_sxm"
    with pytest.raises(CalibrationError, match=r"holds no requests.*--frontend-from"):
        fit([read], held_out=False)


def test_a_small_file_that_unpacks_to_much(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qsim.documents

    monkeypatch.setattr(qsim.documents, "MAX_BYTES", 1 << 20)
    row = gzip.decompress((copy / "power.csv.gz").read_bytes()).split(b"\n")
    many = b"\n".join([row[0], *[row[1]] * 100_000]) + b"\n"
    (copy / "power.csv.gz").write_bytes(gzip.compress(many))
    with pytest.raises(RecordingError, match=r"power\.csv\.gz: unpacks to more than"):
        read_recording(copy)


def test_a_line_without_an_end_is_not_read_whole(copy: Path) -> None:
    (copy / "power.csv.gz").write_bytes(gzip.compress(b"x" * (64 << 20)))
    with pytest.raises(RecordingError, match=r"line 1 is longer than 1 MiB"):
        read_recording(copy)

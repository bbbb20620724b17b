"""Files as people have them: compressed, quoted, with other delimiters; and bombs."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.errors import TraceError
from qsim.traces import load_trace, write_trace
from qsim.traces.parts import open_parts
from qsim.traces.reading.source import _zstd

ROWS = [(0.0, 100, 10), (0.5, 200, 20), (2.25, 300, 30)]
CSV = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{a},{p},{o}\n" for a, p, o in ROWS)
LINES = "".join(json.dumps({"arrival_s": a, "prompt_tokens": p, "output_tokens": o}) + "\n"
                for a, p, o in ROWS)  # fmt: skip


def rows_of(path: Path | str, **options: str) -> list[tuple[float, int, int]]:
    trace = load_trace(path, **options)
    columns = trace.arrival_s.tolist(), trace.prompt_tokens.tolist(), trace.output_tokens.tolist()
    return list(zip(*columns, strict=True))


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("trace.csv", data)
    return out.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": lambda data: _zstd().compress(data),
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zip": zipped,
}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("text", [CSV, LINES, "[" + ",".join(LINES.splitlines()) + "]"])
def test_every_compression_of_every_kind(tmp_path: Path, packer: str, text: str) -> None:
    path = tmp_path / "trace.dat"
    path.write_bytes(PACKERS[packer](text.encode()))
    assert rows_of(path) == ROWS
    parts = list(open_parts(path))
    assert np.concatenate([p.arrival_s for p in parts]).tolist() == [r[0] for r in ROWS]


@pytest.mark.parametrize("packer", [p for p in PACKERS if p not in ("plain", "zip")])
def test_data_that_are_cut_off_are_told(tmp_path: Path, packer: str) -> None:
    path = tmp_path / "trace.dat"
    noise = np.random.default_rng(0).integers(1, 10**6, 20_000).tolist()
    text = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"0,{n},{n}\n" for n in noise)
    path.write_bytes(PACKERS[packer](text.encode())[:-50])
    with pytest.raises(TraceError, match=f"the {packer} data are damaged or cut off"):
        load_trace(path)


@pytest.mark.parametrize(
    "text",
    [
        CSV.replace(",", ";"),
        CSV.replace(",", "\t"),
        CSV.replace(",", "|"),
        CSV.replace(",", ";").replace(".", ","),
        CSV.replace("\n", "\r\n"),
        CSV.replace("\n", "\r\n", 2),
        CSV.replace("\n", "\r"),
        CSV.rstrip("\n"),
        CSV.replace("\n", "\n\n"),
        "\ufeff" + CSV,
        CSV.upper(),
        CSV.replace("0.5,200,20", '"0.5","200",20'),
        'note,arrival_s,prompt_tokens,output_tokens\n"x\u2028y,\n\n""z""",0.0,100,10\n,0.5,200,20\n'
        "\u00e9,2.25,300,30\n",
    ],
)
def test_dialects(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(text.encode())
    assert rows_of(path) == ROWS


def test_text_that_is_no_utf8_matters_only_where_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    text = "note," + CSV.replace("\n0", "\n\u00e9,0").replace("\n2", "\nx,2")
    path.write_bytes(text.encode("latin-1"))
    assert rows_of(path) == ROWS
    path.write_bytes(CSV.encode("utf-16"))
    with pytest.raises(TraceError, match="UTF-16"):
        load_trace(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CSV.replace(",200", ""), "line 3: 2 fields, must be 3"),
        (CSV.replace("0.5", '"0.5'), "line 3.*never closed|line 3: 1 fields"),
        (
            CSV.replace("200", "20.5"),
            "line 3, column 'prompt_tokens': '20.5' is not a whole number",
        ),
        (CSV.replace("200", "1_000"), "line 3, column 'prompt_tokens': '1_000' is not"),
        (CSV.replace("200", "0x10"), "line 3, column 'prompt_tokens': '0x10' is not"),
        (CSV.replace("200", '"1,000"'), "line 3, column 'prompt_tokens': '1,000' is not"),
        (
            CSV.replace(",", ";").replace("200", "1,000"),
            "line 3, column 'prompt_tokens': '1,000' is not",
        ),
        (
            CSV.replace(",", ";").replace("2.25", "1.002,25"),
            "line 4, column 'arrival_s': '1.002,25' is not",
        ),
        (CSV.replace("0.5", "x" * 200_000), "line 3, column 'arrival_s': 'xxx"),
        (CSV + "x" * (9 << 20), "line 5: longer than 2 MiB"),
        (LINES.replace("200", "20.5"), "line 2, column 'prompt_tokens': '20.5'"),
        (LINES.replace("200", "1" + "0" * 5000), "line 2: .*is not JSON"),
        (LINES + '{"a":' * 100_000, "line 4: .*is not JSON"),
        ("[" + ",".join(LINES.splitlines()), "item 4: the JSON array is not closed"),
        ("[" + ",".join(LINES.splitlines()) + ", 3]", "item 4: '3' is not a JSON object"),
        ("[" * 100_000, "not a trace format"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=f"(?s){message}") as caught:
        load_trace(path)
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("start", [b"", b"arrival_s,prompt_tokens,output_tokens\n", b"{", b"[{"])
def test_a_bomb_takes_little_memory(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", 1) as out:
        out.write(start)
        for _ in range(400):
            out.write(b" " * (1 << 20) if start == b"" else b"9" * (1 << 20))
    tracemalloc.start()
    with pytest.raises(TraceError):
        load_trace(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300 << 20


def test_a_zip_of_several_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", CSV)
        archive.writestr("b.csv", CSV)
    with pytest.raises(TraceError, match=r"2 files \(a.csv, b.csv\); must hold one"):
        load_trace(path)


def test_skipped_rows_at_the_end_are_counted_part_by_part(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,input_tokens,output_tokens\n0,1,1\n1,0,1\n2,1,0\n")
    parts = open_parts(path)
    assert sum(len(p) for p in parts) == 1
    assert parts.skipped == {"no prompt token": 1, "no output token": 1}


# ------------------------------------------------------------------ Parquet


def parquet(path: Path, **columns: object) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = {"arrival_s": [0.0, 1.5], "prompt_tokens": [600, 700], "output_tokens": [1, 2]}
    pq.write_table(pa.table(good | columns), path)
    return path


def test_times_of_parquet(tmp_path: Path) -> None:
    import pyarrow as pa

    ns = [1_700_000_000_000_000_123, 1_700_000_001_500_000_123]
    path = tmp_path / "it's [a] *.parquet"
    for column in (
        pa.array(ns, pa.timestamp("ns")),
        pa.array([n // 1000 for n in ns], pa.timestamp("us", tz="Europe/Berlin")),
        pa.array([0, 1_500_000_000], pa.duration("ns")),
        pa.array([0, 1500], pa.duration("ms")),
        pa.array(ns, pa.int64()),
        pa.array([n // 10**6 for n in ns], pa.uint64()),
        pa.array(["2024-01-01 00:00:00", "2024-01-01T01:00:01.5+01:00"]),
        pa.array(["0", "1.5"]),
        pa.array([0, 1.5], pa.float32()),
    ):
        trace = load_trace(parquet(path, arrival_s=column))
        assert trace.arrival_s.tolist() == [0.0, 1.5], column.type
    with pytest.raises(TraceError, match="values of type BOOLEAN are not numbers"):
        load_trace(parquet(path, arrival_s=pa.array([True, False])))


def test_prefix_ids_of_parquet(tmp_path: Path) -> None:
    import pyarrow as pa

    path = tmp_path / "t.parquet"
    big = 14695981039346656037
    for ids, expected in (
        (pa.array(["1 2", "3"]), [[1, 2], [3]]),
        (pa.array(["[1, 2]", None]), [[1, 2], []]),
        (pa.array([[1, 2], None]), [[1, 2], []]),
        (pa.array([[big, 2], [big]], pa.list_(pa.uint64())), [[big - 2**64, 2], [big - 2**64]]),
    ):
        trace = load_trace(parquet(path, hash_ids=ids))
        assert trace.hash_ids is not None
        assert [trace.hash_ids[i].tolist() for i in range(2)] == expected
    texts = load_trace(parquet(path, hash_ids=pa.array([["a", "b"], ["a"]]))).hash_ids
    assert texts is not None
    assert texts[0][0] == texts[1][0] != texts[0][1]
    with pytest.raises(TraceError, match="row 1, column 'hash_ids'"):
        load_trace(parquet(path, hash_ids=pa.array([[1, None], [2]])))


def test_fractions_of_tokens_in_parquet_are_an_error(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", output_tokens=[1.0, 20.5])
    with pytest.raises(TraceError, match=r"row 2, column 'output_tokens': '20\.5' is not a whole"):
        load_trace(path)
    assert len(load_trace(parquet(path, output_tokens=[1.0, 20.0]))) == 2


def test_azure_in_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "azure.parquet"
    when = pa.array([1715299200009930, 1715299201000000], pa.timestamp("us", tz="UTC"))
    pq.write_table(
        pa.table({"TIMESTAMP": when, "ContextTokens": [5, 6], "GeneratedTokens": [1, 2]}), path
    )
    trace = load_trace(path)
    assert trace.meta["format"] == "azure"
    assert trace.arrival_s.tolist() == [0.0, 0.99007]


def test_hash_ids_of_64_bits_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "arrival_s,prompt_tokens,output_tokens,hash_ids\n"
        "0,1024,1,14695981039346656037 5\n1,1024,1,14695981039346656037 99999999999999999999999\n"
    )
    trace = load_trace(path)
    assert trace.hash_ids is not None
    assert trace.hash_ids[0][0] == trace.hash_ids[1][0] == 14695981039346656037 - 2**64
    assert len(set(trace.hash_ids.values.tolist())) == 3
    run = CliRunner().invoke(
        main, ["simulate", str(path), "--profile", "h200_sxm/llama-3.1-8b/fp8-w8a8"]
    )
    assert run.exit_code == 0, run.output
    assert "512 prompt tokens from the prefix cache" in run.output


def test_turns_are_kept_by_convert(tmp_path: Path) -> None:
    source = tmp_path / "s.jsonl"
    source.write_text(
        '{"session_id": 1, "timestamp": 0, "input_length": 9, "output_length": 1}\n'
        '{"session_id": 1, "delay": 1500, "input_length": 19, "output_length": 1}\n'
        '{"session_id": 2, "timestamp": 700, "input_length": 9, "output_length": 1}\n'
    )
    trace = load_trace(source)
    for name in ("t.csv", "t.parquet"):
        write_trace(trace, tmp_path / name)
        back = load_trace(tmp_path / name)
        assert back.turns is not None
        assert trace.turns is not None
        assert back.arrival_s.tolist() == trace.arrival_s.tolist()
        assert back.turns.previous.tolist() == trace.turns.previous.tolist()
        assert back.turns.delay_s.tolist() == trace.turns.delay_s.tolist()

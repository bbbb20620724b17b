"""docs/traffic.md: every command of it works on a file of its kind."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.traces import load_trace
from tests.traces.test_reconstruct import answer, scrape
from tests.traces.test_serving_logs import DYNAMO, GENAI_PERF, START, VLLM_LOG, received
from tests.traces.test_tools import (
    AIPERF,
    GUIDELLM,
    OPENAI,
    OTLP,
    SGLANG,
    SHAREGPT,
    VLLM_OLD,
    lines,
)

DOC = (Path(__file__).resolve().parents[2] / "docs" / "traffic.md").read_text("utf-8")
FILES = {
    "log.csv": "time,input_tokens,output_tokens\n0,5,6\n1.5,7,8\n",
    "other.csv": "time,input_tokens,output_tokens\n0,500,6\n1.5,700,8\n",
    "gateway.jsonl": lines({"req": {"at": 1700000000123, "tokens": 5}, "res": {"tokens": 6}}),
    "responses.jsonl": OPENAI,
    "spend_logs.csv": 'request_id,"startTime","prompt_tokens","completion_tokens"\n'
    "a,2024-05-10 00:00:00.5,5,6\n",
    "spans.jsonl": OTLP,
    "result.json": json.dumps(VLLM_OLD),
    "sglang.jsonl": lines(SGLANG),
    "report.json": GUIDELLM,
    "profile_export.jsonl": AIPERF,
    "turns.csv": "t,in,out,user,think\n0,5,6,a,\n,7,8,a,1500\n",
    "profile_export.json": GENAI_PERF,
    "server.log": VLLM_LOG,
    "info.log": START + received("11-30 07:01:10", "a") + received("11-30 07:01:12", "b"),
    "dynamo.jsonl": DYNAMO,
    "sharegpt.json": SHAREGPT,
    "before.txt": scrape([5], [6]),
    "after.txt": scrape([5, 9, 800] * 50, [6, 6, 70] * 50),
    "range.json": answer(
        (0.0, scrape([5], [6])), (60.0, scrape([5, 9, 800] * 50, [6, 6, 70] * 50))
    ),
}
#: what the commands write
OUTPUTS = {"mine.csv", "traffic.csv", "tenth.csv", "traffic.parquet"}


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", DOC, flags=re.DOTALL)
    listed = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition("#")[0].strip() for line in listed]


@pytest.mark.parametrize("command", commands())
def test_the_commands_work(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    program, *args = shlex.split(command)
    assert program == "qsim"
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.stderr
    written = OUTPUTS & set(args)
    assert done.stdout or written
    assert all(len(load_trace(name)) for name in written)

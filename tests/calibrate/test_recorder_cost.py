"""``recordings/recorder_cost.py``: two servers on one GPU, with and without the recorder."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.calibrate.stub import MARK, STUB, none_left, stub_environment

SCRIPT = Path(__file__).parents[2] / "recordings" / "recorder_cost.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recorder_cost_script", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_servers_get_the_same_loads(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    small = (
        "import runpy, sys\n"
        f"sys.argv[0] = {str(SCRIPT)!r}\n"
        "g = runpy.run_path(sys.argv[0])\n"
        "g['main'].__globals__.update(BATCHES=(1, 4), OUTPUT_TOKENS=20, PROMPTS=6, FLYING=2,"
        " SHORT_OUTPUT=2)\n"
        "sys.exit(g['main'](sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [
            sys.executable, "-c", small, "--rounds", "2", "--json", str(out),
            "--serve-command", shlex.join(STUB),
        ],
        env=stub_environment(**{MARK: str(out)}), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert none_left(str(out)) == []
    assert done.returncode == 0, done.stderr
    assert "| decode 4 |" in done.stdout
    result = json.loads(out.read_text())
    assert list(result["loads"]) == ["decode 1", "decode 4", "prompts"]
    for values in result["values_ms"].values():
        assert len(values["with"]) == len(values["without"]) == 2
        assert min(values["with"] + values["without"]) > 0
    cost = result["on_the_host"]
    # three rounds of 20 steps with each batch at least, all of the server with the recorder
    assert sum(m["steps"] for m in cost["by_mode"].values()) > 120
    assert cost["mean_us_per_step"] > 0


def test_a_difference_and_its_error(script: ModuleType) -> None:
    c = script.compare({True: [10.1, 10.3, 10.2], False: [10.0, 10.0, 10.0]})
    assert c["percent"] == 2.0
    assert c["standard_error_percent"] == pytest.approx(1.0 / 3**0.5, abs=1e-3)
    assert script.order(3) == [(True, False), (False, True), (True, False)]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--rounds", "1"], "--rounds is 1"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", "llama-3.1-70b", "--method", "bf16"], "llama-3.1-70b with bf16"),
    ],
)
def test_wrong_options(args: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--serve-command", "true", *args],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr

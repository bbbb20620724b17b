"""``tools/recorder_cost.py``: two servers on one GPU, with and without the recorder."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from tests.calibrate.stub import MARK, STUB, none_left, script, stub_environment


@pytest.fixture(name="script")
def recorder_cost() -> ModuleType:
    return script("recorder_cost")


def test_both_servers_get_the_same_loads(
    tmp_path: Path,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "cost.json"
    small = {"BATCHES": (1, 4), "OUTPUT_TOKENS": 120, "PROMPTS": 6, "FLYING": 2, "SHORT_OUTPUT": 2}
    for name, value in small.items():
        monkeypatch.setattr(script, name, value)
    for name, text in stub_environment(**{MARK: str(out)}).items():
        monkeypatch.setenv(name, text)
    code = script.main(["--rounds", "2", "--json", str(out), "--serve-command", shlex.join(STUB)])
    assert none_left(str(out)) == []
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "| decode 4 |" in printed.out
    result = json.loads(out.read_text())
    assert list(result["loads"]) == ["decode 1", "decode 4", "prompts"]
    for values in result["values_ms"].values():
        assert len(values["with"]) == len(values["without"]) == 2
        assert min(values["with"] + values["without"]) > 0
    cost = result["on_the_host"]
    # all of the server with the recorder: three rounds, each of 119 steps or more for either batch;
    # the last rows may still have been in the server's memory when it was stopped
    assert sum(m["steps"] for m in cost["by_mode"].values()) > 2 * 2 * 119
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
def test_wrong_options(
    script: ModuleType, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    try:
        code = script.main(["--serve-command", "true", *args])
    except SystemExit as e:  # argparse's
        code = e.code
    assert code
    assert words in capsys.readouterr().err

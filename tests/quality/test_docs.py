"""docs/quality.md says what the commands say."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsim.cli.calibrate.quality import quality as calibrate_quality
from qsim.cli.quality import quality
from qsim.quality.pool import Z90, components
from qsim.quality.table import recovery_table
from tests.cli.helpers import qsim
from tests.quality import derive_table
from tests.quality.fit_components import left_out

PAGE = (Path(__file__).parent.parent.parent / "docs" / "quality.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
SHOWN = re.findall(r"```console\n\$ qsim (.+)\n((?:.*\n)*?)```", PAGE)


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=[c for c, _ in SHOWN])
@pytest.mark.slow
def test_tables_are_what_the_command_prints(command: str, output: str) -> None:
    assert qsim(*shlex.split(command)).stdout == output


def test_the_four_models_are_shown() -> None:
    models = {c.split()[1] for c, _ in SHOWN}
    assert models == {"llama-3.1-8b", "qwen2.5-14b", "qwen2.5-32b", "llama-3.1-70b"}


def test_the_python_block_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    assert "estimated" in capsys.readouterr().out


@pytest.mark.parametrize("command", [quality, calibrate_quality])
def test_every_option_is_documented(command: Any) -> None:
    for param in command.params:
        for name in param.opts:
            if name.startswith("--") and name != "--sources":
                assert re.search(rf"{name}(?![-\w])", PAGE), name


def test_counts_are_those_of_the_table() -> None:
    rows = recovery_table()
    counts = (len(rows), len({r.model for r in rows}), len({r.task for r in rows}),
              len({r.source for r in rows}))  # fmt: skip
    assert re.search(
        r"holds {} published numbers of {} models\non {} tasks, from {} pages".format(*counts), PAGE
    )
    for method in (
        "gptq-w4a16",
        "awq-w4a16",
        "int8-w8a8",
        "fp8-w8a8",
        "fp8-w8a8-static",
        "fp8-block",
        "gptq-w8a16",
        "nvfp4-w4a16",
        "w4a8-fp8",
        "mxfp4-w4a16",
        "kv-fp8",
    ):
        mine = [r for r in rows if r.method == method]
        same, models = sum(r.same for r in mine), len({r.model for r in mine})
        shown = "FP8 KV cache" if method == "kv-fp8" else method
        assert f"| {shown} | {len(mine)} | {same} | {models} |" in PAGE, method
    of = Counter(r.method for r in rows)
    assert f"({of['nvfp4-w4a4']} and {of['mxfp4-w4a4']} numbers)" in TEXT
    assert f"an INT8 KV cache ({of['kv-int8']})" in TEXT
    assert f"FP8 weights and KV cache together ({of['fp8-w8a8-static+kv-fp8']}," in TEXT


def test_the_variances_are_those_shipped() -> None:
    c = components()
    assert (
        f"is {c.tau['8-bit']:.1f} points for 8-bit methods, {c.tau['w4']:.1f} for 4-bit weights, "
        f"{c.tau['w4a4']:.1f} for 4-bit weights and activations."
    ) in TEXT
    assert f"recovery is {c.noise['chosen']:.2f} times that of two independent runs" in TEXT
    assert f"and {c.noise['generated']:.2f} times where they are generated" in TEXT
    assert f"standard deviation of {c.near:.2f} times" in TEXT
    assert f"to the power of {c.decay:.2f}" in TEXT
    assert f"by {c.widen['w4']:.2f} for 4-bit weights, by {c.widen['w4a4']:.2f} for" in TEXT
    assert c.widen["8-bit"] < 1.02


@pytest.mark.slow
@pytest.mark.parametrize("what", ["source", "model"])
def test_errors_of_what_was_left_out_are_those_found(what: str) -> None:
    by = "publisher" if what == "source" else "model"
    found = left_out(recovery_table(), components(), {"nvfp4-w4a4", "mxfp4-w4a4"},
                     lambda r: str(getattr(r, by)))  # fmt: skip
    errors = np.abs([e for _, e, _ in found])
    inside = np.mean([abs(e) <= Z90 * se for _, e, se in found])
    assert (
        f"| {what} | 4-bit weights and activations | {len(found)} | {errors.mean():.2f} "
        f"| {np.median(errors):.2f} | {100 * inside:.0f}% |"
    ) in PAGE


def test_what_was_left_out_is_what_the_derivation_counts() -> None:
    if not derive_table.RAW.is_file():
        pytest.skip("the optional developer folder ../shared is absent")
    text, dropped = derive_table.derive()
    for count in dropped.values():
        assert re.search(rf"^\| {count} \| ", PAGE, re.MULTILINE), count
    total = text.count("\n") - 1 + sum(dropped.values())
    assert f"From the {total:,} collected numbers" in PAGE

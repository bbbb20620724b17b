"""Every Python block of docs/quickstart.md runs, one after the other, as in a notebook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs"
ROOT = DOCS.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_quickstart_runs_block_by_block(capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "quickstart.md").read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) >= 7
    names: dict[str, Any] = {}
    for block in blocks:
        line = text[: block.start()].count("\n") + 1
        code = compile("\n" * line + block[1], str(DOCS / "quickstart.md"), "exec")
        exec(code, names)
    printed = capsys.readouterr().out
    assert "h200_sxm/llama-3.1-8b/fp8-w8a8" in printed
    assert "vllm serve" in printed


def test_the_python_of_the_planning_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "planning.md").read_text(encoding="utf-8")
    (block,) = BLOCK.finditer(text)
    exec(compile(block[1], "planning.md", "exec"), {})
    met, largest = capsys.readouterr().out.split()
    assert 0 <= int(met) <= 5
    assert largest in ("prefill", "decode", "power_cap", "host")


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=str)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_option_is_documented() -> None:
    from qsim.cli.plan import plan
    from qsim.cli.schedule import schedule
    from qsim.cli.simulate import simulate
    from qsim.cli.sweep import sweep
    from qsim.cli.tune import tune

    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    for command in (simulate, plan, schedule, tune, sweep):
        for param in command.params:
            for name in (*param.opts, *param.secondary_opts):
                if name.startswith("--"):
                    assert re.search(rf"{name}(?![-\w])", text), f"{command.name} {name}"

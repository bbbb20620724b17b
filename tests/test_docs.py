"""The pages of docs/ say what qsim does: their Python runs, their commands print what is shown."""

from __future__ import annotations

import csv
import re
import runpy
import shlex
import textwrap
from pathlib import Path
from statistics import median
from typing import Any

import click
import pytest

from qsim.cli import main
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import Profile
from tests.cli.helpers import qsim

DOCS = Path(__file__).parent.parent / "docs"
ROOT = DOCS.parent
#: a command in an indented block, and what it prints behind an empty line
SHOWN = r"^    \$ (qsim (?:.*\\\n)*.*)\n\n?((?:    .*\n|\n(?=    (?!\$)))*)"
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


def _shows_what_it_prints(page: str, commands: int) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    shown = re.findall(SHOWN, text, re.MULTILINE)
    assert len(shown) == commands
    for command, output in shown:
        words = shlex.split(re.sub(r"\\\n\s*", "", command))[1:]
        result = qsim(*words)
        assert result.exit_code == 0, (command, result.output)
        printed = "".join(f"{line.rstrip()}\n" for line in result.stdout.splitlines())
        at = 0
        for part in textwrap.dedent(output).strip("\n").split("...\n"):  # "..." is what is left out
            found = printed.find(part.strip("\n"), at)
            assert found >= 0, f"{command}\n{part}\nis not in\n{printed}"
            at = found + len(part)


@pytest.mark.slow
def test_the_tutorial_shows_what_its_commands_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _shows_what_it_prints("tutorial.md", 6)
    assert (tmp_path / "fleet.yaml").exists()
    assert (tmp_path / "serve.sh").read_text().count("vllm serve") == 1


@pytest.mark.slow
def test_the_autoscaling_page_shows_what_its_commands_print() -> None:
    _shows_what_it_prints("autoscaling.md", 3)


def test_every_page_is_in_the_site() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    trees = "\n".join(re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL))
    listed = set(re.findall(r"^(?:.*<)?([\w-]+)>?$", trees, re.MULTILINE))
    assert listed == {p.stem for p in DOCS.glob("*.md")} - {"index"}


def test_the_python_of_the_planning_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "planning.md").read_text(encoding="utf-8")
    (block,) = BLOCK.finditer(text)
    exec(compile(block[1], "planning.md", "exec"), {})
    met, largest = capsys.readouterr().out.split()
    assert 0 <= int(met) <= 5
    assert largest in ("prefill", "decode", "power_cap", "host")


PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """What "#..." may say of a page: its headings, as code hosts name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            other = page.parent / path if path else page
            assert other.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(other), f"{page.name}: {target}"


@pytest.mark.parametrize(
    "name",
    ["simulate", "plan", "capacity", "curve", "compare", "schedule", "tune", "sweep", "study"],
)
def test_every_option_is_documented(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    for param in command.params:
        for option in (*param.opts, *param.secondary_opts):
            if option.startswith("--"):
                assert re.search(rf"{option}(?![-\w])", text), option


def test_the_readme_s_bytes_and_times_of_a_decode_step_are_those_of_the_profiles() -> None:
    names = ("bf16", "fp8-w8a8", "awq-w4a16")
    bf16, fp8, awq = (load_profile(f"h200_sxm/llama-3.1-8b/{n}") for n in names)
    config = bf16.identity.architecture
    table = config["vocab_size"] * config["hidden_size"] * 2  # the embedding is looked up, not read

    def fewer(p: Profile) -> float:
        return (bf16.memory.weight_bytes - table) / (p.memory.weight_bytes - table)

    def share(p: Profile) -> float:
        return p.latency.decode.base_ms[0] / bf16.latency.decode.base_ms[0]

    said = (
        f"{fewer(fp8):.1f} times fewer weight bytes in FP8 and takes {share(fp8):.2f} of the time; "
        f"with AWQ {fewer(awq):.1f} times fewer and {share(awq):.2f}."
    )
    assert said in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_the_accuracy_that_the_readme_states_is_that_of_the_data() -> None:
    with (DOCS / "data" / "fidelity-cells.csv").open(encoding="utf-8") as file:
        left_out = [row for row in csv.DictReader(file) if row["fit"] == "left out"]

    def errors(*statistics: str) -> list[float]:
        return sorted(
            abs(float(r["error_percent"])) for r in left_out if r["statistic"] in statistics
        )

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    center, p99, energy = errors("mean", "median"), errors("p99"), errors("")
    assert f"half are within {median(center):.1f}%, 94% within 5%, all but two within 16%" in text
    assert sum(e <= 5 for e in center) / len(center) == pytest.approx(0.94, abs=0.005)
    assert center[-3] <= 16 < center[-2]
    assert f"half are within {median(p99):.1f}%, 90% within 4.6%, all but three within 19%" in text
    assert sum(e <= 4.6 for e in p99) >= 0.9 * len(p99)
    assert p99[-4] <= 19 < p99[-3]
    assert f"half are within {median(energy):.1f}%, all within 3.8%" in text
    assert energy[-1] <= 3.8


def test_the_scenario_page_lists_every_field() -> None:
    written = (DOCS / "data" / "scenario.csv").read_text(encoding="utf-8")
    table = runpy.run_path(str(DOCS / "scripts" / "scenario_fields.py"))["table"]
    assert table() == written, "run python docs/scripts/scenario_fields.py"


@pytest.mark.slow
def test_the_scenario_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (DOCS / "scenario.md").read_text(encoding="utf-8")
    (tmp_path / "chat.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    (qsim (?:simulate|sweep) chat\.yaml.*)$", text, re.MULTILINE)
    assert len(commands) == 4  # the searches are tried in tests/cli/test_scenario_cli.py
    for command in commands:
        result = qsim(*shlex.split(command, comments=True)[1:])
        assert result.exit_code == 0, result.output
    (wrong,) = re.findall(r"^    \$ (qsim .*)\n    (Error: .*)$", text, re.MULTILINE)
    assert qsim(*shlex.split(wrong[0])[1:]).stderr.strip() == wrong[1]
    (block,) = BLOCK.finditer(text)
    exec(compile(block[1], "scenario.md", "exec"), {})
    assert "max_num_seqs: 8" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":  # it also tells of what is gone
        return
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:qsim|tests|tools|docs|benchmarks)/[\w./+@-]+)`", text):
        if "NAME" not in path:  # stands for one that a contributor adds
            assert (ROOT / path).exists(), f"{page.name}: {path}"


@pytest.mark.slow
def test_the_curve_of_the_page_is_what_its_command_gives() -> None:
    text = (DOCS / "capacity.md").read_text(encoding="utf-8")
    command, shown = re.findall(
        r"^    qsim (curve .*?) --picture curve\.png\n\n(    traffic: .*?)\n\nThe knee",
        text,
        re.DOTALL | re.MULTILINE,
    )[0]
    result = qsim(*shlex.split(command.replace("\\\n", " ")), "--jobs", "2")
    assert result.exit_code == 0, result.output
    assert textwrap.dedent(shown).strip() == result.stdout.strip()

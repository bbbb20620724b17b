"""The page of a study: one file that loads nothing, every picture there, at any width."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from qsim.optimize.study.figures import Band
from qsim.optimize.study.result import LEVELS, StudyResult
from qsim.report.figures.study import Panel, study_panels
from qsim.report.html.study import study_page, write_study_pictures
from qsim.report.text.study_answers import QUESTIONS, answers, ratio_band
from tests.optimize.study.example import example_study
from tests.report.browser import opened
from tests.report.test_figures import check_no_name_hides_another
from tests.report.test_reports import Links


@pytest.fixture(scope="module")
def found() -> StudyResult:
    return example_study()


@pytest.fixture(scope="module")
def panels(found: StudyResult) -> list[Panel]:
    return list(study_panels(found))


@pytest.fixture(scope="module")
def page(found: StudyResult, panels: list[Panel]) -> str:
    return study_page(found, panels)


def read(text: str) -> Links:
    links = Links()
    links.feed(text)
    return links


def test_the_page_loads_nothing_and_every_tag_is_closed(page: str) -> None:
    links = read(page)
    assert links.open == []
    assert all(link.startswith("#") for link in links.loaded)
    assert not re.search(r"@import|url\((?!#)|<script", page)


def test_every_picture_is_on_the_page_once(page: str, panels: list[Panel]) -> None:
    names = [p.name for p in panels]
    assert len(set(names)) == len(names)
    assert re.findall(r'<figure id="([^"]+)"', page) == names
    assert page.count("<svg") == len(names)
    levels = [p.level for p in panels]
    assert levels == sorted(levels, key=LEVELS.index)
    assert set(levels) == set(LEVELS)


def test_findings_and_decisions_stand_first_with_number_error_and_command(
    page: str, found: StudyResult
) -> None:
    first_level = page.index('<h2 id="application">')
    head = html.unescape(page[:first_level])
    for finding in found.findings:
        assert finding.statement in head
        assert f"errors explain up to {finding.error_percent:.3g}" in head
        assert all(c in head for c in finding.commands)
    for decision in found.decisions:
        assert f">{decision.method}<" in head or f"<b>{decision.method}</b>" in head
    assert "42.00" in head or "42.0" in head
    assert found.runs["r0002"].command in head


def test_each_level_begins_with_its_question_and_an_answer(page: str, found: StudyResult) -> None:
    for level in LEVELS:
        section = html.unescape(page[page.index(f'<h2 id="{level}">') :])
        question, answer = section.index(QUESTIONS[level]), section.index('class="answer"')
        assert question < answer < section.index("<svg")
        for text in answers(found, level):
            assert text in section
            assert text.endswith(".")
        assert answers(found, level)


def test_answers_are_of_the_rows(found: StudyResult) -> None:
    h200, a100 = answers(found, "application")
    assert "no method beside bf16 is expected to keep 99% of the 16-bit score" in h200
    better = replace(
        found,
        application=tuple(replace(r, quality=Band(99.2, 99, 99.4)) for r in found.application),
    )
    kept = answers(better, "application")[0]
    assert "awq-w4a16 takes 0.620 times the J per request of bf16" in kept
    assert "is expected to keep 99.20% of the 16-bit score or more in each" in kept
    assert "awq-w4a16 on code, 95.40 (94.00 to 96.80)% of the 16-bit score" in h200
    assert a100.startswith("On a100_sxm")
    h200, a100 = answers(found, "workload")
    assert "at 5.00 requests/s awq-w4a16 has the lowest mean TPOT, 4.34 (4.17 to 4.51) ms" in h200
    assert "findings 1 say" in h200
    # of 25% error: 4.34 ms are not known to be less than 4.9 ms
    assert "at 5.00 requests/s awq-w4a16 (within the errors also fp8-w8a8)" in a100
    assert "no two methods change places by more than their errors" in a100
    assert "of 4 replicas of TP1" in answers(found, "parallelism")[0]
    assert "the errors could explain" in answers(found, "hardware")[0]
    other = tuple(
        replace(p, vllm_version="0.33.0") if p.gpu == "h200_sxm" else p for p in found.provenance
    )
    runs = {i: replace(r, vllm_version="0.33" if r.gpu == "h200_sxm" else "0.24")
            for i, r in found.runs.items()}  # fmt: skip
    faster = replace(
        found,
        provenance=other,
        runs=runs,
        hardware=tuple(
            replace(r, figures={"output_throughput_per_gpu": Band.exact(9000.0)})
            if (r.gpu, r.method) == ("h200_sxm", "awq-w4a16")
            else r
            for r in found.hardware
        ),
    )
    text = answers(faster, "hardware")[0]
    assert (
        "differs most for awq-w4a16, 4.29 times its tokens/s per GPU on h200_sxm and 1.61 on"
        in text
    )
    assert "on a100_sxm, under vLLM 0.33 and 0.24" in text
    assert "profiles of vLLM" not in answers(faster, "application")[0]
    odd = {i: replace(r, vllm_version="0.24" if r.method == "fp8-w8a8" else "0.33")
           for i, r in found.runs.items()}  # fmt: skip
    for level in ("application", "workload"):
        text = answers(replace(found, runs=odd), level)[0]
        assert text.endswith(" (profiles of vLLM 0.33, fp8-w8a8 of 0.24).")
    assert ratio_band(Band(2, 1, 3), Band(4, 2, 8)) == Band(0.5, 0.125, 1.5)
    assert ratio_band(Band.exact(1), Band.exact(0)) is None


def test_a_study_of_one_gpu_with_levels_left_out_says_so(found: StudyResult) -> None:
    gpu = found.gpus[0]
    small = replace(
        found,
        gpus=(gpu,),
        application=(),
        workload=(),
        parallelism=(),
        hardware=tuple(r for r in found.hardware if r.gpu == gpu),
        findings=(),
        decisions=(),
        tasks=(),
    )
    panels = list(study_panels(small))
    text = study_page(small, panels)
    assert text.count("Not simulated in this study.") == 3
    assert "No difference is larger than the profiles' stated errors." in text
    assert {p.level for p in panels} == {"hardware"}
    assert text.count("<svg") == len(panels)
    assert study_page(replace(small, hardware=())).count("<svg") == 0


def test_what_is_not_known_is_left_out_of_pictures_and_tables(found: StudyResult) -> None:
    def blank(row):
        return replace(row, figures=dict.fromkeys(row.figures))

    unknown = replace(
        found,
        application=tuple(
            replace(blank(r), quality=None, quality_status="", usd_per_1m_at_highest=None)
            for r in found.application
        ),
        workload=tuple(map(blank, found.workload)),
        parallelism=tuple(map(blank, found.parallelism)),
        hardware=tuple(map(blank, found.hardware)),
    )
    text = study_page(unknown)
    assert read(text).open == []
    assert not re.search(r"\bnan\b", text)


def test_sharding_is_told_of_the_sizes_that_there_are(found: StudyResult) -> None:
    text = answers(found, "parallelism")[0]
    assert "one server of TP4 has for bf16 0.330 (0.305 to 0.357) times the mean TPOT" in text
    assert "of 4 replicas of TP1" in text
    # bf16 that does not fit on one GPU: TP2 is its smallest
    large = replace(
        found,
        parallelism=tuple(
            r for r in found.parallelism if (r.method, r.tensor_parallel_size) != ("bf16", 1)
        ),
    )
    text = answers(large, "parallelism")[0]
    assert "one server of TP4 has for bf16" in text
    assert "of 2 replicas of TP2" in text
    assert "with TP2 to" in text
    without = replace(found, parallelism=tuple(r for r in found.parallelism if r.method != "bf16"))
    text = answers(without, "parallelism")[0]
    assert "one server of TP4 has for fp8-w8a8" in text
    assert "bf16 cannot be compared" in text
    single = tuple(r for r in found.parallelism if r.tensor_parallel_size == 2)
    text = answers(replace(found, parallelism=single), "parallelism")[0]
    assert text == "On 4 h200_sxm, no method has servers of several sizes to compare."


def test_hardware_shows_gpus_beside_those_that_were_asked_for(found: StudyResult) -> None:
    one = replace(found, gpus=("h200_sxm",))  # a study compares with the other types
    shown = [p for p in study_panels(one) if p.level == "hardware"]
    for panel in shown:
        assert [t.get_text() for t in panel.ax.get_xticklabels()] == ["A100", "H200"]
    alone = replace(one, hardware=tuple(r for r in found.hardware if r.gpu == "h200_sxm"))
    shown = [p for p in study_panels(alone) if p.level == "hardware"]
    assert all(len(p.ax.patches) == len(found.methods) for p in shown)  # a bar a method


def test_names_from_outside_are_escaped(found: StudyResult) -> None:
    evil = '<script>alert("x")</script>&'
    attacked = replace(found, model=evil, command=f"qsim study {evil}", notes=(evil,), traffic=evil)
    text = study_page(attacked, ())
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 5


def test_no_name_on_a_picture_hides_another(panels: list[Panel], found: StudyResult) -> None:
    for panel in panels:
        if panel.gpu != found.gpus[1] and "lengths-best" not in panel.name:
            check_no_name_hides_another(panel.figure, list(found.methods), 1)


def test_a_crossing_is_marked_where_the_finding_says(panels: list[Panel]) -> None:
    marked = {p.name for p in panels if any("finding" in t.get_text() for t in p.ax.texts)}
    assert marked == {"workload-h200_sxm-batch-mean_tpot_ms"}
    ax = next(p.ax for p in panels if p.name in marked)
    assert any(list(line.get_xdata()) == [32.0, 32.0] for line in ax.lines)


def test_panels_of_tasks_share_the_axis_of_quality(panels: list[Panel]) -> None:
    groups: dict[tuple[str, str], set[tuple[float, float]]] = {}
    for p in panels:
        if p.level == "application":
            groups.setdefault((p.gpu, p.group), set()).add(p.ax.get_ylim())
    assert groups
    assert all(len(limits) == 1 for limits in groups.values())


def test_every_picture_is_also_svg_and_png(tmp_path: Path, panels: list[Panel]) -> None:
    some = panels[::12]
    names = write_study_pictures(tmp_path / "pictures", some)
    assert sorted(names) == sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert len(names) == 2 * len(some)
    for name in names:
        data = (tmp_path / "pictures" / name).read_bytes()
        if name.endswith(".png"):
            assert data.startswith(b"\x89PNG")
        else:
            assert ET.fromstring(data).tag.endswith("svg")


@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_it(tmp_path: Path, page: str, panels: list[Panel], width: int) -> None:
    path = tmp_path / "study.html"
    path.write_text(page, encoding="utf-8")
    with opened(path, width) as seen:
        assert seen.overflow_px() <= 0
        sizes = seen.page.evaluate(
            "[...document.querySelectorAll('figure > svg')]"
            ".map(s => [s.getBoundingClientRect().width, s.getBoundingClientRect().height,"
            " s.getBoundingClientRect().right])"
        )
        smallest = seen.page.evaluate(
            "Math.min(...[...document.querySelectorAll('figure > svg text')]"
            ".map(t => t.getBoundingClientRect().height).filter(h => h > 0))"
        )
        seen.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert seen.overflow_px() <= 0  # with every command and table shown, too
    assert seen.errors == []
    assert seen.requests == [path.resolve().as_uri()]
    assert len(sizes) == len(panels)
    assert all(w >= 340 and h >= 200 and right <= width for w, h, right in sizes)
    assert smallest >= 7  # CSS pixels, of a line of text

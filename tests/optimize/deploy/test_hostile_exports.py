"""What is written for a shell, for Kubernetes and for a picture holds no more than was meant."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from qsim.documents import parse_yaml, to_yaml
from qsim.optimize.deploy.deployment import Pool, distinct
from qsim.optimize.deploy.kubernetes import manifests
from qsim.optimize.deploy.kubernetes import to_yaml as kubernetes_yaml
from qsim.optimize.deploy.vllm import serve_script
from qsim.optimize.search.storage import shown_storage, without_password
from qsim.sim.scheduler.config import EngineOptions
from tests.make_profile import make_profile


def pool(**names: str) -> Pool:
    return Pool.of(make_profile(**names), EngineOptions(), 1)


def test_a_line_break_in_a_name_ends_no_comment(tmp_path: Path) -> None:
    # a profile that was read holds no such name; one that was made in Python may
    bad = replace(pool(), profile="a\ntouch PWNED #")
    script = serve_script(bad)
    assert "\ntouch" not in script
    fake = tmp_path / "vllm"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    subprocess.run(["sh", "-c", script], cwd=tmp_path, env={"PATH": path}, check=True)
    assert not (tmp_path / "PWNED").exists()


def test_words_of_a_command_are_quoted(tmp_path: Path) -> None:
    fake = tmp_path / "vllm"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > words\n')
    fake.chmod(0o755)
    odd = replace(pool(), vllm_args=("--dtype", "a b; touch PWNED $(touch PWNED) `touch PWNED`"))
    path = f"{tmp_path}:/usr/bin:/bin"
    subprocess.run(["sh", "-c", serve_script(odd)], cwd=tmp_path, env={"PATH": path}, check=True)
    assert not (tmp_path / "PWNED").exists()
    assert "a b; touch PWNED $(touch PWNED) `touch PWNED`" in (tmp_path / "words").read_text()


LONG = "m" * 60


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"model": LONG + "a"}, {"model": LONG + "b"}),
        ({"model": "a.b"}, {"model": "a-b"}),
        ({"gpu": "h100_sxm"}, {"gpu": "h100_pcie"}),
        ({"method": "x+y"}, {"method": "x-y"}),
        ({}, {}),
    ],
)
def test_two_pools_have_two_names(first: dict[str, str], second: dict[str, str]) -> None:
    objects = manifests([pool(**first), pool(**second)])
    deployments = [o["metadata"]["name"] for o in objects if o["kind"] == "Deployment"]
    assert len(deployments) == len(set(deployments)) == 2
    for o in objects:
        name = o["metadata"]["name"]
        assert len(name) <= 50
        assert name[0].isalpha()
        assert name[-1].isalnum()
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_names_that_differ_stay_as_they_are() -> None:
    pools = [pool(), pool(method="fp8-w8a8")]
    assert [p.name for p in distinct(pools)] == ["toy-1b-bf16-h200", "toy-1b-fp8-w8a8-h200"]


def test_a_name_that_begins_with_a_digit_is_a_service_s_too() -> None:
    assert pool(model="1e3", method="1").name == "vllm-1e3-1-h200"


def test_a_text_that_looks_like_a_number_stays_one_under_yaml_1_1_and_1_2() -> None:
    words = ["010", "1:30", "1e3", "0o7", "0x1f", "yes", "off", "~", "null", "2026-01-01", "1_0"]
    text = to_yaml({"words": words})
    assert parse_yaml(text, "f") == {"words": words}
    assert yaml.safe_load(text) == {"words": words}
    text = kubernetes_yaml([{"name": w} for w in words])
    assert list(yaml.safe_load_all(text)) == [{"name": w} for w in words]
    assert "'1e3'" in text


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://joe:s3cret@db/x",
        "postgresql://joe:s3/cr@et@db/x",
        "redis://:s3cret@host:6379",
        "mysql://db/x?user=joe&password=s3cret",
        "postgresql+psycopg2://joe:s3cret@db:notaport/x",
    ],
)
def test_a_password_is_not_shown(url: str) -> None:
    for text in (shown_storage(url), without_password(f"cannot connect to {url}", url)):
        assert "s3cret" not in text
        assert "cr@et" not in text
    assert "db" in shown_storage(url) or "host" in shown_storage(url)


def test_the_error_of_a_storage_that_cannot_be_opened_has_no_password() -> None:
    from qsim.errors import ScenarioError
    from qsim.optimize.search.storage import open_storage

    with pytest.raises(ScenarioError) as e:
        open_storage("nosuch://joe:s3cret@db/x")
    assert "s3cret" not in str(e.value)
    assert e.value.__cause__ is None


def test_a_dollar_in_a_title_is_a_dollar(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from qsim.report.figures.style import blank_figure, figure_svg, style

    with style():
        figure = blank_figure(2, 2)
        figure.add_subplot().set_title(r"$\frac{$ and $x^$")
    assert "frac" in figure_svg(figure)

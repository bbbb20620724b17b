"""What would have no effect is refused by its name, or said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.helpers import qsim

PROFILE = "h200_sxm/llama-3.1-8b/fp8-w8a8"
TRACE = "azure-conv-2023:duration=5,rate=4"
TWO = f"""\
traffic: {{trace: "{TRACE}"}}
fleet:
  pools:
    - {{profile: {PROFILE}, replicas: 2}}
    - {{profile: h200_sxm/llama-3.1-8b/bf16, replicas: 2, weight: 0.5}}
slos: [ttft:p99:9000]
"""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--pool", f"profile={PROFILE},weight=2"], "weight is 2, and the fleet has one pool"),
        (["--profile", PROFILE, "--set", "fleet.pools.0.weight=0.5"], "weight is 0.5, and the"),
    ],
)
def test_the_weight_of_a_single_pool(words: list[str], told: str) -> None:
    result = qsim("simulate", TRACE, *words)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_sweep_over_the_weight_of_a_single_pool() -> None:
    result = qsim("sweep", TRACE, "--profile", PROFILE, "--over", "fleet.pools.0.weight=1,2")
    assert "weight is 2, and the fleet has one pool" in result.output  # the error of its point


def test_pools_that_a_search_compares(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(TWO)
    result = qsim("plan", str(path), "--no-headroom", "--replications", "0")
    assert result.exit_code == 0, result.stderr
    assert "the 2 pools of fleet.pools are compared, each as a fleet of its own" in result.stderr
    result = qsim("curve", str(path), "--rates", "2")
    assert result.exit_code == 0, result.stderr
    assert "the 2 pools of fleet.pools are compared" in result.stderr
    result = qsim("plan", str(path), "--no-headroom", "--replications", "0", "--profile", PROFILE)
    assert "fleet.pools is not looked at: plan.model and plan.profiles name" in result.stderr
    result = qsim("simulate", str(path), "--machines", "0")
    assert "fleet.pools" not in result.stderr


@pytest.mark.parametrize(
    "words",
    [[TRACE], ["--traffic", TRACE], ["azure-conv-2023"], ["--set", "traffic.speed=2"]],
    ids=["trace", "option", "the default's name", "reshaped"],
)
def test_traffic_of_a_study_of_tasks(words: list[str], tmp_path: Path) -> None:
    result = qsim(
        "study", *words, "--model", "llama-3.1-8b", "--level", "application",
        "--out", str(tmp_path / "study"),
    )  # fmt: skip
    assert result.exit_code == 2
    assert "the application level has traffic of its own: leave it out, or add" in result.stderr


@pytest.mark.parametrize("command", ["simulate", "curve"])
def test_options_of_other_commands(command: str) -> None:
    result = qsim(command, TRACE, "--model", "llama-3.1-8b")
    assert result.exit_code == 2
    assert "No such option '--model': give --profile; a server is named by" in result.stderr
    result = qsim("plan", TRACE, "--autoscale", "requests=1,max=2")
    assert "No such option '--autoscale': give --autoscaler; qsim simulate" in result.stderr


def test_an_exported_autoscaler_is_simulated(tmp_path: Path) -> None:
    folder = f"{tmp_path}/k8s/"
    for kind, name in (("keda", "scaledobject"), ("hpa", "horizontalpodautoscaler")):
        result = qsim(
            "plan", TRACE, "--profile", PROFILE, "--slo", "ttft:p99:9000", "--no-headroom",
            "--replications", "0", "--export", f"kubernetes={folder}", "--autoscaler", kind,
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        manifest = f"{folder}{name}.yaml"
        result = qsim("simulate", TRACE, "--profile", PROFILE, "--autoscale", manifest)
        assert result.exit_code == 0, result.stderr
        assert "autoscaler  1 to 1 servers on" in result.stdout
    text = Path(f"{folder}scaledobject.yaml").read_text()
    assert "cooldownPeriod" not in text, "there always is a server"
    many = tmp_path / "all.yaml"
    many.write_text(Path(f"{folder}deployment.yaml").read_text() + text)
    result = qsim("simulate", TRACE, "--profile", PROFILE, "--autoscale", str(many))
    assert result.exit_code == 0, result.stderr
    many.write_text(text + text)
    for path, told in (
        (str(many), "has 2 objects of kind HorizontalPodAutoscaler or ScaledObject; must have one"),
        (f"{folder}service.yaml", "has no objects of kind HorizontalPodAutoscaler"),
        (f"{tmp_path}/none.yaml", "cannot read"),
    ):
        result = qsim("simulate", TRACE, "--profile", PROFILE, "--autoscale", path)
        assert result.exit_code == 2
        assert told in result.stderr
    two = tmp_path / "two.yaml"
    two.write_text(TWO)
    result = qsim("simulate", str(two), "--autoscale", manifest)
    assert result.exit_code == 2
    assert "scales one Deployment, and the fleet has 2 pools" in result.stderr
    two.write_text(TWO.replace("replicas: 2", "replicas: 1, name: a", 1))
    choose = ["--set", "fleet.autoscaler.pools=[a]"]
    result = qsim("simulate", str(two), "--autoscale", manifest, *choose)
    assert result.exit_code == 0, result.stderr


def test_a_checkpoint_that_is_not_known_is_said() -> None:
    result = qsim(
        "plan", TRACE, "--profile", "h200_sxm/llama-3.1-8b/nvfp4-w4a16", "--slo", "ttft:p99:9000",
        "--no-headroom", "--replications", "0",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert "qsim knows no public checkpoint of llama-3.1-8b as nvfp4-w4a16: put your own" in text

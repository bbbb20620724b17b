from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import qsim
from qsim.errors import InfeasibleError, ScenarioError
from qsim.optimize.deploy.deployment import Pool
from qsim.optimize.deploy.export import Export, export_plan, parse_export
from qsim.optimize.deploy.vllm import serve_script
from qsim.optimize.plan.result import Plan
from qsim.sim.scheduler.config import EngineConfig, EngineOptions
from qsim.traces.trace import Trace
from tests.make_profile import make_profile
from tests.optimize.plan.plain import plan

SLOS = ("ttft:p99:400", "tpot:mean:9")
OPTIONS = EngineOptions(max_num_seqs=64, enable_prefix_caching=False)


def traffic() -> Trace:
    rng = np.random.default_rng(1)
    return Trace(
        np.cumsum(rng.exponential(1 / 60, 150)),
        rng.integers(50, 2500, 150),
        rng.integers(1, 150, 150),
    )


@pytest.fixture(scope="module")
def answer() -> Plan:
    return plan(
        traffic(), profiles=[make_profile()], slos=SLOS, options=OPTIONS, router="power-of-two",
        seed=3, growth=1.25, headroom=False,
    )  # fmt: skip


def pool(replicas: int, tensor_parallel_size: int = 1) -> Pool:
    return Pool("g/m/bf16", "g", "m", "bf16", EngineConfig(), replicas, tensor_parallel_size)


def started(script: str, tmp_path: Path, *args: str) -> list[tuple[str, str, str]]:
    """Run a script with a stand-in for vllm: (GPUs, port, tensor-parallel size) of each server."""
    fake = tmp_path / "vllm"
    fake.write_text('#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES" "$@"\n')
    fake.chmod(0o755)
    (tmp_path / "s.sh").write_text(script)
    done = subprocess.run(
        ["sh", str(tmp_path / "s.sh"), *args], capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    found = []
    for line in done.stdout.splitlines():
        words = shlex.split(line)
        assert words[1] == "serve"
        told = [words[words.index(o) + 1] for o in ("--port", "--tensor-parallel-size")]
        found.append((words[0], *told))
    return sorted(found, key=lambda f: f[1])


def test_every_server_has_gpus_and_a_port_of_its_own(tmp_path: Path) -> None:
    servers = started(serve_script([pool(2, 2), pool(3)]), tmp_path)
    assert servers == [
        ("0,1", "8000", "2"), ("2,3", "8001", "2"),
        ("4", "8002", "1"), ("5", "8003", "1"), ("6", "8004", "1"),
    ]  # fmt: skip


def test_a_large_fleet_is_spread_over_machines_without_splitting_a_server(tmp_path: Path) -> None:
    script = serve_script([pool(1), pool(3, 4)])
    assert started(script, tmp_path, "1") == [("0", "8000", "1"), ("1,2,3,4", "8001", "4")]
    assert started(script, tmp_path, "2") == [
        ("0,1,2,3", "8000", "4"), ("4,5,6,7", "8001", "4"),
    ]  # fmt: skip
    with pytest.raises(subprocess.CalledProcessError):
        started(script, tmp_path, "3")
    with pytest.raises(ScenarioError, match="gpus_per_host is 2; must be >= 4"):
        serve_script(pool(1, 4), gpus_per_host=2)


def test_the_script_has_the_plans_command(answer: Plan, tmp_path: Path) -> None:
    text = export_plan(answer, "vllm")
    assert text is not None
    assert text.count(answer.serve_command().split(" --port")[0]) == answer.best.replicas  # type: ignore[union-attr]
    assert export_plan(answer, f"vllm={tmp_path}/new/") is None
    script = tmp_path / "new" / "serve.sh"
    assert script.read_text() == text
    assert os.access(script, os.X_OK)


def test_manifests_in_one_file_or_in_a_folder(answer: Plan, tmp_path: Path) -> None:
    text = export_plan(answer, "kubernetes")
    assert text is not None
    assert export_plan(answer, Export("kubernetes", str(tmp_path / "all.yaml"))) is None
    assert (tmp_path / "all.yaml").read_text() == text
    export_plan(answer, f"kubernetes={tmp_path}/k8s/", autoscaler="keda")
    names = {p.name for p in (tmp_path / "k8s").iterdir()}
    assert names == {"deployment.yaml", "service.yaml", "scaledobject.yaml"}
    (deployment, *_) = yaml.safe_load_all(text)
    assert deployment["spec"]["replicas"] == answer.best.replicas  # type: ignore[union-attr]


def test_the_scenario_gives_the_plans_figures_again(answer: Plan, tmp_path: Path) -> None:
    export = f"scenario={tmp_path}/best.yaml"
    export_plan(answer, export, trace=traffic(), profile=make_profile())
    scenario = qsim.Scenario.load(tmp_path / "best.yaml")
    assert scenario.slos == list(SLOS)
    best = answer.best
    assert best is not None
    assert best.outcome is not None
    got, planned = qsim.simulate(scenario).summary(), dict(best.outcome.summary)
    got.pop("scenario"), planned.pop("scenario")  # the name of the trace is that of the file
    assert got == planned


def test_what_cannot_be_said_without_files_needs_a_path(answer: Plan) -> None:
    with pytest.raises(ScenarioError, match="--export scenario=FILE"):
        export_plan(answer, "scenario", trace=traffic())
    with pytest.raises(ScenarioError, match="not read from a file"):
        export_plan(answer, "scenario", scenario=qsim.Scenario(traffic={"trace": "t.csv"}))


def test_nothing_to_export_from_an_infeasible_plan() -> None:
    nothing = plan(traffic(), profiles=[make_profile()], slos=["tpot:p99:0.1"])
    with pytest.raises(InfeasibleError, match="nothing to export"):
        export_plan(nothing, "vllm")
    with pytest.raises(InfeasibleError):
        export_plan(nothing, "vllm", candidate=replace(nothing.candidates[0]))


@pytest.mark.parametrize("text", ["helm", "vllm=", "", "=x"])
def test_wrong_exports(text: str) -> None:
    with pytest.raises(ScenarioError, match="must be one of vllm, kubernetes, scenario"):
        parse_export(text)

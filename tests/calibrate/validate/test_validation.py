"""Replaying recordings: exact where it must be, honest about what was fitted, readable."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qsim.calibrate.fit.fitting import FitResult
from qsim.calibrate.fit.frontend import late_arrivals_ms
from qsim.calibrate.fit.host import recorded_own_ms
from qsim.calibrate.fit.report import mode_table
from qsim.calibrate.recordings.data import Recording, Requests
from qsim.calibrate.recordings.read import read_recording
from qsim.calibrate.validate.comparison import Comparison
from qsim.calibrate.validate.validation import (
    check_profiles,
    compare,
    engine_settings,
    fit_error,
    group_servers,
    measured_metrics,
    phase_trace,
    profile_of,
    validate,
)
from qsim.cli import main
from qsim.errors import CalibrationError, RecordingError
from qsim.profiles.schema import Profile
from qsim.report.text.fidelity import fidelity_page
from qsim.sim.simulate import simulate
from tests.calibrate.synthetic import true_profile


def test_the_true_profile_has_no_error(recorded: Recording) -> None:
    c = compare(recorded, "val_mix", true_profile(), held_out=False)
    assert c.requests == 120
    assert set(c.measured) == set(c.simulated)
    for name in c.measured:
        # recorded times are rounded to ns
        assert c.error_percent(name) == pytest.approx(0.0, abs=0.02), name


def test_clients_who_wait_are_replayed_as_such(recorded: Recording) -> None:
    true = true_profile()
    k = recorded.phase_index("val_mix")
    load = phase_trace(recorded, "val_mix")
    blocks = recorded.server.num_gpu_blocks
    true = replace(true, memory=replace(true.memory, num_gpu_blocks=blocks))
    run = simulate(load, true, concurrency=4, options=engine_settings(recorded))
    q = recorded.requests
    begin_s = float(q.sent_s[q.phase == k][0])
    own = Requests(
        np.full(len(load), k),
        tuple(map(str, range(len(load)))),
        begin_s + run.arrival_s,
        run.prompt_tokens,
        run.output_tokens,
        begin_s + run.arrival_s + run.ttft_ms / 1e3,
        begin_s + run.arrival_s + run.e2el_ms / 1e3,
    )
    phases = list(recorded.phases)
    phases[k] = replace(phases[k], load="clients", clients=4)
    waiting = replace(recorded, requests=own, phases=tuple(phases))
    c = compare(waiting, "val_mix", true, held_out=False)
    for name in c.measured:
        if name != "energy_j":  # that of another load
            assert c.error_percent(name) == pytest.approx(0.0, abs=0.02), name
    # they are sent when the simulated server answers, not when the recorded one did
    decode = replace(true.latency.decode, base_ms=[2 * b for b in true.latency.decode.base_ms])
    slow = replace(true, latency=replace(true.latency, decode=decode))
    assert compare(waiting, "val_mix", slow, held_out=False).error_percent("mean_ttft_ms") < 60


def test_a_slower_server_is_seen(recorded: Recording) -> None:
    true = true_profile()
    decode = true.latency.decode
    slow = replace(
        true,
        latency=replace(
            true.latency,
            decode=replace(decode, base_ms=[1.5 * b for b in decode.base_ms]),
        ),
    )
    c = compare(recorded, "dec16", slow, held_out=False)
    assert 40 < c.error_percent("mean_tpot_ms") < 55
    assert c.error_percent("energy_j") > 20


def test_measured_metrics_are_vllm_bench_definitions(recorded: Recording) -> None:
    got = measured_metrics(recorded, "mixlo")
    q = recorded.requests
    m = q.phase == recorded.phase_index("mixlo")
    ttft = [(f - s) * 1e3 for f, s in zip(q.first_token_s[m], q.sent_s[m], strict=True)]
    tpot = [
        (z - f) * 1e3 / (n - 1)
        for z, f, n in zip(q.last_token_s[m], q.first_token_s[m], q.output_tokens[m], strict=True)
        if n > 1
    ]
    assert got["mean_ttft_ms"] == pytest.approx(np.mean(ttft))
    assert got["p90_tpot_ms"] == pytest.approx(np.percentile(tpot, 90))
    assert got["energy_j"] == recorded.phases[recorded.phase_index("mixlo")].energy_j


def test_phase_trace(recorded: Recording) -> None:
    trace = phase_trace(recorded, "mixlo")
    assert trace.arrival_s[0] == 0.0
    assert len(trace) == 60
    shaken = phase_trace(recorded, "mixlo", np.linspace(50.0, -50.0, 60))
    assert (np.diff(shaken.arrival_s) >= 0).all()
    assert sorted(shaken.prompt_tokens) == sorted(trace.prompt_tokens)
    with pytest.raises(RecordingError, match="no phase 'nope'"):
        phase_trace(recorded, "nope")


def test_groups(recorded: Recording) -> None:
    other = replace(recorded, name="other", server=replace(recorded.server, method="fp8-w8a8"))
    groups = group_servers([recorded, other, recorded])
    assert [[r.name for r in g] for g in groups] == [["toy--bf16", "toy--bf16"], ["other"]]


@pytest.fixture(scope="module")
def comparisons(recorded: Recording) -> list[Comparison]:
    return validate([recorded])


def test_machines_of_different_speed_are_not_pooled(
    recorded: Recording, recording_folder: Path, tmp_path: Path
) -> None:
    def slower(factor: float, name: str) -> Recording:
        s = recorded.steps
        taken = (s.launch_start_s - s.schedule_s) * factor
        steps = replace(
            s, schedule_s=s.launch_start_s - taken, update_dur_s=s.update_dur_s * factor
        )
        return replace(recorded, name=name, steps=steps)

    like, slow = slower(1.2, "like"), slower(1.5, "slow")
    assert group_servers([slow, recorded, like]) == [[recorded, like], [slow]]
    assert recorded_own_ms(slow) == pytest.approx(1.5 * recorded_own_ms(recorded), rel=1e-3)
    # and a profile is not fitted of both
    folder = shutil.copytree(recording_folder, tmp_path / "slow")
    with gzip.open(folder / "steps.csv.gz", "rt") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        schedule_s, launch_s = float(row["schedule_s"]), float(row["launch_start_s"])
        row["schedule_s"] = f"{launch_s - 1.5 * (launch_s - schedule_s):.6f}"
        row["update_dur_s"] = f"{1.5 * float(row['update_dur_s']):.6f}"
    with gzip.open(folder / "steps.csv.gz", "wt", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    result = CliRunner().invoke(
        main,
        ["calibrate", "fit", str(recording_folder), str(folder), "--out", str(tmp_path / "out")],
    )
    assert result.exit_code == 2
    assert "toy--bf16 and slow are of one server on machines whose hosts differ" in result.stderr
    assert not (tmp_path / "out").exists()


def test_validate_holds_out(comparisons: list[Comparison]) -> None:
    assert [(c.phase, c.held_out) for c in comparisons] == [("val_mix", True), ("val_mix", False)]
    for c in comparisons:
        assert abs(c.error_percent("mean_e2el_ms")) < 1.0
        assert abs(c.error_percent("energy_j")) < 1.0
        low, high = c.p99_ttft_band_ms
        assert low <= c.simulated["p99_ttft_ms"] <= high
        # the simulator holds nothing, and its host is that of the profile
        assert (c.held_updates, c.late_arrivals, c.longest_arrival_ms) == (0, 0, 0.0)
        assert c.launch_ratio == pytest.approx(1.0, abs=0.01)
        assert not c.disturbed
    # a fit without the phase is another fit
    assert comparisons[0].simulated != comparisons[1].simulated


def test_the_stated_error_is_of_phases_left_out(comparisons: list[Comparison]) -> None:
    stated = fit_error(comparisons, "h200_sxm/toy-1b/bf16")
    out = comparisons[0]
    assert stated["phases"]["val_mix"]["toy--bf16"]["mean_ttft_ms"] == round(
        out.error_percent("mean_ttft_ms"), 2
    )
    assert stated["worst_mean"] == round(
        max(abs(out.error_percent(f"mean_{m}_ms")) for m in ("ttft", "tpot", "e2el")), 2
    )
    assert fit_error(comparisons[1:], "h200_sxm/toy-1b/bf16") == {}
    assert fit_error(comparisons, "h200_sxm/other/bf16") == {}


def test_the_page(comparisons: list[Comparison]) -> None:
    page = fidelity_page(comparisons)
    assert "## toy--bf16" in page
    assert "### val_mix" in page
    c = comparisons[0]
    cell = f"{c.simulated['mean_e2el_ms']:.4g} / {c.measured['mean_e2el_ms']:.4g}"
    assert cell in page
    assert page.count("| left out | TTFT ms |") == page.count("| fitted | TTFT ms |") == 1


def test_the_table_of_modes(fitted: FitResult) -> None:
    text = mode_table(fitted)
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["decode", "piecewise", "eager"]


def test_fits_that_exist_are_used(recorded: Recording, fitted: FitResult) -> None:
    host = replace(fitted.profile.host, launch_decode_ms=(50.0, 0.0))
    slow = replace(fitted, profile=replace(fitted.profile, host=host))
    out, within = validate([recorded], labels=["dec8"], fits=[slow])
    assert abs(out.error_percent("mean_tpot_ms")) < 1.0
    assert within.error_percent("mean_tpot_ms") > 100


def test_what_the_host_did_is_told(recorded: Recording, fitted: FitResult) -> None:
    """Three requests sent 60 ms before the front end had them, and launches of another host."""
    q = recorded.requests
    mine = np.flatnonzero(q.phase == recorded.phase_index("val_mix"))
    late_ms = late_arrivals_ms(recorded, fitted.profile.frontend)
    lengths, counts = np.unique(q.prompt_tokens[mine], return_counts=True)
    alone = np.isin(q.prompt_tokens[mine], lengths[counts == 1])
    held = mine[alone & (late_ms[mine] > -20.0)][5:8]
    sent_s = q.sent_s.copy()
    sent_s[held] -= 0.060
    host = replace(
        fitted.profile.host,
        launch_piecewise_ms=[v * 0.8 for v in fitted.profile.host.launch_piecewise_ms],
        launch_eager_ms=[v * 0.8 for v in fitted.profile.host.launch_eager_ms],
    )
    early = replace(recorded, requests=replace(q, sent_s=sent_s))
    other = replace(fitted, profile=replace(fitted.profile, host=host), recordings=(early,))
    (c,) = [c for c in validate([early], labels=["val_mix"], fits=[other]) if not c.held_out]
    assert c.late_arrivals == 3
    assert c.longest_arrival_ms == pytest.approx(60.0 + late_ms[held].max(), abs=1.0)
    assert c.launch_ratio == pytest.approx(1.25, abs=0.01)
    assert c.launches_differ


@pytest.mark.slow
def test_only_who_takes_part_is_fitted_again(recorded: Recording, plain_folder: Path) -> None:
    """Servers with the phase, and those of the model that lend their host times to one of them."""
    phases = tuple(replace(p, label=f"my_{p.label}") for p in recorded.phases)
    lender = replace(recorded, name="lender", phases=phases)
    alone = replace(
        lender, name="alone", server=replace(recorded.server, model="m2", method="int8-w8a8")
    )
    plain = read_recording(plain_folder)
    plain = replace(plain, server=replace(plain.server, method="fp8-w8a8"))
    assert not plain.steps.has_gpu_spans
    said: list[str] = []
    result = validate(
        [alone, plain, lender], labels=["val_mix"], in_sample=False, progress=said.append
    )
    assert [c.recording for c in result] == [plain.name]
    fitted_again = {line.partition(":")[0] for line in said if ":" in line}
    assert fitted_again == {"h200_sxm/toy-1b/bf16", "h200_sxm/toy-1b/fp8-w8a8"}
    said.clear()
    host = true_profile().host
    validate(
        [plain, lender], host_from=host, labels=["val_mix"], in_sample=False, progress=said.append
    )
    assert {line.partition(":")[0] for line in said if ":" in line} == {"h200_sxm/toy-1b/fp8-w8a8"}


def test_nothing_to_replay(recorded: Recording) -> None:
    phases = tuple(replace(p, use="fit") for p in recorded.phases)
    with pytest.raises(CalibrationError, match="no phases of use 'holdout': give --phase"):
        validate([replace(recorded, phases=phases)])


def test_command_fit(recording_folder: Path, plain_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "profiles"
    result = CliRunner().invoke(
        main,
        ["calibrate", "fit", str(recording_folder), "--out", str(out), "--no-validation",
         "--diagnostics", str(tmp_path / "pictures")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    path = out / "h200_sxm" / "toy-1b" / "bf16.json"
    assert Profile.load(path).id == "h200_sxm/toy-1b/bf16"
    assert "decode" in result.stdout
    pictures = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert pictures == [
        "h200_sxm--toy-1b--bf16--residuals.png",
        "h200_sxm--toy-1b--bf16--spans.png",
    ]

    # a profile lends its host times to a recording that has none
    plain = tmp_path / "plain.json"
    result = CliRunner().invoke(
        main,
        ["calibrate", "fit", str(plain_folder), "--out", str(plain), "--host-from", str(path)],
    )
    assert result.exit_code == 0, result.output
    stated = Profile.load(plain).fit_error
    assert set(stated["phases"]) == {"val_mix"}
    assert stated["worst_energy"] < 1.0


def test_command_validate(recording_folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "fidelity.md"
    result = CliRunner().invoke(
        main,
        ["calibrate", "validate", str(recording_folder), "--phase", "dec8", "--json", "-",
         "--out", str(page)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    comparisons = [(d["phase"], d["held_out"]) for d in data["comparisons"]]
    assert comparisons == [("dec8", True), ("dec8", False)]
    assert data["cells"]["together"]["cells"] == 2 * 13
    # the recording is the simulator's own: its steps are those of the scheduler
    (agreement,) = data["agreement"]
    assert agreement["steps"] > 500
    assert agreement["agreeing_recorded"] > 0.95 * agreement["steps"]
    assert "### dec8" in page.read_text()
    assert f"| toy--bf16 | all | {agreement['steps']} |" in page.read_text()


def test_a_given_profile_is_checked_as_it_is(
    recording_folder: Path, fitted: FitResult, tmp_path: Path
) -> None:
    shutil.copytree(recording_folder, tmp_path / "later")
    profile = fitted.profile
    decode = profile.latency.decode
    decode = replace(decode, base_ms=[2 * x for x in decode.base_ms])
    slow = replace(profile, latency=replace(profile.latency, decode=decode))
    paths = [tmp_path / "mine.json", tmp_path / "slow.json"]
    profile.save(paths[0])
    slow.save(paths[1])
    errors = []
    for path in paths:
        result = CliRunner().invoke(
            main,
            ["calibrate", "validate", str(tmp_path / "later"), "--phase", "dec8", "--json", "-",
             "--profile", str(path), "--out", str(tmp_path / "page.md")],
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert "fitting" not in result.stderr
        (c,) = json.loads(result.stdout)["comparisons"]
        assert c["held_out"]  # another recording than that of the fit
        errors.append(abs(c["error_percent"]["mean_tpot_ms"]))
    assert errors[0] < 1.0
    assert errors[1] > 10.0
    # that of the fit itself
    (c,) = check_profiles([read_recording(recording_folder)], [profile], ["dec8"])
    assert not c.held_out


def test_every_recording_needs_its_profile(recorded: Recording, fitted: FitResult) -> None:
    other = replace(fitted.profile, identity=replace(fitted.profile.identity, method="fp8-w8a8"))
    assert profile_of(recorded, [other, fitted.profile]) is fitted.profile
    with pytest.raises(
        CalibrationError,
        match="is of h200_sxm/toy-1b/bf16; --profile gives h200_sxm/toy-1b/fp8-w8a8: give",
    ):
        check_profiles([recorded], [other])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["validate", "REC", "--profile", "shipped"], 2, "h200_sxm/toy-1b/bf16"),
        (["validate", "REC", "--profile", "x", "--host-from", "y"], 2, "--profile fits nothing"),
        (["fit", "nowhere", "--out", "x.json"], 2, "nowhere' is not a folder"),
        (
            ["fit", "REC", "--out", "x.json", "--exclude-phase", "dec9"],
            4,
            "no recording has a phase",
        ),
        (["fit", "REC", "--out", "x.json", "--host-from", "h200_sxm/none/x"], 2, "h200_sxm/none/x"),
        (["validate", "REC", "--phase", "dec9"], 4, "no recording has a phase 'dec9'"),
        (["fit", "REC"], 2, "--out"),
    ],
)
def test_command_errors(
    recording_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(recording_folder) if a == "REC" else a for a in arguments]
    result = CliRunner().invoke(main, ["calibrate", *arguments])
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert not (tmp_path / "x.json").exists()


def test_one_file_for_two_servers(recording_folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(recording_folder, tmp_path / "other"))
    server = json.loads((other / "server.json").read_text())
    (other / "server.json").write_text(json.dumps({**server, "method": "fp8-w8a8"}))
    assert read_recording(other).server.method == "fp8-w8a8"
    out = str(tmp_path / "x.json")
    result = CliRunner().invoke(
        main, ["calibrate", "fit", str(recording_folder), str(other), "--out", out]
    )
    assert result.exit_code == 2
    assert "the recordings are of 2 servers: give a folder" in result.stderr

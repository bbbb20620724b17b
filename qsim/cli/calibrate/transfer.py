"""``qsim calibrate transfer``: profiles of GPUs and models that were not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qsim.cli._command import Command
from qsim.cli._outputs import check_output, note, say
from qsim.errors import ScenarioError

if TYPE_CHECKING:
    from qsim.catalog.models import Model
    from qsim.profiles.schema import Profile


@click.command("transfer", cls=Command)
@click.option("--to", "gpu", metavar="GPU", help="a100_sxm, h100_sxm or h200_sxm.")
@click.option(
    "--model",
    metavar="NAME|FILE|DIR|HF-ID",
    help="An architecture that qsim knows (llama-3.1-8b, llama-3.1-70b, qwen2.5-14b, qwen2.5-32b), "
    "the config.json of any dense model, its folder, or its Hugging Face id (org/name; needs "
    "huggingface_hub).",
)
@click.option("--methods", metavar="A,B,...", help="'qsim methods' lists them; all by default.")
@click.option(
    "--tensor-parallel-size",
    "tp",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="GPUs of one server.",
)
@click.option("--gpu-memory-gib", type=float, metavar="GIB",
              help="Memory of the GPU as CUDA reports it, where it is not the usual size (39.4 for "
              "an A100 of 40 GB).")  # fmt: skip
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Takes <gpu>/<model>/<method>.json of each.",
)
@click.option("--all", "everything", is_flag=True,
              help="Make the transferred profiles that come with qsim again, in --out or in the "
              "installed package.")  # fmt: skip
@click.option("--check", "checks", multiple=True, metavar="PROFILE",
              help="Compare this measured profile with what would be transferred in its place, "
              "learnt without it; repeatable.")  # fmt: skip
@click.option("--published", type=click.Path(path_type=Path), metavar="CSV",
              help="Compare with measurements of the ML.ENERGY leaderboard.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Comparisons as JSON on stdout.")
def transfer(**given: Any) -> None:
    """Make profiles of GPUs and models that were not measured.

    A step is composed from measured kernel latencies (aiconfigurator-core, needs
    pip install 'qsim[transfer]'); what they do not explain is learnt from the measured profiles of
    H200. Every such profile is marked "transferred" and states its estimated errors.
    """
    from qsim.calibrate.transfer.build import learn_from_shipped
    from qsim.catalog.models import load_model

    gpu, out, checks, published = (given[k] for k in ("gpu", "out", "checks", "published"))
    if not (given["everything"] or checks or published or gpu):
        raise ScenarioError("nothing to do; give --to with --model and --out, --all, --check or "
                            "--published")  # fmt: skip
    known = None
    if gpu is not None:
        if given["model"] is None or out is None:
            raise ScenarioError("--to also needs --model and --out")
        known = load_model(given["model"], dummy_weights=True)
        for remark in known.remarks:
            note(remark)
    if out is not None:
        check_output("--out", out, folder=True)
    teacher = learn_from_shipped()
    if known is not None:
        _some(teacher, known, given)
    if given["everything"]:
        import qsim.profiles.lookup
        from qsim.calibrate.transfer.catalogue import write_all

        folder = out or Path(qsim.profiles.lookup.__file__).parent
        made = write_all(teacher, folder, lambda id: say(f"  {id}", err=True))
        say(f"{len(made)} profiles in {folder}")
    if checks:
        _check(teacher, checks, given["as_json"])
    if published is not None:
        _published(teacher, published, given["as_json"])


def _some(teacher: Any, known: Model, given: dict[str, Any]) -> None:
    from qsim.calibrate.transfer.build import transfer as build
    from qsim.catalog.gpus import GIB, gpu_type
    from qsim.catalog.methods import METHODS, check, find_method
    from qsim.profiles.lookup import list_profiles, load_profile

    gpu, methods, tp, gib = (given[k] for k in ("gpu", "methods", "tp", "gpu_memory_gib"))
    kind = gpu_type(gpu)
    wanted = list(METHODS) if methods in (None, "all") else methods.split(",")
    measured = {e.id for e in list_profiles() if not load_profile(e.id).transferred}
    memory = None if gib is None else int(gib * GIB)
    for name in wanted:
        reason = None
        if memory is None or memory >= kind.memory_bytes:
            reason = check(find_method(name), known, kind, tp)
        elif not find_method(name).kernel(kind):
            reason = f"not supported on {kind.name}"
        if reason is not None:
            if methods not in (None, "all"):
                raise ScenarioError(f"{name}: {reason}")
            say(f"  {name}: {reason}", err=True)
            continue
        profile = build(teacher, gpu, known.id, known.config, name, tp, memory)
        if profile.id in measured:
            say(f"Note: {profile.id} was measured; qsim has that profile", err=True)
        path = given["out"] / f"{profile.id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        profile.save(path)
        say(f"{profile.id}: {path}")


def _check(teacher: Any, names: tuple[str, ...], as_json: bool) -> None:
    from qsim.calibrate.transfer.build import transfer as build
    from qsim.calibrate.transfer.check import compare_profiles, leave_out
    from qsim.calibrate.transfer.learn import LEARNT_ON
    from qsim.profiles.lookup import load_profile
    from qsim.report.text.tables import table

    rows: list[dict[str, Any]] = []
    for name in names:
        measured: Profile = load_profile(name)
        if measured.transferred:
            raise ScenarioError(f"--check is {name!r}, which is transferred itself")
        i = measured.identity
        if i.gpu == LEARNT_ON:
            composed = leave_out(teacher, measured)
        else:
            composed = build(
                teacher, i.gpu, i.model, i.architecture, i.method, i.tensor_parallel_size
            )
        rows += [
            {
                "profile": measured.id,
                "quantity": d.quantity,
                "median": round(d.median, 2),
                "p90": round(d.p90, 2),
                "worst": round(d.worst, 2),
                "mean": round(d.mean, 2),
            }
            for d in compare_profiles(composed, measured)
        ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    heads = ["profile", "quantity", "median\n|error| %", "90th\n|error| %", "worst\n%", "mean\n%"]
    cells = [[r["profile"], r["quantity"], *(f"{r[k]:+.1f}" if k in ("worst", "mean")
              else f"{r[k]:.1f}" for k in ("median", "p90", "worst", "mean"))]
             for r in rows]  # fmt: skip
    say(table(heads, cells, left=2))


def _published(teacher: Any, path: Path, as_json: bool) -> None:
    from qsim.calibrate.transfer.published import outcomes, summary
    from qsim.report.text.tables import table

    found = outcomes(teacher, path)
    if as_json:
        click.echo(json.dumps([o.to_dict() for o in found], indent=1))
    else:
        heads = ["task", "model", "GPU", "GPUs", "limit", "ITL ms", "theirs", "error %", "W/GPU",
                 "theirs", "error %", "J/token\nerror %"]  # fmt: skip
        cells = [
            [
                *(o.row.task, o.row.model, o.row.gpu),
                *(str(o.row.tensor_parallel_size), str(o.row.max_num_seqs)),
                *(f"{o.itl_ms:.1f}", f"{o.row.itl_ms:.1f}", f"{o.itl_error:+.1f}"),
                *(f"{o.watts_per_gpu:.0f}", f"{o.row.watts_per_gpu:.0f}"),
                *(f"{o.power_error:+.1f}", f"{o.energy_error:+.1f}"),
            ]
            for o in found
        ]
        say(table(heads, cells, left=3))
        say("\n" + summary(found))

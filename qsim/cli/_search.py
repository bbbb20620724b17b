"""Options that the optimizers share: candidates, prices, carbon, and how a study searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from qsim.cli._common import option_group
from qsim.errors import ScenarioError

__all__ = [
    "candidate_options",
    "carbon_options",
    "export_option",
    "floor_option",
    "forecast_options",
    "goodput_options",
    "gpus_from",
    "market_options",
    "most_replicas_option",
    "price_option",
    "prices_from",
    "stock_option",
    "study_options",
    "worth_options",
]

F = TypeVar("F", bound=Callable[..., Any])


def _price(text: str) -> str:
    """Check ``GPU=USD``; the text is kept, so that a scenario can hold it."""
    gpu, equals, usd = str(text).partition("=")
    try:
        if not (gpu and equals):
            raise ValueError
        float(usd)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not GPU=USD, such as h200_sxm=3.59") from None
    return f"{gpu.strip()}={usd.strip()}"


def candidate_options(
    profile: str, model: str = "Choose among the shipped profiles of this model."
) -> Callable[[F], F]:
    """``--model``, ``--gpu``, ``--method`` and ``--profile``, with the help of two of them."""
    return option_group(
        click.option("--model", metavar="ID", help=model),
        click.option("--gpu", "gpus", multiple=True, metavar="ID",
                     help="Only on this GPU; repeatable."),
        click.option("--method", "methods", multiple=True, metavar="ID",
                     help="Only by this method; repeatable."),
        click.option("--profile", "profiles", multiple=True, metavar="ID|FILE", help=profile),
    )  # fmt: skip


def forecast_options(verb: str) -> Callable[[F], F]:
    """``--peak-hour`` and ``--growth``, with what the command does in their help."""
    return option_group(
        click.option("--peak-hour", is_flag=True, default=None,
                     help=f"{verb} for the busiest hour of TRACE, by requests."),
        click.option("--growth", type=float, default=1.0, show_default=True, metavar="F",
                     help=f"{verb} for arrivals F times as fast."),
    )  # fmt: skip


#: ``--goodput`` and ``--min-goodput``
goodput_options = option_group(
    click.option("--goodput", multiple=True, metavar="METRIC:MS",
                 help="Limit of single requests, as in vLLM: ttft:500; repeatable."),
    click.option("--min-goodput", type=float, metavar="SHARE",
                 help="Share of requests within every --goodput limit (or every SLO's); 0.99 "
                 "unless given."),
)  # fmt: skip

#: ``--min-quality``
floor_option = click.option(
    "--min-quality",
    type=float,
    metavar="X",
    help="Only methods whose 90% interval of quality is not below X percent of the 16-bit model's "
    "score.",
)

#: ``--max-replicas``
most_replicas_option = click.option(
    "--max-replicas",
    type=int,
    default=128,
    show_default=True,
    metavar="N",
    help="The largest fleet to try.",
)


def export_option(which: str) -> Callable[[F], F]:
    """``--export`` of the best or the picked fleet."""
    return click.option(
        "--export",
        "exports",
        multiple=True,
        metavar="KIND[=PATH]",
        help=f"Write the {which} fleet as vllm (commands), kubernetes (manifests) or scenario (for "
        "qsim simulate), to a file or a folder/; without PATH to stdout instead of the table. "
        "Repeatable.",
    )


#: ``--beyond-measured``
beyond_option = click.option(
    "--beyond-measured",
    is_flag=True,
    default=None,
    help="Also recommend settings beyond what the profile's measurements cover, and say what that "
    "rests on.",
)

#: ``--price``, any number of times
price_option = click.option(
    "--price",
    "prices",
    multiple=True,
    type=_price,
    metavar="GPU=USD",
    help="USD per GPU and hour, instead of the shipped table's; repeatable.",
)


def prices_from(texts: Sequence[str]) -> dict[str, float]:
    """Prices by GPU."""
    return {p.split("=")[0]: float(p.split("=")[1]) for p in texts}


def gpus_from(texts: Sequence[str], option: str) -> dict[str, int]:
    """Numbers of GPUs by type, each ``GPU=N``.

    Raises
    ------
    ScenarioError
        If one is no such text, or a type is given twice.
    """
    found: dict[str, int] = {}
    for text in texts:
        gpu, equals, count = text.partition("=")
        gpu = gpu.strip()
        if not (gpu and equals and count.strip().isascii() and count.strip().isdigit()):
            raise ScenarioError(f"{option} is {text[:80]!r}; must be GPU=N, such as h100_sxm=8")
        if gpu in found:
            raise ScenarioError(f"{option} gives {gpu} twice; give their sum once")
        if len(count.strip()) > 7:
            raise ScenarioError(f"{option} is {text[:80]!r}; that many GPUs there are not")
        found[gpu] = int(count)
    return found


def stock_option(more: str = "") -> Callable[[F], F]:
    """``--stock``, any number of times; ``more`` is what else the command does with it."""
    return click.option(
        "--stock",
        multiple=True,
        metavar="GPU=N",
        help="Take only GPUs that there are: N of this type, such as h100_sxm=8; "
        f"repeatable.{more}",
    )


#: ``--price``, ``--prices FILE`` and ``--provider``
market_options = option_group(
    price_option,
    click.option("--prices", "prices_path", metavar="FILE.csv",
                 help="Prices by gpu and usd_per_hour; --price goes first."),
    click.option("--provider", default="specialty", show_default=True,
                 metavar="hyperscaler|specialty|longtail",
                 help="Whose prices the shipped table gives (qsim prices)."),
)  # fmt: skip


#: ``--region`` and ``--pue``
carbon_options = option_group(
    click.option("--region", metavar="KEY", help="Tell carbon on this grid: a country (DEU), a "
                 "cloud region (gcp:us-central1), world, or a number of gCO2e per kWh."),
    click.option("--pue", type=float, metavar="X",
                 help="Energy of the whole site over that of its IT, for carbon; 1 unless given."),
)  # fmt: skip

#: what figures are worth: prices, ``--tasks`` and carbon
worth_options = option_group(
    market_options,
    click.option("--tasks", metavar="MIX",
                 help="Tasks that quality is told for, such as gsm8k:0.3,mmlu:0.7."),
    carbon_options,
)  # fmt: skip

#: how many trials, and where the study is kept
study_options = option_group(
    click.option("--trials", type=int, default=200, show_default=True, metavar="N",
                 help="Trials of the whole study."),
    click.option("--batch", type=int, default=10, show_default=True, metavar="N",
                 help="Trials chosen at a time: as many processes can be busy. Decides "
                 "the result, unlike --jobs."),
    click.option("--population", type=int, default=20, show_default=True, metavar="N",
                 help="Of NSGA-II."),
    click.option("--study", metavar="FILE|URL",
                 help="Keep the study in this journal file, or in an Optuna storage such "
                 "as sqlite:///studies.db."),
    click.option("--study-name", default="qsim-tune", show_default=True, metavar="NAME",
                 help="Its name there."),
    click.option("--resume", is_flag=True, default=None,
                 help="Go on with the study that is there."),
)  # fmt: skip

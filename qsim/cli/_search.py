"""Options that the optimizers share: prices, and how a study searches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

__all__ = ["market_from", "market_options", "price_option", "prices_from", "study_options"]

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


def price_option(f: F) -> F:
    """``--price``, any number of times."""
    return click.option(
        "--price",
        "prices",
        multiple=True,
        type=_price,
        metavar="GPU=USD",
        help="USD per GPU and hour, instead of the shipped table's; repeatable.",
    )(f)


def prices_from(texts: Sequence[str]) -> dict[str, float]:
    """Prices by GPU."""
    return {p.split("=")[0]: float(p.split("=")[1]) for p in texts}


def market_options(f: F) -> F:
    """``--price``, ``--prices FILE`` and ``--provider``. Read them with :func:`market_from`."""
    f = click.option("--provider", default="specialty", show_default=True,
                     metavar="hyperscaler|specialty|longtail",
                     help="Whose prices the shipped table gives (qsim prices).")(f)  # fmt: skip
    f = click.option("--prices", "prices_path", metavar="FILE.csv",
                     help="Prices by gpu and usd_per_hour; --price goes first.")(f)  # fmt: skip
    return price_option(f)


def market_from(options: Mapping[str, Any]) -> dict[str, Any]:
    """``prices`` and ``provider`` for the optimizers, from a command's parameters."""
    from qsim.optimize.prices import load_prices

    path = options["prices_path"]
    listed = {} if path is None else load_prices(path)
    own = {**listed, **prices_from(options["prices"])}
    return {"prices": own, "provider": options["provider"]}


def study_options(f: F) -> F:
    """How many trials, and where the study is kept."""
    for decorator in reversed(
        [
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
        ]
    ):  # fmt: skip
        f = decorator(f)
    return f

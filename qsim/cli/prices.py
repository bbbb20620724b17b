"""``qsim prices``: what a plan takes GPUs to cost, and energy to emit."""

from __future__ import annotations

import click

from qsim.cli._command import Command
from qsim.cli._outputs import write_json
from qsim.errors import ScenarioError


@click.command(cls=Command)
@click.option("--gpu", "gpus", multiple=True, metavar="ID", help="Only this GPU; repeatable.")
@click.option("--provider", metavar="CLASS", help="Only this class of provider.")
@click.option("--carbon", is_flag=True, help="Show the grids' gCO2e per kWh instead.")
@click.option("--json", "json_path", metavar="FILE", help="Write it as JSON; - for stdout.")
def prices(
    gpus: tuple[str, ...], provider: str | None, carbon: bool, json_path: str | None
) -> None:
    """Show the shipped tables that qsim plan takes its prices and its carbon from.

    The figure that a plan uses is the middle of the range of the provider's class (--provider;
    specialty unless given). --price and --prices go first, as a number does for --region.
    """
    if carbon and (gpus or provider):
        raise ScenarioError("--carbon shows grids, which have neither a GPU nor a provider")
    from qsim.optimize.economics.carbon import carbon_table
    from qsim.optimize.economics.prices import DEFAULT_CLASS, PROVIDERS, price_table
    from qsim.report.text.tables import number, table

    if carbon:
        grids = carbon_table()
        if json_path:
            write_json([g.to_dict() for g in grids], json_path)
        if json_path != "-":
            rows = [
                [g.key, g.name, number(g.gco2e_per_kwh), str(g.year or "-"), g.source.split(" ")[0]]
                for g in grids
            ]
            click.echo(table(["region", "name", "gCO2e\nper kWh", "year", "source"], rows, left=2))
        return
    known = price_table()
    for word, wanted, allowed in (
        ("gpu", gpus, sorted({r.gpu for r in known})),
        ("provider", (provider,) if provider else (), list(PROVIDERS)),
    ):
        for value in wanted:
            if value not in allowed:
                raise ScenarioError(f"{word} is {value!r}; must be one of {', '.join(allowed)}")
    chosen = [
        r
        for r in known
        if (not gpus or r.gpu in gpus) and (not provider or r.provider_class == provider)
    ]
    if json_path:
        write_json([r.to_dict() for r in chosen], json_path)
    if json_path == "-":
        return
    rows = [
        [
            r.gpu,
            r.provider_class + (" (default)" if r.provider_class == DEFAULT_CLASS else ""),
            f"{r.low:.2f}-{r.high:.2f}",
            f"{r.middle:.2f}",
            r.date,
            r.source,
        ]
        for r in chosen
    ]
    heads = ["GPU", "provider", "range\nUSD/h", "used\nUSD/h", "date", "source"]
    click.echo(table(heads, rows, left=2))

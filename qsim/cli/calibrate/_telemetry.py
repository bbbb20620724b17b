"""``qsim calibrate adapt`` by metrics: where they come from, and what is said of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qsim.cli.calibrate._adapted import nvml_if_any, refuse_misfit, say, write_adapted
from qsim.errors import ScenarioError
from qsim.sim.scheduler.config import EngineOptions

if TYPE_CHECKING:
    from qsim.profiles.schema import Profile
    from qsim.traces.reconstruct.metrics import Metrics

__all__ = ["Sources", "adapt_by_telemetry", "label_pairs"]


@dataclass(frozen=True)
class Sources:
    """Where metrics come from: exactly one of files, Prometheus and a server."""

    files: tuple[str, ...]
    prometheus_url: str | None
    last_s: float
    watch_s: float | None
    step_s: float
    base_url: str | None
    labels: Mapping[str, str]
    model_name: str | None
    power: str
    gpus: tuple[int, ...]

    def read(self) -> Metrics:
        """The metrics of one server."""
        from qsim.calibrate.adapt.telemetry import of_one_server

        return of_one_server(self._all(), self.labels, self.gpus)

    def _all(self) -> Metrics:
        from qsim.calibrate.adapt.server import split_url
        from qsim.calibrate.adapt.watch import ask_prometheus, watch_server
        from qsim.traces.reconstruct.metrics import read_metrics

        if self.files:
            return read_metrics(self.files, self.model_name)
        if self.prometheus_url is not None:
            return ask_prometheus(
                self.prometheus_url,
                self.last_s,
                self.step_s,
                labels=self.labels,
                model_name=self.model_name,
            )
        assert self.base_url is not None
        assert self.watch_s is not None
        host, port = split_url(self.base_url)
        power_url = None if self.power in ("nvml", "none") else self.power
        return watch_server(
            f"http://{host}:{port}/metrics",
            self.watch_s,
            self.step_s,
            gpus=self.gpus,
            joules=nvml_if_any(self.gpus) if self.power == "nvml" else None,
            power_url=power_url,
            model_name=self.model_name,
            say=say,
        )


def adapt_by_telemetry(
    sources: Sources,
    profile: Profile,
    options: EngineOptions,
    out: Path,
    most_error: float,
    jobs: int | None,
) -> None:
    """Adapt a profile by metrics, write it, and say what was found."""
    from qsim.calibrate.adapt.server import cache_blocks, check_cache
    from qsim.calibrate.adapt.telemetry import cache_labels, windows_of
    from qsim.calibrate.adapt.telemetry_fit import adapt_to_windows
    from qsim.cli._outputs import note
    from qsim.optimize.search.executors import open_executor
    from qsim.processes import available_cores
    from qsim.profiles.lookup import stated_errors
    from qsim.report.text.compare import adapted_text, factors_text, windows_text, workload_text

    metrics = sources.read()
    cache = cache_labels(metrics)
    lost = check_cache(cache, profile)
    windows, untold = windows_of(metrics)
    lost += untold
    for text in lost:
        note(text)
    with open_executor(jobs or available_cores(), at_most=12) as executor:
        found = adapt_to_windows(
            windows,
            profile,
            options=options,
            num_gpu_blocks=cache_blocks(cache),
            notes=lost,
            progress=say,
            executor=executor,
        )
    click.echo(windows_text(windows, found))
    refuse_misfit(
        found.most_error_percent, most_error, "metrics", profile.id,
        "; give --max-num-seqs and the like as it was started",
    )  # fmt: skip
    stated = stated_errors(found.profile)
    texts = [
        factors_text(found.factors),
        workload_text(found),
        adapted_text(stated, "each window left out"),
    ]
    write_adapted(found, out, texts)


def label_pairs(texts: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` of ``--label``."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ScenarioError(
                f"--label is {text!r}; must be KEY=VALUE, such as instance=gpu1:8000"
            )
        found[key] = value
    return found

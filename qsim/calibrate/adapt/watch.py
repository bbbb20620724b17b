"""Where telemetry comes from: Prometheus, asked for a range; or a server, scraped for a while."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from tempfile import TemporaryDirectory
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from qsim.bounds import shown
from qsim.calibrate.adapt.power import Reader
from qsim.calibrate.adapt.server import scrape
from qsim.errors import CalibrationError
from qsim.traces.reconstruct.metrics import (
    ENERGY,
    POWER,
    Metrics,
    metrics_of_scrapes,
    read_metrics,
)

__all__ = ["DCGM_QUERY", "VLLM_QUERY", "ask_prometheus", "watch_server"]

#: what is asked of Prometheus; the same in docs/adapt.md
VLLM_QUERY = (
    '{__name__=~"vllm:(request_(prompt|generation)_tokens_(bucket|sum|count)'
    "|(time_to_first_token|e2e_request_latency|request_(queue|prefill|decode)_time)_seconds_"
    "(sum|count)|num_requests_(running|waiting)|prefix_cache_(queries|hits)_total"
    '|cache_config_info)"}'
)
DCGM_QUERY = f'{{__name__=~"{ENERGY}|{POWER}"}}'
_TIMEOUT_S = 60.0
_MOST_BYTES = 1 << 28
#: as many points as Prometheus answers at most
_MOST_POINTS = 11_000


def ask_prometheus(
    url: str,
    last_s: float,
    step_s: float,
    *,
    labels: Mapping[str, str] | None = None,
    model_name: str | None = None,
) -> Metrics:
    """The last ``last_s`` seconds of vLLM's metrics and of DCGM's, where there are any.

    Raises
    ------
    CalibrationError, TraceError
        If it does not answer, or has none of vLLM's request metrics.
    """
    if last_s / step_s > _MOST_POINTS:
        raise CalibrationError(
            f"{last_s:g} s in steps of {step_s:g} s are more than the {_MOST_POINTS:,} points that "
            "Prometheus answers with; give a longer --step"
        )
    end = time.time()
    own = VLLM_QUERY
    if labels:
        chosen = ",".join(f"{k}={json.dumps(v)}" for k, v in labels.items())
        own = f"{VLLM_QUERY[:-1]},{chosen}}}"
    with TemporaryDirectory(prefix="qsim-") as folder:
        paths = []
        for name, query in (("vllm", own), ("dcgm", DCGM_QUERY)):
            asked = {"query": query, "start": end - last_s, "end": end, "step": step_s}
            path = f"{folder}/{name}.json"
            with open(path, "wb") as file:
                file.write(_answer(f"{url.rstrip('/')}/api/v1/query_range?{urlencode(asked)}"))
            paths.append(path)
        return read_metrics(paths, model_name)


def _answer(url: str) -> bytes:
    where = url.partition("?")[0]
    try:
        with urlopen(url, timeout=_TIMEOUT_S) as answer:
            return bytes(answer.read(_MOST_BYTES))
    except HTTPError as e:
        said = e.read(300).decode("utf-8", "replace")
        raise CalibrationError(f"{shown(where)}: HTTP {e.code}: {said}") from None
    except (OSError, ValueError) as e:
        reason = e.reason if isinstance(e, URLError) else e
        raise CalibrationError(f"{shown(where)} does not answer: {reason}") from None


def watch_server(
    metrics_url: str,
    seconds: float,
    step_s: float,
    *,
    gpus: tuple[int, ...] = (0,),
    joules: Reader | None = None,
    power_url: str | None = None,
    model_name: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Metrics:
    """Scrape a server's ``/metrics`` for a while, and the energy of its GPUs with it.

    Parameters
    ----------
    joules : callable, optional
        Reads the energy of all its GPUs, as of NVML.
    power_url : str, optional
        DCGM's exporter, scraped at the same moments.

    Raises
    ------
    CalibrationError, TraceError
        If it stops to answer, or has no request metrics.
    """
    scrapes: list[tuple[float, str]] = []
    begin = time.perf_counter()
    moments = max(3, round(seconds / step_s) + 1)
    for i in range(moments):
        time.sleep(max(0.0, begin + i * step_s - time.perf_counter()))
        at = time.perf_counter() - begin
        text = scrape(metrics_url)
        if power_url is not None:
            text += "\n" + scrape(power_url)
        elif joules is not None:
            text += f'\n{ENERGY}{{gpu="{gpus[0]}"}} {joules() * 1e3!r}\n'
        scrapes.append((at, text))
        if i % max(1, moments // 10) == 0:
            say(f"scraped {metrics_url}: {i + 1} of {moments}")
    return metrics_of_scrapes(metrics_url, scrapes, model_name)

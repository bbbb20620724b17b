"""Options that several commands share, by the names of what they give: ``@options.trace``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from qsim.checks import parse_count
from qsim.cli._outputs import note
from qsim.sim.results.slo import Slo
from qsim.sim.scheduler.config import EngineOptions

# ROUTERS of qsim.sim.fleet.routers.router in words: importing it would cost --help its speed; a
# test compares them
ROUTER_HELP = (
    "round-robin, random, least-requests, least-tokens, power-of-two, vllm, prefix-affinity, "
    "session-affinity, kv-aware or expected-finish."
)

F = TypeVar("F", bound=Callable[..., Any])


def group(*decorators: Callable[[Any], Any]) -> Callable[[F], F]:
    """One decorator that adds several options, in the order of the help page."""

    def decorate(f: F) -> F:
        for decorator in reversed(decorators):
            f = decorator(f)
        return f

    return decorate


def count(text: str) -> int:
    """A whole number, or one with k/m/g/t (1000s) or K/M/G/T (1024s) behind it, as in vLLM."""
    try:
        return parse_count(text)
    except ValueError as e:
        raise click.BadParameter(str(e)) from None


#: TRACE and the options that read and shape it
trace = group(
    click.argument("trace", metavar="TRACE"),
    click.option("--format", metavar="NAME", help="Format of TRACE; recognised by content "
                 "unless given."),
    click.option("--columns", metavar="ROLE=NAME[UNIT],...", help="What the columns of a table "
                 "are: arrival=start_time[unix_ms],prompt=usage.prompt_tokens,output=tokens_out."),
    click.option("--sort", is_flag=True, default=None,
                 help="Sort TRACE by arrival time instead of refusing it."),
    click.option("--start", type=float, metavar="S",
                 help="Leave out requests before this time of the trace, s."),
    click.option("--end", type=float, metavar="S",
                 help="Leave out requests at or after this time of the trace, s."),
    click.option("--sample", type=float, metavar="SHARE", help="Keep this share of the requests "
                 "(of the sessions), drawn with --seed."),
    click.option("--scale-prompt", type=float, metavar="X", help="Make prompts X times as long."),
    click.option("--scale-output", type=float, metavar="X", help="Make outputs X times as long."),
    click.option("--shared-prefix", type=count, metavar="TOKENS", help="So many tokens at the "
                 "beginning of every prompt are the same, as a system prompt."),
    click.option("--speed", type=float, metavar="X",
                 help="Let requests arrive X times as fast (after --start and --end)."),
    click.option("--head", type=count, metavar="N", help="Keep the first N requests."),
    click.option("--merge", multiple=True, metavar="TRACE", help="Add another trace, which starts "
                 "with the first and is cut and scaled as it is; repeatable."),
)  # fmt: skip

#: ``--router``
router = click.option(
    "--router", default="least-requests", show_default=True, metavar="NAME", help=ROUTER_HELP
)

#: ``--text-prompts``
prompts = click.option(
    "--text-prompts/--token-prompts",
    default=None,
    help="Prompts are texts, which the API server tokenizes, or token ids (the default).",
)

#: ``--seed``, ``--too-long`` and ``--text-prompts``
run = group(
    click.option("--seed", type=int, default=0, show_default=True,
                 help="Of every random draw."),
    click.option("--too-long", default="error", show_default=True, metavar="error|reject",
                 help="Prompts of max-model-len or more: an error, or counted as failed "
                 "as the server would."),
    prompts,
)  # fmt: skip


def _known_version(ctx: click.Context, param: click.Parameter, version: str | None) -> str | None:
    """Refuse what is no version before the work; say it if its rules are not known."""
    if version is not None:
        from qsim.catalog.versions import newer_than_known

        remark = newer_than_known(version)
        if remark and ctx.command.name != "simulate":  # that has it in its notes
            note(remark)
    return version


#: vLLM's options that the simulator knows, under vLLM's names
engine = group(
    click.option("--max-num-seqs", type=count, metavar="N",
                 help="Requests that a server runs at a time."),
    click.option("--max-num-batched-tokens", type=count, metavar="N",
                 help="Token budget of one step."),
    click.option("--max-model-len", type=count, metavar="N",
                 help="Longest sequence, prompt and output together."),
    click.option("--enable-prefix-caching/--no-enable-prefix-caching", default=None,
                 help="Share KV blocks of equal prompt beginnings (needs hash ids)."),
    click.option("--async-scheduling/--no-async-scheduling", default=None,
                 help="Schedule the next step while the GPU works."),
    click.option("--kv-cache-memory-bytes", type=count, metavar="N",
                 help="Size of the KV cache of one GPU."),
    click.option("--num-gpu-blocks-override", type=count, metavar="N",
                 help="Number of KV blocks."),
    click.option("--long-prefill-token-threshold", type=count, metavar="N",
                 help="Longest prefill chunk of one request; 0 for no limit."),
    click.option("--scheduling-policy", metavar="NAME", help="fcfs or priority."),
    click.option("--max-num-active-seqs", type=count, metavar="N",
                 help="Of max_num_seqs as many may run (vLLM 0.31 and newer)."),
    click.option("--long-prefill-token-threshold-adaptive/"
                 "--no-long-prefill-token-threshold-adaptive", default=None,
                 help="Raise the threshold to a fair share of the budget (vLLM 0.31 and newer)."),
    click.option("--max-num-queued-reqs", type=count, metavar="N",
                 help="Unfinished requests of one server; more are rejected (vLLM 0.29 and newer; "
                 "simulate and sweep)."),
    click.option("--max-num-queued-tokens", type=count, metavar="N",
                 help="Prompt tokens without a first token in one server; with as many further "
                 "requests are rejected."),
    click.option("--vllm-version", metavar="VERSION", callback=_known_version,
                 help="Version of vLLM whose rules and defaults hold, 0.24 to 0.33; by default the "
                 "newest that the profile was measured with."),
)  # fmt: skip


def engine_from(options: Mapping[str, Any]) -> EngineOptions:
    """The engine options among a command's parameters."""
    return EngineOptions().updated(options)


#: ``--slo``, any number of times
slo = click.option(
    "--slo",
    "slos",
    type=Slo.parse,
    multiple=True,
    metavar="METRIC:STAT:MS",
    help="Limit on ttft, tpot, itl or e2el by mean, median or percentile, "
    "e.g. ttft:p99:500; repeat for more.",
)


#: ``--allow-backlog``
backlog = click.option(
    "--allow-backlog",
    is_flag=True,
    default=None,
    help="Do not count a fleet that finishes less than arrives as missing its SLOs; for work that "
    "may wait, such as an offline batch.",
)


#: ``--jobs`` and ``--dask``: where simulations run. Read them with :func:`jobs_from`
executor = group(
    click.option("--jobs", type=int, metavar="N",
                 help="Processes; by default one a core. The answer is the same."),
    click.option("--dask", metavar="ADDRESS",
                 help="Simulate on a Dask cluster instead: tcp://scheduler:8786, or a "
                 "scheduler file. The answer is the same."),
)  # fmt: skip


def jobs_from(options: Mapping[str, Any]) -> dict[str, Any]:
    """``jobs`` and ``dask`` for the optimizers, from a command's parameters."""
    from qsim.processes import available_cores

    jobs = options["jobs"]
    return {"jobs": available_cores() if jobs is None else jobs, "dask": options["dask"]}


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


def candidates(
    profile: str, model: str = "Choose among the shipped profiles of this model."
) -> Callable[[F], F]:
    """``--model``, ``--gpu``, ``--method`` and ``--profile``, with the help of two of them."""
    return group(
        click.option("--model", metavar="ID", help=model),
        click.option("--gpu", "gpus", multiple=True, metavar="ID",
                     help="Only on this GPU; repeatable."),
        click.option("--method", "methods", multiple=True, metavar="ID",
                     help="Only by this method; repeatable."),
        click.option("--profile", "profiles", multiple=True, metavar="ID|FILE", help=profile),
    )  # fmt: skip


def forecast(verb: str) -> Callable[[F], F]:
    """``--peak-hour`` and ``--growth``, with what the command does in their help."""
    return group(
        click.option("--peak-hour", is_flag=True, default=None,
                     help=f"{verb} for the busiest hour of TRACE, by requests."),
        click.option("--growth", type=float, default=1.0, show_default=True, metavar="F",
                     help=f"{verb} for arrivals F times as fast."),
    )  # fmt: skip


#: ``--goodput`` and ``--min-goodput``
goodput = group(
    click.option("--goodput", multiple=True, metavar="METRIC:MS",
                 help="Limit of single requests, as in vLLM: ttft:500; repeatable."),
    click.option("--min-goodput", type=float, metavar="SHARE",
                 help="Share of requests within every --goodput limit (or every SLO's); 0.99 "
                 "unless given."),
)  # fmt: skip

#: ``--min-quality``
floor = click.option(
    "--min-quality",
    type=float,
    metavar="X",
    help="Only methods whose 90% interval of quality is not below X percent of the 16-bit model's "
    "score.",
)

#: ``--max-replicas``
most_replicas = click.option(
    "--max-replicas",
    type=int,
    default=128,
    show_default=True,
    metavar="N",
    help="The largest fleet to try.",
)


def export(which: str) -> Callable[[F], F]:
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
beyond = click.option(
    "--beyond-measured",
    is_flag=True,
    default=None,
    help="Also recommend settings beyond what the profile's measurements cover, and say what that "
    "rests on.",
)

#: ``--price``, any number of times
price = click.option(
    "--price",
    "prices",
    multiple=True,
    type=_price,
    metavar="GPU=USD",
    help="USD per GPU and hour, instead of the shipped table's; repeatable.",
)


def stock(more: str = "") -> Callable[[F], F]:
    """``--stock``, any number of times; ``more`` is what else the command does with it."""
    return click.option(
        "--stock",
        multiple=True,
        metavar="GPU=N",
        help="Take only GPUs that there are: N of this type, such as h100_sxm=8; "
        f"repeatable.{more}",
    )


#: ``--price``, ``--prices FILE`` and ``--provider``
market = group(
    price,
    click.option("--prices", "prices_path", metavar="FILE.csv",
                 help="Prices by gpu and usd_per_hour; --price goes first."),
    click.option("--provider", default="specialty", show_default=True,
                 metavar="hyperscaler|specialty|longtail",
                 help="Whose prices the shipped table gives (qsim prices)."),
)  # fmt: skip


#: ``--region`` and ``--pue``
carbon = group(
    click.option("--region", metavar="KEY", help="Tell carbon on this grid: a country (DEU), a "
                 "cloud region (gcp:us-central1), world, or a number of gCO2e per kWh."),
    click.option("--pue", type=float, metavar="X",
                 help="Energy of the whole site over that of its IT, for carbon; 1 unless given."),
)  # fmt: skip

#: what figures are worth: prices, ``--tasks`` and carbon
worth = group(
    market,
    click.option("--tasks", metavar="MIX",
                 help="Tasks that quality is told for, such as gsm8k:0.3,mmlu:0.7."),
    carbon,
)  # fmt: skip

#: how many trials, and where the study is kept
study = group(
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

#: ``--pool``, any number of times
pool = click.option(
    "--pool",
    "pool_texts",
    multiple=True,
    metavar="KEY=VALUE,...",
    help="A pool of equal servers, e.g. profile=ID,replicas=4,max-num-seqs=256; repeat for a "
    "mixed fleet behind one router. Keys: profile, replicas, weight, name and the engine options, "
    "which otherwise are those beside it.",
)

clients = group(
    click.option("--concurrency", type=int, metavar="N",
                 help="Clients, each of which sends the next request of TRACE when its last one "
                 "has ended; when requests arrive in TRACE means nothing then."),
    click.option("--think-time", "think_time_s", type=float, metavar="S",
                 help="Mean seconds that a client of --concurrency waits after an answer, "
                 "exponentially distributed."),
    click.option("--client-timeout", "client_timeout_s", type=float, metavar="S",
                 help="Seconds after which a client gives up, and the server aborts its request."),
    click.option("--failure", "failure_texts", multiple=True, metavar="KEY=VALUE,...",
                 help="A server fails, e.g. at=600,for=120,server=0 (seconds of TRACE; pool=NAME "
                 "of several); repeat for more."),
    click.option("--mtbf", "mtbf_s", type=float, metavar="S",
                 help="Mean seconds that a server is on before it fails, at random."),
    click.option("--repair-time", "repair_s", type=float, metavar="S",
                 help="Mean seconds until it is repaired (0 by default); then it starts."),
    click.option("--retries", type=int, metavar="N",
                 help="How often a client sends a request again that a failed server has lost "
                 "(2 by default)."),
)  # fmt: skip

autoscaler = group(
    click.option("--autoscale", "autoscale_text", metavar="KEY=VALUE,...|FILE.yaml",
                 help="Let Kubernetes' autoscaler say how many servers are on, e.g. "
                 "requests=20,min=1,max=8: as many as hold 20 requests each, --replicas at the "
                 "beginning. Keys: what to scale on with its target per server (requests, waiting, "
                 "running, kv-usage, request-rate, ttft in s); min, max; kind (keda, hpa); window, "
                 "activation; up-window, down-window, tolerance; sync, scrape, polling, cooldown, "
                 "provision (seconds). Or a FILE.yaml with the HorizontalPodAutoscaler or "
                 "ScaledObject, as qsim writes them."),
    click.option("--start-s", type=float, metavar="S",
                 help="Seconds from a server's start until it answers, with --autoscale, --failure "
                 "or --mtbf (105 by default: the longest that was measured)."),
)  # fmt: skip

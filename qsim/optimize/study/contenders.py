"""Who takes part in a study: one server of each method and tensor-parallel size on each GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qsim.catalog.methods import METHODS
from qsim.errors import ScenarioError
from qsim.optimize.economics.prices import price_of
from qsim.optimize.plan.profile_choice import Choice, choice_of, choose_profiles
from qsim.optimize.study.figures import FIGURES, Band
from qsim.optimize.study.point import Point, Traffic
from qsim.optimize.study.result import Provenance
from qsim.profiles.carry import release
from qsim.profiles.lookup import (
    list_profiles,
    list_sharded,
    load_profile,
    stated_errors,
    transfer_note,
)
from qsim.profiles.schema import Profile
from qsim.sim.scheduler.config import EngineOptions

#: the baseline, which comes first everywhere
BASELINE = "bf16"


@dataclass(frozen=True)
class Contender:
    """One server configuration."""

    profile: Profile
    #: its id, or the file that it was read from: what a command calls it
    source: str
    #: with the defaults that the measured range lowers
    options: EngineOptions
    #: requests that one server runs at a time
    seats: int
    #: tokens of KV cache of one server
    kv_tokens: Band
    #: of one GPU
    usd_per_hour: float | None
    #: percent, by ``mean``, ``median``, ``p99``, ``energy`` and ``kv_tokens``
    errors: Mapping[str, float]
    #: the profile was given as an object, not read from ``source``
    given: bool = False

    @property
    def version(self) -> str:
        """vLLM's version that the profile is of, as ``"0.33"``; "" if it does not say."""
        have = self.profile.identity.vllm_version
        return ".".join(map(str, release(have))) if have else ""

    @property
    def id(self) -> str:
        """The profile's id."""
        return self.profile.id

    @property
    def gpu(self) -> str:
        """The GPU's id."""
        return self.profile.identity.gpu

    @property
    def method(self) -> str:
        """The method's id."""
        return self.profile.identity.method

    @property
    def tensor_parallel_size(self) -> int:
        """GPUs of one server."""
        return self.profile.identity.tensor_parallel_size

    def point(
        self,
        traffic: Traffic,
        *,
        replicas: int = 1,
        concurrency: int | None = None,
        max_num_seqs: int | None = None,
        settle: bool = False,
    ) -> Point:
        """A simulation of so many of these servers."""
        options = self.options
        if max_num_seqs is not None:
            options = replace(options, max_num_seqs=max_num_seqs)
        settings = {k: v for k, v in options.to_dict().items() if k != "vllm_version"}
        return Point(
            self.source,
            options.version(self.profile),
            traffic,
            replicas,
            tuple(settings.items()),
            concurrency,
            settle,
        )

    def options_of(self, point: Point) -> EngineOptions:
        """The options that a point's command says."""
        return replace(
            self.options.updated(dict(point.settings)),
            vllm_version=point.vllm_version,
            within_measured=False,
        )

    def bands(
        self,
        values: Mapping[str, float | None],
        intervals: Mapping[str, Sequence[float | None]],
    ) -> dict[str, Band | None]:
        """Figures with the error that the profile states, and of percentiles that of the sample.

        A percentile that the sample does not bound at both ends is not told.
        """
        found: dict[str, Band | None] = {}
        for name, figure in FIGURES.items():
            value = values.get(name)
            if value is None:
                found[name] = None
                continue
            error = self.errors.get(figure.error, 0.0)
            band = Band.around(value, error)
            if name in intervals:
                low, high = intervals[name]
                bounded = None if low is None or high is None else Band(value, low, high)
                found[name] = bounded and bounded.wider(error)
            elif name == "power_limit_share":
                found[name] = replace(band, high=min(1.0, band.high))
            else:
                found[name] = band
        return found

    def provenance(self) -> Provenance:
        """What it rests on."""
        profile = self.profile
        source = "transferred" if profile.transferred else "measured"
        if source == "measured" and profile.carried is not None:
            source = "carried"
        return Provenance(
            profile.id,
            self.gpu,
            self.method,
            self.tensor_parallel_size,
            source,
            profile.identity.vllm_version or self.options.version(profile),
            dict(self.errors),
            transfer_note(profile) or "",
        )


#: methods of one GPU type, in order, all of one tensor-parallel size
Line = tuple[Contender, ...]


def method_order(methods: Iterable[str]) -> tuple[str, ...]:
    """As the catalogue lists them, the baseline first; a variant stands behind its base."""
    known = list(METHODS)

    def key(method: str) -> tuple[int, str]:
        base = method.partition("+")[0]
        return (known.index(base) if base in known else len(known), method)

    return tuple(sorted(set(methods), key=key))


def gpus_of(model: str) -> tuple[str, ...]:
    """GPU types with shipped profiles of a model; those on which it was measured come first."""
    entries = [e for e in list_profiles() if e.model == model]
    measured = {e.gpu for e in entries if not e.transferred}
    return tuple(sorted({e.gpu for e in entries}, key=lambda g: (g not in measured, g)))


def choose_contenders(
    model: str | None,
    gpus: Sequence[str],
    methods: Sequence[str],
    profiles: Sequence[Profile | str],
    options: EngineOptions,
    prices: Mapping[str, float] | None,
    provider: str,
    *,
    sharded: bool = False,
) -> tuple[list[Contender], list[str]]:
    """The servers that can be simulated, sorted, and why others cannot.

    With ``sharded`` those of further tensor-parallel sizes too, of the same methods.

    Raises
    ------
    ScenarioError
        If none can, or the profiles are of several models.
    ProfileError
        If there is no profile to choose from.
    """
    choices = choose_profiles(model, tuple(gpus), tuple(methods), profiles, options.vllm_version)
    if sharded and model is not None:
        version = choices[0].profile.identity.vllm_version
        methods_there = {(c.profile.identity.gpu, c.profile.identity.method) for c in choices}
        choices += [
            Choice(load_profile(e.id, options.vllm_version or version), e.id)
            for e in list_sharded(model)
            if (e.gpu, e.method) in methods_there
        ]
    models = sorted({c.profile.identity.model for c in choices})
    if len(models) > 1:
        raise ScenarioError(f"the profiles are of several models ({', '.join(models)}); give one's")
    found, notes = [], []
    for choice in choices:
        contender, reason = _contender(choice, options, prices, provider)
        if contender is None:
            notes.append(f"{choice.profile.id} took no part: {reason}")
        else:
            found.append(contender)
    if not found:
        raise ScenarioError(notes[0])
    order = {m: i for i, m in enumerate(method_order(c.method for c in found))}
    rank = {g: i for i, g in enumerate(gpus)}
    found.sort(key=lambda c: (rank.get(c.gpu, len(rank)), c.gpu, order[c.method],
                              c.tensor_parallel_size))  # fmt: skip
    return found, notes


def _contender(
    choice: Choice,
    options: EngineOptions,
    prices: Mapping[str, float] | None,
    provider: str,
) -> tuple[Contender | None, str]:
    profile = choice.profile
    try:
        engine = options.resolve(profile)
    except ScenarioError as e:
        return None, str(e)
    price = price_of(profile.identity.gpu, prices, provider)
    errors: dict[str, Any] = {**stated_errors(profile), "kv_tokens": 0.0}
    if profile.transfer is not None:
        errors["kv_tokens"] = profile.transfer.error_percent.get("kv_tokens", 0.0)
    tokens = (engine.num_gpu_blocks - 1) * engine.block_size
    return Contender(
        profile,
        choice.source or profile.id,
        options.settled(profile),
        engine.seats,
        Band.around(float(tokens), errors["kv_tokens"]),
        None if price is None else price.usd_per_hour,
        errors,
        choice.source is None,
    ), ""


def remade(
    contender: Contender,
    version: str,
    options: EngineOptions,
    prices: Mapping[str, float] | None,
    provider: str,
) -> Contender | None:
    """The same server with its profile of another version of vLLM; None if there is none."""
    given = contender.profile if contender.given else contender.source
    made, _ = _contender(choice_of(given, version), options, prices, provider)
    return made if made is not None and made.version == version else None


def common_size(contenders: Sequence[Contender], gpus: Sequence[str]) -> int:
    """The tensor-parallel size at which methods are compared: GPUs of every server.

    The smallest at which each of the GPU types has the baseline; or that of most servers.
    """
    sizes = sorted({c.tensor_parallel_size for c in contenders if c.gpu in gpus})

    def counts(size: int) -> tuple[bool, int]:
        some = [c for c in contenders if c.tensor_parallel_size == size and c.gpu in gpus]
        with_base = {c.gpu for c in some if c.method == BASELINE}
        return with_base == set(gpus), len(some)

    return next((s for s in sizes if counts(s)[0]), max(sizes, key=lambda s: (counts(s)[1], -s)))


def line_of(contenders: Sequence[Contender], gpu: str, size: int) -> Line:
    """One server of each method on a GPU type, of one tensor-parallel size."""
    return tuple(c for c in contenders if c.gpu == gpu and c.tensor_parallel_size == size)

"""Which profiles a plan compares, and each as a candidate before its search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qsim.errors import ScenarioError
from qsim.optimize.economics.prices import DEFAULT_CLASS, price_of
from qsim.optimize.plan.candidate import Candidate, Shortfall
from qsim.optimize.search.goals import Carbon, QualityGoal
from qsim.profiles.carry import release
from qsim.profiles.lookup import (
    find_profiles,
    load_profile,
    stated_errors,
    transfer_note,
    version_of,
)
from qsim.profiles.measured_range import MeasuredRange
from qsim.profiles.schema import Profile
from qsim.scenario import Scenario
from qsim.scenario.resolve import candidates_of
from qsim.scenario.searches import SearchSection
from qsim.sim.scheduler.config import EngineOptions


@dataclass(frozen=True)
class Choice:
    """A profile, and the id or path that it was read from (None: it was given as an object)."""

    profile: Profile
    source: str | None = None


def choose_profiles(
    model: str | None,
    gpus: Sequence[str],
    methods: Sequence[str],
    profiles: Sequence[Profile | str],
    vllm_version: str | None = None,
) -> list[Choice]:
    """The shipped profiles of ``model`` and those ``profiles`` that are given, sorted by id.

    All are of one version of vLLM where that can be: of ``vllm_version``, by default the newest
    that one of the model's profiles was measured under (``version_of``).
    """
    chosen: dict[str, Choice] = {}
    if model is not None:
        entries = find_profiles(model, tuple(gpus), tuple(methods))
        version = vllm_version or max((e.version for e in entries), key=release)
        for entry in entries:
            chosen[entry.id] = Choice(load_profile(entry.id, version), entry.id)
    elif gpus or methods:
        raise ScenarioError("gpus and methods choose among the profiles of a model; give model")
    for given in profiles:
        choice = choice_of(given, vllm_version)
        chosen[choice.profile.id] = choice  # one of the user's own replaces the shipped one
    if not chosen:
        raise ScenarioError("neither a model nor a profile is given; there is nothing to choose")
    return [chosen[i] for i in sorted(chosen)]


def choice_of(given: Profile | str, vllm_version: str | None) -> Choice:
    """A profile, or the id or file of one, as of a version of vLLM."""
    if isinstance(given, str):
        return Choice(load_profile(given, vllm_version), given)
    return Choice(version_of(given, vllm_version))


def profiles_among(
    scenario: Scenario, section: SearchSection, options: EngineOptions, stock: Iterable[str] = ()
) -> list[Choice]:
    """Those that a search of a scenario chooses among; of a model by default on GPUs in stock."""
    among = candidates_of(scenario, section)
    gpus = among.gpus or (tuple(stock) if among.model is not None else ())
    return choose_profiles(among.model, gpus, among.methods, among.profiles, options.vllm_version)


def blank_candidate(
    choice: Choice,
    options: EngineOptions,
    prices: Mapping[str, float] | None,
    objective: str,
    goal: QualityGoal,
    carbon: Carbon | None,
    provider: str = DEFAULT_CLASS,
    need_price: bool = False,
) -> Candidate:
    """The candidate before its search.

    With a ``reason`` if there is nothing to search for: its quality is below the floor, or the
    options do not suit it (then without ``engine``).

    Raises
    ------
    ScenarioError
        If the GPU has no price and one is needed.
    """
    profile = choice.profile
    identity = profile.identity
    price = price_of(identity.gpu, prices, provider)
    if price is None and (objective == "cost" or need_price):
        raise ScenarioError(
            f"no price is known for gpu {identity.gpu!r}; give one (--price {identity.gpu}=USD "
            "per hour) or choose another objective and no limit of cost"
        )
    candidate = Candidate(
        profile.id,
        identity.gpu,
        identity.model,
        identity.method,
        identity.tensor_parallel_size,
        tuple(identity.vllm_args),
        options.vllm_version or identity.vllm_version,
        transfer_note(profile) or "",
        choice.source,
        options=options,
        price=price,
        error_percent=stated_errors(profile),
        quality=goal.of(profile),
        carbon=carbon,
    )
    try:
        engine = options.resolve(profile)
    except ScenarioError as e:
        return replace(candidate, reason=str(e))
    reason, quality = goal.objection(candidate.quality), candidate.quality
    shortfall = None
    if reason and quality is not None and goal.min_pct is not None:
        under = (goal.min_pct - quality.low_pct) / goal.min_pct
        shortfall = Shortfall("min_quality", quality.low_pct, goal.min_pct, under)
    return replace(
        candidate,
        engine=engine,
        options=options.settled(profile),
        reason=reason,
        shortfall=shortfall,
        caution=MeasuredRange.of(profile).caution(
            engine.max_num_seqs, engine.max_num_batched_tokens
        ),
    )

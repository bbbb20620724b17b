"""A profile as if its server had run on the machine of another one.

How long the engine's host thread and the API process take depends on the machine, and on what else
it is doing, far more than on the quantization method: on virtual machines of one kind, 1.0 to 1.8
times as long. Methods that were measured on different machines can only be compared once they are
put on one. What the scheduler does is Python, the same for every method, so its time says how fast
a machine was. Launches differ between methods (in the number of kernels), so they are kept and
divided by that.
"""

from __future__ import annotations

from dataclasses import replace

from qsim.calibrate.fit.host import own_ms
from qsim.errors import CalibrationError
from qsim.profiles.schema import HostTimes, MeasuredHost, Profile

__all__ = ["slower_than", "with_host_like"]


def slower_than(host: HostTimes, other: HostTimes) -> float:
    """How many times as long as on ``other`` the engine's own work takes on ``host``."""
    return own_ms(host.schedule_ms, host.update_ms) / own_ms(other.schedule_ms, other.update_ms)


def _over(pair: list[float], factor: float) -> list[float]:
    return [round(v / factor, 7) for v in pair]


def with_host_like(profile: Profile, reference: Profile) -> Profile:
    """Give ``profile`` the host and the front end of the machine of ``reference``.

    Front end, scheduling, updating and the small times between are those of the reference;
    launches are the profile's own over :func:`slower_than`. What was measured is kept in
    ``measured_host``; :meth:`qsim.profiles.schema.Profile.as_measured` brings it back.

    Raises
    ------
    CalibrationError
        If the two differ in their number of GPUs (with several, workers launch, and the engine's
        thread only hands steps on), or the reference is not a measurement of its own host.
    """
    measured = profile.as_measured()
    if reference.transferred or reference.measured_host is not None:
        raise CalibrationError(
            f"--host-like: {reference.id} has the host of another profile; give one that was "
            "measured on its own"
        )
    numbers = [p.identity.tensor_parallel_size for p in (measured, reference)]
    if numbers[0] != numbers[1]:
        raise CalibrationError(
            f"--host-like: {reference.id} runs on {numbers[1]} GPUs and {measured.id} on "
            f"{numbers[0]}; give one with as many"
        )
    slower = slower_than(measured.host, reference.host)
    kept = MeasuredHost(reference.id, round(slower, 3), measured.host, measured.frontend)
    return replace(
        measured,
        host=replace(
            reference.host,
            launch_decode_ms=_over(measured.host.launch_decode_ms, slower),
            launch_piecewise_ms=_over(measured.host.launch_piecewise_ms, slower),
            launch_eager_ms=_over(measured.host.launch_eager_ms, slower),
            launch_eager_queue=measured.host.launch_eager_queue,
        ),
        frontend=reference.frontend,
        measured_host=kept,
    )

"""Fast-forward of one replica: turn after turn in one loop, as long as every decode runs.

:class:`qsim.sim.engine.replica.Replica` goes from turn to turn by asking the scheduler for a batch,
the profile for its time, and the scheduler again for what came of it. Nearly all turns are of a
kind in which the answers are known beforehand: the scheduler's group (decode_group.py) serves every
member, perhaps somebody's prefill goes with them, somebody joins or leaves. :meth:`FastForward.run`
carries such turns out in one loop over local variables, with no update objects, and runs of the
same decodes in closed form. With S(k) the start of turn k, L(k) the end of its launch, G(k) the
GPU's end of the step that it launches and U(k) the update that it awaits,

    L(k) = S(k) + schedule + launch             (longer if the launch waits for the GPU)
    G(k) = max(max(G(k-1) + gap, S(k) + schedule) + span(k), L(k))
    U(k) = max(L(k), G(k-lag)) + result        (lag 1; with synchronous scheduling 0)
    S(k+1) = U(k) + update + turn

Where the GPU is the bottleneck every ``max`` is decided alike in all turns, and as a span grows by
the same amount from step to step, G(k) = G(0) + k (period + growth (k + 1) / 2). Spans only grow,
so once the GPU is the bottleneck it stays so.

What the loop may do, and what it must leave:

* The group exists (``Scheduler.decodes_as_group``), the result applied last was one of the group,
  and so is every step in flight. So all gaps between tokens of members are equal (token_times.py).
* A turn is taken only if its step has work, serves all members and the one in the midst of its
  prefill without a preemption, and no ``long_prefill_token_threshold`` can leave two requests in
  the midst of theirs. The test is the scheduler's own; where it fails, the loop gives back the
  turn before anything of it was decided.
* The scheduler's queues, the group's members and the pool of blocks are always the scheduler's own.
  Only counters, and the steps in flight, are held here: ``enter`` takes them over and ``leave``
  gives them back, with the batch that the scheduler would have made.
* Blocks are taken from the pool in one go before blocks are next given back or looked up: nobody
  can tell when they were taken (kv_cache.py).

The turns before ``horizon_ps`` are carried out and no others, so nothing that arrives is missed.
"""

from __future__ import annotations

from bisect import bisect_left
from heapq import heappop, heappush
from math import sqrt
from typing import TYPE_CHECKING, TypeAlias

from qsim.sim.engine.timing import EAGER
from qsim.sim.engine.token_times import pack_entry
from qsim.sim.scheduler.batch import Batch
from qsim.sim.scheduler.request import FINISHED, RUNNING, Request

if TYPE_CHECKING:
    from qsim.sim.engine.replica import Replica

#: the clock (power state) is looked at when the batch changes, while it is changing, and at least
#: every so many steps
RUN_LIMIT = 64
_NOBODY: list[Request] = []  # never changed
_NOTHING: list[tuple[Request, int, int]] = []  # never changed


#: A step that was launched and not applied: its requests, when the GPU is done with it, how many of
#: its requests were members of the group, and ``explicit``, ``sampled`` and ``ending`` as in
#: :class:`qsim.sim.scheduler.batch.Batch`.
Flight: TypeAlias = tuple[
    int, int, int, list[tuple[Request, int, int]], list[Request], list[Request]
]


class FastForward:
    """Carries out the turns of a replica while it is active.

    Attributes
    ----------
    active
        The steps in flight are here and not in the replica's queue.
    """

    __slots__ = ("_applied", "_due", "_due_ps", "_launched", "_replica", "active")

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.active = False
        self._applied = False  # a result since ``enter``
        self._launched: Flight | None = None  # the step on the GPU that no turn waits for yet
        self._due: Flight | None = None  # the step whose result the next turn applies first
        self._due_ps = 0

    # ------------------------------------------------------------------ handing over

    @property
    def due(self) -> tuple[int, int]:
        """Requests and time of the result that the next turn applies first; of none: 0 and 0."""
        return (0, 0) if self._due is None else (self._due[0], self._due_ps)

    def enter(self) -> bool:
        """Take over at the start of a turn, its due result applied; False if that may not be."""
        replica = self._replica
        queue = replica._queue
        if len(queue) > 1 or not (
            replica.scheduler.decodes_as_group and replica._token_times.grouped
        ):
            return False
        self._launched = self._due = None
        if queue:
            inflight = queue[0]
            if not inflight.grouped or not inflight.rows:
                return False
            batch = inflight.batch
            if batch.step <= replica.scheduler.last_abort:
                return False  # not all who are in it go on
            self._launched = (
                inflight.rows,
                inflight.gpu_end_ps,
                len(batch.members),
                batch.explicit,
                batch.sampled,
                batch.ending,
            )
            queue.clear()
            replica.scheduler._in_flight.clear()
        self._applied = False
        self.active = True
        return True

    def _leave(self) -> None:
        """Give back at the start of a turn, its due result applied."""
        replica = self._replica
        scheduler = replica.scheduler
        group = scheduler._group
        flight = self._launched
        members = [r for r in scheduler._running if r.group is not None]
        if flight is not None:
            rows, gpu_end, _, explicit, sampled, ending = flight
            if sampled:
                later = set(sampled)  # who joined after it
                members = [r for r in members if r not in later]
            batch = Batch(group.scheduled)
            batch.members = members
            batch.clock = group.clock - 1
            batch.explicit, batch.sampled, batch.ending = explicit, sampled, ending
            batch.num_decodes = batch.num_tokens = len(members)
            batch.decode_context_tokens = sum(r.base for r in members) + len(members) * batch.clock
            for _, n, computed in explicit:
                batch.num_tokens += n
                if n == 1:
                    batch.num_decodes += 1
                    batch.decode_context_tokens += computed
                else:
                    batch.prefill.append((n, computed))
                    batch.num_prefill_tokens += n
            scheduler._in_flight.append(batch)
            replica._hold(batch, rows, gpu_end)
        if self._applied:
            # all who decode had a token of the result applied last
            replica._token_times.resume(members)
        replica._launched = True
        self._launched = None
        self.active = False

    # ------------------------------------------------------------------ turns

    def run(self, now: int, horizon_ps: int, stop_ps: int) -> int:
        """Carry out the turns that start before ``horizon_ps``; when the next one does.

        Nothing is submitted that is ready before ``stop_ps``: runs end there. If ``active`` is
        False afterwards, the turn at the time that is returned is the replica's to do, with its
        due result applied.
        """
        replica = self._replica
        scheduler, timing, meter = replica.scheduler, replica._timing, replica.meter
        sink, inbox, arrivals = replica._sink, replica._inbox, replica._arrivals
        api = replica.api
        on_way = 0 if api is None else api.num_waiting(now)
        runs_ahead = replica.runs_ahead
        late = api_row = api_token = 0
        api_busy = api_told = -1
        if api is not None:
            if api.coming and not api.waiting(now):
                api.settle()
            api_row, api_token = api.row_ps, api.token_ps
            api_busy, api_told, late = api.busy_ps, api.told_ps, api.late_ps
        group, kv = scheduler._group, scheduler._kv
        running, waiting = scheduler._running, scheduler._waiting
        config = scheduler.config
        seats, budget = scheduler._seats, config.max_num_batched_tokens
        size = config.block_size
        caching = kv.caching
        members, leaving, ends = group.members, group.leaving, group._ends
        crossings = group._crossings
        token_times = replica._token_times
        emit, token_ps = token_times.gaps.frombytes, token_times.emitted_ps
        entry = pack_entry
        schedule_ps, update_ps = timing.schedule_ps, timing.update_ps
        modes, launches = timing.decode_mode, timing.launch_ps
        held_ppm = timing.held_ppm
        most_rows, most_tokens = timing.measured_requests, timing.measured_tokens
        most_context = timing.measured_context_tokens
        knots, first_knot = timing.knots, replica._first_knot
        gap, result, turn = timing.gpu_gap_ps, timing.result_ps, timing.turn_ps
        lag = 1 if replica._async else 0

        due, launched, due_ps = self._due, self._launched, self._due_ps
        emitted = token_times.time_ps
        clock, base_sum, phase = group.clock, group._base_sum, group.phase
        scheduled, updated = group.scheduled, group.updated
        fresh, tail = scheduler._fresh, scheduler._tail
        given = 0  # tokens less to come than ``scheduler.outstanding_tokens`` says
        free, owed = kv.free, 0  # blocks; ``owed`` were taken, and the pool does not know it yet
        least_free = replica.least_free_blocks
        gpu_free = replica._gpu_free_ps
        clock_rows, context = replica._rows, replica._context_tokens
        since_look, look_after = replica._since_look, replica._look_after
        base, slopes = replica._base_ps, replica._slopes_ps
        steps = 0
        bail = True
        busy, decoded, contexts = meter.busy_ps, meter.decode_tokens, meter.context_tokens

        until, stop_at = horizon_ps, stop_ps
        if api is not None and api.waiting(horizon_ps - 1):
            until = now if api.waiting(now) else api.arriving[0].arrival_ps
            stop_at = api.soonest_ps()
            if not runs_ahead and stop_at > stop_ps:
                stop_at = stop_ps

        while now < horizon_ps:
            # ---- who arrives before this turn
            if now >= until:
                assert api is not None
                api.busy_ps, api.told_ps, api.late_ps = api_busy, api_told, late
                replica.take_in(now, due_ps, 0 if due is None else due[0])
                api_busy, api_told, late = api.busy_ps, api.told_ps, api.late_ps
                until, stop_at, on_way = horizon_ps, stop_ps, 0
                if api.waiting(horizon_ps - 1):
                    on_way = api.num_waiting(now)
                    # whoever is on its way may be ready at any turn
                    until = now + 1 if on_way else api.arriving[0].arrival_ps
                    stop_at = api.soonest_ps()
                    if not runs_ahead and stop_at > stop_ps:
                        stop_at = stop_ps
                continue

            # ---- the result that is due
            if due is not None:
                rows, _, count, _, sampled, ending = due
                due = None
                if api is not None and due_ps != api_told:
                    api_told = due_ps
                    late = api_busy - due_ps
                    alone = due_ps + rows * api_row
                    if late <= 0:
                        late = 0
                        api_busy = alone
                    else:
                        api_busy += rows * api_token
                        if alone > api_busy:
                            api_busy = alone
                self._applied = True
                updated += 1
                if count:
                    given += count
                    emit(entry(due_ps - emitted, 0, 1, count))
                for request in ending:
                    del leaving[request]
                    computed = request.limit - 1
                    request.group = None
                    request.end = 0
                    request.in_flight = 0
                    request.computed = computed
                    request.target = computed + 1
                    request.blocks = -(-computed // size)
                    if caching:
                        request.hashed = computed // size
                if sampled:
                    given += len(sampled)
                    for request in sampled:
                        if request.target == request.prompt_tokens + 1:
                            sink.first_token(due_ps, request, rows)
                        else:  # it was preempted
                            emit(entry(due_ps - token_ps[request.index], 0, 1, 1))
                        if request.group is None:
                            request.in_flight = 0
                            if caching:
                                full = request.computed // size
                                if full > request.hashed:
                                    kv.enter(request, full)
                            if request.target >= request.limit:
                                ending = [*ending, request]
                emitted = due_ps
                if ending:
                    if free < least_free:
                        least_free = free
                    if owed:
                        kv.take(owed)
                        owed = 0
                    for request in ending:
                        kv.release(request, preempted=False)
                        del running[request]
                        request.state = FINISHED
                        request.finished = True
                        sink.finished(due_ps, request, rows, late)
                    free = kv.free
                    scheduler._handover = True

            # ---- who has come, and who decodes from now on
            while inbox and inbox[0][0] <= now:
                scheduler.add(inbox.popleft()[1])
            if replica.aborts:
                break
            if phase != (launched is not None):
                if members or leaving:
                    break
                phase = 1 - phase
            if fresh:
                for request in fresh:
                    computed = request.computed
                    if computed + 1 < request.limit and request.state == RUNNING:
                        offset = computed - clock
                        request.base = offset
                        request.group = group
                        members[request] = None
                        base_sum += offset
                        crossings[offset % size] += 1
                        heappush(ends, (request.limit - 2 - offset, request.order, request))
                fresh = _NOBODY
                group._snapshot = None
            count = len(members)
            if count > budget:
                break
            need = crossings[-clock % size] if count else 0
            queued = waiting.count
            running_rows = len(running)

            # ---- a run: the same members again and again, with nobody joining or leaving
            if (
                tail is None
                and count == clock_rows == running_rows
                and phase == lag
                and (launched is None or (launched[2] == count and not launched[5]))
                and (launched is None or not launched[3])
                and not (held_ppm and modes[count] == EAGER and held_ppm[count])
                and not (
                    queued
                    and count < seats
                    and count < budget
                    and kv.changes != scheduler._blocked_at
                )
            ):
                turns = ends[0][0] - clock + lag
                launch_start = now + schedule_ps[count]
                gpu_start = gpu_free + gap
                if launch_start > gpu_start:
                    gpu_start = launch_start
                if turns > look_after - since_look:
                    if since_look >= look_after and turns > 1 and need <= free:
                        meter.busy_ps, meter.decode_tokens = busy, decoded
                        meter.context_tokens = contexts
                        if owed:
                            kv.take(owed)
                            owed = 0
                        coming = replica.num_coming(now) if arrivals else len(inbox) + on_way
                        replica.account(gpu_start, running_rows, coming + queued, free - need)
                        replica._read_clock(count, context + count)
                        look_after = replica._look_after
                        busy, decoded = meter.busy_ps, meter.decode_tokens
                        contexts = meter.context_tokens
                        base, slopes = replica._base_ps, replica._slopes_ps
                        since_look = 0
                    turns = min(turns, look_after - since_look)
                if turns > 1 and (turns // size + 1) * count > free:
                    group.clock = clock
                    turns = group.steps_within(free, turns)
                launch = launches[modes[count]][count]
                after = update_ps[count] + turn
                host = result + after + schedule_ps[count] + launch
                step_context = context + count
                # context only grows: the span is affine until it passes the segment's end
                span = base
                if step_context <= first_knot:
                    segment = 0
                    span += slopes[0] * step_context
                else:
                    segment = bisect_left(knots, step_context, 1) - 1
                    for j in range(segment):
                        span += slopes[j] * (knots[j + 1] - knots[j])
                    span += slopes[segment] * (step_context - knots[segment])
                if lag:
                    period = gap + span
                    steady = launch_start + launch <= gpu_free
                else:
                    period = (gap if gap > host - launch else host - launch) + span
                    steady = launch_start + launch <= gpu_start + span
                if segment + 1 < len(knots):
                    within = (knots[segment + 1] - step_context) // count + 1
                    if within < turns:
                        turns = within
                if turns > 1 and steady and host <= period:
                    growth = slopes[segment] * count
                    end = gpu_start + span
                    stop = stop_at
                    if inbox and inbox[0][0] < stop:
                        stop = inbox[0][0]
                    k = turns - 2 - lag
                    if end + k * period + growth * (k * (k + 1) // 2) + result + after >= stop:
                        # the largest k with G(k) < limit: the root of a quadratic in its
                        # stable form, corrected against the integers
                        limit = stop - result - after
                        ahead = limit - end
                        most, k = k, -1
                        if ahead > 0:
                            linear = period + 0.5 * growth
                            root = linear + sqrt(linear * linear + 2.0 * growth * ahead)
                            k = int(2.0 * ahead / root)
                        if k > most:
                            k = most
                        while k >= -lag and end + k * period + growth * (k * (k + 1) // 2) >= limit:
                            k -= 1
                        if k < -lag - 1:
                            k = -lag - 1
                        while k < most and (
                            end + (k + 1) * period + growth * ((k + 1) * (k + 2) // 2) < limit
                        ):
                            k += 1
                        turns = k + 2 + lag
                    k = turns - 1
                    triangle = k * turns // 2
                    last = end + k * period + growth * triangle  # the GPU is done with the last
                    first = gpu_free if lag else end
                    emit(entry(first + result - emitted, 0, 1, count))
                    if k:
                        emit(entry(period if lag else period + growth, growth, k, count))
                    emitted = last + result
                    if lag:
                        emitted -= period + growth * k
                    if api is not None:
                        # results come at U, U + step, U + 2 step + growth, ...
                        at, step = first + result, period if lag else period + growth
                        told = emitted
                        more = turns
                        if told > until:  # not before the next arrival
                            ahead_of = []
                            while more and told > until:
                                ahead_of.append((told, count))
                                more -= 1
                                told -= step + growth * (more - 1)
                            ahead_of.reverse()
                            api.coming.extend(ahead_of)
                        if more:
                            api_told = told
                            token = count * api_token
                            alone = told + count * api_row
                            api_busy += more * token
                            at += count * api_row + (more - 1) * token
                            if at > api_busy:
                                api_busy = at
                            if alone > api_busy:
                                api_busy = alone
                    self._applied = True
                    busy += turns * span + growth * triangle
                    decoded += count * turns
                    contexts += turns * context + count * (triangle + turns)
                    if count > most_rows:
                        replica.beyond_requests += turns
                    elif count > most_tokens:
                        replica.beyond_tokens += turns
                    else:  # the last steps of the run have the most context
                        over = context + turns * count - most_context
                        if over > 0:
                            over = -(-over // count)
                            replica.beyond_context += over if over < turns else turns
                    rounds, rest = divmod(turns, size)
                    if rest:
                        position = -clock % size
                        first = position - rest + 1
                        if first >= 0:
                            need = sum(crossings[first : position + 1])
                        else:
                            need = sum(crossings[: position + 1]) + sum(crossings[first:])
                        need += rounds * count
                    else:
                        need = rounds * count
                    free -= need
                    owed += need
                    if queued > replica.peak_waiting:
                        replica.peak_waiting = queued
                    clock += turns
                    context += count * turns
                    since_look += turns
                    steps += turns
                    given += turns * count
                    scheduled += turns
                    updated += turns
                    gpu_free = last
                    if lag:
                        ending = _NOBODY
                        while ends and ends[0][0] < clock:  # the last step may be somebody's last
                            request = heappop(ends)[2]
                            del members[request]
                            base_sum -= request.base
                            crossings[request.base % size] -= 1
                            request.end = scheduled
                            leaving[request] = None
                            ending = [*ending, request]
                            group._snapshot = None
                        launched = (count, last, count, _NOTHING, _NOBODY, ending)
                    now = emitted + after
                    scheduler._handover = False
                    continue

            # ---- one step; whether it is of the kind that this loop knows
            left = budget - count
            n = 0
            if tail is not None and left:
                n = tail.target - tail.computed
                if n > left:
                    n = left
                need += -(-(tail.computed + n) // size) - tail.blocks
            if need > free:
                break
            if queued or tail is not None:
                if config.long_prefill_token_threshold:
                    break
                if owed:
                    kv.take(owed)
                    owed = 0
                if (
                    not count
                    and tail is None
                    and (running_rows >= seats or scheduler._head_is_blocked())
                ):
                    break
            elif not count:
                break

            # ---- it is: members, then the prefill that goes on, then who is admitted
            scheduler._handover = False
            scheduled += 1
            free -= need
            owed += need
            rows = tokens = count
            explicit = _NOTHING
            sampled = ending = _NOBODY
            step_context = base_sum + count * clock
            if count:
                while ends and ends[0][0] <= clock:
                    request = heappop(ends)[2]
                    del members[request]
                    base_sum -= request.base
                    crossings[request.base % size] -= 1
                    request.end = scheduled
                    leaving[request] = None
                    ending = [*ending, request]
                    group._snapshot = None
                clock += 1
            if n or (queued and left):
                batch = Batch(scheduled)
                if n:
                    assert tail is not None
                    tail.blocks = -(-(tail.computed + n) // size)
                    scheduler._serve(batch, tail, n)
                if queued and left > n:
                    if owed:
                        kv.take(owed)
                        owed = 0
                    scheduler._schedule_waiting(batch, left - n)
                    free = kv.free
                explicit, sampled = batch.explicit, batch.sampled
                rows += len(explicit)
                tokens += batch.num_tokens
                step_context += batch.decode_context_tokens
                if len(explicit) > len(sampled):
                    tail = explicit[-1][0]
                elif explicit:
                    tail = None
                fresh = sampled
                running_rows = len(running)
                if running_rows > replica.peak_running:
                    replica.peak_running = running_rows
                queued = waiting.count
            if queued > replica.peak_waiting:
                replica.peak_waiting = queued

            # ---- its time
            time = now + schedule_ps[running_rows]
            gpu_start = gpu_free + gap
            if time > gpu_start:
                gpu_start = time
            if tokens == rows:
                if rows != clock_rows or since_look >= look_after or step_context != context + rows:
                    meter.busy_ps, meter.decode_tokens = busy, decoded
                    meter.context_tokens = contexts
                    coming = replica.num_coming(now) if arrivals else len(inbox) + on_way
                    replica.account(gpu_start, running_rows, coming + queued, free)
                    replica._read_clock(rows, step_context)
                    look_after = replica._look_after
                    busy, decoded = meter.busy_ps, meter.decode_tokens
                    contexts = meter.context_tokens
                    base, slopes = replica._base_ps, replica._slopes_ps
                    since_look = 0
                since_look += 1
                clock_rows = rows
                mode = modes[rows]
                context = step_context
                if context <= first_knot:
                    span = base + slopes[0] * context
                else:
                    span = replica._decode_span(context)
                decoded += rows
            else:
                meter.busy_ps, meter.decode_tokens = busy, decoded
                meter.context_tokens = contexts
                coming = replica.num_coming(now) if arrivals else len(inbox) + on_way
                replica.account(gpu_start, running_rows, coming + queued, free)
                clock_rows = -1
                decodes = count + batch.num_decodes
                mode, span = timing.mixed_span_ps(
                    tokens, decodes, step_context, batch.prefill, meter.factors
                )
                meter.decode_tokens += decodes
                for n, computed in batch.prefill:
                    meter.prefill_tokens += n
                    meter.pairs_doubled += n * (2 * computed + n + 1)
                busy, decoded = meter.busy_ps, meter.decode_tokens
                contexts = meter.context_tokens
            contexts += step_context
            if rows > most_rows:
                replica.beyond_requests += 1
            elif tokens > most_tokens:
                replica.beyond_tokens += 1
            elif step_context > most_context:
                replica.beyond_context += 1
            time += launches[mode][rows]
            gpu_free = gpu_start + span
            if gpu_free < time:
                gpu_free = time  # the GPU waits for the launch
            elif held_ppm and mode == EAGER:
                held = gpu_start + span * held_ppm[tokens] // 1_000_000
                if held > time:
                    time = held  # the launch waits for the GPU
            busy += gpu_free - gpu_start
            steps += 1
            flight = (rows, gpu_free, count, explicit, sampled, ending)
            if lag:
                due, launched = launched, flight
                if due is None:  # there is room for another step before this one is awaited
                    now = time + turn
                    continue
            else:
                due = flight
            due_ps = (due[1] if due[1] > time else time) + result
            now = due_ps + update_ps[due[0]] + turn
        else:
            bail = False

        if owed:
            kv.take(owed)
        if free < least_free:
            least_free = free
        if api is not None:
            api.busy_ps, api.told_ps, api.late_ps = api_busy, api_told, late
        replica.least_free_blocks = least_free
        replica._gpu_free_ps = gpu_free
        replica._rows, replica._context_tokens = clock_rows, context
        replica._since_look = since_look
        replica.steps += steps
        meter.busy_ps, meter.decode_tokens, meter.context_tokens = busy, decoded, contexts
        scheduler.outstanding_tokens -= given
        scheduler._fresh, scheduler._tail = fresh, tail
        group.clock, group._base_sum, group.phase = clock, base_sum, phase
        group.scheduled, group.updated = scheduled, updated
        token_times.time_ps = emitted
        self._due, self._launched, self._due_ps = due, launched, due_ps
        if bail:
            self._leave()
        return now

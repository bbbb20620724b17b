from dataclasses import dataclass, field


@dataclass
class NewRequestData:
    req_id: str
    num_computed_tokens: int


@dataclass
class CachedRequestData:
    req_ids: list = field(default_factory=list)
    num_computed_tokens: list = field(default_factory=list)
    num_output_tokens: list = field(default_factory=list)


@dataclass
class SchedulerOutput:
    scheduled_new_reqs: list
    scheduled_cached_reqs: CachedRequestData
    num_scheduled_tokens: dict
    total_num_scheduled_tokens: int


@dataclass
class Request:
    request_id: str
    num_prompt_tokens: int
    max_tokens: int
    num_computed_tokens: int = 0
    num_output_tokens: int = 0


class KVCacheManager:
    usage = 0.25


class Scheduler:
    """Chunked prefill under a token budget, everything admitted at once, no KV limit."""

    budget = 8192

    def __init__(self):
        self.waiting = []
        self.skipped_waiting = []
        self.running = []
        self.kv_cache_manager = KVCacheManager()

    def schedule(self, throttle_prefills=False):
        budget, tokens = self.budget, {}
        cached, new = CachedRequestData(), []
        for r in self.running:
            n = min(budget, r.num_prompt_tokens + r.num_output_tokens - r.num_computed_tokens)
            if n <= 0:
                continue
            tokens[r.request_id] = n
            budget -= n
            cached.req_ids.append(r.request_id)
            cached.num_computed_tokens.append(r.num_computed_tokens)
            cached.num_output_tokens.append(r.num_output_tokens)
            r.num_computed_tokens += n
        while self.waiting and budget > 0:
            r = self.waiting.pop(0)
            n = min(budget, r.num_prompt_tokens)
            tokens[r.request_id] = n
            budget -= n
            new.append(NewRequestData(r.request_id, 0))
            r.num_computed_tokens = n
            self.running.append(r)
        return SchedulerOutput(new, cached, tokens, sum(tokens.values()))

    def update_from_output(self, scheduler_output, model_runner_output):
        emitted = []
        for r in list(self.running):
            if r.request_id not in scheduler_output.num_scheduled_tokens:
                continue
            if r.num_computed_tokens < r.num_prompt_tokens:
                continue
            r.num_output_tokens += 1
            finished = r.num_output_tokens >= r.max_tokens
            if finished:
                self.running.remove(r)
            emitted.append((r.request_id, finished))
        return emitted

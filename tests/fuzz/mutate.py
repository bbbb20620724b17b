"""Mutations of documents, tables, bytes and option values; all drawn from one generator."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

__all__ = ["OPTION_VALUES", "mutate"]

Json = Any

NUMBERS: list[Json] = [
    0, 1, -1, -3, 2, 3, 0.5, -0.0, 1e-300, 1e300, -1e300, 1e18, 2**31, 2**53 + 1, 2**63, 2**64,
    8 * 10**12, 10**15, 10**100, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
TEXTS: list[Json] = [
    "", " ", "a", "010", "1:30", "1e999", "NaN", "nan", "null", "true", "x\ntouch PWNED #",
    "../../../escaped/m", "/tmp/qsim-fuzz-escaped/m", "a\0b", "\x1b[31m", "\u202e", "$x^2$",
    "$(touch PWNED)",
    "`touch PWNED`", "'; touch PWNED; '", "<script>alert(1)</script>", "\ud800", "é" * 50,
    "x" * 300, "UPPER", "a..b", "-o", "--trust-remote-code", "\U0001f600",
]  # fmt: skip
OTHERS: list[Json] = [None, True, False, [], {}, [[]], [1, 2], {"a": 1}, ["a"], [None]]
#: of an option; what they mean depends on it
OPTION_VALUES = [
    "0", "1", "-1", "2", "3", "0.5", "1e300", "-1e300", "1e-300", "1e999", "nan", "inf", "-inf",
    "10000000000", "1000000000000000", "9" * 40, "9" * 5000, "010", "0x10", "1_000", "1e3", "8k",
    "8K", "8T", "999999t", "", " ", "a", "a=b", "a=1,2", "=", ",", ":", "a:b:c", "none", "true",
    "/dev/null", "no/such", "-", "--", "x\ntouch PWNED", "\x1b[31m", "\u202e",
    "$x$", "<b>", "é", "\udcff", "a" * 300, "[" * 200, "(" * 2000 + ")" * 2000,
]  # fmt: skip
#: of options by a part of their name
OPTION_WORDS: dict[str, list[str]] = {
    "grid": ["max_num_seqs=1:1000000000", "seed=0:1:x1", "replicas=1,2", "seed=1:3", "rate=1:log",
             "a.b=1", "trace.rate=nan", "growth=0.1:1:0.1", "seed=1:9999999999:x1.0000001",
             "max_num_seqs=1e999", "profile=a,b", "replicas=-1,0", "speed=1,none"],
    "search": ["max_num_seqs=2:8:log", "replicas=1:2", "max_num_batched_tokens=8:64:x2",
               "max_num_seqs=0", "replicas=1:1000000000000", "router=a,b", "profile=x",
               "max_num_seqs", "method=none"],
    "set": ["fleet.pools.0.replicas=2", "fleet.pools[0].engine.max_num_seqs=4", "seed=[", "a.b=1",
            "fleet.pools.one.weight=1e999", "fleet.pools.99999999999.replicas=1",
            "traffic.speed=nan", "fleet.pools=[]", "slos=null", "traffic.trace=no/such",
            "fleet.pools.0=1", "." * 500 + "=1",
            "accounts.prices.x=1", "sweep.over.seed=[1, 2]", "fleet.pools.0.engine=[1]", "plan=3",
            "fleet.pools.0.engine.vllm_version=0.33", "traffic={" + "a: {" * 40 + "}" * 41,
            "seed=&a [*a]", "seed=!!python/name:os.system", "fleet.pools.2.profile=profile.json"],
    "fix": ["replicas=1", "max_num_seqs=4", "router=random", "max_num_seqs=1:3", "replicas"],
    "constraint": ["gpus<=1", "gpus<=1e999", "gpus<=-1", "p99_ttft_ms<=5", "gpus>=1 and gpus<=2",
                   "a<=1", "((((gpus<=1))))", "not gpus<=1", "gpus==1", "1>=gpus"],
    "pick": ["knee", "min gpus", "max gpus", "gpus<=4, knee", "gpus<=1e999", "min", "not " * 500,
             "(" * 500, "gpus<=1 or " * 200 + "gpus<=1", "min nothing"],
    "slo": ["ttft:p99:500", "ttft:p99.9999999:5", "tpot:mean:1e999", "itl:p100:1", "a:b:c",
            "ttft:p0:1", "e2el:median:-1", "ttft:p99:nan", "ttft:p" + "9" * 500 + ":1"],
    "goodput": ["ttft:500", "ttft:nan", "ttft:1e999", "tpot:-1", "a"],
    "objective": ["energy", "cost", "carbon", "throughput", "a", "gpus"],
    "export": ["vllm", "kubernetes", "scenario", "vllm=out/", "kubernetes=out/", "csv", "csv=out/",
               "scenario=out/s.yaml", "vllm=", "a=b", "kubernetes=out/k.yaml"],
    "router": ["random", "round-robin", "prefix-affinity", "power-of-two", "least-tokens", "vllm",
               "session-affinity", "kv-aware:overlap_score_credit=0.5", "kv-aware:", "random:a=1",
               "prefix-affinity:cache_threshold=0.3,balance_abs_threshold=64",
               "session-affinity:balance_rel_threshold=x"],
    "region": ["DEU", "world", "nan", "1e999", "-1", "gcp:us-central1", "1e300", "\udcff"],
    "price": ["h200_sxm=1", "h200_sxm=nan", "h200_sxm=1e300", "=", "h200_sxm", "a=b=c",
              "h200_sxm=-1", "../x=1"],
    "tasks": ["gsm8k", "gsm8k:0.3,mmlu:0.7", "gsm8k:nan", "gsm8k:1e999", "gsm8k:-1", "a:1", ":"],
    "format": ["azure", "mooncake", "canonical", "vllm-bench", "servegen", "burstgpt", "csv"],
    "seed": ["0", "7", "-1", "18446744073709551615", "18446744073709551616", "4294967296"],
    "json": ["-", "out/a.json", "out", "/dev/null", "out/x/y.json"],
    "window": ["10min", "1h", "1s", "0", "1e999h", "-1h", "nanh", "999999999999h", "1e-9s"],
    "policy": ["static", "reactive", "forecast", "a", "always-on"],
    "timezone": ["Etc/UTC", "a", "../x", "x\ny"],
    "prompt": ["100", "lognormal:100,1", "lognormal:nan,1", "exponential:1e999", "quantiles:0=1",
               "quantiles:0=1,1=1e300", "lognormal:1e300,1e300", "quantiles:", "-1", "1e18"],
    "output-tokens": ["100", "lognormal:100,1,5", "exponential:10", "quantiles:0=1,1=3"],
    "arrivals": ["poisson", "gamma", "weibull", "diurnal", "bursty", "a"],
    "sampler": ["nsga2", "tpe", "random", "grid", "a"],
    "provider": ["hyperscaler", "specialty", "longtail", "a"],
}  # fmt: skip


def mutate(rng: random.Random, name: str, data: bytes) -> bytes:
    """Another file of the kind that ``name`` ends in."""
    times = rng.choice((1, 1, 1, 2, 3))
    for _ in range(times):
        if rng.random() < 0.25:
            data = _bytes(rng, data)
        elif name.endswith(".json"):
            data = _json(rng, data)
        elif name.endswith(".yaml"):
            data = _yaml(rng, data)
        elif name.endswith((".csv", ".jsonl")):
            data = _lines(rng, data)
        else:
            data = _bytes(rng, data)
    return data


def value(rng: random.Random) -> Json:
    """Any JSON value."""
    pool = rng.choice((NUMBERS, NUMBERS, TEXTS, TEXTS, OTHERS))
    return copy.deepcopy(rng.choice(pool))


def _places(data: Json) -> list[tuple[Json, Any]]:
    """Every (container, key) of a document."""
    found: list[tuple[Json, Any]] = []
    left = [data]
    while left:
        part = left.pop()
        keys = part if isinstance(part, dict) else range(len(part))
        for key in keys:
            found.append((part, key))
            if isinstance(part[key], dict | list):
                left.append(part[key])
    return found


def _json(rng: random.Random, data: bytes) -> bytes:
    try:
        document = json.loads(data)
        places = _places(document) if isinstance(document, dict | list) else []
    except (ValueError, RecursionError):
        return _bytes(rng, data)
    if not places:
        return json.dumps(value(rng)).encode()
    # long lists of numbers would take all mutations
    own = [p for p in places if not (isinstance(p[0], list) and len(p[0]) > 8)] or places
    part, key = rng.choice(own if rng.random() < 0.8 else places)
    kind = rng.randrange(9)
    if kind <= 3:
        part[key] = value(rng)
    elif kind == 4:
        del part[key]
    elif kind == 5 and isinstance(part, dict):
        part[str(rng.choice(TEXTS)).replace("\ud800", "")] = value(rng)
    elif kind == 6:
        part[key] = [part[key]] * rng.choice((0, 1, 2, 1000))
    elif kind == 7:
        other, key2 = rng.choice(places)
        part[key] = copy.deepcopy(other[key2])
    elif isinstance(part[key], int | float) and not isinstance(part[key], bool):
        part[key] = part[key] * rng.choice((-1, 1e6, 1e-6, 1e30, 10**30, 0))
    try:
        text = json.dumps(document)
    except (ValueError, RecursionError):
        return data
    if rng.random() < 0.06:
        deep = rng.choice((50, 2000, 100_000))
        text = text.replace("null", "[" * deep + "]" * deep, 1) if "null" in text else "[" * deep
    if rng.random() < 0.04:
        text = text.replace(": 1", ": " + "9" * 5000, 1)
    if rng.random() < 0.06 and text.startswith("{"):
        head = text[1:].split(",")[0]
        text = "{" + head + ", " + text[1:]
    return text.encode("utf-8", "surrogatepass")


YAML_PIECES = [
    "010", "1:30", "yes", "~", "&x [1]", "*x", "!!python/name:os.system", "!!binary aa", "[", "]",
    "{a: 1}", "- a", "\t", "|", ">", "'", '"', "? a", ": b", "#", "---", "...", "%YAML 1.1",
    ".nan", ".inf", "1e999", "9" * 5000, "[" * 100, "<<: {a: 1}", "2026-01-01", "0x1f", "null",
]  # fmt: skip


def _yaml(rng: random.Random, data: bytes) -> bytes:
    lines = data.decode("utf-8", "replace").split("\n")
    at = rng.randrange(len(lines))
    kind = rng.randrange(6)
    key = lines[at].partition(":")[0]
    if kind == 0:
        lines[at] = f"{key}: {rng.choice(YAML_PIECES)}"
    elif kind == 1:
        lines[at] = f"{key}: {json.dumps(value(rng))}"
    elif kind == 2:
        lines.insert(at, lines[rng.randrange(len(lines))])
    elif kind == 3:
        del lines[at]
    elif kind == 4:
        lines.insert(at, rng.choice(YAML_PIECES))
    else:
        lines[at] = f"{rng.choice(TEXTS)}: {rng.choice(OPTION_VALUES)}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


CELLS = [
    "", " ", "-1", "0", "nan", "inf", "1e300", "1e18", "9223372036854775808", "9" * 40, "9" * 5000,
    "1.5", "a", '"', '""', '"a\nb"', "x" * 200_000, "\0", "é", "\ud800", "1,2", "0x10", "1_0",
    "\u0661",
    "2026-01-01T00:00:00", "1e-300", "-0",
]  # fmt: skip


def _lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    kind = rng.randrange(7)
    if kind <= 2:
        cells = lines[at].split(b",")
        cells[rng.randrange(len(cells))] = rng.choice(CELLS).encode("utf-8", "surrogatepass")
        lines[at] = b",".join(cells)
    elif kind == 3:
        lines.insert(at, lines[rng.randrange(len(lines))])
    elif kind == 4:
        del lines[at]
    elif kind == 5:
        lines[at] = b"," + lines[at]
    elif lines[at][:1] == b"{":
        lines[at] = _json(rng, lines[at])
    else:
        lines[at] = lines[at].replace(b",", rng.choice((b";", b"\t", b"|", b",,")))
    return b"\n".join(lines)


PIECES = [
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\x1f\x8b", b"PAR1", b"\r", b"\n" * 50, b"9" * 400,
    b"[" * 5000, b"{", b"}", b'"', b",", b"nan", b"1e999", b"-", b"null", b"\xed\xa0\x80",
]  # fmt: skip


def _bytes(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(5)
    width = rng.choice((0, 1, 3, 10, 100))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[at + width :]
    if kind == 2:
        flipped = bytes(b ^ (1 << rng.randrange(8)) for b in data[at : at + 1])
        return data[:at] + flipped + data[at + 1 :]
    if kind == 3:
        return data[:at] + data[at : at + width] * rng.choice((2, 50)) + data[at + width :]
    return data[:at] + rng.choice(PIECES) + data[at + width :]

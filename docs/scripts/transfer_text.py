"""The words of docs/transfer.md."""

from __future__ import annotations

__all__ = [
    "A100_PRODUCTS",
    "CROSSING",
    "CROSSING_WHY",
    "H200",
    "H200_OWN",
    "INTRODUCTION",
    "LEADERBOARD",
    "LIMITS",
    "MEASURED",
    "MEASURED_WHY",
    "OLD_POWER",
    "OLD_POWER_WHY",
    "PROMPTS",
]

INTRODUCTION = """# Profiles of GPUs and models that were not measured

This page is written by

    qsim calibrate fit recordings/llama-3.1-8b--fp8-w8a8--h100--2026-11-25 --out h100.json \\
        --frontend-from h200_sxm/llama-3.1-8b/fp8-w8a8 --no-validation
    python docs/scripts/transfer_page.py h100.json --published LEADERBOARD.csv \\
        --out docs/transfer.md

with `pip install 'qsim[transfer]'`; the CSV file holds the leaderboard's rows (below).

    qsim calibrate transfer --to h100_sxm --model llama-3.1-8b --methods bf16,fp8-w8a8 --out DIR

makes such profiles; `--model` also takes the `config.json` of any dense model with full attention
or its Hugging Face id (others are [refused by name](calibration.md#what-to-measure)), `--methods`
an FP8 KV cache (`fp8-w8a8+kv-fp8`), and `--gpu-memory-gib 39.4` is an A100 of 40 GB. `--all` makes
again those that come with qsim, and `--check PROFILE` compares a measured profile with what would
be transferred in its place. In a plan, transferred profiles take part when their GPU is named
(`qsim plan --gpu h100_sxm`), or when the model was measured nowhere.

A step's GPU span is composed from kernels that NVIDIA measured (package aiconfigurator-core,
Apache-2.0): matrix products by rows, inputs, outputs and data type, attention of prompts and of
decodes, all-reduce. What they do not explain is learnt from the measured profiles of H200:

    span = g * products + attention + LM head + r * all-reduce + u * layers + v * moved + s * logits

* **g, u, v, s** are numbers for each execution mode, by non-negative least squares (`g` is 1 under
  CUDA graphs, and bf16, FP8 and static FP8 have a `u` each), learnt on one GPU, and **r** then on
  two: the table's all-reduces are slower than those of the servers measured (r is 0.78 and 0.76
  under CUDA graphs and 0.57 without). `moved` is the time of the passes over memory between
  products (norms, RoPE, activation) and `logits` that of one pass over the logits, both at the
  GPU's bandwidth.
* **Methods without a table** (all but bf16 and FP8 W8A8; the table of block FP8 holds the time of
  launching its kernels): products measured on H200 as the difference to bf16. They split into
  reading the weights, which goes with bandwidth, and the rest, which stays, since H100 has the SMs
  of H200. Of a method measured on several models the next smaller and the next larger one are
  interpolated; GPTQ and AWQ, and MXFP4 and NVFP4, which run the same kernels, teach each other.
* **A100** runs other kernels. FP8 and all 4- and 8-bit weights run on Marlin with 16-bit
  activations: they read at the rate of bf16's products and grow with the rows by bf16's operations
  times 1.05 (unpacking). INT8 W8A8 grows by its ratio to bf16 measured on H200. W4A8-FP8 and an FP8
  KV cache do not run there.
* **Host and front end** are those measured on the quickest H200 machines; launches without a full
  graph grow with the layers, and so does the share of the launch queue that they fill. With several
  GPUs the host is that of two.
* **Power** is idle + active + the energy of each byte read, of each byte of KV cache and of each
  operation, learnt on H200, and for methods without a table of each weight, too (unpacking it, and
  the tile that a step of few rows fills as well as one of many). `active` scales with the TDP,
  operations and weights with TDP over tensor throughput, and bytes stay. Idle power is that of a
  bare board (published) and what a loaded server adds to it on H200.
* **KV blocks**: 92% of the memory, less weights, less what the same formula leaves of the block
  counts measured on H200 (1.4 GiB for Llama-3.1-8B, 3.1 GiB for Qwen2.5-14B).

No coefficient was fitted to a measurement of H100 or A100 but one, which no profile holds: the time
of top-p sampling in the leaderboard's servers (below).
"""

H200 = """## H200: composed against measured

Each measured profile is predicted from kernels and from what the *other* models' profiles teach
(`qsim calibrate transfer --check PROFILE`). Decode: 1 to 512 requests with 256, 1,024 and 4,096
tokens of context each; piecewise and eager: prompts of 32 to 512 and of 640 to 8,192 tokens; power:
of the decode steps up to 256 requests. Errors in percent.
"""

H200_OWN = """
The largest decode errors are FP8 steps of 384 rows, where the table has 257 and 512 rows and
nothing between (FP8 products jump at tiles), and methods without a table at other sizes of
matrices, for which their kernels take other tiles. Prompts on two GPUs are too slow because both
such servers are of one model: a prediction without it has the table's all-reduces. The power of the
70B is too low by 5 to 24%, also where its own profile is among those learnt from: a large model
keeps the GPU busier in a step than the energies that all models share can say.

Thirty-eight of these were transferred before they were measured (and shipped so, but for the last
two). Medians of the absolute errors of those predictions: of the first eight from the profiles of
Llama-3.1-8B and of Qwen2.5-14B in bf16, of the next twelve with those eight to learn from, of
thirteen with these too, and of the last five with all the others:

| | decode | piecewise | eager | power | stated: decode, prefill |
|---|---:|---:|---:|---:|---:|
| Qwen2.5-14B fp8-w8a8 | 1.3 | 4.8 | 2.1 | 9.1 | 8, 12 |
| Qwen2.5-32B fp8-w8a8 | 4.0 | 6.0 | 2.5 | 3.1 | 8, 12 |
| Llama-3.1-70B fp8-w8a8 | 5.4 | 4.9 | 7.4 | 0.5 | 8, 12 |
| Llama-3.1-70B fp8-w8a8, 2 GPUs | 4.3 | 6.7 | 10.5 | 1.6 | 13, 17 |
| Llama-3.1-70B bf16, 2 GPUs | 1.5 | 2.2 | 12.5 | 2.1 | 13, 17 |
| Qwen2.5-14B awq-w4a16 | 5.6 | 7.7 | 11.8 | 2.3 | 18, 22 |
| Qwen2.5-32B awq-w4a16 | 5.8 | 14.7 | 13.8 | 10.7 | 18, 22 |
| Llama-3.1-70B awq-w4a16 | 14.0 | 28.1 | 18.5 | 18.2 | 18, 22 |
| Llama-3.1-8B fp8-w8a8-static | 7.9 | 7.8 | 5.8 | 3.7 | 8, 12 |
| Llama-3.1-8B gptq-w4a16 | 2.4 | 3.8 | 10.5 | 6.1 | 18, 22 |
| Llama-3.1-8B mxfp4-w4a16 | 1.9 | 2.1 | 9.2 | 0.6 | 18, 22 |
| Qwen2.5-14B gptq-w4a16 | 1.9 | 1.9 | 5.1 | 1.6 | 18, 22 |
| Qwen2.5-14B int8-w8a8 | 4.8 | 5.4 | 2.5 | 4.2 | 18, 22 |
| Qwen2.5-14B nvfp4-w4a16 | 2.5 | 2.3 | 7.5 | 2.5 | 18, 22 |
| Qwen2.5-14B w4a8-fp8 | 1.6 | 7.9 | 3.4 | 7.7 | 18, 22 |
| Qwen2.5-32B bf16 | 3.1 | 3.0 | 4.9 | 3.2 | 8, 12 |
| Qwen2.5-32B int8-w8a8 | 5.0 | 7.0 | 3.3 | 3.2 | 18, 22 |
| Qwen2.5-32B w4a8-fp8 | 1.7 | 7.1 | 3.5 | 3.6 | 18, 22 |
| Llama-3.1-70B int8-w8a8 | 7.6 | 12.5 | 6.3 | 8.9 | 28, 32 |
| Llama-3.1-70B w4a8-fp8 | 27.1 | 25.7 | 6.8 | 17.0 | 28, 32 |
| Qwen2.5-14B fp8-block | 9.0 | 7.5 | 4.3 | 6.3 | 18, 22 |
| Qwen2.5-14B gptq-w8a16 | 5.8 | 7.7 | 9.4 | 9.6 | 18, 22 |
| Qwen2.5-32B fp8-block | 2.6 | 10.3 | 4.3 | 15.8 | 18, 22 |
| Qwen2.5-32B fp8-w8a8-static | 8.2 | 6.2 | 5.1 | 11.3 | 8, 12 |
| Qwen2.5-32B gptq-w4a16 | 8.0 | 2.0 | 1.2 | 17.9 | 18, 22 |
| Qwen2.5-32B gptq-w8a16 | 8.2 | 14.1 | 9.1 | 18.3 | 18, 22 |
| Qwen2.5-32B nvfp4-w4a16 | 4.8 | 8.2 | 8.6 | 13.9 | 18, 22 |
| Llama-3.1-70B fp8-block | 7.7 | 15.1 | 11.5 | 20.6 | 28, 32 |
| Llama-3.1-70B fp8-w8a8-static | 8.7 | 7.3 | 2.6 | 13.9 | 8, 12 |
| Llama-3.1-70B gptq-w4a16 | 7.1 | 1.1 | 2.4 | 23.3 | 18, 22 |
| Llama-3.1-70B gptq-w8a16 | 8.8 | 28.4 | 11.1 | 23.6 | 28, 32 |
| Llama-3.1-70B mxfp4-w4a16 | 7.9 | 10.8 | 13.1 | 21.3 | 28, 32 |
| Llama-3.1-70B nvfp4-w4a16 | 6.7 | 8.6 | 9.5 | 19.9 | 28, 32 |
| Qwen2.5-14B fp8-w8a8-static | 2.4 | 7.0 | 4.5 | 3.7 | 8, 12 |
| Qwen2.5-14B mxfp4-w4a16 | 2.4 | 2.5 | 5.6 | 2.1 | 18, 22 |
| Qwen2.5-32B mxfp4-w4a16 | 1.9 | 3.4 | 7.9 | 4.8 | 18, 22 |
| Qwen2.5-14B fp8-w8a8+kv-fp8 | 3.2 | 3.2 | 1.8 | 2.4 | 8, 12 |
| Qwen2.5-32B fp8-w8a8+kv-fp8 | 2.5 | 5.4 | 3.3 | 6.0 | 8, 12 |

This compares the profiles of then, which the repository's history holds (the first eight before the
commit "Profiles fitted anew", the next twelve before "Profiles of thirteen more servers", thirteen
before "Forty-three measured profiles", and the last before "Forty-eight measured profiles"), with
those of when they were measured, whose contexts were not yet counted as those of traffic:

    python -c "from qsim.calibrate.transfer.check import compare_profiles as compare
    from qsim.profiles.lookup import load_profile as load
    for d in compare(load('THEN.json'), load('h200_sxm/qwen2.5-14b/fp8-w8a8')):
        print(d.quantity, round(d.median, 1), round(d.worst, 1))"

What it says: a method that was measured on an 8B model is known within a few percent at 14B and
32B, and poorly at 70B (AWQ, whose error was beyond the one stated then, and W4A8-FP8, whose was
not), because its kernel takes other tiles there. Of the thirteen, all of whose kernels had
been measured at other sizes, spans kept within what was stated (but for decode steps of static FP8:
8.2 and 8.7%, 8 were stated). Power did not: it was too low by 11 to 24% for the 32B and 70B, and
eight of the thirteen were beyond the stated 8% (static FP8) or 18%. Since then methods without a
table have an energy of a weight (the mean of the medians above was 9.4% without it), and the stated
errors of power are larger. The last five were within what was stated in all, power too.

The shipped profiles are learnt from all measured ones together, and give these back so (medians of
absolute errors; the products of a method without a table are learnt from the very profile shown, so
its row only says what the form loses):
"""

MEASURED = """## H100: transferred against measured

One recording of an H100 was looked at only when the first transferred profiles were done. No number
was fitted to it. Since then the power model got terms (bytes of the passes over logits, weights of
methods without a table) and learnt from right idle powers and more servers; its median error on
this recording was 4.7%, then 7.9% and is 5.0% now. That of decode steps fell from 2.3 to 1.7%, and
is 2.1% since profiles count contexts as those of traffic, which this recording cannot: it holds no
requests, so its long contexts are those of requests of one length (calibration.md).
It was cut off and its host was slow ([calibration.md](calibration.md)), so no profile of it is
shipped, but its GPU spans, power and KV blocks can be compared. The same steps as above:
"""

MEASURED_WHY = """
Power is exact for a few requests and too low by 8 to 15% for large batches and contexts: a byte of
KV cache costs more on H100 than on H200. Its host's times are 2.3 (piecewise) and 2.7 (eager) times
those that the profile carries over from H200's host.
"""

LEADERBOARD = """## H100 against the ML.ENERGY leaderboard

The leaderboard (v3.0, December 2025; vLLM 0.11.1) gives median ITL, power per GPU and energy a
token by the limit of running requests. Its client sends 1,024 chat prompts (or 198 of GPQA) at once
and evaluates the time in which as many run as may. The same steady state is evaluated here in
closed form, from a transferred profile of each model. What is assumed beside the profile:

* **Contexts** are not published. Two servers whose KV cache was full tell them: chat holds 125
  tokens and once the mean output per running request, GPQA 200 and 0.55 of it.
* **Sampling.** The client samples with top-p 0.95, for which vLLM 0.11 sorts the logits of all rows
  in every step: {sort:.2f} ns a logit, the one number fitted to these rows (40% of the step of
  Qwen3-8B at 256 requests). Profiles hold greedy sampling, as measured; with top-p, and without
  FlashInfer's sampler, a server is slower by that.
* The median ITL is that of a step without a prompt in it; power and energy are of all steps.
  Sorting is counted at the power of a busy GPU without other work, which is too little: power at
  large limits is low for it.
* Mixtures of experts and Mamba hybrids are left out (qsim has no kernels for them), and so is
  Llama-3.1-405B-FP8, whose attention stays in bf16. Gemma 3's sliding windows are longer than these
  contexts.
"""

CROSSING = """## FP8 against bf16 on H100

Published (the leaderboard's Qwen3-235B-A22B, a mixture of experts on 8 GPUs): FP8 costs *more*
energy a token than bf16 at 8 and 16 running requests (+22% to +61%), -5% to +7% at 32, and 4 to 13%
less from 64 on. There is no such pair of a dense model. Transferred profiles say of those:
"""

CROSSING_WHY = """
So there is no crossing for dense models: FP8 saves at every batch, most at small ones. A dense
layer is four large products; FP8 halves the bytes that each reads, and reading is what a small
batch waits for. In the mixture of experts each product is that of a small expert (1,536 wide, over
8 GPUs) and takes microseconds: a likely reason for the loss there is that the passes that quantize
activations, and grouped FP8 kernels, cost more than the bytes saved until every expert has many
rows (not measured here). The published ITLs agree with that: FP8 is 22 to 26% slower at 8 requests.
On H200, where dense FP8 was measured, it is faster at every batch too (3.5 against 4.9 ms for one
request, 9.4 against 11.6 ms for 256; [calibration.md](calibration.md)).
"""

PROMPTS = """## A100, and prompts

No power or ITL of a current vLLM on A100 was at hand. What there is:

**Prompts of Llama-2-70B in bf16**, as Splitwise measured them (2023, vLLM without CUDA graphs and
without today's attention kernels), ms; ours at the power limit:
"""

OLD_POWER = """\
**Power on A100**, W per GPU, from servers bound by their hosts, whose steps took up to five times
their GPU span, so that ITL cannot be compared: the leaderboard's v2 (vLLM 0.5.4, A100 of 40 GB,
average of the whole run, which its authors call low), and Splitwise's decodes of Llama-2-70B. Ours
is the energy of a step's work spread over the time that it took there, with the GPU active (as in
the power model) all of that time: these servers launched each kernel from the host.
"""

OLD_POWER_WHY = """\
How active a GPU is between such launches is not known, so this is a check of size.
"""

A100_PRODUCTS = """**Quantized products on A100**: our rules against TensorRT-LLM's kernels in
aiconfigurator's tables (INT4 and INT8 weights, SmoothQuant INT8), each as a share of bf16's time.
They are other kernels than vLLM's, so this is a check of size: TensorRT-LLM's INT4 kernel loses its
advantage from 64 rows on, where Marlin was built to keep it.
"""

LIMITS = """## What the profiles state

| | decode | prefill | power | KV tokens |
|---|---:|---:|---:|---:|
| H200, other models | 8% | 12% | 10% | 3% |
| H100 | 10% | 12% | 10% | 4% |
| A100 | 15% | 15% | 15% | 4% |
| more without a kernel table | 10% | 10% | 10% | |
| more where it was measured on a model of a sixth of the size at most | 10% | 10% | 10% | |
| more with tensor parallelism | 5% | 5% | 5% | |

These are estimates from the tables above, rounded up; on H100 both checks stay below them at the
median. Of A100 there is too little to check against.
The time constant of its power regulator, the host's speed and the front end are those of the H200
machine. Where a decision hangs
on it, measure: `qsim calibrate run` takes four minutes a method.
"""

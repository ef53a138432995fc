"""The parts of the serving benchmark that only calculate: requests, arrivals, percentiles, and what is told."""

from __future__ import annotations

import pytest

from benchmarks import measure, serving
from benchmarks.inference.timing import Timing, summary
from benchmarks.inference.workload import ANSWER_TOKENS, PROMPT_TOKENS, VOCABULARY, arrivals, num_tokens, requests


def test_every_side_is_asked_the_same() -> None:
    assert requests(20) == requests(20)
    assert requests(20, seed=1) != requests(20)
    for each in requests(50):
        assert PROMPT_TOKENS[0] <= len(each.prompt_ids) <= PROMPT_TOKENS[1]
        assert ANSWER_TOKENS[0] <= each.max_tokens <= ANSWER_TOKENS[1]
        assert max(each.prompt_ids) < VOCABULARY
    assert num_tokens(requests(3)) == sum(each.max_tokens for each in requests(3))


def test_arrivals_come_at_their_rate_and_never_backwards() -> None:
    times = arrivals(4000, 8.0)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(500, rel=0.05)


def test_times_to_the_first_token_and_between() -> None:
    timings = [Timing.of(10.0, [10.2, 10.3, 10.5]), Timing.of(0.0, [0.4])]
    found = summary(timings)
    assert found["n"] == 2
    assert found["ttft_ms"]["p50"] == pytest.approx(300)
    assert found["inter_token_ms"]["p50"] == pytest.approx(150)


def test_what_is_told_has_every_side_and_ratio() -> None:
    latency = {"n": 9, "ttft_ms": {"p50": 4.0, "p99": 8.0}, "inter_token_ms": {"p50": 2.0, "p99": 3.0}}
    memory = {"peak_mib": 100.0, "loaded_mib": 80.0}
    ours = {"clients": {"4": {"tokens_per_s": 9.0, **latency}, "64": {"tokens_per_s": 90.0, **latency}}}
    late = {**latency, "ttft_ms": {"p50": 4.0, "p99": 20.0}}
    runs = {"ours": [{**ours, **memory, "idle": latency, "half_load": late}] * 2} | {
        name: [{"tokens_per_s": speed, **memory}] * 2
        for name, speed in [("static", 100.0), ("generate_batch", 10.0), ("sequential", 5.0)]
    }
    document = serving.summary(runs, {"cores": 2}, {"parameters": 9})
    told = measure.medians_and_spread(document)
    assert told["ratio"] == {
        "tokens_to_static": 0.9,
        "tokens_to_generate_batch": 9.0,
        "tokens_to_sequential": 18.0,
        "ttft_p99_half_load_to_idle": 2.5,
    }
    assert told["ours"]["tokens_per_s"] == 90
    assert told["ours"]["clients"]["4"]["ttft_ms"]["p99"] == 8
    assert (told["static"]["tokens_per_s"], told["n"]) == (100, 2)
    shown = serving.table(document)
    assert all(name in shown for name in (*serving.PEERS, *serving.TARGETS, "64 clients", "half_load"))

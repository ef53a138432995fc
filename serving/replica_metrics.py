"""What one replica counts: the engine's `Observer` in Prometheus form, under the names that the field uses."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric

from serving.engine import EndReason, Load
from serving.gateway_metrics import DURATION_S, FIRST_TOKEN_S, INTER_TOKEN_S

_LABELS = ("deployment", "model", "replica")


class ReplicaMetrics:
    """Counters of one engine. Each sample carries the deployment, the version and the replica."""

    def __init__(self, deployment: str, model: str, replica: str) -> None:
        self._registry = CollectorRegistry()
        self._values = (deployment, model, replica)
        self._first = self._histogram("time_to_first_token", "From arrival to the first token.", FIRST_TOKEN_S)
        self._between = self._histogram("inter_token_latency", "Between tokens of one answer.", INTER_TOKEN_S)
        self._queued = self._histogram("request_queue_time", "From arrival to a place in the batch.", DURATION_S)
        self._whole = self._histogram("e2e_request_latency", "From arrival to the last token.", DURATION_S)
        self._step = self._histogram("engine_step", "One step of the engine.", INTER_TOKEN_S)
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts, and of answers that go on here.")
        self._cached = self._counter("prefix_cache_hit_tokens", "Tokens of prompts that needed no computing.")
        self._output = self._counter("generation_tokens", "Tokens of answers, each counted where it was made.")
        self._running = self._gauge("num_requests_running", "Requests in the batch.")
        self._waiting = self._gauge("num_requests_waiting", "Requests in the queue.")
        self._kv_used = self._gauge("kv_cache_used_tokens", "Tokens that the cache holds.")
        self._kv_usage = self._gauge("kv_cache_usage_ratio", "Share of the cache that is taken, 0 to 1.")
        self._rows = self._gauge("batch_size", "Answers that grew by a token in the last step.")
        self._ended = Counter(
            "athanor_serve_request_finished_total",
            "Requests of the engine by the reason of their end.",
            labelnames=(*_LABELS, "finished_reason"),
            registry=self._registry,
        )

    def figures(self) -> list[Metric]:
        """All of them, ready to be sent to whoever asks."""
        return [*self._registry.collect()]

    def admitted(self, queued_s: float, prompt_tokens: int, reused_tokens: int) -> None:
        self._queued.observe(queued_s)
        self._prompt.inc(prompt_tokens)
        self._cached.inc(reused_tokens)

    def first_token(self, since_submitted_s: float) -> None:
        self._first.observe(since_submitted_s)

    def inter_token(self, since_last_s: Sequence[float]) -> None:
        for each in since_last_s:
            self._between.observe(each)

    def finished(self, reason: EndReason, output_tokens: int, since_submitted_s: float) -> None:
        self._ended.labels(*self._values, reason).inc()
        self._output.inc(output_tokens)
        self._whole.observe(since_submitted_s)

    def stepped(self, load: Load, prefilled_tokens: int, decoded_rows: int, step_s: float) -> None:  # noqa: ARG002
        self._step.observe(step_s)
        self._rows.set(decoded_rows)
        self.loaded(load)

    def loaded(self, load: Load) -> None:
        """How busy the engine is now; also to be told before the numbers are read, since an idle engine steps never."""
        self._running.set(load.running)
        self._waiting.set(load.waiting)
        self._kv_used.set(load.kv_used)
        self._kv_usage.set(load.kv_used / load.kv_total if load.kv_total else 0.0)

    def _histogram(self, name: str, says: str, buckets: Sequence[float]) -> Histogram:
        family = Histogram(f"athanor_serve_{name}_seconds", says, _LABELS, registry=self._registry, buckets=buckets)
        return family.labels(*self._values)

    def _counter(self, name: str, says: str) -> Counter:
        return Counter(f"athanor_serve_{name}_total", says, _LABELS, registry=self._registry).labels(*self._values)

    def _gauge(self, name: str, says: str) -> Gauge:
        return Gauge(f"athanor_serve_{name}", says, _LABELS, registry=self._registry).labels(*self._values)

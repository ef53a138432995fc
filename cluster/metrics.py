"""What Prometheus may know of one control plane: every metric, with its labels, in one place.

Labels have few values each: never a job, a token or a message. Counting does not decide anything, and a store that does
not answer leaves out what only it knows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cluster.errors import ClusterError, StartUpError
from cluster.lifecycle import TERMINAL, State
from cluster.store.job_counts import JobCount
from cluster.store.records import StoredJob

log = structlog.get_logger(__name__)

_FAST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_WAITS_S = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)
_WATCH = "WatchJobs"


class Metrics:
    """One set of them, with a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # To look a child up takes prometheus_client longer than to count.
        self._child: Callable[..., Any] = cache(lambda metric, *labels: metric.labels(*labels))
        self._define_calls()
        self._define_jobs()
        self._define_loops()
        self._define_canaries()

    def _define_calls(self) -> None:
        where = ("service", "method")
        self._calls = self._counter("athanor_rpc_requests_total", "Calls that ended, by gRPC status", (*where, "code"))
        self._call_s = self._histogram("athanor_rpc_duration_seconds", "How long unary calls took", _FAST_S, where)
        self._in_flight = self._gauge("athanor_rpc_in_flight", "Calls that go on, streams among them", where)
        self._watchers = self._gauge("athanor_watch_streams", "Watches that are open")

    def _define_jobs(self) -> None:
        self._moves = self._counter("athanor_job_transitions_total", "Steps of jobs between states", ("from", "to"))
        self._attempts = self._counter("athanor_job_attempts_total", "Attempts that were made")
        self._recoveries = self._counter(
            "athanor_job_recoveries_total", "Attempts that were lost, by reason", ("reason",)
        )
        self._preemptions = self._counter("athanor_job_preemptions_total", "Jobs that made room for others")
        self._waits = self._histogram("athanor_job_queue_wait_seconds", "From waiting to admitted", _WAITS_S)
        self._starts = self._histogram("athanor_job_time_to_running_seconds", "From created to running", _WAITS_S)

    def _define_loops(self) -> None:
        self._round_s = self._histogram("athanor_reconciler_round_seconds", "One look at everything", _FAST_S)
        self._decision_s = self._histogram("athanor_scheduler_decision_seconds", "One decision", _FAST_S)
        self._write_s = self._histogram(
            "athanor_store_transaction_seconds", "Write transactions, waiting for their turn included", _FAST_S
        )
        self._ray = self._gauge("athanor_ray_reachable", "1 while Ray answers")

    def _define_canaries(self) -> None:
        of = ("deployment",)
        self._canary_divergence = self._gauge(
            "athanor_canary_divergence", "Nats per token that a canary diverges more from its teacher", of
        )
        self._canary_weight = self._gauge("athanor_canary_weight", "Share of the requests that a canary answers", of)
        self._canary_decisions = self._counter(
            "athanor_canary_decision_total", "Canaries that were promoted or rolled back", (*of, "decision")
        )

    def _counter(self, name: str, words: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, words, labels, registry=self.registry)

    def _gauge(self, name: str, words: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(name, words, labels, registry=self.registry)

    def _histogram(self, name: str, words: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Histogram:
        return Histogram(name, words, labels, buckets=buckets, registry=self.registry)

    # What is told by whom

    def watch_store(self, counts: Callable[[], Sequence[JobCount]], now_us: Callable[[], int]) -> None:
        """Ask the store at each scrape for what it alone knows."""
        self.registry.register(_StoredJobs(counts, now_us))

    def watch_ray(self, is_reachable: Callable[[], bool]) -> None:
        self._ray.set_function(lambda: float(is_reachable()))

    @contextlib.contextmanager
    def call(self, service: str, method: str) -> Iterator[None]:
        """A call that goes on. Streams have no duration: how long they last is their readers' affair."""
        gauges = [self._child(self._in_flight, service, method), *([self._watchers] if method == _WATCH else [])]
        for gauge in gauges:
            gauge.inc()
        try:
            yield
        finally:
            for gauge in gauges:
                gauge.dec()

    def called(self, service: str, method: str, code: str, seconds: float | None) -> None:
        """A call has ended; `seconds` is None for a stream."""
        self._child(self._calls, service, method, code).inc()
        if seconds is not None:
            self._child(self._call_s, service, method).observe(seconds)

    def moved(self, before: StoredJob, after: StoredJob) -> None:
        """A job made a step, and it is committed."""
        if len(after.attempts) > len(before.attempts):
            self._attempts.inc()
        if before.state is after.state:
            return
        self._moves.labels(before.state.value, after.state.value).inc()
        if after.state is State.RECOVERING:
            self._recoveries.labels(after.reason).inc()
        if after.preemptions > before.preemptions:
            self._preemptions.inc()
        if after.state is State.ADMITTED and before.queue_since_us is not None:
            ended_us = max((attempt.end_time_us or 0 for attempt in before.attempts), default=0)
            self._waits.observe(max(after.update_time_us - max(before.queue_since_us, ended_us), 0) / 1e6)
        if before.start_time_us is None and after.start_time_us is not None and after.state not in TERMINAL:
            self._starts.observe((after.start_time_us - after.create_time_us) / 1e6)

    def transaction(self, seconds: float) -> None:
        self._write_s.observe(seconds)

    def canary(self, deployment: str, weight: float, divergence: float | None) -> None:
        """A canary is up; `divergence` is None while nothing was compared."""
        self._canary_weight.labels(deployment).set(weight)
        if divergence is not None:
            self._canary_divergence.labels(deployment).set(divergence)

    def canary_over(self, deployment: str) -> None:
        """There is none, or not yet."""
        for gauge in (self._canary_weight, self._canary_divergence):
            with contextlib.suppress(KeyError):
                gauge.remove(deployment)

    def canary_decided(self, deployment: str, decision: str) -> None:
        self._canary_decisions.labels(deployment, decision.removeprefix("CANARY_").lower()).inc()

    def round(self) -> contextlib.AbstractContextManager[object]:
        """Around one round of the reconciler."""
        return self._round_s.time()

    def decision(self) -> contextlib.AbstractContextManager[object]:
        """Around one decision of the scheduler."""
        return self._decision_s.time()


class _StoredJobs(Collector):
    """Jobs by state and project, and how long the queue is and lasts."""

    def __init__(self, counts: Callable[[], Sequence[JobCount]], now_us: Callable[[], int]) -> None:
        self._counts = counts
        self._now_us = now_us

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """So that registering asks nothing of the store."""
        yield from self._families(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            counts = self._counts()
        except ClusterError as error:
            log.warning("metrics.store_silent", error=error.message)
            return
        yield from self._families(counts)

    def _families(self, counts: Sequence[JobCount]) -> Iterator[GaugeMetricFamily]:
        jobs = GaugeMetricFamily("athanor_jobs", "Jobs by state and project", labels=("state", "project"))
        oldest = GaugeMetricFamily(
            "athanor_queue_oldest_wait_seconds", "How long the first of a project's waiting jobs has waited",
            labels=("project",),
        )  # fmt: skip
        for count in counts:
            jobs.add_metric((count.state.value, count.project), count.jobs)
            if count.state is State.QUEUED and count.oldest_us is not None:
                oldest.add_metric((count.project,), max(self._now_us() - count.oldest_us, 0) / 1e6)
        waiting = sum(count.jobs for count in counts if count.state is State.QUEUED)
        yield jobs
        yield oldest
        yield GaugeMetricFamily("athanor_queue_length", "Jobs that wait, of all projects", value=waiting)


@contextlib.contextmanager
def serving(metrics: Metrics, listen: str) -> Iterator[str]:
    """/metrics over HTTP at `listen` while the block lasts; its host:port. StartUpError when it cannot listen."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise StartUpError(
            "INVALID_LISTEN", f"{listen!r} is no host:port; set ATHANOR_METRICS_LISTEN, e.g. 127.0.0.1:9464"
        )
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), metrics.registry)
    except OSError as error:
        words = f"cannot listen on {listen}: {error.strerror or error}; set ATHANOR_METRICS_LISTEN"
        raise StartUpError("CANNOT_LISTEN", words) from error
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

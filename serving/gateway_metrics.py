"""What a gateway counts, in Prometheus form, together with what the replicas have counted.

Replicas keep their own numbers (`replica_metrics.py`) and are asked for them when somebody scrapes: nothing is sent
with each request, and a gauge says what is, not what was when the last request ended. Which of several gateways is
scraped is the load balancer's choice, so each puts its name on what it counted itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from serving.backend import Backends, Chunk, Head
from serving.errors import RequestError, ServingError
from serving.mirroring import Mirroring
from serving.routes import Backend, RouteTable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SCRAPE_S = 2.0
_FRESH_S = 1.0
"""How old the replicas' numbers may be: whoever asks more often, and anybody may, costs them nothing more."""
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
INTER_TOKEN_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
DURATION_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
logger = logging.getLogger(__name__)


class GatewayMetrics:
    """Counters of one gateway. `deployment` is the route, `model` the version that answered."""

    def __init__(self, gateway: str | None = None) -> None:
        self.gateway = gateway or f"{socket.gethostname()}-{os.getpid()}"
        self.registry = CollectorRegistry()
        self._requests = self._counter(
            "athanor_serve_requests", "Requests by the status of their answer.", ("deployment", "model", "code")
        )
        self._failures = self._counter(
            "athanor_gateway_backend_failures", "Replicas that died or broke over a request.", ("deployment", "model")
        )
        self._refused = self._counter(
            "athanor_gateway_refused", "Requests that reached no replica, by the code of the error.", ("code",)
        )
        self._open = Gauge(
            "athanor_gateway_open_requests",
            "Requests that are being answered.",
            ("deployment",),
            registry=self.registry,
        )
        self._first = self._histogram(
            "time_to_first_token", "From a request's arrival to its first tokens; streams only.", FIRST_TOKEN_S
        )
        self._between = self._histogram(
            "inter_token_latency", "Between tokens of one stream, as they leave the gateway.", INTER_TOKEN_S
        )
        self._duration = self._histogram(
            "request_duration", "From a request's arrival to the end of its answer.", DURATION_S
        )

    def counts_left_out(self, mirroring: Mirroring) -> None:
        self.registry.register(_LeftOut(mirroring))

    def text(self) -> bytes:
        """In Prometheus form, each number with this gateway's name."""
        named = CollectorRegistry()
        named.register(_Merged(self.registry.collect(), {"gateway": self.gateway}))
        return generate_latest(named)

    def _counter(self, name: str, says: str, labels: Sequence[str]) -> Counter:
        return Counter(f"{name}_total", says, labels, registry=self.registry)

    def _histogram(self, name: str, says: str, buckets: Sequence[float]) -> Histogram:
        labels, full_name = ("deployment", "model"), f"athanor_gateway_{name}_seconds"
        return Histogram(full_name, says, labels, registry=self.registry, buckets=buckets)

    def failed(self, deployment: str, backend: Backend) -> None:
        self._failures.labels(deployment, backend.model).inc()

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    @contextmanager
    def request(self, deployment: str) -> Iterator[_Watched]:
        """Count a request while it is open, and how it ended."""
        watched = _Watched(self, deployment)
        self._open.labels(deployment).inc()
        try:
            yield watched
        except RequestError as error:
            watched.code = str(error.status)
            raise
        except (GeneratorExit, asyncio.CancelledError):
            watched.code = "cancelled"
            raise
        finally:
            self._open.labels(deployment).dec()
            watched.end()


class _Watched:
    """One request, and the times of its tokens."""

    def __init__(self, metrics: GatewayMetrics, deployment: str) -> None:
        self._metrics = metrics
        self._deployment = deployment
        self._model = ""
        self._began = time.monotonic()
        self._last: float | None = None
        self._streams = False
        self.code = "500"

    def note(self, item: Head | Chunk, backend: Backend | None) -> None:
        self._model = backend.model if backend else ""
        if isinstance(item, Head):
            self.code = str(item.status)
            self._streams = ("content-type", "text/event-stream; charset=utf-8") in item.headers
        elif self._streams and (num_tokens := sum(map(len, item.token_ids.values()))):
            self._tokens(num_tokens, time.monotonic())

    def end(self) -> None:
        self._metrics._requests.labels(self._deployment, self._model, self.code).inc()
        self._metrics._duration.labels(self._deployment, self._model).observe(time.monotonic() - self._began)

    def _tokens(self, num_tokens: int, now: float) -> None:
        """Tokens that came together share the time since those before them."""
        if self._last is None:
            self._metrics._first.labels(self._deployment, self._model).observe(now - self._began)
        else:
            for _ in range(num_tokens):
                between = (now - self._last) / num_tokens
                self._metrics._between.labels(self._deployment, self._model).observe(between)
        self._last = now


class Exposition:
    """All numbers as Prometheus reads them. A replica that does not answer in time is left out of this scrape."""

    def __init__(self, metrics: GatewayMetrics, backends: Backends) -> None:
        self._metrics = metrics
        self._backends = backends
        self._asking = asyncio.Lock()
        self._asked_at = -math.inf
        self._of_all = b""

    async def text(self, table: RouteTable) -> bytes:
        async with self._asking:
            if time.monotonic() - self._asked_at >= _FRESH_S:
                self._of_all = await self._of_replicas(table)
                self._asked_at = time.monotonic()
            return self._metrics.text() + self._of_all

    async def _of_replicas(self, table: RouteTable) -> bytes:
        apps = {backend.app for route in table.routes for backend in route.backends}
        gathered = await asyncio.gather(*(_of_replicas(self._backends, app) for app in sorted(apps)))
        merged = _Merged(metric for replicas in gathered for replica in replicas for metric in replica)
        together = CollectorRegistry()
        together.register(merged)
        return generate_latest(together)


async def _of_replicas(backends: Backends, app: str) -> Sequence[Sequence[Metric]]:
    try:
        async with asyncio.timeout(_SCRAPE_S):
            return await backends.figures(app)
    except (ServingError, TimeoutError) as error:
        logger.warning("%s: its replicas did not give their numbers: %s", app, error)
        return ()


class _LeftOut(Collector):
    """What mirroring counts itself."""

    def __init__(self, mirroring: Mirroring) -> None:
        self._mirroring = mirroring

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(
            "athanor_gateway_mirrored_left_out",
            "Requests that no canary was asked, as too many were being mirrored.",
            value=self._mirroring.left_out,
        )
        yield CounterMetricFamily(
            "athanor_gateway_mirrored_not_compared",
            "Requests that a canary was asked and no judge got, as too many were being compared.",
            value=self._mirroring.not_compared,
        )


class _Merged(Collector):
    """Families of the same name as one, with more labels where some are given."""

    def __init__(self, metrics: Iterable[Metric], labels: Mapping[str, str] | None = None) -> None:
        self._families: dict[str, Metric] = {}
        for metric in metrics:
            family = self._families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.samples.append(sample._replace(labels={**sample.labels, **labels}) if labels else sample)

    def collect(self) -> Iterable[Metric]:
        return self._families.values()

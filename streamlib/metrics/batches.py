"""A histogram that is fed by the batch: a value costs one bisection, a batch one lock."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from streamlib.metrics.catalogue import PREFIX, Metric


class BatchHistogram(Collector):
    """All series of one histogram of the catalogue."""

    def __init__(self, metric: Metric, registry: CollectorRegistry) -> None:
        self._metric = metric
        self._series: dict[tuple[str, ...], BatchSeries] = {}
        registry.register(self)

    def labels(self, *values: str) -> BatchSeries:
        """The series of these label values; the same object each time."""
        found = self._series.get(values)
        return found or self._series.setdefault(values, BatchSeries(self._metric.buckets))

    def describe(self) -> Iterable[HistogramMetricFamily]:
        yield self._family()

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = self._family()
        for values, series in list(self._series.items()):
            buckets, total = series.read()
            family.add_metric(values, buckets, total)
        yield family

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(PREFIX + self._metric.name, self._metric.help, labels=self._metric.labels)


class BatchSeries:
    """One series; safe to use from any thread."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, values: Sequence[float]) -> None:
        bounds, counts = self._bounds, self._counts
        with self._lock:
            for value in values:
                counts[bisect_left(bounds, value)] += 1
            self._sum += sum(values)

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """The buckets by their upper bounds, each with all below it, and the sum of all values."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        buckets, below = list[tuple[str, float]](), 0
        for bound, count in zip((*self._bounds, float("inf")), counts, strict=True):
            below += count
            buckets.append((floatToGoString(bound), below))  # type: ignore[no-untyped-call]
        return buckets, total

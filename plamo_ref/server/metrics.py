"""What Prometheus sees: counters of what was done, gauges of what is, histograms of waiting.

Invariant: a registry of its own for each server, no global one; gauges are read from the engine
when somebody asks, so they cannot be stale by more than the engine's last report.
"""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from plamo_ref.engine.async_llm import AsyncLLM

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class _EngineCollector(Collector):
    """The engine's last report."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm

    def collect(self) -> Iterator[Metric]:
        llm, stats = self._llm, self._llm.stats
        for name, text, value in (
            ("engine_up", "1 if the engine can take requests.", llm.state == "ready"),
            ("requests_in_flight", "Requests under way, at the front.", llm.num_requests),
            ("requests_running", "Requests in the engine's batch.", stats.num_running),
            ("requests_waiting", "Requests in the engine's queue.", stats.num_waiting),
        ):
            yield GaugeMetricFamily(f"plamo_ref_{name}", text, value=float(value))
        usage = GaugeMetricFamily("plamo_ref_cache_usage", "Used share, 0 to 1.", labels=["pool"])
        for pool, share in stats.usage.items():
            usage.add_metric([pool], share)
        yield usage
        for name, text, count in (
            ("preemptions", "Requests sent back to the queue.", stats.num_preemptions),
            ("engine_steps", "Steps of the engine.", stats.num_steps),
            ("engine_restarts", "Engines started after the first.", llm.num_restarts),
        ):
            yield CounterMetricFamily(f"plamo_ref_{name}", text, value=count)


class Metrics:
    """All numbers of one server."""

    def __init__(self, llm: AsyncLLM) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(llm))
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.finished = self._counter("requests_finished", "Finished completions.", ["reason"])
        self.first_token = self._histogram("time_to_first_token", "From arrival to first token.")
        self.next_token = self._histogram("inter_token_latency", "From token to token.")
        self.end_to_end = self._histogram("request_latency", "From arrival to last token.")

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"plamo_ref_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"plamo_ref_{name}_seconds", text, buckets=SECONDS, registry=self.registry)

    def page(self) -> bytes:
        return generate_latest(self.registry)

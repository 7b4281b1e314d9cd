"""What Prometheus sees: counters of what was done, gauges of what is, histograms of waiting.

Invariant: a registry of its own for each server, no global one; gauges are read from the engine
when somebody asks, so they cannot be stale by more than the engine's last report.
"""

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from plamo_ref.remote.async_llm import AsyncLLM
from plamo_ref.remote.calls import Delta
from plamo_ref.remote.messages import PrefixStats

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BUCKETS = (*map(str, map(float, SECONDS)), "+Inf")  # bucket i: up to SECONDS[i], inclusive


class Waits(Collector):
    """A histogram of seconds. `add` takes many equal ones at once, as a step gives its tokens."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = f"plamo_ref_{name}_seconds", text
        self._counts, self._sum = [0] * len(BUCKETS), 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        self._counts[bisect_left(SECONDS, seconds)] += count
        self._sum += seconds * count

    def collect(self) -> Iterator[Metric]:
        so_far = [sum(self._counts[: i + 1]) for i in range(len(BUCKETS))]
        family = HistogramMetricFamily(self._name, self._text)
        family.add_metric([], list(zip(BUCKETS, so_far, strict=True)), self._sum)
        yield family


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
        yield from _of_prefixes(stats.prefix)


def _of_prefixes(stats: PrefixStats) -> Iterator[Metric]:
    """What prefix caching has saved, what it keeps, and why it did not save more."""
    for name, text, count in (
        ("queries", "Tokens of prompts that were looked up.", stats.asked),
        ("hits", "Tokens of prompts that were found computed.", stats.found),
        ("evictions", "Kept states that went to make room.", stats.evicted),
    ):
        yield CounterMetricFamily(f"plamo_ref_prefix_cache_{name}", text, value=count)
    text = "Requests that could have begun later in their prompts, by what was in the way."
    misses = CounterMetricFamily("plamo_ref_prefix_cache_misses", text, labels=["reason"])
    for reason, count in stats.misses.items():
        misses.add_metric([reason], count)
    yield misses
    for name, text, value in (
        ("states", "States that are kept.", stats.num_kept),
        ("bytes", "Memory that only they take; it counts as free.", stats.bytes_kept),
    ):
        yield GaugeMetricFamily(f"plamo_ref_prefix_cache_{name}", text, value=value)


class Metrics:
    """All numbers of one server."""

    def __init__(self, llm: AsyncLLM) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(llm))
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.finished = self._counter("requests_finished", "Finished completions.", ["reason"])
        self.first_token = self._waits("time_to_first_token", "From arrival to first token.")
        self.next_token = self._waits("inter_token_latency", "From token to token.")
        self.end_to_end = self._waits("request_latency", "From arrival to last token.")
        llm.observers.append(self._step)

    def _step(self, deltas: Sequence[Delta]) -> None:
        """Count the tokens of a step: most of them have waited equally long."""
        self.generation_tokens.inc(len(deltas))
        for seconds, count in Tally(d.waited for d in deltas if not d.first).items():
            self.next_token.add(seconds, count)
        for delta in deltas:
            if delta.first:
                self.first_token.add(delta.waited)

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"plamo_ref_{name}", text, labels, registry=self.registry)

    def _waits(self, name: str, text: str) -> Waits:
        made = Waits(name, text)
        self.registry.register(made)
        return made

    def page(self) -> bytes:
        return generate_latest(self.registry)

"""What Prometheus sees: counters of what was done, gauges of what is, histograms of waiting.

Invariant: a registry of its own for each server, no global one; gauges are read from the engine
when somebody asks, so they cannot be stale by more than the engine's last report.
"""

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from plamo_ref.remote.async_llm import AsyncLLM, Watched
from plamo_ref.remote.calls import Delta

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
    """The last report of the engine, or of each that shares its work: then by `replica`."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm

    def collect(self) -> Iterator[Metric]:
        replicas = self._llm.replicas
        engines: dict[tuple[str, ...], Watched] = {(name,): one for name, one in replicas.items()}
        gauges = _Family(GaugeMetricFamily, replicas)
        counts = _Family(CounterMetricFamily, replicas)
        for name, engine in (engines or {(): self._llm}).items():
            _look_at(engine, name, gauges, counts)
        yield from gauges.made.values()
        yield from counts.made.values()


class _Family:
    """Metrics of a kind, each with a value for each engine."""

    def __init__(self, kind: type[Any], replicas: Collection[str]) -> None:
        self._kind, self._labels = kind, ["replica"] if replicas else []
        self.made: dict[str, Any] = {}

    def __call__(
        self, name: str, text: str, engine: tuple[str, ...], value: float, **more: str
    ) -> None:
        """Put a value in; `more` are further labels."""
        if name not in self.made:
            labels = [*self._labels, *more]
            self.made[name] = self._kind(f"plamo_ref_{name}", text, labels=labels)
        self.made[name].add_metric([*engine, *more.values()], float(value))


def _look_at(engine: Watched, name: tuple[str, ...], gauge: _Family, count: _Family) -> None:
    """What an engine has said last."""
    stats, prefix = engine.stats, engine.stats.prefix
    gauge("engine_up", "1 if the engine can take requests.", name, engine.state == "ready")
    gauge("requests_in_flight", "Requests under way, at the front.", name, engine.num_requests)
    gauge("requests_running", "Requests in the engine's batch.", name, stats.num_running)
    gauge("requests_waiting", "Requests in the engine's queue.", name, stats.num_waiting)
    for pool, share in stats.usage.items():
        gauge("cache_usage", "Used share, 0 to 1.", name, share, pool=pool)
    count("preemptions", "Requests sent back to the queue.", name, stats.num_preemptions)
    count("engine_steps", "Steps of the engine.", name, stats.num_steps)
    count("engine_restarts", "Engines started after the first.", name, engine.num_restarts)
    # What prefix caching has saved, what it keeps, and why it did not save more.
    text = "Requests that could have begun later in their prompts, by what was in the way."
    count("prefix_cache_queries", "Tokens of prompts that were looked up.", name, prefix.asked)
    count("prefix_cache_hits", "Tokens of prompts that were found computed.", name, prefix.found)
    count("prefix_cache_evictions", "Kept states that went to make room.", name, prefix.evicted)
    for reason, misses in prefix.misses.items():
        count("prefix_cache_misses", text, name, misses, reason=reason)
    if (drafts := stats.drafts) is not None:
        count("spec_decode_num_drafts", "Drafts that were checked.", name, drafts.drafts)
        text = "Tokens of drafts that were "
        count("spec_decode_num_draft_tokens", f"{text}checked.", name, drafts.tokens)
        count("spec_decode_num_accepted_tokens", f"{text}right.", name, drafts.accepted)
    gauge("prefix_cache_states", "States that are kept.", name, prefix.num_kept)
    text = "Memory that only they take; it counts as free."
    gauge("prefix_cache_bytes", text, name, prefix.bytes_kept)


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

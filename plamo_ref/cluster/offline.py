"""`LLM` over replicas, for batch work: prompts are shared out, results come back in order.

Invariant: the outputs are those of one engine, also of requests that bring no seed: same ids, same
places. An error says which replica it comes from; after it, or after an interrupt, no replica works
on for nobody.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from plamo_ref.cluster.extra import ClusterError, connect, granted, load
from plamo_ref.cluster.policy import PrefixRouting
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.outputs import RequestOutput
from plamo_ref.engine.prompts import Asked
from plamo_ref.errors import PlamoRefError
from plamo_ref.sampling import SamplingParams

BOUND = (
    4096  # tokens by which a replica may have more to do and still get those whose prefix it has
)


class Worker:
    """A replica: an actor with an `LLM`, which it loads when it is first asked."""

    def __init__(self, llm: type, folder: str, config: EngineConfig) -> None:
        self._new_llm = partial(llm, folder, config=config)
        self._llm: Any = None

    def generate(
        self, prompts: Sequence[Mapping[str, Any]], params: Sequence[SamplingParams]
    ) -> list[RequestOutput] | PlamoRefError:
        """As `LLM.generate`; an error that its caller can mend is returned. Without prompts it only
        loads."""
        try:
            if self._llm is None:
                self._llm = self._new_llm()
            return self._llm.generate(prompts, params, use_tqdm=False) if prompts else []
        except PlamoRefError as error:
            return error


class Replicas:
    """What an `LLM` with `data_parallel_size` has in place of an engine.

    The Ray cluster is that of RAY_ADDRESS, or one of this machine that ends with the program.

    Args:
        llm: the class of `LLM`.
        folder: the checkpoint, on every machine.

    Raises:
        ClusterError: there is no Ray, or not what the replicas need.
        PlamoRefError: one of them cannot start.
    """

    def __init__(self, llm: type, folder: Path, config: EngineConfig) -> None:
        ray, size = connect(None), config.data_parallel_size
        asked = granted(ray, config, size)
        one = replace(config, data_parallel_size=1)
        actor = ray.remote(Worker).options(**asked)
        self._new_worker = lambda: actor.remote(llm, str(folder), one)
        self._workers = [self._new_worker() for _ in range(size)]
        self._routing = PrefixRouting(BOUND, by_prefix=config.enable_prefix_caching is not False)
        self._seed, self._count, self._arrivals = config.seed, 0, 0
        self._outputs_of([[] for _ in range(size)], tqdm(disable=True))  # they load

    def close(self) -> None:
        """End them. It may be called again."""
        workers, self._workers = self._workers, []
        for worker in workers:
            load().kill(worker)

    def generate(self, asked: Iterable[Asked], use_tqdm: bool) -> list[RequestOutput]:
        """As `LLM.generate`; an error of a replica names it, and ends the work of all.

        Raises:
            PlamoRefError: as `LLM.generate`; or a replica was lost.
        """
        if not self._workers:
            raise EngineError("this LLM is closed: make another one")
        groups = self._groups(asked)
        shares = self._shares(groups)
        with tqdm(total=len(groups), desc="requests", disable=not use_tqdm) as bar:
            outputs = self._outputs_of([[groups[i] for i in share] for share in shares], bar)
        places = [place for share in shares for place in share]
        in_order = sorted(zip(places, outputs, strict=True), key=lambda pair: pair[0])
        first, self._count = self._count, self._count + len(groups)
        return [replace(output, request_id=str(first + place)) for place, output in in_order]

    def _groups(self, asked: Iterable[Asked]) -> list[list[Asked]]:
        """The completions of each prompt, with the seeds that they would have in one engine."""
        listed = []
        for number, one in enumerate(asked, start=self._arrivals):
            if one.params.seed is None:
                one = replace(one, params=replace(one.params, seed=(self._seed << 32) + number))
            listed.append(one)
        self._arrivals += len(listed)
        return [list(group) for _, group in groupby(listed, key=lambda one: one.prompt_index)]

    def _shares(self, groups: Sequence[Sequence[Asked]]) -> list[list[int]]:
        """Which prompts each replica gets: the longest work is given out first."""
        costs = [
            sum(len(one.prompt_ids) + (one.params.max_tokens or 0) for one in group)
            for group in groups
        ]
        loads = dict.fromkeys(range(len(self._workers)), 0)
        shares: list[list[int]] = [[] for _ in self._workers]
        for place in sorted(range(len(groups)), key=lambda place: -costs[place]):
            first = groups[place][0]
            chosen = self._routing.choose(first.prompt_ids, first.params.cache_salt, loads)
            loads[chosen] += costs[place]
            shares[chosen].append(place)
        return [sorted(share) for share in shares]

    def _outputs_of(
        self, shares: Sequence[Sequence[Sequence[Asked]]], bar: "tqdm[Any]"
    ) -> list[RequestOutput]:
        """Let each replica do its share. Returns the outputs share by share."""
        ray = load()
        pairs = zip(self._workers, shares, strict=True)
        calls = [worker.generate.remote(*_told(share)) for worker, share in pairs]
        number = {call: i for i, call in enumerate(calls)}
        found: dict[int, list[RequestOutput]] = {}
        try:
            while number:
                (call, *_), _ = ray.wait(list(number))
                replica = number[call]
                answer = self._answer(replica, call)
                del number[call]  # it is there, and idle
                if isinstance(answer, PlamoRefError):
                    raise answer
                found[replica] = answer
                bar.update(len(shares[replica]))
        except BaseException:
            for replica in number.values():
                ray.kill(self._workers[replica])
                self._workers[replica] = self._new_worker()
                self._routing.forget(replica)
            raise
        return [
            _gathered(outputs)
            for replica, share in enumerate(shares)
            for outputs in _by_prompt(share, found[replica])
        ]

    def _answer(self, replica: int, call: Any) -> list[RequestOutput] | PlamoRefError:
        """What a replica says; errors have its name.

        Raises:
            ClusterError: it is lost, or what it does is a bug.
        """
        name, errors = f"replica {replica} of {len(self._workers)}", load("ray.exceptions")
        try:
            answer = load().get(call)
        except errors.RayError as error:
            reason = getattr(error, "cause", None) or type(error).__name__
            raise ClusterError(f"{name} was lost, another one takes its place: {reason}") from None
        if isinstance(answer, PlamoRefError):
            answer.args = (f"{name}: {answer}", *answer.args[1:])
        assert isinstance(answer, list | PlamoRefError)
        return answer


def _told(share: Sequence[Sequence[Asked]]) -> tuple[list[dict[str, Any]], list[SamplingParams]]:
    """The completions of a share, each as a prompt of its own."""
    asked = [one for group in share for one in group]
    prompts = [
        {"prompt": one.prompt, "prompt_token_ids": one.prompt_ids, "borders": one.borders}
        for one in asked
    ]
    return prompts, [one.params for one in asked]


def _by_prompt(
    share: Sequence[Sequence[Asked]], outputs: Sequence[RequestOutput]
) -> list[list[RequestOutput]]:
    rest = iter(outputs)
    return [[next(rest) for _ in group] for group in share]


def _gathered(outputs: Sequence[RequestOutput]) -> RequestOutput:
    """One output of a prompt whose completions were prompts."""
    completions = [replace(output.outputs[0], index=i) for i, output in enumerate(outputs)]
    return replace(outputs[0], outputs=tuple(completions))

"""The way to Ray: the library, and a cluster, or a small one on this machine.

Invariant: nothing of the package imports Ray before somebody asks for replicas; without it the
error says what to install.
"""

import importlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.errors import PlamoRefError

LOCAL = "local"
FREE_SECONDS = 10.0  # for GPUs to become free
LOOK_SECONDS = 0.2


class ClusterError(PlamoRefError, RuntimeError):
    """Ray is not there, or has not what the replicas need."""


def load(name: str = "ray") -> ModuleType:
    """The module of Ray of this name.

    Raises:
        ClusterError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"data_parallel_size and address need {error.name}: pip install 'plamo-ref[cluster]'"
        ) from None


def connect(address: str | None) -> ModuleType:
    """Ray, connected: to the cluster at `address` ("auto", "host:port", "ray://host:port"), or
    that of RAY_ADDRESS; without either, to one that is started here and ends with this process.

    Raises:
        ClusterError: there is no Ray, or nobody at the address.
    """
    ray = load()
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    if ray.is_initialized():
        return ray
    settings: dict[str, Any] = {"logging_level": logging.ERROR}
    if address == LOCAL:
        settings["include_dashboard"] = False
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told that it runs
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        ray.init(address, **settings)
    except Exception as error:  # of many kinds, some of them no class of its own
        raise ClusterError(f"no Ray at {address!r}: {error}") from error
    return ray


def resources(
    config: EngineConfig, num_replicas: int, total: Mapping[str, float], free: Mapping[str, float]
) -> dict[str, int]:
    """What a replica asks Ray for: a GPU for each of its ranks, or a CPU where there are enough.

    Args:
        total, free: in the whole cluster, in Ray's words.

    Raises:
        EngineError: the device is one that Ray has to choose.
        ClusterError: too few GPUs are free.
    """
    kind, _, index = config.device.partition(":")
    if index:
        raise EngineError(
            f"device={config.device!r}: Ray gives each replica GPUs of its own; say device={kind!r}"
        )
    if kind == "cpu" or (kind == "auto" and not total.get("GPU")):
        return {"num_cpus": int(num_replicas <= free.get("CPU", 0))}
    wanted, there = num_replicas * config.num_ranks, int(free.get("GPU", 0))
    if wanted > there:
        raise ClusterError(
            f"data_parallel_size={num_replicas}: with {config.num_ranks} GPUs for each replica "
            f"that is {wanted}, and {there} are free in the cluster"
        )
    return {"num_gpus": config.num_ranks}


def granted(ray: ModuleType, config: EngineConfig, num_replicas: int) -> dict[str, int]:
    """`resources` of a cluster; what was just given back is free a moment later."""
    total = ray.cluster_resources()
    resources(config, num_replicas, total, total)  # there will never be more
    end = time.monotonic() + FREE_SECONDS
    while True:
        try:
            return resources(config, num_replicas, total, ray.available_resources())
        except ClusterError:
            if time.monotonic() > end:
                raise
            time.sleep(LOOK_SECONDS)


def seeded(config: EngineConfig, number: int) -> EngineConfig:
    """The settings of a replica: two of them must not draw the same numbers for those who bring no
    seed."""
    return replace(config, data_parallel_size=1, seed=config.seed + number)

"""A Ray cluster: the cores of this machine, or a cluster at an address.

Ray is an optional package (requirements-scale.txt); only modules of this package named ray_* import it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from fleet_forecast.usage import UsageError, note

REACHABLE_SECONDS = 5.0


@contextmanager
def ray_cluster(address: str | None, workers: int | None) -> Iterator[None]:
    """Join the cluster at an address such as ray://host:10001, or start one of this machine's cores, for the block.

    Raises UsageError if there is no Ray, no such cluster, or if this machine has fewer cores than workers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as problem:
        raise UsageError(f"--engine ray: {problem}; python -m pip install -r requirements-scale.txt") from None
    if address is not None:
        _check_reachable(address)
    try:
        ray.init(
            address or "local",  # not the cluster of RAY_ADDRESS, nor one that runs here
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError) as problem:
        raise UsageError(f"--ray-address {address}: {problem}; give the address of a cluster") from None
    try:
        _check_workers(address, workers)
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises UsageError if nothing listens at host:port or ray://host:port: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # `auto`, `local`, or a scheme that Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHABLE_SECONDS).close()
    except (OSError, OverflowError) as problem:
        raise UsageError(
            f"--ray-address {address}: cannot be reached ({problem}); give the address of a cluster"
        ) from None


def _check_workers(address: str | None, workers: int | None) -> None:
    """Raises UsageError if this machine has too few cores. A cluster may grow: there it is a note."""
    cores = cores_of_cluster()
    if workers is None or workers <= cores:
        return
    if address is None:
        raise UsageError(
            f"--workers {workers}: this machine has {cores} cores, one for each worker; give at most {cores}"
        )
    note(f"--workers {workers}: the cluster has {cores} cores now; the others start when it has more")


def cores_of_cluster() -> int:
    """Processor cores of the cluster, at least 1."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def gpus_of_cluster() -> int:
    """GPUs of the cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))

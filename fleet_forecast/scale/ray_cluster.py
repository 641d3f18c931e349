"""A Ray cluster: the cores of this machine, or a cluster at an address.

Ray is an optional package (requirements-scale.txt); only modules of this package named ray_* import it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from fleet_forecast.usage import UsageError


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Join the cluster at an address such as ray://host:10001, or start one of this machine's cores, for the block.

    Raises UsageError if there is no Ray, or no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as problem:
        raise UsageError(f"--engine ray: {problem}; python -m pip install -r requirements-scale.txt") from None
    try:
        ray.init(
            address,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError) as problem:
        raise UsageError(f"--ray-address {address}: {problem}; give the address of a cluster") from None
    try:
        yield
    finally:
        ray.shutdown()


def cores_of_cluster() -> int:
    """Processor cores of the cluster, at least 1."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def gpus_of_cluster() -> int:
    """GPUs of the cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))

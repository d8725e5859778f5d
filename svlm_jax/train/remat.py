"""`remat: auto`: of the policies of `config.Remat` the first whose step fits the devices: the one that computes least twice.

A policy changes what is kept and what is computed again, never a result.
"""

from dataclasses import replace
from typing import get_args

import jax
from jax.sharding import Mesh

from svlm_jax.cluster.coordination import Channel
from svlm_jax.config import ModelConfig, Remat
from svlm_jax.train.config import Log, TrainConfig
from svlm_jax.train.memory import AbstractStep

# Of the memory of a device that a program may fill: the rest is for workspaces of cuDNN and NCCL and for gaps between arrays.
USABLE = 0.95


def local_capacity() -> float | None:
    """Bytes of memory that this process may use of the smallest of its devices; None where they do not say."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    return float(min(limits)) or None


def choose_remat(config: TrainConfig, model: ModelConfig, mesh: Mesh, capacity: float | None, log: Log) -> Remat:
    """The policy of a run. The same on all hosts, which all call this.

    Args:
        model: in its training form, with any policy.
        capacity: bytes of memory of a device; None where nobody knows, as on a CPU.
    """
    if config.remat != "auto":
        return config.remat
    policies, channel = get_args(Remat), Channel("remat")
    hosts = channel.all_gather(capacity)
    if None in hosts:
        log("remat auto: full, because the devices do not say how much memory they have")
        return "full"
    room = USABLE * min(hosts)
    for policy in policies:
        step = AbstractStep(config, replace(model, remat=policy), mesh)
        # A bound that is too large already spares a compilation, which takes half a minute or more.
        needed = step.least_bytes()
        if needed <= room:
            needed = max(needed, *channel.all_gather(step.micro_step().total))
        if needed <= room or policy == policies[-1]:
            has = f"a device has {min(hosts) / 1e9:.1f}"
            fits = "" if needed <= room else "; IT MAY NOT FIT"
            log(f"remat auto: {policy}, a micro-step needs {needed / 1e9:.1f} GB, {has}{fits}")
            return policy
    raise AssertionError("unreachable: the last policy is taken in any case")

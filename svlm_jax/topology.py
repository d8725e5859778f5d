"""Devices of machines that are not at hand, to compile for: names of topologies, and what a compiler must know of them.

Owns the description of an H100 (`h100.txtpb`) and which compiler a platform needs. Knows nothing of models. The compiler of the
target must be installed: the CUDA plugin of this jax version and ptxas, or libtpu. Units: bytes.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from svlm_jax.errors import InputError

MEMORY_FRACTION = 0.92  # of a GPU's memory that a training process takes: jax's own default is 0.75
H100 = Path(__file__).with_name("h100.txtpb")


class Topology(NamedTuple):
    """compiler_name: what the compiler of the platform calls the topology; memory_bytes: of one device."""

    platform: Literal["cuda", "tpu"]
    compiler_name: str
    memory_bytes: float


TOPOLOGIES: dict[str, Topology] = {
    "h100x1": Topology("cuda", "1x1x1", 80e9),
    "h100x8": Topology("cuda", "1x1x8", 80e9),
    "h100x16": Topology("cuda", "1x2x8", 80e9),
    "h100x64": Topology("cuda", "1x8x8", 80e9),
    "h200x1": Topology("cuda", "1x1x1", 141e9),  # to the compiler an H100 with more memory
    "h200x8": Topology("cuda", "1x1x8", 141e9),
    "v5p-8": Topology("tpu", "v5:2x2x1", 95 * 2**30),
    "v5p-64": Topology("tpu", "v5:2x4x4", 95 * 2**30),
    "v5p-128": Topology("tpu", "v5:4x4x4", 95 * 2**30),
}


def abstract_devices(name: str, flag: str) -> Sequence[Any]:
    """The devices of a topology, which can be compiled for and not run on.

    Args:
        flag: what errors call the setting that names the topology.

    Raises:
        InputError: an unknown topology, or a compiler that is not installed.
    """
    if name not in TOPOLOGIES:
        raise InputError(flag, name, f"one of {', '.join(TOPOLOGIES)}", "choose one of them")
    platform, compiler_name, memory_bytes = TOPOLOGIES[name]
    # Without these the plugins look for a GPU, and for the metadata server of a TPU VM, which they wait for.
    os.environ |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    from jax.experimental import topologies

    try:
        if platform == "cuda":
            # A compiler that thinks the memory is too small computes again what it should keep.
            target_config = re.sub(r"(device_memory_size:) \d+", rf"\1 {int(memory_bytes)}", H100.read_text())
            return topologies.get_topology_desc("h100", "cuda", target_config=target_config, topology=compiler_name).devices
        options = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1), "num_slices": 1}
        return topologies.get_topology_desc(compiler_name, "tpu", **options).devices
    except (RuntimeError, ValueError) as error:  # NotImplementedError and JaxRuntimeError are RuntimeErrors
        cause = f"{name} ({str(error).splitlines()[0]})"
        remedy = (
            "pip install libtpu"
            if platform == "tpu"
            else "pip install --no-deps jax-cuda13-plugin and jax-cuda13-pjrt of the version of jax, and put ptxas on PATH"
        )
        raise InputError(flag, cause, "the compiler of the target", remedy) from None

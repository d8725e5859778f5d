"""Claims about the sums of a checkpoint: any changed bit changes them, no mesh does, and the host's are the devices'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from svlm_jax.sharding import make_mesh
from svlm_jax.train import checksums

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_host_and_devices_agree_on_any_mesh(dtype, monkeypatch):
    array = np.asarray(jnp.asarray(DRAW.normal(size=(16, 6, 4)) * 100).astype(dtype))
    want = checksums.array_checksum(array)
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(fsdp=8), make_mesh(fsdp=4, tensor=2)):
        for spec in (PartitionSpec(), PartitionSpec("fsdp"), PartitionSpec("fsdp", "tensor")):
            there = jax.device_put(array, NamedSharding(mesh, spec))
            assert checksums.state_checksums({"a": there}) == {"['a']": want}
    monkeypatch.setattr(checksums, "BLOCK", 30)  # in blocks of a row
    assert checksums.array_checksum(array) == want


def test_every_bit_counts_and_so_does_its_place():
    array = DRAW.normal(size=(5, 7)).astype(np.float32)
    want = checksums.array_checksum(array)
    for bit in range(32):
        for place in [(0, 0), (4, 6), (2, 3)]:
            other = array.copy()
            other.view(np.uint32)[place] ^= np.uint32(1 << bit)
            assert checksums.array_checksum(other) != want, (bit, place)
    assert checksums.array_checksum(array[::-1]) != want and checksums.array_checksum(array[:, ::-1]) != want
    assert checksums.array_checksum(np.zeros((), np.int32)) == 0


def test_saving_compiles_once():
    state = jax.device_put({"a": jnp.ones(3)}, NamedSharding(make_mesh(devices=jax.devices()[:1]), PartitionSpec()))
    for _ in range(2):
        checksums.state_checksums(state)
    program = checksums._program(NamedSharding(make_mesh(devices=jax.devices()[:1]), PartitionSpec()))
    before = program._cache_size()
    checksums.state_checksums({"a": state["a"] + 1})
    assert program._cache_size() == before > 0

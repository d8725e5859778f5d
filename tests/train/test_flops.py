"""FLOPs of a sample are those of the matrices that it passes: a wrong count is a wrong MFU."""

import math
from dataclasses import replace

import pytest

from svlm_jax.families import presets
from svlm_jax.model.parameters import shapes
from svlm_jax.train import flops
from svlm_jax.train.flops import sample_flops


@pytest.fixture(params=sorted(presets()))
def sizes(request):
    """(config, number of weights of each matrix by path) of a published model."""
    config = presets()[request.param]
    stacked = shapes(replace(config, scan_layers=True))  # as many weights, traced once for all layers
    return config, {path: math.prod(x.shape) for path, x in stacked.items() if path.endswith(".kernel")}


def test_a_patch_passes_every_matrix_of_the_tower_and_a_quarter_of_the_mergers(sizes):
    config, matrices = sizes
    merged = {path: n for path, n in matrices.items() if path.startswith(("vision.merger", "vision.deepstack"))}
    patchwise = sum(n for path, n in matrices.items() if path.startswith("vision.") and path not in merged)
    expected = 2 * (patchwise + sum(merged.values()) / config.vision.merge_unit)
    assert sample_flops(config, 0, 0, 1, 0, vision_trained=False) == expected
    assert sample_flops(config, 0, 0, 1, 0, vision_trained=True) == 3 * expected


def test_a_token_passes_every_matrix_of_the_decoder_three_times(sizes):
    config, matrices = sizes
    decoder = sum(n for path, n in matrices.items() if path.startswith("text.layers."))
    attention = 3 * 4 * config.text.num_hidden_layers * config.text.num_attention_heads * config.text.head_dim / 2
    assert sample_flops(config, 1, 0, 0, 0, vision_trained=False) == 6 * decoder + attention


KINDS = {
    "TPU v4": 275,
    "TPU v4 lite": 138,
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v5": 459,
    "TPU v5p": 459,
    "TPU v6 lite": 918,
}
KINDS |= {"NVIDIA H100 80GB HBM3": 989.5, "NVIDIA H100 PCIe": 756.5, "NVIDIA GH200 480GB": 989.5, "NVIDIA A100-SXM4-40GB": 312}


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_is_known_by_the_name_that_jax_gives_it(kind):
    """A v5p is "TPU v5"."""
    assert flops.peak_flops(kind) == KINDS[kind] * 1e12


def test_of_other_devices_no_utilisation_is_told():
    assert flops.peak_flops("cpu") is None and flops.peak_flops("NVIDIA GeForce RTX 4090") is None

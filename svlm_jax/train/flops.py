"""Model FLOPs of a training step, for MFU = FLOPs of the step / (seconds * devices * peak FLOP/s of a device).

Counts what the model needs, not what the devices compute: padding and rematerialisation count for nothing.
"""

from svlm_jax.config import ModelConfig, Remat, TextConfig, VisionConfig

# Dense bfloat16 FLOP/s of a device, by a part of jax's device_kind (vendors' data sheets). The first match counts.
PEAK_FLOPS = {"H100 PCIe": 756.5e12, "H100 NVL": 835.5e12, "H100": 989.5e12, "H200": 989.5e12, "A100": 312e12}
PEAK_FLOPS |= {"v4 lite": 138e12, "v4": 275e12, "v5 lite": 197e12, "v5e": 197e12, "v5": 459e12, "v6": 918e12}  # "TPU v5": v5p


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of a kind of device; None where it is not known."""
    return next((value for name, value in PEAK_FLOPS.items() if name in device_kind), None)


def sample_flops(
    config: ModelConfig,
    tokens: int,
    labels: int,
    patches: int,
    frame_patches: int,
    *,
    vision_trained: bool,
    text_trained: bool = True,
) -> float:
    """FLOPs of one sample, forward and backward.

    6 N T for the matrices of the decoder (2 forward, 4 backward), 3 times the forward 4 T^2 N_heads H L / 2 of causal
    attention, 6 V D for the logits of each label, and the vision tower: forward alone unless it is trained.

    Args:
        tokens, labels, patches: of the sample, without padding; frame_patches: patches in one frame.
        text_trained: the decoder's matrices have gradients of their own; where adapters alone have, they need a third less.
    """
    text = config.text
    width, heads = text.hidden_size, text.num_attention_heads * text.head_dim
    matrix = 6 if text_trained else 4
    decoder = matrix * text.num_hidden_layers * _layer_parameters(text) * tokens
    attention = 3 * text.num_hidden_layers * 4 * tokens**2 * heads / 2
    head = matrix * width * text.vocab_size * labels
    tower = _tower_flops(config.vision, patches, frame_patches)
    return decoder + attention + head + tower * (3 if vision_trained else 1)


def recomputed_flops(config: ModelConfig, tokens: int, remat: Remat) -> float:
    """FLOPs of one sample's decoder layers that a policy computes a second time, in the backward pass: not model FLOPs."""
    text = config.text
    width, heads = text.hidden_size, text.num_attention_heads * text.head_dim
    gate = width * text.intermediate_size  # up and down are as large
    recomputed = _layer_parameters(text) - gate  # what down gives is not needed again
    matrices = {"none": 0, "save_projections": 0, "save_up": gate, "save_attention_block": 2 * gate}.get(remat, recomputed)
    attention = 4 * tokens**2 * heads / 2 if remat == "full" else 0
    return text.num_hidden_layers * (2 * tokens * matrices + attention)


def _layer_parameters(text: TextConfig) -> int:
    width, heads = text.hidden_size, text.num_attention_heads * text.head_dim
    kv_heads = text.num_key_value_heads * text.head_dim
    return width * (2 * heads + 2 * kv_heads) + 3 * width * text.intermediate_size


def _tower_flops(vision: VisionConfig, patches: int, frame_patches: int) -> float:
    """Forward: 2 N P for the matrices, and attention of each patch to its window, or to its frame in some blocks."""
    full = len(vision.fullatt_block_indexes)
    keys = full * frame_patches + (vision.depth - full) * min(vision.window_patches, frame_patches)  # of a patch, all blocks
    mlp_matrices = 3 if vision.hidden_act == "silu" else 2  # a silu is gated
    block = 4 * vision.hidden_size**2 + mlp_matrices * vision.hidden_size * vision.intermediate_size
    merged = vision.hidden_size * vision.merge_unit
    merger = (merged * merged + merged * vision.out_hidden_size) / vision.merge_unit
    mergers = (1 + len(vision.deepstack_visual_indexes)) * merger
    matrices = vision.depth * block + vision.patch_dim * vision.hidden_size + mergers
    return 2 * patches * matrices + 4 * patches * keys * vision.hidden_size

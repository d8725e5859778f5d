"""Model FLOPs of a training step, for MFU = FLOPs of the step / (seconds * devices * peak of a device).

Counted is what the model needs, not what is done: padding, and what rematerialisation computes again, count for nothing.
"""

from svlm_jax.config import ModelConfig

# Dense bfloat16 FLOP/s of a device, by a part of jax's device_kind (vendors' data sheets).
PEAKS = {"H100 PCIe": 756.5e12, "H100 NVL": 835.5e12, "H100": 989.5e12, "H200": 989.5e12, "A100": 312e12}
PEAKS |= {"v4": 275e12, "v5p": 459e12, "v5 lite": 197e12, "v5e": 197e12, "v6": 918e12}


def peak(kind: str) -> float | None:
    """FLOP/s of a kind of device; None where it is not known."""
    return next((value for name, value in PEAKS.items() if name in kind), None)


def sample_flops(
    config: ModelConfig,
    tokens: int,
    labels: int,
    patches: int,
    frame: int,
    *,
    vision_trained: bool,
    text_trained: bool = True,
) -> float:
    """FLOPs of one sample, forward and backward: 6 N T for the matrices of the decoder (2 forward, 4 backward), 3 times the
    forward 4 T^2 N_heads H L / 2 of causal attention, 6 V D for each learned token's logits, and the vision tower's 2 N P plus
    attention (windows, frames), forward alone unless it is trained.

    Args:
        tokens, labels, patches: of the sample, without padding; frame: patches in one frame.
        text_trained: the decoder's matrices have gradients of their own; where adapters alone have, they need a third less.
    """
    text, vision = config.text, config.vision
    width, heads = text.hidden_size, text.num_attention_heads * text.head_dim
    kv = text.num_key_value_heads * text.head_dim
    layer = width * (2 * heads + 2 * kv) + 3 * width * text.intermediate_size
    matrix = 6 if text_trained else 4
    decoder = matrix * text.num_hidden_layers * layer * tokens
    attention = 3 * text.num_hidden_layers * 4 * tokens**2 * heads / 2
    head = matrix * width * text.vocab_size * labels
    full = len(vision.fullatt_block_indexes)
    seen = full * frame + (vision.depth - full) * min(vision.window_patches, frame)
    block = 4 * vision.hidden_size**2 + 3 * vision.hidden_size * vision.intermediate_size
    wide = vision.hidden_size * vision.merge_unit
    merger = (wide * wide + wide * vision.out_hidden_size) / vision.merge_unit
    tower = 2 * patches * (vision.depth * block + vision.patch_dim * vision.hidden_size + merger)
    tower += 4 * patches * seen * vision.hidden_size
    return decoder + attention + head + tower * (3 if vision_trained else 1)

"""What the tensors of a checkpoint are when they are not those of its model: quantised, adapters, a part of a sharded run, a
model under other names, one half of a model.

Owns recognising these by names, types and shapes; the differences that are none of them are the caller's. Host side. Reads no
tensor.
"""

import re
from collections.abc import Mapping, Sequence

from svlm_jax.checkpoint.tensor_files import TensorFiles
from svlm_jax.errors import InputError

FLOATS = ("float32", "bfloat16", "float16", "float64")  # the last two are read if the user chooses one of the first two
# Names by which another kind of checkpoint is recognised: PEFT; AWQ, GPTQ, bitsandbytes, compressed-tensors, fp8, HQQ,
# torchao, MLX; FSDP.
_ADAPTED = re.compile(r"(^|\.)(base_model\.model|base_layer|lora_\w+|modules_to_save|original_module)(\.|$)")
_PACKED = re.compile(
    r"\.(qweight|qzeros|g_idx|scales?|biases|zeros?(_point)?|absmax|quant_(map|state)\S*|nested_\w+|SCB|W_q|meta|(weight|input|"
    r"output|activation|act)_(scale|zero_point|packed|shape|g_idx|global_scale|bits|format)\w*|weight:_\w+)(\.|$)"
)
_FLATTENED = re.compile(r"(^|\.)(_flat_param|flat_param|_fsdp_wrapped_module)(\.|_|$)")
_WRAPPERS = 3  # parts of a name that programs around the model may have put into it
_HALVES = {"vision.": "vision tower", "text.": "language model"}


def refuse_other_weights(files: TensorFiles, names: set[str]) -> None:
    """Refuse adapters, quantised weights and parts of a sharded run, by their names, types and shapes.

    Raises:
        InputError: one of them.
    """
    directory, source = str(files.directory), "use the checkpoint that it was made from"
    for name in sorted(names):
        dtype, shape = files.dtype(name), files.shape(name)
        if _ADAPTED.search(name):
            got, remedy = f"LoRA adapters that are not merged ({name})", "merge them first (merge_and_unload)"
            raise InputError(directory, got, "a complete model", remedy)
        if _PACKED.search(name) or dtype not in FLOATS:
            raise InputError(directory, f"quantised weights ({name}, {dtype})", f"tensors of {' or '.join(FLOATS[:2])}", source)
        if _FLATTENED.search(name) or 0 in shape:
            got = f"a shard of weights as ZeRO-3 or FSDP leaves it ({name} {list(shape)})"
            raise InputError(
                directory, got, "complete tensors", "gather them when saving, or join the pieces (zero_to_fp32.py)"
            )


def refuse_other_names(directory: str, paths: Mapping[str, str], missing: Sequence[str], unmatched: Sequence[str]) -> None:
    """Refuse a whole model under other names, and one half of a model.

    Args:
        paths: the path of the parameter by the name of its tensor, of all tensors of the model.
        missing, unmatched: names of the model that the files lack, and names of the files that the model lacks.

    Raises:
        InputError: one of them. Other differences pass.
    """
    if len(missing) == len(paths) and not unmatched:
        raise InputError(directory, "no tensors", "a whole model", "download the weights again")
    first = next((name for name in missing if ".layers." in name), missing[0] if missing else "")
    remedy = "use a checkpoint that transformers saved"
    for name in unmatched:
        if extra := _parts_between(first, name):
            got = f"names with {extra} in them ({name[:100]})"
            raise InputError(directory, got, f"names such as {first}", f"save the model without what wraps it, or {remedy}")
    if len(missing) == len(paths):
        raise InputError(directory, f"tensors under other names ({unmatched[0][:100]})", f"names such as {first}", remedy)
    for half, kind in _HALVES.items():
        names = [name for name, path in paths.items() if path.startswith(half)]
        if set(names) <= set(missing) and not unmatched:
            got = f"no {kind} ({len(names)} tensors: {names[0]}, ...)"
            raise InputError(directory, got, "a whole model", "use the checkpoint that this was taken from")


def _parts_between(name: str, longer: str) -> str:
    """The parts by which `longer` is longer than `name`, all others being the same and in the same order; "": it is not."""
    parts, extra = name.split("."), []
    rest = iter(parts)
    expected = next(rest)
    for part in longer.split("."):
        if part == expected:
            expected = next(rest, None)
        else:
            extra.append(part)
    return ".".join(extra) if expected is None and len(extra) <= _WRAPPERS else ""

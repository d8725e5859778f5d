"""The same chunk in plain torch, on the same device and in the same run: transformers with SDPA, static shapes, random weights.

It measures the work of the original code with torch's own kernels: the vision tower, prefill of a chunk over a full cache, and
decoding token by token, launched from Python and (on a GPU) replayed as a CUDA graph. The cache has a static shape; new tokens
are written to its last slots. Eviction and rotation of cached keys, which the original also needs, are left out.
"""

import argparse
import inspect
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.model_configs import SHAPES, model_config
from svlm_jax.cli.flags import integer
from svlm_jax.config import ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.families import config_json, family_of

REPEATS = 7


class StaticCache:
    """Keys and values [1, K, S, H] of each layer; `update` writes new tokens to `slots` [T]. Has the methods of a cache that
    transformers calls."""

    def __init__(self, shape: tuple[int, ...], layers: int, device: Any, dtype: Any) -> None:
        import torch

        self.layers = [tuple(torch.randn(shape, device=device, dtype=dtype) for _ in range(2)) for _ in range(layers)]
        self.slots: Any = None

    def update(self, keys: Any, values: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, ...]:
        for cached, new in zip(self.layers[layer], (keys, values), strict=True):
            cached.index_copy_(2, self.slots, new)
        return self.layers[layer]

    def get_seq_length(self, *_: Any) -> int:
        return 0


def measure(config: ModelConfig, grid: tuple[int, int, int], tokens: int, slots: int, reply: int) -> dict[str, Any]:
    """Milliseconds by stage of a chunk.

    Args:
        grid: (t, h, w) of its frames in patches.
        tokens, slots, reply: new tokens of prefill; cache capacity; decoded tokens.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, config.dtype)
    architecture = family_of(config).architecture
    config_class = getattr(transformers, architecture.replace("ForConditionalGeneration", "Config"))
    hf_config = config_class(**{k: v for k, v in config_json.dump(config).items() if k != "model_type"})
    hf_config._attn_implementation = "sdpa"
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model: Any = getattr(transformers, architecture)(hf_config).eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)
    text, size = config.text, config.text.hidden_size
    cache = StaticCache((1, text.num_key_value_heads, slots, text.head_dim), text.num_hidden_layers, device, dtype)
    patches = torch.randn(int(np.prod(grid)), config.vision.patch_dim, device=device, dtype=dtype)
    grids = torch.tensor([grid], device=device)
    is_future = torch.arange(slots, device=device)[None] > torch.arange(slots - tokens, slots, device=device)[:, None]
    prefill = ForwardPass(model, cache, torch.randn(1, tokens, size, device=device, dtype=dtype), ~is_future[None, None])
    decode_step = ForwardPass(model, cache, torch.randn(1, 1, size, device=device, dtype=dtype), None)
    ms: dict[str, Any] = {
        "vision (ms)": _median(lambda: model.model.visual(patches, grid_thw=grids), torch),
        "prefill (ms)": _median(prefill, torch),
        "one token (ms)": _median(decode_step, torch),
    }
    graph = _capture(decode_step, torch) if device.type == "cuda" else None
    ms["one token, CUDA graph (ms)"] = None if graph is None else _median(graph, torch)
    token = min(value for name, value in ms.items() if name.startswith("one token") and value is not None)
    total = ms["vision (ms)"] + ms["prefill (ms)"] + reply * token
    device_name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    versions = {"device": device_name, "torch": torch.__version__, "transformers": transformers.__version__}
    return {**{key: value and round(value, 2) for key, value in ms.items()}, "ms/chunk": round(total, 1), **versions}


class ForwardPass:
    """Embeddings [1, T, D] through the decoder over the cache, and the argmax of the last token's logits."""

    def __init__(self, model: Any, cache: StaticCache, embeds: Any, mask: Any) -> None:
        import torch

        self.model, self.cache, self.embeds, self.mask = model, cache, embeds, mask
        slots, tokens = cache.layers[0][0].shape[2], embeds.shape[1]
        self.slots = torch.arange(slots - tokens, slots, device=embeds.device)
        self.positions = self.slots.expand(3, 1, -1)
        self.visible = torch.ones(1, 1, tokens, slots, dtype=torch.bool, device=embeds.device)
        # transformers renamed the argument in 5.24
        names = inspect.signature(model.model.language_model.forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"

    def __call__(self) -> Any:
        self.cache.slots = self.slots
        masks: Any = {"full_attention": self.mask}
        if "qwen3" in self.model.config.model_type:  # takes no dict, and makes a mask where it is given none
            masks = self.visible if self.mask is None else self.mask
        inputs = {"inputs_embeds": self.embeds, "position_ids": self.positions, self.cache_name: self.cache}
        hidden = self.model.model.language_model(**inputs, attention_mask=masks, use_cache=True).last_hidden_state
        return self.model.lm_head(hidden[:, -1]).argmax(-1)


def _capture(call: Callable[[], Any], torch: Any) -> Callable[[], Any] | None:
    """The call as a CUDA graph; None where it cannot be captured."""
    warm_up_stream = torch.cuda.Stream()  # a graph can only be captured after a call on a side stream
    try:
        with torch.cuda.stream(warm_up_stream), torch.inference_mode():
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        warnings.warn(f"no CUDA graph: {str(error).splitlines()[0]}", stacklevel=2)
        return None
    return graph.replay


def _median(call: Callable[[], Any], torch: Any) -> float:
    def timed() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - started)

    timed()
    return float(np.median([timed() for _ in range(REPEATS)]))


def measure_in_subprocess(shape: str, dtype: str, grid: tuple[int, ...], tokens: int, slots: int, reply: int) -> dict[str, Any]:
    """`measure` in its own process, so that torch and jax do not compete for a memory pool."""
    sizes = ["--grid", ",".join(map(str, grid)), "--tokens", str(tokens), "--slots", str(slots), "--reply", str(reply)]
    command = [sys.executable, "-m", "benchmarks", "torch", "--shape", shape, "--dtype", dtype, *sizes]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise InputError("--torch", f"exit code {result.returncode}", "a run of benchmarks torch", "see its message above")
    return json.loads(result.stdout.splitlines()[-1])


def bench(args: argparse.Namespace) -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise InputError("torch", "not installed", "torch and transformers", "pip install torch") from None
    grid = tuple(int(size) for size in args.grid.split(","))
    if len(grid) != 3:
        raise InputError("--grid", args.grid, "three numbers, T,H,W in patches", "1,50,72 is a chunk of 720p")
    print(json.dumps(measure(model_config(args.shape, args.dtype), grid, args.tokens, args.slots, args.reply)))


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="mid", help=f"{SHAPES} (default mid)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, otherwise bfloat16")
    parser.add_argument("--grid", default="1,50,72", help="of the frames in patches: T,H,W (default 1,50,72)")
    parser.add_argument("--tokens", type=integer(1), default=784, help="new tokens of a chunk (default 784)")
    parser.add_argument("--slots", type=integer(1), default=14336, help="cache capacity (default 14336)")
    parser.add_argument("--reply", type=integer(1), default=20, help="decoded tokens (default 20)")

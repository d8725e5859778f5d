"""The same chunk in plain torch, on the same device and in the same run: transformers with SDPA, static shapes, random weights.

What the original does with kernels that come with torch: the vision tower, a chunk of new tokens against a full cache, and
one token at a time, launched one by one and (on a GPU) replayed as a CUDA graph. The cache is a tensor of static shape into
whose last slots the new tokens go; nothing is evicted or rotated anew, which the original also pays for.
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

from benchmarks.shapes import shape
from svlm_jax.config import ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.families import config_json

REPEATS = 7


class Slots:
    """A static cache: [1, K, S, H] a layer; new tokens go to `at` [T]. Knows what transformers asks of a cache."""

    def __init__(self, shape: tuple[int, ...], layers: int, device: Any, dtype: Any) -> None:
        import torch

        self.held = [tuple(torch.randn(shape, device=device, dtype=dtype) for _ in range(2)) for _ in range(layers)]
        self.at: Any = None

    def update(self, keys: Any, values: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, ...]:
        for held, new in zip(self.held[layer], (keys, values), strict=True):
            held.index_copy_(2, self.at, new)
        return self.held[layer]

    def get_seq_length(self, *_: Any) -> int:
        return 0


def measure(config: ModelConfig, grid: tuple[int, int, int], tokens: int, slots: int, reply: int) -> dict[str, Any]:
    """Milliseconds by stage of a chunk: frames of `grid` patches, `tokens` new ones over `slots`, `reply` tokens."""
    import torch
    import transformers

    torch.manual_seed(0)
    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, config.dtype)
    library = transformers.Qwen2_5_VLConfig(**{k: v for k, v in config_json.dump(config).items() if k != "model_type"})
    library._attn_implementation = "sdpa"
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model: Any = transformers.Qwen2_5_VLForConditionalGeneration(library).eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)
    text, size = config.text, config.text.hidden_size
    cache = Slots((1, text.num_key_value_heads, slots, text.head_dim), text.num_hidden_layers, device, dtype)
    patches = torch.randn(int(np.prod(grid)), config.vision.patch_dim, device=device, dtype=dtype)
    grids = torch.tensor([grid], device=device)
    later = torch.arange(slots, device=device)[None] > torch.arange(slots - tokens, slots, device=device)[:, None]
    chunk = Pass(model, cache, torch.randn(1, tokens, size, device=device, dtype=dtype), ~later[None, None])
    one = Pass(model, cache, torch.randn(1, 1, size, device=device, dtype=dtype), None)
    ms: dict[str, Any] = {
        "vision (ms)": _median(lambda: model.model.visual(patches, grid_thw=grids), torch),
        "prefill (ms)": _median(chunk, torch),
        "one token (ms)": _median(one, torch),
    }
    graph = _graph(one, torch) if device.type == "cuda" else None
    ms["one token, CUDA graph (ms)"] = None if graph is None else _median(graph, torch)
    token = min(value for name, value in ms.items() if name.startswith("one token") and value is not None)
    total = ms["vision (ms)"] + ms["prefill (ms)"] + reply * token
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    about = {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}
    return {**{key: value and round(value, 2) for key, value in ms.items()}, "ms a chunk": round(total, 1), **about}


class Pass:
    """Embeddings [1, T, D] through the decoder over the cache, and the newest token's logits."""

    def __init__(self, model: Any, cache: Slots, embeds: Any, mask: Any) -> None:
        import torch

        self.model, self.cache, self.embeds, self.mask = model, cache, embeds, mask
        slots, tokens = cache.held[0][0].shape[2], embeds.shape[1]
        self.at = torch.arange(slots - tokens, slots, device=embeds.device)
        self.positions = self.at.expand(3, 1, -1)
        # transformers renamed the argument in 5.24
        named = inspect.signature(model.model.language_model.forward).parameters
        self.cache_name = "cache" if "cache" in named else "past_key_values"

    def __call__(self) -> Any:
        self.cache.at = self.at
        masks = {"full_attention": self.mask}
        given = {"inputs_embeds": self.embeds, "position_ids": self.positions, self.cache_name: self.cache}
        hidden = self.model.model.language_model(**given, attention_mask=masks, use_cache=True).last_hidden_state
        return self.model.lm_head(hidden[:, -1]).argmax(-1)


def _graph(call: Callable[[], Any], torch: Any) -> Callable[[], Any] | None:
    """The call as a CUDA graph; None where it cannot be captured."""
    side = torch.cuda.Stream()
    try:
        with torch.cuda.stream(side), torch.inference_mode():
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
    def once() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - started)

    once()
    return float(np.median([once() for _ in range(REPEATS)]))


def beside(shape: str, dtype: str, grid: tuple[int, ...], tokens: int, slots: int, reply: int) -> dict[str, Any]:
    """`measure` in a process of its own, so that the two frameworks do not share one's memory pool."""
    sizes = ["--grid", ",".join(map(str, grid)), "--tokens", str(tokens), "--slots", str(slots), "--reply", str(reply)]
    command = [sys.executable, "-m", "benchmarks", "torch", "--shape", shape, "--dtype", dtype, *sizes]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError("--torch", f"exit code {done.returncode}", "a run of benchmarks torch", "see its message above")
    return json.loads(done.stdout.splitlines()[-1])


def bench(args: argparse.Namespace) -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise InputError("torch", "not installed", "torch and transformers", "pip install torch") from None
    grid = tuple(int(one) for one in args.grid.split(","))
    if len(grid) != 3:
        raise InputError("--grid", args.grid, "three numbers, T,H,W in patches", "1,50,72 is a chunk of 720p")
    print(json.dumps(measure(shape(args.shape, args.dtype), grid, args.tokens, args.slots, args.reply)))

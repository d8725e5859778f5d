"""The decoder of Qwen2.5 and of Qwen3-VL in numpy float64, one token at a time: what `tests/support/oracle.py` says a token can
see, it sees.

Owns the arithmetic only. Every computed token's key and value are kept by its serial number, the key UNROTATED (and normalised,
in Qwen3), and for each new token the keys of what it sees are rotated to where they stand at that moment. Reads a checkpoint
with Hugging Face's names; what the vision tower gives comes from the caller. Imports nothing of svlm_jax.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.support.oracle import Computed, Place


class NumpyDecoder:
    """Weights, and the keys and values [K, H] of every token computed so far, by layer and serial number."""

    def __init__(self, directory: str | Path) -> None:
        directory = Path(directory)
        config = json.loads((directory / "config.json").read_text())
        config |= config.get("text_config", {})
        tensors = load_file(directory / "model.safetensors")
        self.tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        self.layers = config["num_hidden_layers"]
        self.kv_heads = config["num_key_value_heads"]
        self.head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        self.epsilon = config["rms_norm_eps"]
        rope = {"rope_theta": config.get("rope_theta")} | (config.get("rope_parameters") or config["rope_scaling"])
        self.frequencies = rope["rope_theta"] ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        self.axes = np.repeat([0, 1, 2], rope["mrope_section"])  # axis that each frequency turns with
        if rope.get("mrope_interleaved"):  # t h w t h w ..., as far as the sections of h and w reach; then t
            self.axes = np.zeros(self.head_dim // 2, int)
            for axis in (1, 2):
                self.axes[axis : 3 * rope["mrope_section"][axis] : 3] = axis
        self.model = "model.language_model" if "model.language_model.norm.weight" in tensors else "model"
        self.head = f"{self.model}.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
        self.keys: list[dict[int, np.ndarray]] = [{} for _ in range(self.layers)]
        self.values: list[dict[int, np.ndarray]] = [{} for _ in range(self.layers)]

    def compute(self, token: Computed, row: np.ndarray | None = None, deep: Sequence[np.ndarray] = ()) -> np.ndarray:
        """Logits [V] after `token`; `row` [D] is what the vision tower gave for it if it is a pad, `deep` what is added to it
        after each of the first layers. Tokens come in the order in which they were computed; one that comes again (recompute)
        replaces its key and value."""
        assert (row is None) == (token.pad is None)
        x = self.tensors[f"{self.model}.embed_tokens.weight"][token.id] if row is None else np.asarray(row, np.float64)
        for layer in range(self.layers):
            name = f"{self.model}.layers.{layer}"
            x = x + self._attend(layer, self._norm(f"{name}.input_layernorm", x), token)
            y = self._norm(f"{name}.post_attention_layernorm", x)
            gate = self._linear(f"{name}.mlp.gate_proj", y)
            x = x + self._linear(f"{name}.mlp.down_proj", gate / (1 + np.exp(-gate)) * self._linear(f"{name}.mlp.up_proj", y))
            if layer < len(deep):
                x = x + np.asarray(deep[layer], np.float64)
        return self.tensors[f"{self.head}.weight"] @ self._norm(f"{self.model}.norm", x)

    def _attend(self, layer: int, x: np.ndarray, token: Computed) -> np.ndarray:
        name = f"{self.model}.layers.{layer}.self_attn"
        query = self._linear(f"{name}.q_proj", x).reshape(self.kv_heads, -1, self.head_dim)  # [K, G, H]
        key = self._linear(f"{name}.k_proj", x).reshape(self.kv_heads, self.head_dim)
        if f"{name}.q_norm.weight" in self.tensors:
            query, key = self._norm(f"{name}.q_norm", query), self._norm(f"{name}.k_norm", key)
        self.keys[layer][token.serial] = key
        self.values[layer][token.serial] = self._linear(f"{name}.v_proj", x).reshape(self.kv_heads, self.head_dim)
        places = [place for _, place in token.seen]
        keys = np.stack([self.keys[layer][serial] for serial, _ in token.seen])  # [S, K, H]
        values = np.stack([self.values[layer][serial] for serial, _ in token.seen])
        keys = self._rotate(keys.transpose(1, 0, 2), places)  # [K, S, H]
        query = self._rotate(query[:, :, None], places[-1:])[:, :, 0]  # the last that it sees is the token itself
        scores = np.einsum("kgh,ksh->kgs", query, keys) / np.sqrt(self.head_dim)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return self._linear(f"{name}.o_proj", np.einsum("kgs,skh->kgh", weights, values).reshape(-1))

    def _rotate(self, x: np.ndarray, places: list[Place]) -> np.ndarray:
        """x [..., S, H]; each frequency turns with its section's axis, pairs are (j, j + H/2)."""
        angles = np.array(places, np.float64)[:, self.axes] * self.frequencies  # [S, H/2]
        cos, sin = np.cos(angles), np.sin(angles)
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.epsilon) * self.tensors[f"{name}.weight"]

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        y = self.tensors[f"{name}.weight"] @ x
        return y + self.tensors[f"{name}.bias"] if f"{name}.bias" in self.tensors else y

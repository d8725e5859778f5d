"""Small models made of the ones in the fixtures."""

import json
import re
from pathlib import Path

from safetensors.numpy import load_file, save_file


def write_shallow(source: Path, target: Path, layers: int = 2) -> Path:
    """A checkpoint of the first layers and blocks of another: a window block and a full one, and half of what XLA compiles."""
    raw = json.loads((source / "config.json").read_text())
    blocks = [block for block in raw["vision_config"]["fullatt_block_indexes"] if block < layers]
    raw |= {"num_hidden_layers": layers, "max_window_layers": layers}
    raw["vision_config"] |= {"depth": layers, "fullatt_block_indexes": blocks}
    (target / "config.json").write_text(json.dumps(raw))
    number = re.compile(r"(?:layers|blocks)\.(\d+)\.")
    tensors = load_file(source / "model.safetensors")
    kept = {name: x for name, x in tensors.items() if not (match := number.search(name)) or int(match[1]) < layers}
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target

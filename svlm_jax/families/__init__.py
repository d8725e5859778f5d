"""The model families, by the `model_type` of config.json. A new family is a file in this package and a line in `FAMILIES`.

Owns the dict. Importable without jax. docs/adding_a_model.md says what a family's file holds.
"""

from svlm_jax.config import ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.families.family import Family
from svlm_jax.families.qwen2_5_vl import QWEN2_5_VL
from svlm_jax.families.qwen2_vl import QWEN2_VL
from svlm_jax.families.qwen3_vl import QWEN3_VL

FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": QWEN2_5_VL,
    "qwen2_vl": QWEN2_VL,
    "qwen3_vl": QWEN3_VL,
}


def family_of(config: ModelConfig) -> Family:
    """The family of a model."""
    return FAMILIES[config.model_type]


def family_names() -> str:
    """The names of all families, for messages."""
    return " or ".join(family.name for family in FAMILIES.values())


def family_named(name: str) -> Family:
    """A family by its name in lower case, for example "qwen2.5-vl"."""
    known = {family.name.lower(): family for family in FAMILIES.values()}
    if name.lower() not in known:
        raise InputError("family", repr(name), f"one of {', '.join(known)}", "choose one of them")
    return known[name.lower()]


def presets() -> dict[str, ModelConfig]:
    """The published models of all families by name."""
    return {name: config for family in FAMILIES.values() for name, config in family.presets.items()}


def preset(name: str) -> ModelConfig:
    """The shape of a published model, for example "qwen2.5-vl-7b" (its config.json on the Hugging Face hub)."""
    known = presets()
    if name not in known:
        raise InputError("preset", repr(name), f"one of {', '.join(known)}", "or read a config.json")
    return known[name]

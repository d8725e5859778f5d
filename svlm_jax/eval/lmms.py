"""The model as lmms-eval finds it: `python -m lmms_eval --model svlm_jax --model_args pretrained=DIR`.

lmms-eval loads every entry point of the group `lmms_eval.models` when it starts, and an import error in one of them hides all:
so nothing is imported here, and the class is named by its path alone.
"""

from typing import Any

MODEL_ID = "svlm_jax"
CHAT_CLASS = "svlm_jax.eval.lmms_model.ChatModel"


def manifest() -> Any:
    """What the entry point `svlm_jax` stands for: a `ModelManifest` of lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(model_id=MODEL_ID, chat_class_path=CHAT_CLASS)

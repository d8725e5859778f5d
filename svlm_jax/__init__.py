"""StreamingVLM in JAX: `svlm_jax.from_pretrained(DIR_OR_HUB_ID)` gives a model, its tokenizer and its processor.

Importing this package imports no jax; `from_pretrained` does.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svlm_jax.compile_cache import enable_compile_cache
    from svlm_jax.pretrained import Pretrained, from_pretrained

__all__ = ["Pretrained", "enable_compile_cache", "from_pretrained"]
__version__ = "0.2.0"


def __getattr__(name: str):
    if name == "enable_compile_cache":
        from svlm_jax.compile_cache import enable_compile_cache

        return enable_compile_cache
    if name in __all__:
        from svlm_jax import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

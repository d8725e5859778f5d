"""Commands, run as `python -m launch.NAME`: parse, print the resolved config, call one library function.

What is here runs before anything of a command is imported, on any Python: whoever forgot to activate .venv is told so.
"""

import importlib.util
import sys

NEEDED = (
    "numpy",
    "jax",
    "jaxlib",
    "flax",
    "einops",
    "jaxtyping",
    "safetensors",
    "transformers",
    "huggingface_hub",
    "PIL",
    "av",
)
REMEDY = "activate .venv (`. .venv/bin/activate`), which `make` makes, or: pip install -e . (from a checkout)"


def _told():
    """What a command cannot run without, in one line, or nothing."""
    if sys.version_info < (3, 11):  # noqa: UP036 (who runs an older one is told here)
        return "python: got %d.%d, expected 3.11 or newer; %s" % (*sys.version_info[:2], REMEDY)  # noqa: UP031
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        got = "no such package for " + sys.executable
        return missing[0] + ": got " + got + ", expected all that svlm-jax needs; " + REMEDY
    return None


def _interrupted(kind, error, trace):
    """Ctrl-C while a command is still being imported."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.argv[:1] == ["-m"]:  # so it is while `python -m launch.NAME` looks for the command
    line = _told()
    if line:
        print("error: " + line, file=sys.stderr)
        sys.exit(2)
    sys.excepthook = _interrupted

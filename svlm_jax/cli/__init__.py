"""Commands: `svlm NAME`, and `python -m launch.NAME` in a checkout. Each parses, prints its settings and calls the library.

What is here runs before anything of a command is imported, on any Python: whoever forgot to activate .venv is told so.
"""

import importlib
import importlib.util
import sys

COMMANDS = {
    "stream": "watch a video, a camera or a generated game, and comment on it as it plays",
    "serve": "the live page: streams that several people watch in a browser",
    "caption": "describe an image or a video once",
    "demo": "the shipped model watches a generated game; nothing is downloaded",
    "convert": "a checkpoint from Hugging Face to Orbax, or back",
    "windows": "cut annotated videos into training windows",
    "train": "fine-tune on annotated windows of video",
    "curate": "make training data of raw videos: words, repairs, edits, windows",
    "evaluate": "run and judge the benchmarks of streaming video",
    "replay": "replay a recording of the original code, and say what is equal",
    "world": "make films of the generated game, with annotations",
    "scratch": "make a model of random weights, to be trained from nothing",
    "tiny": "make the shipped model from nothing: films, tokenizer, six stages of training",
}
REQUIRED = (
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
BAD_INPUT = 2  # exit code


def main(command=None):
    """Run a command: the one that is named, or the first argument."""
    problem = check_environment()
    if problem:
        refuse(problem)
    sys.excepthook = hide_interrupt
    if command is None:
        if sys.argv[1:2] == ["help"]:  # svlm help [COMMAND]
            sys.argv[1:] = [*sys.argv[2:3], "--help"]
        command = sys.argv[1] if len(sys.argv) > 1 else "--help"
        if command in ("-h", "--help"):
            print(usage())
            return
        if command == "--version":
            print("svlm-jax " + importlib.import_module("svlm_jax").__version__)
            return
        if command not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(command, COMMANDS, 1)
            expected = near[0] if near else "one of " + ", ".join(COMMANDS)
            refuse("svlm: got " + command[:60] + ", expected " + expected + "; svlm --help lists the commands")
        sys.argv = ["svlm " + command, *sys.argv[2:]]
    module = importlib.import_module("svlm_jax.cli." + command)
    importlib.import_module("svlm_jax.cli.run").run(module.main)


def usage():
    """What `svlm --help` prints."""
    lines = ["usage: svlm COMMAND ...", "", "StreamingVLM in JAX.", ""]
    lines += ["  %-9s %s" % item for item in COMMANDS.items()]  # noqa: UP031
    return "\n".join([*lines, "", "svlm COMMAND --help lists the flags of a command; svlm --version"])


def check_environment():
    """What a command cannot run without, in one line, or nothing."""
    if sys.version_info < (3, 11):  # noqa: UP036 (who runs an older one is told here)
        return "python: got %d.%d, expected 3.11 or newer; %s" % (*sys.version_info[:2], REMEDY)  # noqa: UP031
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        got = "no such package for " + sys.executable
        return missing[0] + ": got " + got + ", expected all that svlm-jax needs; " + REMEDY
    return None


def refuse(line):
    """One line on stderr and the exit code of bad input."""
    print("error: " + line, file=sys.stderr)
    sys.exit(BAD_INPUT)


def hide_interrupt(kind, error, trace):
    """Ctrl-C while a command is still being imported."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)

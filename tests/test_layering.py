"""Imports point down, host code stays free of jax, heavy packages load late, files stay small.

Owns the layer table. `check` reads sources, never imports them, and returns one line for each broken rule; the last
tests show that it can fail.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import pytest

from tests.support import HANG, ROOT

PACKAGES = ("svlm_jax", "pallas_kernels", "configs", "launch", "benchmarks")
MAX_LINES = 400

# Bottom to top. A module imports from strictly lower layers and from its own group, the names on one string.
# A name covers its submodules, unless the table names some of them ("svlm_jax", "svlm_jax.model").
LAYERS: tuple[tuple[str, ...], ...] = (
    ("svlm_jax.addresses", "pallas_kernels"),
    ("svlm_jax.errors",),
    ("svlm_jax.files",),
    (
        "svlm_jax.json_lines",
        "svlm_jax.config",
        "svlm_jax.presets",
        "svlm_jax.compile_cache",
        "svlm_jax.cluster",
        "svlm_jax.topology",
        "svlm_jax.processes",
    ),
    ("svlm_jax.checkpoint.directory",),
    ("svlm_jax.spans svlm_jax.inputs",),
    (
        "svlm_jax.sharding svlm_jax.model.attention svlm_jax.model.layers svlm_jax.model.rope svlm_jax.model.cache "
        "svlm_jax.model.pixels svlm_jax.model.fused_decode",
    ),
    ("svlm_jax.model.vision svlm_jax.model.text",),
    ("svlm_jax.families",),
    ("svlm_jax.model.vlm svlm_jax.model",),
    ("svlm_jax.model.parameters",),
    ("svlm_jax.model.transforms",),
    (
        "svlm_jax.checkpoint.abandoned_reads svlm_jax.checkpoint.huggingface svlm_jax.checkpoint.mismatch "
        "svlm_jax.checkpoint.orbax svlm_jax.checkpoint.tensor_files "
        "svlm_jax.checkpoint.convert svlm_jax.checkpoint",
        "svlm_jax.media svlm_jax.data svlm_jax.replay.format",
    ),
    (
        "svlm_jax.remote",
        "svlm_jax.train svlm_jax.replay.sample",
        "svlm_jax.stream svlm_jax.decode svlm_jax.replay.stream svlm_jax.replay",
    ),
    ("svlm_jax.settings",),
    ("svlm_jax.pretrained svlm_jax",),
    ("svlm_jax.serve", "svlm_jax.eval", "svlm_jax.curate"),
    ("svlm_jax.touchline",),  # the game: only commands, benchmarks and configs know of it
    ("configs",),
    ("svlm_jax.cli",),
    ("benchmarks",),
    ("launch",),
)
PLACES = {name: (rank, group) for rank, layer in enumerate(LAYERS) for group in layer for name in group.split()}

HOST_SIDE = (
    "svlm_jax.files",
    "svlm_jax.json_lines",
    "svlm_jax.processes",
    "svlm_jax.remote",
    "svlm_jax.curate",
    "svlm_jax.config",
    "svlm_jax.presets",
    "svlm_jax.checkpoint.directory",
    "svlm_jax.families",
    "svlm_jax.spans",
    "svlm_jax.inputs",
    "svlm_jax.data",
    *(
        f"svlm_jax.touchline.{name}"
        for name in ("match", "render", "commentary", "corrupt", "film", "judge", "source", "subtitles")
    ),
    *(
        f"svlm_jax.touchline.eval_sets.{name}"
        for name in ("games", "commentaries", "choices", "ovo", "streamingbench", "livesports_qa")
    ),
    *(
        f"svlm_jax.eval.{name}"
        for name in (
            "answers",
            "lmms",
            "marks",
            "commentary",
            "intervals",
            "frames",
            "judging",
            "run_directory",
            "http_judge",
            "result",
            "table",
            "truth",
            "timing",
            "timing_metrics",
            "timing_runs",
            "exact_judge",
            "commentator",
            "infstreams",
            "infstreams_answers",
            "infstreams_judge",
            "win_rate",
            "job_video",
            "collecting",
            "livesports_cc",
            "livesports_judge",
            "watching",
        )
    ),
    "svlm_jax.stream.alerts",
    *(
        f"svlm_jax.serve.{name}"
        for name in ("engine.one_shot", "engine.reports", "http.server_sent_events", "metrics", "notifications")
    ),
    "svlm_jax.stream.captions",
    "svlm_jax.stream.events",
    "svlm_jax.stream.json_schema",
    "svlm_jax.stream.pacing",
    "svlm_jax.stream.state_file",
)
LATE = {
    "av",
    "transformers",
    "grain",
    "orbax",
    "huggingface_hub",
    "tensorflow_datasets",
    "torch",
    "starlette",
    "uvicorn",
    "openai",
    "faster_whisper",
    "whisperx",
}
KERNEL_IMPORTS = {"jax", "numpy", "pallas_kernels"} | sys.stdlib_module_names


@dataclass(frozen=True)
class Import:
    target: str  # dotted; a module of the tree wherever the import means one
    line: int
    where: Literal["module", "function", "typing"]


@dataclass(frozen=True)
class Module:
    name: str
    path: str
    text: str
    imports: tuple[Import, ...]


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def place(name: str) -> tuple[int, str] | None:
    """The (rank, group) of a module, or None where the table does not say."""
    if name in PLACES:
        return PLACES[name]
    covers = [p for p in PLACES if within(name, p) and not any(other.startswith(p + ".") for other in PLACES)]
    return PLACES[covers[0]] if covers else None


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def find_imports(node: ast.AST, package: str, where: str = "module") -> Iterator[tuple[str, str, int, str]]:
    """Yields (from, name, line, where); name is empty for `import a.b`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, "", child.lineno, where) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - child.level + 1] if child.level else []
            origin = ".".join([*base, *filter(None, [child.module])])
            yield from ((origin, alias.name, child.lineno, where) for alias in child.names)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from find_imports(ast.Module(child.body, []), package, "typing" if where == "module" else where)
            yield from find_imports(ast.Module(child.orelse, []), package, where)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from find_imports(child, package, "function" if inside else where)


def read(sources: Mapping[str, str]) -> dict[str, Module]:
    """Parses path -> text. `from a import b` means a.b where that is a module of the tree, else a."""
    names = {module_name(path) for path in sources}
    modules = {}
    for path, text in sorted(sources.items()):
        name = module_name(path)
        package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
        found = find_imports(ast.parse(text, path), package)
        imports = tuple(
            Import(f"{origin}.{member}" if f"{origin}.{member}" in names else origin, line, where)
            for origin, member, line, where in found
        )
        modules[name] = Module(name, path, text, imports)
    return modules


def check_files(modules: dict[str, Module]) -> Iterator[str]:
    for m in modules.values():
        lines = len(m.text.splitlines())
        if lines > MAX_LINES:
            yield f"{m.path}:{lines}: a file has at most {MAX_LINES} lines: split it by what it owns"
        if m.path.endswith("/utils.py"):
            yield f"{m.path}:1: no utils.py: name the file for what it owns"
        if place(m.name) is None:
            yield f"{m.path}:1: place this module in the layer table of tests/test_layering.py"


def check_layers(modules: dict[str, Module]) -> Iterator[str]:
    for m in modules.values():
        here = place(m.name)
        for imp in m.imports:
            there = place(imp.target)
            if here is None or there is None or here[1] == there[1] or there[0] < here[0]:
                continue
            side = "the same layer" if here[0] == there[0] else "a higher layer"
            yield f"{m.path}:{imp.line}: imports point down: {m.name} imports {imp.target}, which is in {side}"


def check_cycles(modules: dict[str, Module]) -> Iterator[str]:
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> Iterator[str]:
        for imp in modules[name].imports:
            if imp.target in [*trail, name]:
                cycle = [*trail, name, imp.target]
                shown = " -> ".join(cycle[cycle.index(imp.target) :])
                yield f"{modules[name].path}:{imp.line}: no import cycles: {shown}"
            elif imp.target in modules and imp.target not in done:
                yield from visit(imp.target, [*trail, name])
        done.add(name)

    for name in modules:
        if name not in done:
            yield from visit(name, [])


def check_host_side(modules: dict[str, Module]) -> Iterator[str]:
    ways: dict[str, str | None] = {}

    def way_to_jax(target: str) -> str | None:
        if target.split(".")[0] in ("jax", "flax"):
            return target
        if target in ways or target not in modules:
            return ways.get(target)
        ways[target] = None  # while it is looked for: a cycle is no way
        for imp in modules[target].imports:
            if within(target, "svlm_jax.families") and imp.where != "module":
                continue  # a family reaches its vision tower in a function, which host code does not call
            if way := way_to_jax(imp.target):
                ways[target] = f"{target} -> {way}"
                break
        return ways[target]

    for m in modules.values():
        if any(within(m.name, host) for host in HOST_SIDE):
            for imp in m.imports:
                if within(m.name, "svlm_jax.families") and imp.where != "module":
                    continue
                if way := way_to_jax(imp.target):
                    yield f"{m.path}:{imp.line}: host code never imports jax or flax: {m.name} -> {way}"


def check_packages(modules: dict[str, Module]) -> Iterator[str]:
    for m in modules.values():
        for imp in m.imports:
            top = imp.target.split(".")[0]
            at = f"{m.path}:{imp.line}"
            if within(m.name, "pallas_kernels") and top not in KERNEL_IMPORTS:
                yield f"{at}: pallas_kernels imports only jax, numpy and the standard library: got {imp.target}"
            if within(m.name, "svlm_jax") and top in LATE and imp.where == "module":
                yield f"{at}: svlm_jax imports {top} inside the function that needs it"
            if top == "torch" and not within(m.name, "benchmarks"):
                yield f"{at}: torch is for tests and benchmarks only"


RULES = (check_files, check_layers, check_cycles, check_host_side, check_packages)


def check(sources: Mapping[str, str]) -> list[str]:
    modules = read(sources)
    return [line for rule in RULES for line in rule(modules)]


def source_tree() -> dict[str, str]:
    paths = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_source_tree_obeys(rule):
    broken = list(rule(read(source_tree())))
    assert not broken, "\n" + "\n".join(broken)


def test_host_side_loads_without_jax():
    """The same claim as check_host_side, but of what happens: packages' __init__ and third parties included."""
    names = [n for n in read(source_tree()) if any(within(n, host) for host in HOST_SIDE)]
    code = f"import sys, {', '.join(names)}; print(*{{'jax', 'flax'}} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=HANG)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stdout.split(), f"importing {', '.join(names)} also loads {ran.stdout}"


GOOD = {
    "svlm_jax/__init__.py": "def load():\n    from svlm_jax.pretrained import load",
    "svlm_jax/pretrained.py": "from svlm_jax.model.vlm import VLM",
    "svlm_jax/errors.py": "",
    "svlm_jax/config.py": "from svlm_jax import errors",
    "svlm_jax/inputs.py": "from svlm_jax.spans import Span",
    "svlm_jax/spans.py": "import numpy as np",
    "svlm_jax/model/__init__.py": "",
    "svlm_jax/model/layers.py": "import jax\nfrom flax import nnx\nfrom . import rope",
    "svlm_jax/model/rope.py": "from ..config import Text",
    "svlm_jax/model/vlm.py": "from svlm_jax.model.layers import Linear\nfrom pallas_kernels.dispatch import pick",
    "svlm_jax/media/video.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import av\n"
    "def frames():\n    import av",
    "svlm_jax/stream/session.py": "import svlm_jax.media.video",
    "pallas_kernels/dispatch.py": "import functools\nimport jax.experimental.pallas",
    "benchmarks/hf.py": "import torch",
    "configs/stream_7b.py": "from svlm_jax import load",
}


def test_checker_accepts_a_good_tree():
    assert check(GOOD) == []


BAD = {
    "upward": ("svlm_jax/config.py", "\nimport svlm_jax.spans", "config.py:2: imports point down", "higher layer"),
    "upward, relative": ("svlm_jax/model/rope.py", "from .vlm import VLM", "rope.py:1: imports point down", "vlm"),
    "upward, in a function": ("svlm_jax/errors.py", "def f():\n  from svlm_jax import config", "errors.py:2", "down"),
    "upward, for types": ("svlm_jax/errors.py", "if TYPE_CHECKING:\n  import svlm_jax.config", "errors.py:2", "down"),
    "upward, the package itself": ("svlm_jax/spans.py", "from svlm_jax import load", "spans.py:1: imports", "svlm_jax"),
    "upward, to the game": ("svlm_jax/media/video.py", "def f():\n  import svlm_jax.touchline", "video.py:2", "higher layer"),
    "upward, to a command": ("configs/sft.py", "from launch.train import main", "sft.py:1: imports", "launch.train"),
    "sibling": ("svlm_jax/train/step.py", "from svlm_jax.stream import session", "step.py:1: imports", "same layer"),
    "cycle": ("svlm_jax/model/rope.py", "from . import layers", "no import cycles", "model.layers -> svlm_jax.model."),
    "unknown module": ("svlm_jax/model/extra.py", "", "extra.py:1", "place this module in the layer table"),
    "host imports jax": ("svlm_jax/spans.py", "import jax.numpy", "spans.py:1: host code", "spans -> jax.numpy"),
    "host reaches jax": ("svlm_jax/data/a.py", "from svlm_jax.model import layers", "a.py:1: host", "layers -> jax"),
    "kernel dependency": ("pallas_kernels/a.py", "import einops", "a.py:1: pallas_kernels imports only", "einops"),
    "kernel looks up": ("pallas_kernels/a.py", "import svlm_jax.config", "a.py:1: pallas_kernels", "svlm_jax.config"),
    "early import": ("svlm_jax/model/layers.py", "try:\n  import av\nfinally:\n  f()", "layers.py:2", "inside the f"),
    "early member": ("svlm_jax/train/loop.py", "from orbax import checkpoint", "loop.py:1", "imports orbax inside"),
    "torch": ("svlm_jax/cli/train.py", "def f():\n    import torch.nn", "train.py:2: torch is for tests", "benchmarks"),
    "long file": ("svlm_jax/cli/train.py", "\n" * (MAX_LINES + 1), f"train.py:{MAX_LINES + 1}", "at most 400 lines"),
    "utils": ("svlm_jax/data/utils.py", "", "utils.py:1: no utils.py", "what it owns"),
}


@pytest.mark.parametrize(("path", "text", "start", "reason"), BAD.values(), ids=BAD.keys())
def test_checker_names_file_line_and_rule(path, text, start, reason):
    broken = check({**GOOD, path: text})
    assert any(start in line and reason in line for line in broken), broken


def test_checker_reads_every_package():
    assert {path.split("/")[0] for path in source_tree()} == set(PACKAGES)

"""Results: one JSON file for each benchmark, and docs/benchmarks.md from all of them. Knows no benchmark."""

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parents[1]
ROOT = _FOLDER if (_FOLDER / "pyproject.toml").is_file() else None  # of the checkout; None outside of one
DOCS = None if ROOT is None else ROOT / "docs"
PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "safetensors")


def record(name: str, description: str, rows: list[dict[str, Any]], out: Path, plot: str | None = None) -> None:
    """Write the result of a benchmark with its command, device and versions, then the table of all results.

    Args:
        name: of the JSON file.
        description: a paragraph above the rows.
        rows: column -> value; a row may lack columns of others.
        out: the directory that holds benchmarks/ and benchmarks.md.
        plot: path of an image below the rows, relative to `out`: "benchmarks/NAME.png" or ".svg".
    """
    flags = f"XLA_FLAGS={shlex.quote(os.environ['XLA_FLAGS'])} " if os.environ.get("XLA_FLAGS") else ""
    entry = {
        "description": description.strip(),
        "command": flags + shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        **environment(),
        "rows": rows,
    }
    if plot is not None:
        entry["plot"] = plot
    (out / "benchmarks").mkdir(parents=True, exist_ok=True)
    (out / "benchmarks" / f"{name}.json").write_text(json.dumps(entry, indent=2) + "\n")
    table(out)


def environment() -> dict[str, Any]:
    """Where a result comes from: device, commit, versions."""
    import jax

    return {
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}",
        "commit": commit(),
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}},
    }


def environment_line(entry: dict[str, Any] | None = None) -> str:
    """The same of an entry, by default of this process, in a line."""
    entry = environment() if entry is None else entry
    versions = ", ".join(f"{name} {version}" for name, version in entry["versions"].items())
    return f"{entry['device']}; {versions}" + (f"; commit {entry['commit']}" if entry.get("commit") else "")


def commit() -> str | None:
    """The commit of the checkout, with a plus sign if files of it have changed; None outside of one."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(_FOLDER), *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    if ROOT is None:
        return None
    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!docs/benchmarks*")
        return git("rev-parse", "--short=7", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def table(out: Path) -> None:
    """docs/benchmarks.md from the JSON files."""
    lines = ["# Benchmarks", "", "Written by `python -m benchmarks table` from `benchmarks/*.json`.", ""]
    if (out / "performance.md").exists():
        lines[2] += " What a second costs, and where it goes: [performance](performance.md)."
    for path in sorted((out / "benchmarks").glob("*.json")):
        entry = json.loads(path.read_text())
        columns = dict.fromkeys(column for row in entry["rows"] for column in row)  # in order, each once
        lines += [
            f"## {path.stem}",
            "",
            entry["description"],
            "",
            f"`{entry['command']}`",
            "",
            f"{entry['date']}; {environment_line(entry)}",
            "",
        ]
        lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(str(row.get(column, "-")) for column in columns) + " |" for row in entry["rows"]] + [""]
        if "plot" in entry:
            lines += [f"![{path.stem}]({entry['plot']})", ""]
    (out / "benchmarks.md").write_text("\n".join(lines))

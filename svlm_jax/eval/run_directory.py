"""The folder of a run: run.json says of which model, mode, settings, versions and data its answers are.

A run goes on where it stopped only with the settings that it began with. Host side.
"""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from svlm_jax.errors import InputError, shortened
from svlm_jax.files import local_path, read_json
from svlm_jax.json_lines import write_json

RUN = "run.json"
PACKAGES = ("svlm-jax", "jax", "flax", "transformers")


def open_run(path: str | Path, settings: dict[str, Any]) -> Path:
    """The folder, made if need be, with `settings` in its run.json; versions are added and not compared.

    Args:
        settings: JSON; "benchmark" and "model" among them, and the digest of each data file.

    Raises:
        InputError: a folder that belongs to a run of other settings, or to something else.
    """
    folder = local_path(path)
    file = folder / RUN
    settings = json.loads(json.dumps(settings))
    if not file.is_file():
        _create_run(folder, {**settings, "versions": versions()})
    saved = read_json(file, "a run.json written by svlm evaluate")
    for key in sorted(settings.keys() | saved.keys() - {"versions"}):
        if settings.get(key) != saved.get(key):
            got, saved_value = (
                f"{settings.get(key)!r:.60}",
                f"{saved.get(key)!r:.60}, with which {shortened(folder, 60)} was begun",
            )
            raise InputError(f"run {key}", got, saved_value, "give the same, or another --out")
    return folder


def _create_run(folder: Path, settings: dict[str, Any]) -> None:
    """Other processes of the same run may do the same at the same time."""
    if folder.exists() and any(not path.name.startswith(RUN) for path in folder.iterdir()) and not (folder / RUN).is_file():
        raise InputError(
            f"--out {shortened(folder)}", "a folder with other files", "a new one, or that of a run", "choose another"
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_json(folder / RUN, settings)
    except InputError:
        if not (folder / RUN).is_file():
            raise


def read_run(path: str | Path) -> dict[str, Any]:
    """The run.json of a folder.

    Raises:
        InputError: there is none.
    """
    return read_json(local_path(path) / RUN, "a folder written by svlm evaluate")


def versions() -> dict[str, str]:
    """Of what a number may depend on."""
    package_versions = {}
    for name in PACKAGES:
        try:
            package_versions[name] = version(name)
        except PackageNotFoundError:
            package_versions[name] = "unknown"
    return package_versions

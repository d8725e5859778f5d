"""The file of a result: the numbers of one benchmark for one model or pair of models, in a form that every table can read.

Owns the keys that all result files share. What else a benchmark has to say lies beside them, under keys of its own.
Units: a rate is a share of 1; other metrics name their unit.
"""

from pathlib import Path
from typing import Any, NamedTuple

from svlm_jax.errors import InputError, shortened
from svlm_jax.eval.run_directory import versions
from svlm_jax.files import local_path, read_json
from svlm_jax.json_lines import require, write_json

_REMEDY = "mend the file, or make it again"


class Metric(NamedTuple):
    """A number. value: None where there was nothing to count. ci95: (low, high), None where it is unknown. count: of what
    the value is a mean (questions, segments, events). unit: "%" of a share of 1; else "s", "words/s", "/h" or ""."""

    name: str
    value: float | None
    ci95: tuple[float, float] | None = None
    count: int = 0
    unit: str = "%"


class Series(NamedTuple):
    """A metric against stream time. points: (x, value), x in the unit that its label names; a value may be None."""

    metric: str
    x_label: str
    points: tuple[tuple[float, float | None], ...]
    unit: str = "%"


class Result(NamedTuple):
    """benchmark: "infstreams", "ovo", ...; label: the model and mode, or both of a pair, as a table names the row."""

    benchmark: str
    label: str
    metrics: tuple[Metric, ...]
    series: tuple[Series, ...] = ()


def write_result(path: str | Path, result: Result, details: dict[str, Any]) -> None:
    """Write a result, complete or not at all; only another result is replaced. details: the benchmark's own keys.

    Raises:
        InputError: a file that is no result has the name.
        ValueError: a key of `details` that all results share.
    """
    shared = {
        "benchmark": result.benchmark,
        "label": result.label,
        "metrics": [metric._asdict() for metric in result.metrics],
        "series": [series._asdict() for series in result.series],
        "versions": versions(),
    }
    if Path(path).is_file() and not _is_result(Path(path)):
        raise InputError(shortened(path), "a file that is no result", "a new name, or a result", "choose another")
    if duplicates := shared.keys() & details.keys():
        raise ValueError(f"write_result: got the shared key {min(duplicates)!r} among the details")
    write_json(path, {**details, **shared})


def _is_result(path: Path) -> bool:
    """Whether a result may replace a file: who takes --out for --items loses no data."""
    try:
        read_result(path)
    except InputError:
        return False
    return True


def read_result(path: str | Path) -> Result:
    """Read what `write_result` has written.

    Raises:
        InputError: another file.
    """
    file = local_path(path)
    expected = "a result of svlm evaluate"
    record = read_json(file, expected)
    if not {"benchmark", "label", "metrics"} <= record.keys():
        raise InputError(str(file), "no benchmark, label and metrics", expected, "name the JSON file that a command wrote")
    metrics = tuple(_metric(entry, f"{file.name} metrics") for entry in require(record, "metrics", list, file.name))
    series = tuple(_series(entry, f"{file.name} series") for entry in require(record, "series", list, file.name, []))
    return Result(require(record, "benchmark", str, file.name), require(record, "label", str, file.name), metrics, series)


def _metric(entry: Any, source: str) -> Metric:
    entry = _object(entry, source)
    name, unit = require(entry, "name", str, source), require(entry, "unit", str, source, "%")
    value = None if entry.get("value") is None else float(require(entry, "value", float, source))
    ci95 = _pair(entry.get("ci95"), f"{source} {name} ci95")
    return Metric(name, value, ci95, require(entry, "count", int, source, 0), unit)


def _series(entry: Any, source: str) -> Series:
    entry = _object(entry, source)
    metric, x_label = require(entry, "metric", str, source), require(entry, "x_label", str, source)
    points = []
    for point in require(entry, "points", list, source):
        x, value = _items(point, f"{source} {metric} points", optional=True)
        points.append((x, value))
    return Series(metric, x_label, tuple(points), require(entry, "unit", str, source, "%"))


def _object(entry: Any, source: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise InputError(source, f"{entry!r:.40}", "an object", _REMEDY)
    return entry


def _pair(value: Any, source: str) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = _items(value, source)
    return low, high


def _items(value: Any, source: str, optional: bool = False) -> tuple[float, Any]:
    """Two numbers. optional: the second may be None."""
    if not isinstance(value, list) or len(value) != 2:
        raise InputError(source, f"{value!r:.40}", "two numbers", _REMEDY)
    named = {"first": value[0], "second": value[1]}
    first = float(require(named, "first", float, source))
    return first, None if optional and value[1] is None else float(require(named, "second", float, source))

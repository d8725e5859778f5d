"""One table of many results: a row a metric, a column a result, each number with its interval and its count; and plots of what
changes with stream time.

Owns Markdown, JSON and the plots. Knows no benchmark: results bring their metrics (`eval.result`). Host side, never jax.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.eval.result import Metric, Result, Series, read_result
from svlm_jax.files import atomic_write, local_path, report_write_errors

NOTHING = "–"  # a cell without a number
NOTE = "In brackets: the 95 % interval of a bootstrap over videos, where there are at least two. n: of how many it is a mean."


def find(paths: Iterable[str | Path]) -> list[tuple[Path, Result]]:
    """The results of files and folders, in order; of a folder those of its JSON files that are results, sorted by name.

    Raises:
        InputError: a file that is no result, a folder without one, the same file twice.
    """
    results: dict[Path, Result] = {}
    for name in paths:
        path = local_path(name)
        if not path.is_dir():
            files = {path: read_result(path)}
        else:
            files = dict(_results_in(path))
            if not files:
                raise InputError(f"run {path}", "no result in it", "a folder with one", "judge or score the run first")
        for file, result in files.items():
            if file.resolve() in (each.resolve() for each in results):
                raise InputError(f"run {file}", "the same file twice", "each once", "leave one out")
            results[file] = result
    return list(results.items())


def _results_in(folder: Path) -> Iterable[tuple[Path, Result]]:
    for file in sorted(folder.glob("**/*.json")):
        try:
            yield file, read_result(file)
        except InputError:  # run.json, and whatever else lies there
            continue


def markdown(results: Sequence[Result]) -> str:
    """A section for each benchmark, with one table: a row a metric, a column a result."""
    sections = []
    for benchmark, group in by_benchmark(results).items():
        names = dict.fromkeys(metric.name for result in group for metric in result.metrics)
        columns = [{metric.name: cell(metric) for metric in result.metrics} for result in group]
        lines = [f"## {benchmark}", "", _row(["", *(result.label for result in group)]), _row(["---"] * (len(group) + 1))]
        lines += [_row([name.replace("_", " "), *(column.get(name, NOTHING) for column in columns)]) for name in names]
        sections.append("\n".join(lines))
    return "\n\n".join([*sections, NOTE]) + "\n"


def by_benchmark(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results by the benchmark that they are of, in the order of their first."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.benchmark, []).append(result)
    return groups


def cell(metric: Metric) -> str:
    """`62.5 % [55.0, 70.1] n 240`."""
    if metric.value is None:
        return NOTHING
    scale = 100 if metric.unit == "%" else 1
    text = f"{_number(metric.value * scale)} {metric.unit}".strip()
    if metric.ci95 is not None:
        text += " [{}, {}]".format(*(_number(bound * scale) for bound in metric.ci95))
    return f"{text} n {metric.count}" if metric.count else text


def percent(rate: float | None) -> str:
    """A rate in a line of text."""
    return "none" if rate is None else f"{100 * rate:.1f} %"


def as_json(files: Sequence[tuple[Path, Result]]) -> dict[str, Any]:
    """The same table for programs."""
    rows = [
        {
            "file": str(path),
            "benchmark": result.benchmark,
            "run": result.label,
            "metrics": {
                metric.name: {key: value for key, value in metric._asdict().items() if key != "name"}
                for metric in result.metrics
            },
        }
        for path, result in files
    ]
    return {"rows": rows}


def plot(results: Sequence[Result], folder: Path) -> list[Path]:
    """An SVG for each metric that is known against stream time, with a line for each result; returns the files.

    Raises:
        InputError: no matplotlib.
    """
    panels: dict[tuple[str, str], list[tuple[str, Series]]] = {}
    for result in results:
        for series in result.series:
            panels.setdefault((result.benchmark, series.metric), []).append((result.label, series))
    if not panels:
        return []
    try:
        import matplotlib
    except ImportError:
        remedy = "pip install 'svlm-jax[evaluate]', or add --no-plots"
        raise InputError("table", "no matplotlib", "the evaluate extra", remedy) from None
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "svlm"  # the same ids, and so the same file, in every run
    from matplotlib import pyplot

    files = []
    for (benchmark, metric), lines in panels.items():
        figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
        for label, series in lines:
            scale = 100 if series.unit == "%" else 1
            points = [(x, value * scale) for x, value in series.points if value is not None]
            axes.plot(*zip(*points, strict=True) if points else ([], []), marker="o", markersize=4, linewidth=1.5, label=label)
        axes.set_xlabel(lines[0][1].x_label)
        axes.set_ylabel(f"{metric.replace('_', ' ')}, {lines[0][1].unit}".removesuffix(", "))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        path = folder / f"{benchmark}_{metric}.svg"
        with report_write_errors(path), atomic_write(path) as draft:
            figure.savefig(draft, format="svg", metadata={"Date": None})
        pyplot.close(figure)
        files.append(path)
    return files


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in cells) + " |"


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) < 1 else f"{value:.1f}"

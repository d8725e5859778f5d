"""The plots of a curation report, as SVG: hours from step to step, words a second, decisions, repairs, sources.

Owns how they look. Each is drawn from `curate.reporting.report` and has a text that says the same to those who cannot see it.
The same report gives the same bytes. Host side, never jax; matplotlib is imported when something is drawn.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from svlm_jax.curate.editing.edit import PAPER_SHARES, shares
from svlm_jax.curate.reporting.report import STRETCH, StepReport, training_set
from svlm_jax.errors import InputError
from svlm_jax.files import atomic_write, report_write_errors

INK, GRID, PALE, BLUE, ORANGE = "#1f2933", "#d9dee5", "#d5dbe3", "#1f5fa8", "#d9822b"
STEP_COLORS = (BLUE, ORANGE, "#7a8797", "#4b8b3b", "#8a5ca8", "#b3432f")
STATE_COLORS = {"kept": BLUE, "edited": ORANGE, "deleted": "#aab4c0"}
MAX_BARS = 16
WIDTH = 7.2  # inches
_BAR, _MARGIN = 0.34, 0.75  # inches of height, a bar and all the rest
_FEWEST = 2  # bars for which there is room
_BIN = 6  # words in a stretch: a quarter of a word a second


class Plot(NamedTuple):
    """file: its name in the folder of the report. text: what it shows, in words."""

    file: str
    text: str


def draw(chain: Sequence[StepReport], folder: Path, words_per_second: float) -> dict[str, Plot]:
    """The plots for which there is something to show, by what they are of.

    Raises:
        InputError: no matplotlib, or a folder that cannot be written.
    """
    _require_matplotlib()
    drawers: dict[str, Callable[[], Plot | None]] = {
        "hours": lambda: _hours(chain, folder),
        "pace": lambda: _pace(chain, folder, words_per_second),
        "decisions": lambda: _decisions(chain, folder),
        "changes": lambda: _changes(chain, folder),
        "sources": lambda: _sources(chain, folder),
    }
    drawn = {name: drawer() for name, drawer in drawers.items()}
    return {name: plot for name, plot in drawn.items() if plot}


def span_unit(seconds: float) -> tuple[float, str]:
    """(seconds of a unit, its name) in which a length of video is easy to read."""
    return (3600.0, "hours") if seconds >= 2 * 3600 else (60.0, "minutes") if seconds >= 120 else (1.0, "seconds")


def amount(value: float) -> str:
    """At most three or four digits that say something: 1234 -> "1,234", 12.34 -> "12.3", 1.234 -> "1.23"."""
    return (
        f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    )


def _hours(chain: Sequence[StepReport], folder: Path) -> Plot:
    totals = [step.totals for step in chain]
    size, unit = span_unit(totals[0].seconds[0])
    labels = [step.name for step in chain]
    ins, outs = ([each.seconds[i] / size for each in totals] for i in (0, 1))
    notes = [f"{amount(out)} ({100 * out / max(ins[0], 1e-9):.0f} %)" for out in outs]
    with _figure(folder / "hours.svg", len(chain)) as axes:
        _bars(axes, labels, outs, notes, [BLUE] * len(outs), behind=ins)
        axes.set_xlabel(f"{unit} of video that each step gives, of those that it gets (pale); %: of all", loc="left")
    return Plot("hours.svg", f"{unit} of video after each step: " + ", ".join(map(" ".join, zip(labels, notes, strict=True))))


def _pace(chain: Sequence[StepReport], folder: Path, words_per_second: float) -> Plot | None:
    transcripts = [step for step in chain if step.pace]
    if not transcripts:
        return None
    steps = [transcripts[0], *transcripts[-1:]] if len(transcripts) > 1 else transcripts
    highest = max(words_per_second * STRETCH, *(_highest(step.pace) for step in steps))
    top = int(highest) // _BIN * _BIN + 2 * _BIN
    edges = [words / STRETCH for words in range(0, top + _BIN, _BIN)]
    with _figure(folder / "words_per_second.svg", 7) as axes:
        for step, color, style in zip(steps[::-1], (BLUE, ORANGE), (True, False), strict=False):
            total = step.pace.total()
            values = [
                100 * sum(n for words, n in step.pace.items() if left <= words / STRETCH < left + _BIN / STRETCH) / total
                for left in edges[:-1]
            ]
            options = {"fill": True, "color": color} if style else {"color": color, "linewidth": 1.8}
            axes.stairs(values, edges, label=f"{step.name} ({step.file})", **options)
        axes.axvline(words_per_second, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
        note = f" {words_per_second:g} words/s: enough for a window "
        side = "left" if words_per_second < 0.6 * edges[-1] else "right"
        axes.text(words_per_second, axes.get_ylim()[1], note, va="top", ha=side, fontsize=8.5, backgroundcolor="white")
        axes.set_xlim(0, edges[-1])
        axes.set_axisbelow(True)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_xlabel(f"words a second, over stretches of {STRETCH} s")
        axes.set_ylabel("% of stretches")
        _legend(axes)
    summary = ", ".join(f"{step.name} {100 * enough(step.pace, words_per_second):.0f} %" for step in steps)
    return Plot("words_per_second.svg", f"stretches of {STRETCH} s with {words_per_second:g} words a second: {summary}")


def enough(pace: Counter[int], words_per_second: float) -> float:
    """The share of stretches that have so many words."""
    return sum(n for words, n in pace.items() if words >= words_per_second * STRETCH) / max(pace.total(), 1)


def _highest(pace: Counter[int]) -> int:
    """Words of the fullest stretch, but for half a percent of them: loops of an ASR would squeeze all others."""
    beyond = pace.total() // 200
    for words in sorted(pace, reverse=True):
        beyond -= pace[words]
        if beyond < 0:
            return words
    return 0


def _decisions(chain: Sequence[StepReport], folder: Path) -> Plot | None:
    edited = next((step for step in chain if any(shares(step.counts).values())), None)
    if edited is None:
        return None
    bars = {f"by {unit}": shares(edited.counts, unit) for unit in ("sentences", "words", "segments")} | {
        "the paper": PAPER_SHARES
    }
    with _figure(folder / "decisions.svg", len(bars) + 1) as axes:
        places = [*range(len(bars) - 1), len(bars) - 0.6]  # the paper's a little apart
        left = [0.0] * len(bars)
        for state, color in STATE_COLORS.items():
            widths = [100 * bar[state] for bar in bars.values()]
            axes.barh(places, widths, left=left, color=color, height=0.68, label=state, edgecolor="white", linewidth=1)
            for y, start, width in zip(places, left, widths, strict=True):
                if width >= 6:
                    ink = "white" if state == "kept" else INK
                    axes.text(start + width / 2, y, f"{width:.0f} %", ha="center", va="center", fontsize=9, color=ink)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_yticks(places, list(bars))
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.legend(
            frameon=False, fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, handlelength=1
        )
    summary = "; ".join(
        f"{name} " + ", ".join(f"{state} {100 * bar[state]:.0f} %" for state in bar) for name, bar in bars.items()
    )
    return Plot("decisions.svg", f"decisions of the editor: {summary}")


def _changes(chain: Sequence[StepReport], folder: Path) -> Plot | None:
    changed = [step for step in chain if step.rules and not step.windows]  # windows left out are no change of words
    colors = dict(zip((step.name for step in changed), cycle(STEP_COLORS)))
    bars = [(tally.count, rule, step.name) for step in changed for rule, tally in step.rules.items()]
    bars = sorted(bars, key=lambda bar: (-bar[0], *bar[1:]))[:MAX_BARS]
    if not bars:
        return None
    counts, rules, names = zip(*bars, strict=True)
    with _figure(folder / "changes.svg", len(bars)) as axes:
        _bars(axes, rules, counts, [f"{count:,}" for count in counts], [colors[name] for name in names])
        for name in dict.fromkeys(name for name in colors if name in names):
            axes.barh([0], [0], color=colors[name], label=name)
        _legend(axes)
    return Plot("changes.svg", "changes: " + ", ".join(f"{rule} ({name}) {count:,}" for count, rule, name in bars))


def _sources(chain: Sequence[StepReport], folder: Path) -> Plot | None:
    first, last = chain[0], training_set(chain)
    if len(first.sources) < 2:
        return None
    names = sorted(first.sources, key=lambda name: (-first.sources[name].seconds[0], name))[:MAX_BARS]
    size, unit = span_unit(first.sources[names[0]].seconds[0])
    ins = [first.sources[name].seconds[0] / size for name in names]
    outs = [last.sources[name].seconds[1] / size if name in last.sources else 0.0 for name in names]
    notes = [
        f"{amount(out)} of {amount(value)} ({100 * out / max(value, 1e-9):.0f} %)" for out, value in zip(outs, ins, strict=True)
    ]
    labels = [name or "no source" for name in names]
    with _figure(folder / "sources.svg", len(names)) as axes:
        _bars(axes, labels, outs, notes, [BLUE] * len(outs), behind=ins)
        axes.set_xlabel(f"{unit} of video in {last.file}, of those in {first.file} (pale)", loc="left")
    return Plot("sources.svg", f"{unit} by source: " + ", ".join(map(" ".join, zip(labels, notes, strict=True))))


def _bars(
    axes: Any,
    labels: Sequence[str],
    values: Sequence[float],
    notes: Sequence[str],
    colors: Sequence[str],
    behind: Sequence[float] = (),
) -> None:
    """Horizontal bars from above to below; the note at the end of each says its value, so there is no axis."""
    places, widths = range(len(labels)), [max(pair) for pair in zip(values, behind, strict=True)] if behind else values
    if behind:
        axes.barh(places, widths, color=PALE, height=0.68)
    axes.barh(places, values, color=colors, height=0.68)
    longest = max(*widths, 1e-9)
    for y, width, note in zip(places, widths, notes, strict=True):
        axes.text(width + 0.012 * longest, y, note, va="center", fontsize=9, color=INK)
    axes.set_yticks(places, [label if len(label) <= 40 else f"{label[:37]}..." for label in labels])
    axes.set_ylim(max(len(labels), _FEWEST) - 0.5, -0.5)
    axes.set_xlim(0, 1.25 * longest)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _legend(axes: Any) -> None:
    """Above the axes, where it covers nothing."""
    options = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.3, "handlelength": 1.2}
    axes.legend(frameon=False, fontsize=9, ncols=4, **options)


@contextmanager
def _figure(path: Path, bars: int) -> Iterator[Any]:
    """Axes to draw on, `bars` high; the file is written at the end, complete or not at all."""
    import matplotlib

    style: Any = {
        "svg.hashsalt": "svlm",  # the same ids, and so the same file, in every run
        "svg.fonttype": "none",  # letters, which a browser draws in its own fonts: sources have names of any script
        "font.size": 9.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": "#8a94a0",
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.parse_math": False,  # a source may be called "$"
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(
            figsize=(WIDTH, _MARGIN + _BAR * max(bars, _FEWEST)), layout="constrained"
        )  # no pyplot: no window, no global state
        yield figure.subplots()
        with report_write_errors(path), atomic_write(path) as draft:
            FigureCanvasSVG(figure).print_svg(draft, metadata={"Date": None})


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        remedy = "pip install 'svlm-jax[curate]', or add --no-plots"
        raise InputError("report", "no matplotlib", "the curate extra", remedy) from None

"""A curation report as one page of Markdown, for people: what went in and came out, what was done to it, samples to read.

Owns the order and the words of the page. What comes from videos (titles, words, reasons) is data: no markup in it works. Host
side, never jax. Units: seconds of the video.
"""

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from svlm_jax.curate.editing.edit import PAPER_SHARES, shares
from svlm_jax.curate.reporting.plots import Plot, amount, enough, span_unit
from svlm_jax.curate.reporting.report import STRETCH, Sample, StepReport, Totals, training_set
from svlm_jax.errors import shortened

MAX_ROWS = 50  # of a table; the rest is one row
MAX_TEXT = 240  # characters of a sample
NOTHING = "–"
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")  # within a word "_" is none
_NUMBER = re.compile(r"(?:–|-?\d[\d,.:]*(?: (?:%|hours|minutes|seconds))?)?")
_DIGEST = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")  # SHA-256
_UNITS = ("sentences", "words", "segments")


def markdown(chain: Sequence[StepReport], links: Sequence[str], plots: Mapping[str, Plot], words_per_second: float) -> str:
    """
    Args:
        links: what does not fit, of `report.broken_links`.
        plots: of `plots.draw`; none at all where they are not wanted.
    """
    sections = [
        _section("", _headline(chain), *(f"> **{text(link)}.**" for link in links)),
        _section("From step to step", _picture(plots, "hours"), _steps(chain), *_clips(chain), PAPER),
        _section("Words a second", _picture(plots, "pace"), _pace(chain, words_per_second)),
        _section("Decisions of the editor", _picture(plots, "decisions"), *_decisions(chain)),
        _section("Changes by rule", _picture(plots, "changes"), _rules(chain)),
        _section("Sources", _picture(plots, "sources"), _sources(chain)),
        _section("Set aside", _reasons(chain)),
        _section("Samples", *_samples(chain)),
        _section("Settings and counts", _settings(chain), _counts(chain)),
    ]
    return "# Curation report\n\n" + "\n\n".join(filter(None, sections)) + "\n"


PAPER = (
    "The paper (StreamingVLM, arXiv 2510.09608): 6,000 h of games, more than 4,000 h kept, 525K windows of 24 s every 12 s, "
    "which are 1,750 h or more; for annealing 14,786 of 52,530 clips (28 %)."
)
NOTE_ON_SHARES = (
    "The paper's shares are of sentences, with its own games, ASR and editor. A segment is edited unless all its sentences "
    "have the same decision."
)


def text(value: object) -> str:
    """Text from outside on one line of Markdown, where none of it is markup."""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())
    return _MARKUP.sub(r"\\\g<0>", html.escape(line, quote=False))


def span(seconds: float) -> str:
    """A length of video: "4.12 hours"."""
    size, unit = span_unit(seconds)
    return f"{amount(seconds / size)} {unit}"


def clock(seconds: float | None) -> str:
    """A time of a video, as players show it: 1:02:03.5, 2:03.5."""
    if seconds is None:
        return ""
    sign, tenths = "-" if seconds < 0 else "", round(abs(seconds) * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return sign + (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{rest / 10:04.1f}"


def _headline(chain: Sequence[StepReport]) -> str:
    first, result = chain[0].totals, training_set(chain)
    last, of_words = result.totals, f"{result.totals.words[1]:,} of {first.spoken_words:,} words"
    line = f"**{span(last.seconds[1])} of {span(first.seconds[0])}** of video and {of_words}"
    if not result.windows:
        return f"{line} are left, in **{last.kept_videos:,} of {first.videos:,} videos**."
    line = f"{line} are in **{result.windows:,} windows** of {last.kept_videos:,} videos ({first.videos:,} came in)."
    for step in chain:
        if step.windows and step is not result:
            line += f" {span(step.totals.seconds[1])} are in {step.windows:,} windows of {text(step.file)}."
    return line


def _steps(chain: Sequence[StepReport]) -> str:
    size, unit = span_unit(chain[0].totals.seconds[0])
    head = ["step", "file", "videos in", "kept", f"{unit} in", "out", "", "words in", "out", "", "words/s", "windows"]
    rows = []
    for step in chain:
        each = step.totals
        words_in = f"{each.words[0]:,}" if each.words[0] else NOTHING
        pace = each.words[1] / each.seconds[1] if each.seconds[1] else 0
        rows.append(
            [
                text(step.name), text(step.file), f"{each.videos:,}", f"{each.kept_videos:,}",
                amount(each.seconds[0] / size), amount(each.seconds[1] / size), _percent(each.seconds[1], each.seconds[0]),
                words_in, f"{each.words[1]:,}", _percent(each.words[1], each.words[0]),
                f"{pace:.2f}", f"{step.windows:,}" if step.windows else "",
            ]
        )  # fmt: skip
    note = "Seconds and words that are in several windows count once." if any(step.windows for step in chain) else ""
    return _joined(_table(head, rows), note)


def _clips(chain: Sequence[StepReport]) -> Iterator[str]:
    """The yield of `anneal`."""
    for step in chain:
        if clips := step.counts.get("clips"):
            num_kept = step.counts.get("clips kept", 0)
            yield f"{text(step.name)}: {amount(num_kept)} of {amount(clips)} clips are kept ({_percent(num_kept, clips)})."


def _pace(chain: Sequence[StepReport], words_per_second: float) -> str:
    head = ["step", f"stretches of {STRETCH} s", "median, words/s", f"with {words_per_second:g} words/s or more"]
    rows = []
    for step in filter(lambda step: step.pace, chain):
        share = 100 * enough(step.pace, words_per_second)
        rows.append([text(step.name), f"{step.pace.total():,}", f"{_median(step) / STRETCH:.2f}", f"{share:.1f} %"])
    return _table(head, rows)


def _median(step: StepReport) -> int:
    middle = step.pace.total() / 2
    for words in sorted(step.pace):
        middle -= step.pace[words]
        if middle <= 0:
            return words
    return 0


def _decisions(chain: Sequence[StepReport]) -> Iterator[str]:
    for step in chain:
        by_unit = {unit: shares(step.counts, unit) for unit in _UNITS}
        if not any(by_unit["sentences"].values()):
            continue
        rows = [
            [state, *(f"{100 * by_unit[unit][state]:.1f} %" for unit in _UNITS), f"{100 * PAPER_SHARES[state]:.1f} %"]
            for state in PAPER_SHARES
        ]
        yield _table([f"{text(step.name)} ({text(step.file)})", *(f"of {unit}" for unit in _UNITS), "the paper"], rows)
        yield NOTE_ON_SHARES


def _rules(chain: Sequence[StepReport]) -> str:
    rows = []
    for step in chain:
        for rule, tally in _by_count(step.rules):
            words = f"{tally.words:,}" if tally.words else ""
            rows.append([text(step.name), text(rule), f"{tally.count:,}", words, f"{tally.videos:,}"])
    return _table(["step", "rule", "changes", "words deleted", "videos"], rows)


def _sources(chain: Sequence[StepReport]) -> str:
    first, last = chain[0], training_set(chain)
    if not any(first.sources):
        return ""
    size, unit = span_unit(first.totals.seconds[0])
    names = sorted(first.sources, key=lambda name: (-first.sources[name].seconds[0], name))
    rows = []
    for name in names:
        before, after = first.sources[name], last.sources.get(name, Totals())
        hours = (amount(before.seconds[0] / size), amount(after.seconds[1] / size))
        words = (f"{before.spoken_words:,}", f"{after.words[1]:,}", _percent(after.words[1], before.spoken_words))
        videos = (text(name) or "no source", f"{before.videos:,}", f"{after.kept_videos:,}")
        rows.append([*videos, *hours, _percent(after.seconds[1], before.seconds[0]), *words])
    head = ["source", "videos in", "kept", f"{unit} in", "out", "", "words in", "out", ""]
    return _joined(f"In: {text(first.file)}. Out: {text(last.file)}.", _table(head, rows))


def _reasons(chain: Sequence[StepReport]) -> str:
    rows = [
        [
            text(step.name),
            text(shortened(tally.text or kind, MAX_TEXT)),
            f"{tally.videos:,}",
            span(tally.seconds),
            text(tally.example),
        ]
        for step in chain
        for kind, tally in _by_count(step.reasons)
    ]
    return _table(["step", "reason", "videos", "video", "for example"], rows) or "No video."


def _samples(chain: Sequence[StepReport]) -> Iterator[str]:
    for step in chain:
        kinds = ["kept"] * bool(step.samples.of("kept")) + [rule for rule, _ in _by_count(step.rules)]
        for kind in kinds:
            samples = step.samples.of(kind)
            count = f" ({step.rules[kind].count:,})" if kind in step.rules else ""
            if samples:
                yield f"### {text(step.name)}: {text(kind)}{count}"
                yield _table(["video", "time", "before", "after"], map(_sample_row, samples))


def _sample_row(sample: Sample) -> list[str]:
    before, after = (text(shortened(each, MAX_TEXT)) for each in (sample.before, sample.after))
    return [text(sample.video), clock(sample.time), before, "the same" if after == before else after or NOTHING]


def _settings(chain: Sequence[StepReport]) -> str:
    rows = []
    for step in chain:
        settings = "; ".join(f"{name}: {_setting(value)}" for name, value in step.settings.items())
        versions = ", ".join(f"{name} {version}" for name, version in step.versions.items())
        rows.append([text(step.name), text(shortened(settings, 600)) or NOTHING, text(versions) or NOTHING])
    return _table(["step", "settings", "versions"], rows)


def _setting(value: Any) -> str:
    content = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return _DIGEST.sub(r"\1...", content)


def _counts(chain: Sequence[StepReport]) -> str:
    rows = [[text(step.name), text(name), amount(value)] for step in chain for name, value in sorted(step.counts.items())]
    return _table(["step", "count", ""], rows)


def _by_count(tallies: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(tallies.items(), key=lambda item: (-item[1].count, item[0]))


def _percent(part: float, total: float) -> str:
    return f"{100 * part / total:.1f} %" if total else NOTHING


def _picture(plots: Mapping[str, Plot], name: str) -> str:
    return f"![{text(plots[name].text)}]({plots[name].file})" if name in plots else ""


def _section(title: str, *parts: str) -> str:
    """ "" where there is nothing in it."""
    content = _joined(*parts)
    return _joined(f"## {title}" if title else "", content) if content else ""


def _joined(*parts: str) -> str:
    return "\n\n".join(filter(None, parts))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are escaped; "" where it has no rows. Numbers stand to the right."""
    rows = list(rows)
    if not rows:
        return ""
    top, rest = rows[:MAX_ROWS], len(rows) - MAX_ROWS
    columns = list(zip(*top, strict=True))
    numeric = [all(map(_NUMBER.fullmatch, column)) and any(map(str.isdigit, "".join(column))) for column in columns]
    lines = [head, ["--:" if is_numeric else "---" for is_numeric in numeric], *top]
    if rest > 0:
        lines.append([f"and {rest:,} more", *[""] * (len(head) - 1)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

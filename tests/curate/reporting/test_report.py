"""Claims about the report of a chain of steps: its numbers, its samples, and that words of a video cannot change the page."""

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree

import pytest

from svlm_jax.cli.curate import report
from svlm_jax.curate.editing.edit import Decision, EditStep
from svlm_jax.curate.outcome import Change, Outcome
from svlm_jax.curate.reporting import plots
from svlm_jax.curate.reporting.report import Sample, Samples, broken_links, kind_of_reason, read_chain, word_counts
from svlm_jax.curate.reporting.report_page import clock, markdown, text
from svlm_jax.curate.running.input_lines import InputLines
from svlm_jax.curate.running.run import run_step
from svlm_jax.curate.running.step_files import step_files
from svlm_jax.curate.training_windows import TrainingWindows
from svlm_jax.curate.transcript import TimedWord, Transcript, to_record
from svlm_jax.errors import InputError

HOSTILE = "<script>alert(1)</script> | [x](http://e) `b` *c* ![](i)"


def spoken(video: str, count: int, source: str, duration: float = 72.0) -> Transcript:
    """A sentence of four words every two seconds, and so two words a second, up to `count` words."""
    words = [TimedWord(i / 2, i / 2 + 0.5, f"word{i}" + "." * (i % 4 == 3)) for i in range(count)]
    return Transcript(video, duration, tuple(words), "en", source=source)


@dataclass(frozen=True)
class Mend:
    """Stands for a step that repairs words: upper case for the second one; a video of few words is set aside."""

    name: str = "clean"

    @property
    def settings(self) -> dict[str, Any]:
        return {"version": 1}

    def run(self, transcript: Transcript) -> Outcome:
        if len(transcript.words) < 50:
            return Outcome(reason="fewer words than 1 a second")
        old = transcript.words[1]
        words = (transcript.words[0], old._replace(text=old.text.upper()), *transcript.words[2:])
        return Outcome(
            (to_record(replace(transcript, words=words)),), changes=(Change("times missing", 0.5, old.text, HOSTILE),)
        )


class EveryThird:
    """Keeps, edits, deletes, in turn."""

    def __init__(self):
        self.settings: Mapping[str, Any] = {"editor": "test"}

    def edit(self, context, sentences):
        choices = (Decision("keep"), Decision("edit", "Edited to these words."), Decision("delete"))
        return [choices[sentence.first // 4 % 3] for sentence in sentences]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three videos of 72 s: 144, 144 and 20 words; the last is set aside. Of 36 sentences each a third is deleted."""
    folder = tmp_path_factory.mktemp("chain")
    videos = [spoken("a.mp4", 144, "Cup"), spoken("b_1.mp4", 144, "League"), spoken("c.mp4", 20, "League")]
    (folder / "words.jsonl").write_text("".join(json.dumps(to_record(video)) + "\n" for video in videos))
    windows = TrainingWindows(words_per_second=1)
    steps = (("words", "clean", Mend()), ("clean", "edited", EditStep(EveryThird())), ("edited", "train", windows))
    for before, after, step in steps:
        lines = InputLines.of_file(folder / f"{before}.jsonl")
        run_step(step, lines, step_files(folder / f"{after}.jsonl", has_seeks=after == "train"))
    return folder


@pytest.fixture
def chain(folder):
    return read_chain(files(folder))


def files(folder):
    return [folder / f"{name}.jsonl" for name in ("words", "clean", "edited", "train")]


# --- numbers ---


def test_hours_words_and_windows_add_up_from_step_to_step(chain):
    words, clean, edit, windows = (step.totals for step in chain)
    assert (words.videos, words.kept_videos, words.seconds, words.words) == (3, 3, [216, 216], [308, 308])
    assert (clean.videos, clean.kept_videos, clean.seconds, clean.words) == (3, 2, [216, 144], [308, 288])
    assert (edit.seconds, edit.words) == ([144, 144], [288, 192])
    # five windows of 24 s every 12 s a video, whose seconds and words count once
    assert (windows.kept_videos, windows.seconds, windows.words, chain[3].windows) == (2, [144, 144], [192, 192], 10)
    assert {name: (each.videos, each.kept_videos, each.seconds) for name, each in chain[1].sources.items()} == {
        "Cup": (1, 1, [72, 72]), "League": (2, 1, [144, 72])
    }  # fmt: skip


def test_words_are_counted_in_the_stretch_that_they_end_in():
    words = [(0.0, 0.0), (1, 24.0), (23.9, 24.1), (47, 48), (47, 48.5), (None, None)]
    transcript = Transcript("a.mp4", 50.0, tuple(TimedWord(start, end, "w") for start, end in words))
    assert list(word_counts(transcript)) == [1, 2]


def test_words_that_the_first_step_found_are_those_that_came_in(chain):
    """`transcribe` reads no words: "192 of 0 words" would say nothing."""
    for totals in (chain[0].totals, *chain[0].sources.values()):
        totals.words[0] = 0
    page = markdown(chain, [], {}, 2.0)
    assert "192 of 308 words" in page and "| words | words.jsonl | 3 | 3 | 3.60 | 3.60 | 100.0 % | – | 308 | – |" in page
    assert "| Cup | 1 | 1 | 1.20 | 1.20 | 100.0 % | 144 | 96 | 66.7 % |" in page


def test_what_was_said_enough_is_told_beside_the_rule(chain):
    assert chain[0].pace == Counter({48: 6, 20: 1, 0: 2}) and chain[3].pace == {}
    page = markdown(chain, [], {}, 2.0)
    assert "| words | 9 | 2.00 | 66.7 % |" in page and "| edit | 6 | 1.33 | 0.0 % |" in page


def test_the_rule_beside_is_that_of_the_windows(chain):
    """`clean` has a setting of the same name, which is another thing."""
    assert report.rule_of_windows(chain) == 1
    chain[1].settings = {"words_per_second": 6.0}
    assert report.rule_of_windows(chain) == 1 and report.rule_of_windows(chain[:3]) == 2


def test_deleted_words_are_counted_by_rule(chain):
    page = markdown(chain, [], {}, 2.0)
    assert "| edit | delete | 24 | 96 | 2 |" in page and "| clean | times missing | 2 |  | 2 |" in page


def test_decisions_stand_beside_the_papers(chain):
    page = markdown(chain, [], {}, 2.0)
    assert "| kept | 33.3 % | 33.3 % | 0.0 % | 46.3 % |" in page
    assert "| deleted | 33.3 % | 33.3 % | 0.0 % | 15.8 % |" in page


def test_what_was_set_aside_is_told_with_its_reason(chain):
    assert "| clean | fewer words than 1 a second | 1 | 72 seconds | c.mp4 |" in markdown(chain, [], {}, 2.0)


def test_reasons_that_differ_in_numbers_are_one():
    reasons = ["w.jsonl:3 content[12]: got 'it' without times", "w.jsonl:40 content[1]: got 'a b' without times"]
    assert {kind_of_reason(reason) for reason in reasons} == {"w.jsonl:N content[N]: got '...' without times"}
    assert kind_of_reason("it isn't speech, and won't be") == "it isn't speech, and won't be"


# --- samples ---


def test_each_decision_and_repair_has_samples_to_read(chain):
    page = markdown(chain, [], {}, 2.0)
    titles = [line for line in page.splitlines() if line.startswith("### ")]
    assert titles == ["### clean: times missing (2)", "### edit: kept", "### edit: delete (24)", "### edit: edit (24)"]
    assert re.search(r"\| [ab]\S+ \| 0:\d\d\.0 \| word\d+ word\d+ word\d+ word\d+. \| Edited to these words. \|", page)
    kept = chain[2].samples.of("kept")
    assert len(kept) == 3 and all(int(sample.before.split()[0].lower()[4:]) % 12 == 0 for sample in kept)


def test_samples_are_the_same_in_any_order():
    """And so for shards that were merged, or given one by one."""
    changes = [Sample(f"v{i % 5}.mp4", float(i), f"before {i}", "") for i in range(200)]
    drawn = []
    for seed in range(3):
        random.Random(seed).shuffle(changes)
        samples = Samples(4)
        for change in changes:
            samples.add("loop", change)
        drawn.append(samples.of("loop"))
    assert drawn[0] == drawn[1] == drawn[2] and len(set(drawn[0])) == 4


def test_no_samples_where_none_are_wanted(folder):
    assert "## Samples" not in markdown(read_chain(files(folder), 0), [], {}, 2.0)


# --- what comes from outside ---


def test_nothing_in_a_video_is_markup_of_the_page(chain):
    page = markdown(chain, [], {}, 2.0)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\| \\[x\\](http://e) \\`b\\` \\*c\\* !\\[\\](i)" in page
    assert "<script" not in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    assert text("a_b _c_ \n\x1b[0m") == "a_b \\_c\\_ \\[0m"


def test_times_are_those_of_a_player():
    assert [clock(value) for value in (None, 0.04, 59.96, 3723.5, -1.5)] == ["", "0:00.0", "1:00.0", "1:02:03.5", "-0:01.5"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["none.jsonl"], r"none\.jsonl: got no such file, expected a file of svlm curate; .*svlm curate merge joins shards"),
        (["words.jsonl", "words.jsonl"], "got the same file twice"),
        (["bare.jsonl"], r"bare\.jsonl:1: got a JSON list, expected"),
        (["empty.jsonl"], r"empty\.jsonl: got no line"),
        (["lone.jsonl"], r"lone\.report\.json: got no changes\.jsonl beside it"),
        (["odd.jsonl"], r"odd\.changes\.jsonl:1: got KeyError\('source'\), expected a line that a step wrote"),
    ],
)
def test_files_that_no_step_wrote_are_named(tmp_path, names, reason):
    contents = {"words.jsonl": json.dumps(to_record(spoken("a", 4, ""))), "bare.jsonl": "[1]\n", "empty.jsonl": ""}
    contents |= {"lone.jsonl": "", "lone.report.json": '{"step": "clean"}'}
    contents |= {"odd.jsonl": "", "odd.report.json": '{"step": "clean"}', "odd.changes.jsonl": "{}\n"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=reason):
        read_chain([tmp_path / name for name in names])


def test_a_file_that_was_made_from_an_earlier_one_is_told(folder, tmp_path):
    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert broken_links(read_chain(files(tmp_path))) == []
    assert broken_links(read_chain([tmp_path / "clean.jsonl", tmp_path / "train.jsonl"])) == []
    with (tmp_path / "words.jsonl").open("a") as file:
        file.write(json.dumps(to_record(spoken("d.mp4", 144, "Cup"))) + "\n")
    chain = read_chain(files(tmp_path))
    (link,) = broken_links(chain)
    assert link == "clean.jsonl was made from an earlier words.jsonl: run its step again"
    assert f"> **{link}.**" in markdown(chain, [link], {}, 2.0)


# --- plots ---


def test_plots_are_the_same_in_every_run_and_say_in_words_what_they_show(folder, tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        monkeypatch.setattr("sys.argv", ["svlm curate report", *map(str, files(folder)), "--out", str(tmp_path / name)])
        report.main()
    assert capsys.readouterr().out.startswith(f"4 files, 5 plots -> {tmp_path}/one/report.md\n")
    page = (tmp_path / "one" / "report.md").read_text()
    pictures = re.findall(r"^!\[(.+)\]\((\w+\.svg)\)$", page, re.MULTILINE)
    assert [file for _, file in pictures] == [
        "hours.svg",
        "words_per_second.svg",
        "decisions.svg",
        "changes.svg",
        "sources.svg",
    ]
    assert pictures[0][0].endswith("windows 2.40 (67 %)")
    assert pictures[1][0] == "stretches of 24 s with 1 words a second: words 67 %, edit 100 %"
    for file in [*(file for _, file in pictures), "report.md", "report.json"]:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        assert b"<svg" in (tmp_path / "one" / file).read_bytes() or not file.endswith(".svg")


@pytest.mark.filterwarnings("error")
def test_a_source_may_have_a_name_in_any_script(chain, tmp_path):
    for step in chain:
        step.sources["足球 <b> $x^2$ &"] = step.sources.pop("Cup")
    plot = plots._sources(chain, tmp_path)
    assert plot is not None
    texts = {each.text for each in ElementTree.parse(tmp_path / plot.file).iter("{http://www.w3.org/2000/svg}text")}
    assert "足球 <b> $x^2$ &" in texts


def test_without_matplotlib_the_extra_is_named(chain, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"no matplotlib, .*; pip install 'svlm-jax\[curate\]', or add --no-plots"):
        plots.draw(chain, tmp_path, 2.0)


def test_loops_of_an_asr_do_not_squeeze_the_plot():
    assert plots._highest(Counter({30: 5000, 60: 30, 4000: 20})) == 60


# --- the command ---


@pytest.fixture
def call(monkeypatch):
    """Runs `svlm curate report ARGS` here."""

    def call(*args: object) -> None:
        monkeypatch.setattr("sys.argv", ["svlm curate report", *map(str, args)])
        report.main()

    return call


def test_the_command_writes_a_page_and_the_numbers(folder, tmp_path, call, capsys):
    out = tmp_path / "new" / "report"
    call(*files(folder), "--out", out, "--samples", 1, "--no-plots")
    assert capsys.readouterr().out == f"4 files, 0 plots -> {out}/report.md\n"
    page = (out / "report.md").read_text()
    headline = "**2.40 minutes of 3.60 minutes** of video and 192 of 308 words are in **10 windows** of 2 videos (3 came in)."
    assert page.startswith(f"# Curation report\n\n{headline}\n") and "svg" not in page
    numbers = json.loads((out / "report.json").read_text())
    assert [step["name"] for step in numbers["steps"]] == ["words", "clean", "edit", "windows"]
    assert numbers["steps"][2]["counts"]["sentences kept"] == 24 and numbers["steps"][0]["pace"] == {"0": 2, "20": 1, "48": 6}


def test_transcripts_that_no_step_made_have_a_report_too(folder):
    assert "are left, in **3 of 3 videos**" in markdown(read_chain([folder / "words.jsonl"]), [], {}, 2.0)


def test_bad_flags_are_one_line(folder, tmp_path, call):
    with pytest.raises(InputError) as error:
        call(folder / "no.jsonl", "--out", tmp_path / "report")
    assert len(str(error.value).splitlines()) == 1 and not (tmp_path / "report").exists()
    with pytest.raises(InputError, match=r"^--out: got "):
        call(folder / "words.jsonl", "--out", folder / "words.jsonl")

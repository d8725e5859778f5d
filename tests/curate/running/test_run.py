"""A step over many videos: the same files at the end, whatever happened in between."""

import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from svlm_jax.curate.outcome import Outcome
from svlm_jax.curate.running import run as run_module
from svlm_jax.curate.running.input_lines import InputLines
from svlm_jax.curate.running.run import Run, run_step
from svlm_jax.curate.running.step_files import read_rows, step_files
from svlm_jax.data.records import Records
from svlm_jax.data.records import write as write_windows
from svlm_jax.errors import InputError
from svlm_jax.json_lines import Appender, BadLines
from tests.curate.steps import Shout, Windows, results, write_input
from tests.support import HANG, ROOT, wait_until


def run(folder: Path, step, out: str = "g.jsonl", has_seeks: bool = False, **options) -> Run:
    files = step_files(folder / out, options.get("shard", (1, 1)), has_seeks=has_seeks)
    return run_step(step, InputLines.of_file(folder / "words.jsonl"), files, **options)


def read(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def expected(folder: Path, step, **options) -> list[bytes]:
    """The bytes of a run that nothing disturbs."""
    run(folder, step, "undisturbed.jsonl", **options)
    return [*results(folder, "undisturbed").values()]


def test_a_step_writes_what_is_kept_what_is_set_aside_what_it_changed_and_a_report(tmp_path):
    write_input(tmp_path / "words.jsonl", 8)
    done = run(tmp_path, Shout())
    kept, set_aside, changes = (read(tmp_path / name) for name in ("g.jsonl", "g.set_aside.jsonl", "g.changes.jsonl"))
    assert [line["video"] for line in kept] == [f"v{i}.mp4" for i in (0, 1, 2, 3, 4, 5, 7)]
    assert kept[2]["content"][4] == [4.1, 4.5, "WÖRD2_4!"]
    source = read(tmp_path / "words.jsonl")
    assert set_aside == [{"video": "v6.mp4", "reason": "no words", "record": source[6]}]
    assert [row["status"] for row in changes] == ["kept"] * 6 + ["set aside", "kept"]
    assert [row["lines"] for row in changes] == [1] * 6 + [0, 1]
    assert changes[0]["changes"][1] == ["upper case", 1.1, "wörd0_1", "WÖRD0_1!"]
    assert (changes[0]["seconds"], changes[0]["words"], changes[6]["words"]) == ([6.5, 6.5], [5, 5], [0, 0])
    report = json.loads((tmp_path / "g.report.json").read_text())
    assert report == done.report
    assert (report["step"], report["settings"], report["shard"]) == ("shout", {"mark": "!"}, None)
    assert report["videos"] == {"in": 8, "kept": 7, "set_aside": 1}
    assert report["set_aside"] == {"no words": 1}
    assert report["hours"] == [round(8 * 6.5 / 3600, 6), round(7 * 6.5 / 3600, 6)]
    assert (report["words"], report["counts"], report["changes"]) == ([35, 35], {"letters": 245}, {"upper case": 35})
    assert not (tmp_path / "g.partial.jsonl").exists()


def test_windows_are_written_as_training_reads_them(tmp_path):
    write_input(tmp_path / "words.jsonl", 3)
    run(tmp_path, Windows(), has_seeks=True)
    windows = [window for row in read_rows(step_files(tmp_path / "g.jsonl")) for window in row["lines"]]
    write_windows(tmp_path / "direct.jsonl", windows)
    for name in ("{}.jsonl", "{}_seeks.jsonl"):
        assert (tmp_path / name.format("g")).read_bytes() == (tmp_path / name.format("direct")).read_bytes()
    assert len(Records([tmp_path / "g.jsonl"])) == len(windows) == 6


def test_a_run_that_is_done_has_nothing_to_do(tmp_path):
    write_input(tmp_path / "words.jsonl", 3)
    run(tmp_path, Shout())
    before = results(tmp_path)
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in before}
    again = run(tmp_path, Shout())
    assert (again.before, again.left, again.total) == (3, 0, 3)
    assert results(tmp_path) == before
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == times


def test_a_video_that_has_to_wait_keeps_the_result_back_and_is_asked_for_alone(tmp_path):
    write_input(tmp_path / "words.jsonl", 3, titles={1: "hard"})
    uninterrupted = expected(tmp_path, Shout())
    waiting = Shout(waits_for=tmp_path / "server")
    first = run(tmp_path, waiting)
    assert (first.report, first.left) == (None, 1)
    assert first.not_done == (("words.jsonl:2", "the server does not answer"),)
    assert list(results(tmp_path)) == ["g.partial.jsonl"]
    (tmp_path / "server").touch()
    second = run(tmp_path, waiting)
    assert (second.before, second.left) == (2, 0)
    assert [*results(tmp_path).values()] == uninterrupted


def test_a_server_that_is_away_is_not_asked_for_ten_thousand_videos(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "IN_A_ROW", 3)
    write_input(tmp_path / "words.jsonl", 6, titles={i: "hard" for i in range(1, 6)})
    done = run(tmp_path, Shout(waits_for=tmp_path / "server"))
    assert (len(done.not_done), done.left) == (3, 5)


@pytest.mark.parametrize("options", [{"jobs": 2}, {"jobs": 3, "waits": True}], ids=["processes", "threads"])
def test_workers_give_the_same_files(tmp_path, options):
    write_input(tmp_path / "words.jsonl", 9)
    uninterrupted = expected(tmp_path, Shout())
    seen = []
    run(tmp_path, Shout(), progress=lambda done, total: seen.append((done, total)), **options)
    assert seen == [(i, 9) for i in range(1, 10)]
    assert [*results(tmp_path).values()] == uninterrupted


def test_only_lines_that_are_new_are_done_when_the_input_changes(tmp_path):
    write_input(tmp_path / "words.jsonl", 8)
    run(tmp_path, Shout())
    lines = read(tmp_path / "words.jsonl")
    lines[1]["content"][0][2] = "other"
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [lines[6], *lines[1:5]]))
    uninterrupted = expected(tmp_path, Shout())
    done = run(tmp_path, Shout())
    assert (done.before, done.total) == (4, 5)
    assert [*results(tmp_path).values()] == uninterrupted


def test_other_settings_do_all_anew(tmp_path):
    write_input(tmp_path / "words.jsonl", 3)
    run(tmp_path, Shout())
    done = run(tmp_path, Shout("?"))
    assert done.before == 0
    assert read(tmp_path / "g.jsonl")[0]["content"][0][2] == "WÖRD0_0?"


def test_equal_lines_are_done_once_and_written_as_often_as_they_come(tmp_path):
    write_input(tmp_path / "words.jsonl", 2)
    text = (tmp_path / "words.jsonl").read_text()
    (tmp_path / "words.jsonl").write_text(text + "\n" + text.rstrip())
    done = run(tmp_path, Shout())
    assert (done.total, done.left) == (4, 0)
    assert [line["video"] for line in read(tmp_path / "g.jsonl")] == ["v0.mp4", "v1.mp4"] * 2
    assert done.report is not None and done.report["duplicates"] == 2


def test_a_bad_line_stops_the_run_unless_it_may_be_set_aside(tmp_path):
    write_input(tmp_path / "words.jsonl", 2)
    with (tmp_path / "words.jsonl").open("a") as file:
        file.write('{"video": "x.mp4"}\nrubbish\n')
    with pytest.raises(InputError, match=r"words.jsonl:3 duration: got None"):
        run(tmp_path, Shout())
    with pytest.warns(UserWarning, match="set aside: words.jsonl:[34]"), pytest.raises(InputError, match=r"words.jsonl:4: got"):
        run(tmp_path, Shout(), bad=BadLines(1))
    with pytest.warns(UserWarning, match="set aside: words.jsonl:[34]"):
        done = run(tmp_path, Shout(), bad=BadLines(2))
    assert done.report is not None
    assert (done.before, done.report["counts"]["bad lines"]) == (2, 2)
    assert [line["record"] for line in read(tmp_path / "g.set_aside.jsonl")] == [{"video": "x.mp4"}, "rubbish"]


def test_a_bad_line_is_found_before_a_server_is_paid_for_the_lines_before_it(tmp_path):
    write_input(tmp_path / "words.jsonl", 2)
    with (tmp_path / "words.jsonl").open("a") as file:
        file.write("rubbish\n")
    with pytest.raises(InputError, match=r"words\.jsonl:3: got broken JSON"):
        run(tmp_path, Shout(), waits=True)
    assert results(tmp_path) == {}


def test_numbers_that_are_none_do_not_break_the_files(tmp_path):
    """Python's own json writes NaN, and a transcript takes it for an unknown time."""
    line = '{"video": "%s.mp4", "duration": 2, "language": "en", "score": NaN, "content": [%s]}\n'
    (tmp_path / "words.jsonl").write_text(line % ("a", '[NaN, 1.0, "word"]') + line % ("b", ""))
    run(tmp_path, Shout())
    assert "NaN" not in b"".join(results(tmp_path).values()).decode()
    assert read(tmp_path / "g.jsonl")[0]["content"] == [[None, 1.0, "WORD!"]]
    assert read(tmp_path / "g.set_aside.jsonl")[0]["record"]["score"] is None


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bug_in_a_step_names_the_line_that_it_is_met_with(tmp_path, jobs):
    write_input(tmp_path / "words.jsonl", 3, titles={1: "bug"})
    with pytest.raises(ZeroDivisionError) as error:
        run(tmp_path, Shout(), jobs=jobs)
    assert "in step shout, words.jsonl:2: Traceback" in error.value.__notes__[0]
    assert "raise ZeroDivisionError" in error.value.__notes__[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "kind", "words"),
    [
        ("strange bug", RuntimeError, "1 and 2"),
        ("no memory", InputError, "--jobs: got a process that was killed"),
    ],
)
def test_a_process_that_fails_strangely_says_how_and_what_is_done_stays(tmp_path, title, kind, words):
    write_input(tmp_path / "words.jsonl", 60, titles={59: title})
    with pytest.raises(kind, match=words):
        run(tmp_path, Shout(), jobs=2)
    assert 40 < _num_lines(tmp_path / "g.partial.jsonl") < 60


def test_what_others_wrote_is_never_written_over(tmp_path):
    write_input(tmp_path / "words.jsonl", 2)
    (tmp_path / "g.jsonl").write_text("mine\n")
    with pytest.raises(InputError, match="which no run wrote"):
        run(tmp_path, Shout())
    (tmp_path / "g.jsonl").unlink()
    run(tmp_path, Shout())
    with (tmp_path / "g.jsonl").open("a") as file:
        file.write("mine\n")
    for mark in "!?":
        with pytest.raises(InputError, match="changed after it was written"):
            run(tmp_path, Shout(mark))
    (tmp_path / "g.jsonl").unlink()
    run(tmp_path, Shout())
    with pytest.raises(InputError, match="the report of svlm curate shout"):
        run(tmp_path, Windows())


def test_two_runs_that_write_the_same_files_are_one_too_many(tmp_path):
    write_input(tmp_path / "words.jsonl", 2)
    with Appender(tmp_path / "g.partial.jsonl"), pytest.raises(InputError, match="another run is writing"):
        run(tmp_path, Shout())


def test_an_error_of_the_step_that_no_video_escapes_ends_the_run_and_what_is_done_stays(tmp_path, monkeypatch):
    write_input(tmp_path / "words.jsonl", 4)
    uninterrupted = expected(tmp_path, Shout())
    step = Shout()
    outcome = Shout.run

    def refuse(self, transcript) -> Outcome:
        if transcript.video == "v2.mp4":
            raise InputError("--editor-url", "401", "a key that is valid", "check it")
        return outcome(self, transcript)

    monkeypatch.setattr(Shout, "run", refuse)
    with pytest.raises(InputError, match="401"):
        run(tmp_path, step)
    monkeypatch.setattr(Shout, "run", outcome)
    assert run(tmp_path, step).before == 2
    assert [*results(tmp_path).values()] == uninterrupted


def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_bytes(tmp_path):
    """At each moment at which the disk changes; of a run that takes rows over and writes over files."""
    line = [sys.executable, "-m", "tests.curate.killed_runs", tmp_path]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=HANG)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 15  # moments


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path):
    write_input(tmp_path / "words.jsonl", 4)
    uninterrupted = expected(tmp_path, Shout())
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))  # bytes of the largest file
    try:
        with pytest.raises(InputError, match=r"g\.partial\.jsonl: got a file that cannot be written"):
            run(tmp_path, Shout())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(results(tmp_path)) == ["g.partial.jsonl"]
    done = run(tmp_path, Shout())
    assert 0 < done.before < 4
    assert [*results(tmp_path).values()] == uninterrupted


@pytest.mark.parametrize("number", range(4))
def test_a_disk_that_is_full_at_the_end_loses_nothing(tmp_path, monkeypatch, number):
    write_input(tmp_path / "words.jsonl", 3)
    uninterrupted = expected(tmp_path, Shout())
    replace, left = os.replace, iter(range(number))

    def full(*args) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(*args)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        run(tmp_path, Shout())
    monkeypatch.undo()
    assert run(tmp_path, Shout()).before == 3
    assert [*results(tmp_path).values()] == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_command_that_is_interrupted_leaves_no_process_and_goes_on(tmp_path, ending, jobs):
    """In the middle of a video that never ends, others being done."""
    write_input(tmp_path / "words.jsonl", 8, titles={2: "endless"})
    uninterrupted = expected(tmp_path, Shout())
    line = [sys.executable, "-m", "tests.curate.step_command", "--in", tmp_path / "words.jsonl", "--out", tmp_path / "g.jsonl"]
    line += ["--jobs", str(jobs), "--begins", tmp_path / "begun"]
    with subprocess.Popen(line, cwd=ROOT, start_new_session=True) as process:
        try:
            wait_until(lambda: (tmp_path / "begun").exists() and _num_lines(tmp_path / "g.partial.jsonl") >= 2)
            os.kill(process.pid, ending)
            process.wait(HANG)
        finally:
            process.kill()
    assert process.returncode == (130 if ending == signal.SIGINT else -ending)
    wait_until(lambda: not _lives(process.pid))
    assert run(tmp_path, Shout()).before >= 2
    assert [*results(tmp_path).values()] == uninterrupted


@pytest.mark.slow
def test_a_command_that_is_killed_twenty_times_ends_with_the_same_bytes(tmp_path):
    """With two processes, each time when as many videos more are done as a die says."""
    write_input(tmp_path / "words.jsonl", 150, words=50)
    command = [sys.executable, "-m", "tests.curate.step_command", "--in", tmp_path / "words.jsonl", "--out"]
    (tmp_path / "whole").mkdir()
    subprocess.run([*command, tmp_path / "whole" / "g.jsonl"], cwd=ROOT, check=True)
    line = [*command, tmp_path / "g.jsonl"]
    die, partial = random.Random(39), tmp_path / "g.partial.jsonl"
    for _ in range(20):
        enough = _num_lines(partial) + die.randint(0, 5)
        with subprocess.Popen([*line, "--jobs", "2"], cwd=ROOT, start_new_session=True) as process:
            wait_until(lambda n=enough: _num_lines(partial) >= n or process.poll() is not None)
            process.kill()
        assert process.returncode in (0, -signal.SIGKILL)
        wait_until(lambda: not _lives(process.pid))
    subprocess.run(line, cwd=ROOT, check=True)
    assert results(tmp_path) == results(tmp_path / "whole")


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _peak(folder: Path, name: str) -> None:
    run(folder, Shout(), name)
    status = Path("/proc/self/status").read_text()  # getrusage also counts what the process was before exec
    (folder / f"{name}.peak").write_text(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_memory_does_not_grow_with_the_number_of_videos(tmp_path):
    peaks = []
    for count in (10, 100):
        write_input(tmp_path / "words.jsonl", count, words=5000)
        process = multiprocessing.get_context("spawn").Process(target=_peak, args=(tmp_path, f"g{count}.jsonl"))
        process.start()
        process.join(HANG)
        peaks.append(int((tmp_path / f"g{count}.jsonl.peak").read_text()))
    size = (tmp_path / "words.jsonl").stat().st_size / 1024  # kB, as the peaks
    assert peaks[1] - peaks[0] < size / 4, (peaks, size)

"""Claims about `svlm curate clean` as it is typed."""

import json

from svlm_jax.cli import curate
from svlm_jax.curate.transcript import TimedWord, Transcript, to_record


def test_the_command_cleans_a_file(tmp_path, monkeypatch):
    good, bad = (Transcript("a.mp4", 60.0, (TimedWord(*times, "Goal!"),)) for times in ((2.0, 1.6), (None, None)))
    source = tmp_path / "words.jsonl"
    source.write_text("".join(json.dumps(to_record(each)) + "\n" for each in (good, bad)))
    monkeypatch.setattr("sys.argv", ["svlm curate", "clean", "--in", str(source), "--out", str(tmp_path / "clean.jsonl")])
    curate.main()
    lines = (tmp_path / "clean.jsonl").read_text().splitlines()
    assert [json.loads(line)["content"] for line in lines] == [[[1.6, 2.0, "Goal!"]]]
    assert json.loads((tmp_path / "clean.set_aside.jsonl").read_text())["reason"] == "no times of most words"

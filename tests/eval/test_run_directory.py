"""A folder takes answers of one run only, and says of which."""

import json

import pytest

from svlm_jax.errors import InputError
from svlm_jax.eval import run_directory
from svlm_jax.eval.run_directory import open_run, read_run

SETTINGS = {"benchmark": "b", "model": "m", "suppressed": (1, 2), "limit": None}


def test_a_run_goes_on_with_the_settings_that_it_began_with_and_no_others(tmp_path):
    folder = open_run(tmp_path / "runs" / "one", SETTINGS)
    before = (folder / "run.json").read_bytes()
    assert open_run(folder, SETTINGS) == folder  # a tuple is the list that JSON has for it
    assert (folder / "run.json").read_bytes() == before
    assert read_run(folder)["suppressed"] == [1, 2] and "svlm-jax" in read_run(folder)["versions"]
    for different in ({"model": "n"}, {"limit": 3}, {"new": 1}):
        with pytest.raises(InputError, match=f"^run {next(iter(different))}: .*was begun"):
            open_run(folder, SETTINGS | different)
    with pytest.raises(InputError, match="run limit"):
        open_run(folder, {key: value for key, value in SETTINGS.items() if key != "limit"} | {"limit": 0})
    assert (folder / "run.json").read_bytes() == before


def test_versions_are_told_and_do_not_end_a_run(tmp_path):
    folder = open_run(tmp_path / "run", SETTINGS)
    saved = read_run(folder) | {"versions": {"jax": "0.0.1"}}
    (folder / "run.json").write_text(json.dumps(saved))
    assert open_run(folder, SETTINGS) == folder


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(InputError, match="other files"):
        open_run(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_processes_that_begin_one_run_at_the_same_time_all_have_it(tmp_path, monkeypatch):
    """Between this one's look and its write, another has made the folder, written run.json and its first answers."""
    real = run_directory.write_json

    def late(path, value):
        real(path, value)
        (tmp_path / "run" / "result_0.jsonl").touch()
        raise InputError(str(path), "a draft that another process has moved", "its own", "none")

    monkeypatch.setattr(run_directory, "write_json", late)
    folder = open_run(tmp_path / "run", SETTINGS)
    assert read_run(folder)["model"] == "m"
    monkeypatch.undo()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json.partial").touch()  # another process is writing it
    assert open_run(tmp_path / "begun", SETTINGS)

"""A table says what each number is of: its interval, its count, and nothing where there is none."""

import json
import sys

import pytest

from svlm_jax.cli.evaluate import table as command
from svlm_jax.errors import InputError
from svlm_jax.eval import table
from svlm_jax.eval.result import Metric, Result, Series, read_result, write_result

STREAM = Result(
    "infstreams",
    "tiny infinite vs tiny chunk",
    (Metric("win_rate", 0.625, (0.55, 0.701), 240), Metric("delay", 1.25, None, 12, "s")),
    (Series("win_rate", "fifth of the game", ((1, 0.5), (2, None), (3, 0.75))),),
)
OTHER = Result("infstreams", "tiny | recent", (Metric("win_rate", None), Metric("false_alarms", 3.0, None, 0, "/h")))


def test_a_result_comes_back_as_it_was_written_beside_the_keys_of_its_benchmark(tmp_path):
    write_result(tmp_path / "score.json", STREAM, {"global": {"A": 3}})
    assert read_result(tmp_path / "score.json") == STREAM
    assert json.loads((tmp_path / "score.json").read_text())["global"] == {"A": 3}
    with pytest.raises(ValueError, match="metrics"):
        write_result(tmp_path / "other.json", STREAM, {"metrics": []})


def test_cells_have_their_interval_their_unit_and_their_count():
    assert [table.cell(metric) for metric in STREAM.metrics] == ["62.5 % [55.0, 70.1] n 240", "1.2 s n 12"]
    assert [table.cell(metric) for metric in OTHER.metrics] == [table.NOTHING, "3.0 /h"]
    assert table.cell(Metric("rate", 0.004, (0.0, 0.01))) == "0.40 % [0.00, 1.0]"


def test_results_of_one_benchmark_stand_side_by_side():
    lines = table.markdown([STREAM, Result("ovo", "tiny", (Metric("total", 0.5),)), OTHER]).splitlines()
    assert lines[:3] == ["## infstreams", "", "|  | tiny infinite vs tiny chunk | tiny \\| recent |"]
    assert lines[4:7] == [
        "| win rate | 62.5 % [55.0, 70.1] n 240 | – |",
        "| delay | 1.2 s n 12 | – |",
        "| false alarms | – | 3.0 /h |",
    ]
    assert lines[8] == "## ovo"


def test_the_command_takes_folders_writes_markdown_json_and_plots_and_passes_over_other_json(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    run.mkdir()
    write_result(run / "score.json", STREAM, {})
    write_result(tmp_path / "other.json", OTHER, {})
    (run / "run.json").write_text('{"model": "tiny"}')
    out = tmp_path / "table"
    monkeypatch.setattr(sys, "argv", ["svlm evaluate table", str(run), str(tmp_path / "other.json"), "--out", str(out)])
    command.main()
    text = (out / "table.md").read_text()
    assert text.startswith(capsys.readouterr().out) and "![infstreams win rate](infstreams_win_rate.svg)" in text
    rows = json.loads((out / "table.json").read_text())["rows"]
    assert [row["run"] for row in rows] == [STREAM.label, OTHER.label] and rows[0]["metrics"]["win_rate"]["count"] == 240
    first = (out / "infstreams_win_rate.svg").read_bytes()
    command.main()
    assert (out / "infstreams_win_rate.svg").read_bytes() == first  # the same file from the same numbers


def test_what_is_no_result_is_refused_by_name(tmp_path):
    (tmp_path / "run.json").write_text('{"model": "tiny"}')
    with pytest.raises(InputError, match=r"no benchmark, label and metrics.*name the JSON file"):
        table.find([tmp_path / "run.json"])
    with pytest.raises(InputError, match="no result in it"):
        table.find([tmp_path])
    write_result(tmp_path / "score.json", STREAM, {})
    with pytest.raises(InputError, match="the same file twice"):
        table.find([tmp_path, tmp_path / "score.json"])
    record = json.loads((tmp_path / "score.json").read_text())
    record["metrics"][0]["ci95"] = [0.5]
    (tmp_path / "score.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="win_rate ci95: got"):
        table.find([tmp_path / "score.json"])


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": [7]},
        {"series": [None]},
        {"metrics": [{"name": "a", "ci95": [None, 1]}]},
        {"series": [{"metric": "a", "x_label": "b", "points": [[None, 1]]}]},
        {"series": [{"metric": "a", "x_label": "b", "points": [[float("nan"), 1]]}]},
    ],
)
def test_a_damaged_result_is_one_error(tmp_path, change):
    write_result(tmp_path / "score.json", STREAM, {})
    record = json.loads((tmp_path / "score.json").read_text())
    (tmp_path / "score.json").write_text(json.dumps(record | change))
    with pytest.raises(InputError, match=r"score\.json (metrics|series)"):
        read_result(tmp_path / "score.json")


def test_a_result_replaces_a_result_and_no_data(tmp_path):
    write_result(tmp_path / "score.json", STREAM, {})
    write_result(tmp_path / "score.json", OTHER, {})
    (tmp_path / "items.json").write_text('[{"id": 1}]')
    with pytest.raises(InputError, match="a file that is no result"):
        write_result(tmp_path / "items.json", STREAM, {})
    assert (tmp_path / "items.json").read_text() == '[{"id": 1}]'

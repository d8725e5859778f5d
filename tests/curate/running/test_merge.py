"""Shards, put together: the bytes of one run, or a reason why not."""

import json
from pathlib import Path

import pytest

from svlm_jax.curate.running.input_lines import InputLines
from svlm_jax.curate.running.merge import merge
from svlm_jax.curate.running.run import run_step
from svlm_jax.curate.running.step_files import step_files
from svlm_jax.errors import InputError
from tests.curate.steps import Shout, Windows, results, write_input


def run(folder: Path, step, shard=(1, 1), out="g.jsonl", source="words.jsonl", has_seeks=False):
    files = step_files(folder / out, shard, has_seeks=has_seeks)
    return run_step(step, InputLines.of_file(folder / source), files, shard=shard)


def whole(folder: Path, out="g") -> dict[str, bytes]:
    return {name: data for name, data in results(folder, out).items() if ".shard_" not in name}


@pytest.mark.parametrize("count", [1, 3, 8, 9])
@pytest.mark.parametrize(("step", "has_seeks"), [(Shout(), False), (Windows(), True)], ids=["transcripts", "windows"])
def test_shards_put_together_are_the_bytes_of_one_run(tmp_path, count, step, has_seeks):
    """Of 8 videos; a ninth shard has none."""
    write_input(tmp_path / "words.jsonl", 8)
    run(tmp_path, step, out="whole.jsonl", has_seeks=has_seeks)
    if count == 1:
        with pytest.raises(InputError, match="no shard beside it"):
            merge(tmp_path / "whole.jsonl")
        return
    for number in range(count, 0, -1):
        run(tmp_path, step, (number, count), has_seeks=has_seeks)
    before = results(tmp_path)
    report, files = merge(tmp_path / "g.jsonl")
    assert [*whole(tmp_path).values()] == [*whole(tmp_path, "whole").values()]
    assert (tmp_path / "g_seeks.jsonl").exists() == files.has_seeks == has_seeks
    if has_seeks:
        assert (tmp_path / "g_seeks.jsonl").read_bytes() == (tmp_path / "whole_seeks.jsonl").read_bytes()
    assert before.items() <= results(tmp_path).items()  # nothing is removed
    assert merge(tmp_path / "g.jsonl")[0] == report


@pytest.fixture
def shards(tmp_path) -> Path:
    write_input(tmp_path / "words.jsonl", 5)
    for number in (1, 2, 3):
        run(tmp_path, Shout(), (number, 3))
    return tmp_path


def refusal(folder: Path) -> str:
    before = results(folder)
    with pytest.raises(InputError) as error:
        merge(folder / "g.jsonl")
    assert results(folder) == before
    assert len(str(error.value)) < 300
    return str(error.value)


def test_a_shard_that_is_missing_is_named(shards):
    for path in shards.glob("g.shard_2_of_3.*"):
        path.unlink()
    assert "no shard 2/3" in refusal(shards)


def test_a_shard_that_is_not_done_is_named(shards):
    (shards / "g.shard_3_of_3.report.json").unlink()
    (shards / "g.shard_3_of_3.partial.jsonl").touch()
    assert "shard 3/3, which is not done" in refusal(shards)


def test_a_shard_whose_result_was_removed_is_named(shards):
    (shards / "g.shard_1_of_3.jsonl").unlink()
    assert "shard 1/3, which is not done" in refusal(shards)


def test_shards_of_two_runs_are_not_mixed(shards):
    run(shards, Shout(), (1, 2))
    assert "shards of 2 and of 3" in refusal(shards)


def test_shards_of_other_settings_or_another_input_are_not_mixed(shards):
    run(shards, Shout("?"), (2, 3))
    assert "other settings" in refusal(shards)
    run(shards, Shout(), (2, 3))
    write_input(shards / "other.jsonl", 6)
    run(shards, Shout(), (2, 3), source="other.jsonl")
    assert "other input" in refusal(shards)


def test_a_shard_that_was_changed_is_not_taken(shards):
    with (shards / "g.shard_2_of_3.jsonl").open("a") as file:
        file.write("{}\n")
    assert "changed after it was written" in refusal(shards)


def test_lines_of_the_input_that_come_twice_or_never_are_found(shards):
    """Even where all numbers agree: shard 2 under the name of shard 1."""
    for path in shards.glob("g.shard_2_of_3.*"):
        text = path.read_text()
        report = json.loads(text) if path.name.endswith("report.json") else None
        other = path.with_name(path.name.replace("shard_2", "shard_1"))
        other.write_text(json.dumps({**report, "shard": [1, 3]}) if report else text)
    assert "shards with other lines" in refusal(shards)


def test_a_merge_does_not_write_over_what_is_not_its_own(shards):
    (shards / "g.jsonl").write_text("mine\n")
    assert "which no run wrote" in refusal(shards)
    (shards / "g.jsonl").unlink()
    (shards / "g.partial.jsonl").write_text("{}\n")
    assert "a run without shards that is not done" in refusal(shards)

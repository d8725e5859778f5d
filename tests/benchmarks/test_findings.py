"""Claims about `benchmarks findings`: what it compares, and that the truth gets full marks from it."""

import argparse
import json
from dataclasses import replace

import pytest

from benchmarks import findings
from svlm_jax.cli.flags import Parser
from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError
from svlm_jax.touchline import commentary
from svlm_jax.touchline.film import HELD_OUT, play
from svlm_jax.touchline.judge import facts_at

SECONDS = 900
BASE = StreamConfig(sink=256, text_window=256)


@pytest.fixture
def true_stream(tmp_path):
    """The true commentary as the file of a stream: seed -> path."""
    world = play(HELD_OUT, SECONDS)
    events, questions = world.events, findings.questions_by_second(world, SECONDS)
    truth: dict[int, list[str]] = {}
    for word in commentary.words(events):
        truth.setdefault(int(word.start), []).append(word.text)
    path = tmp_path / findings.variants(BASE, {})[0].file("weights", HELD_OUT, SECONDS)
    with path.open("w") as file:
        for second in range(SECONDS):
            question = questions.get(second, "")
            answer = commentary.answer(question, facts_at(events, second), "") if question else ""
            text = f"{answer}\n{' '.join(truth.get(second, []))}"
            file.write(json.dumps({"second": second, "text": text, "question": question, "ms": 1.0, "slots": 9}) + "\n")
    return {HELD_OUT: path}


def test_variants_differ_from_the_base_in_one_setting_and_have_files_of_their_own():
    variants = findings.variants(BASE, {"no overlap": "DIR"})
    assert len({variant.file("", 0, 700) for variant in variants}) == len(variants) and {
        variant.group for variant in variants
    } == set(findings.GROUPS)
    for variant in variants[1:]:
        changed = [name for name in vars(BASE) if getattr(variant.stream, name) != getattr(BASE, name)]
        assert set(changed) <= {"sink", "text_window"} or len(changed) == 1 or variant.model
    assert variants[0].file("", 0, 700) != variants[0].file("other weights", 0, 700)
    assert variants[0].file("", 0, 700) != findings.variants(replace(BASE, text_window=9), {})[0].file("", 0, 700)
    full = next(variant for variant in variants if variant.name == "full attention")
    assert variants[0].file("", 0, 600) != variants[0].file("", 0, 700) and full.file("", 0, 600) == full.file("", 0, 700)
    windows = {variant.stream.vision_window for variant in variants if variant.group == "vision window"}
    assert windows == {1, 4, 8, 32} and BASE.vision_window == 16


def test_the_truth_gets_full_marks(true_stream):
    bins, scores, lines = findings._judge(true_stream, SECONDS)
    row = findings._row(findings.variants(BASE, {})[0], bins, scores, lines)
    assert len(bins) == 2 and len(lines) == SECONDS
    for name in (
        "F1",
        "F1 first 10 min",
        "F1 last 10 min",
        "score accuracy",
        "score recall",
        "answer accuracy",
        "silence precision",
    ):
        assert row[name] == "1.000", name
    other = [line | {"text": line["text"].replace("Reds", "Blues")} for line in lines]
    assert findings._share_equal(lines, lines) == 1 and 0.5 < findings._share_equal(other[:600], lines) < 1
    assert all(part.startswith("0/") for part in row["new mistakes"].split(", ")) and len(scores) > 20
    assert sum(tally.questions for tally in bins) == SECONDS // findings.ASK_EVERY


def test_questions_wait_until_their_answer_has_been_said():
    world = play(HELD_OUT + 1, 7200)  # a game in which some must wait
    questions = findings.questions_by_second(world, 7200)
    assert len(questions) == 7200 // findings.ASK_EVERY
    assert not any(commentary.is_unannounced(world.events, second) for second in questions)
    assert any(second % findings.ASK_EVERY != findings.ASK_EVERY - 1 for second in questions)


def test_measures_are_plotted(true_stream, tmp_path):
    pytest.importorskip("matplotlib")
    variants = findings.variants(BASE, {})
    bins, _, _ = findings._judge(true_stream, SECONDS)
    findings.draw(dict.fromkeys(variants[:6], bins), tmp_path / "findings.svg")
    assert (tmp_path / "findings.svg").read_text().count('<g id="axes_') == 3 * len(findings.PLOTTED)


@pytest.mark.parametrize("flags", (["--compare", "bad"], ["--compare", "=DIR"], ["--only", "x"]))
def test_bad_flags_are_one_line_before_anything_is_loaded(flags, tmp_path):
    parser = argparse.ArgumentParser()
    findings.add_flags(parser)
    with pytest.raises(InputError, match=f"^{flags[0]}: got "):
        findings.bench(parser.parse_args(["--scratch", str(tmp_path / "scratch"), *flags]))
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("flags", (["--seconds", "0"], ["--seeds", "0"]))
def test_a_number_out_of_bounds_is_refused_by_its_flag(flags, capsys):
    parser = Parser()
    findings.add_flags(parser)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(flags)
    assert end.value.code == 2 and f"{flags[0]}: got 0, expected 1 or more" in capsys.readouterr().err

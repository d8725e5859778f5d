"""Prompts are filled literally, and a file of prompts that would lose the question is refused."""

import json

import pytest

from svlm_jax.errors import InputError
from svlm_jax.remote.templates import digest, filled, read_templates

DEFAULTS = {"choice": "{question}\n{options}", "poll": "{question}?"}


def test_braces_of_a_question_stay():
    assert filled("{a} {b} {c}", {"a": "{b}", "b": "x{"}) == "{b} x{ {c}"


def test_a_file_replaces_prompts_by_name(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({"poll": "Now? {question}"}))
    texts = read_templates(tmp_path / "p.json", DEFAULTS)
    assert texts == {**DEFAULTS, "poll": "Now? {question}"}
    assert read_templates(None, DEFAULTS) == DEFAULTS and digest(texts) != digest(DEFAULTS)


@pytest.mark.parametrize("content, field", [({"x": "y"}, "x"), ({"poll": 3}, "poll"), ({"choice": "{options}"}, "choice")])
def test_a_prompt_that_cannot_be_used_is_refused(tmp_path, content, field):
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"--prompt-file p\.json {field}"):
        read_templates(tmp_path / "p.json", DEFAULTS)


def test_options_may_be_left_out_for_a_model_that_answers_in_its_own_words(tmp_path):
    (tmp_path / "p.json").write_text('{"choice": "{question}"}')
    assert read_templates(tmp_path / "p.json", DEFAULTS)["choice"] == "{question}"


def test_a_prompt_may_be_empty_where_that_means_something(tmp_path):
    (tmp_path / "p.json").write_text('{"poll": ""}')
    assert read_templates(tmp_path / "p.json", DEFAULTS, ("poll",))["poll"] == ""
    with pytest.raises(InputError, match="poll"):
        read_templates(tmp_path / "p.json", DEFAULTS)

"""The JSON of an answer is found wherever a model puts it, and what is none is not taken for it."""

import pytest

from svlm_jax.remote.json_answer import find_json


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ('{"share": 0.5}', {"share": 0.5}),
        ('```json\n{"share": 0.5}\n```', {"share": 0.5}),
        ('Sure! Here {it} is: [1] {"share": 0.5} Anything else?', {"share": 0.5}),
        ('{"share": 0.5', None),
        ("", None),
        ("[0.5]", None),
        ("{" * 100_000, None),
        ('{"a": ' * 50_000, None),
        ("{} " * 99 + '{"share": 1}', {"share": 1}),
        ("{} " * 100 + '{"share": 1}', None),
        ('{"share": 1' + "0" * 5000 + "}", None),
    ],
)
def test_the_first_value_that_is_expected(answer, value):
    assert find_json(answer, lambda found: isinstance(found, dict) and "share" in found) == value

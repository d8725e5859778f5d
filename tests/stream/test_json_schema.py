"""The part of JSON Schema that alerts are checked with: what fits passes, what does not is named, the unknown is refused."""

import pytest

from svlm_jax.errors import InputError
from svlm_jax.stream.json_schema import check_schema, mismatch

RECORD = {
    "type": "object",
    "properties": {
        "team": {"enum": ["Reds", "Blues"]},
        "goals": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 2},
        "sure": {"type": "boolean"},
        "note": {"type": "string", "minLength": 2},
    },
    "required": ["team"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"team": "Reds", "goals": [1, 0], "sure": True, "note": "ab"}, ""),
        ({"team": "Reds", "goals": [1.0]}, ""),  # as JSON, a whole number
        ({"goals": []}, "JSON: got "),
        ({"team": "reds"}, "team: got "),
        ({"team": "Reds", "goals": [1, -1]}, "goals.1: got -1, expected minimum 0"),
        ({"team": "Reds", "goals": [True]}, "goals.0: got true, expected integer"),
        ({"team": "Reds", "goals": [1, 2, 3]}, "goals: got "),
        ({"team": "Reds", "sure": 1}, "sure: got 1, expected boolean"),
        ({"team": "Reds", "note": "a"}, 'note: got "a", expected minLength 2'),
        ({"team": "Reds", "more": 1}, "JSON: got "),
        ([], "JSON: got [], expected object"),
    ],
)
def test_data_is_compared_with_its_schema(data, fault):
    check_schema(RECORD)
    assert mismatch(data, RECORD).startswith(fault) and bool(mismatch(data, RECORD)) == bool(fault)


def test_true_is_not_one():
    assert mismatch(True, {"const": 1}) and mismatch(1, {"enum": [True]}) and not mismatch(True, {"enum": [1, True]})


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "a*"},
        {"type": ["string", "null"]},
        {"properties": []},
        {"required": "team"},
        {"items": [{}]},
        {"minimum": True},
        {"additionalProperties": {}},
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        [],
    ],
)
def test_what_would_not_be_checked_is_refused(schema):
    """Else somebody believes that a pattern has been looked at."""
    with pytest.raises(InputError, match=r"^schema"):
        check_schema(schema)


def test_depth_is_bounded():
    schema: dict = {}
    for _ in range(50):
        schema = {"items": schema}
    with pytest.raises(InputError, match=r"^schema(\.items)+: got .*, expected a JSON object, at most 8 deep"):
        check_schema(schema)

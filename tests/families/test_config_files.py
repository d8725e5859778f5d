"""config.json as a file: found, named in every error, and one line where it is none. What it says: tests/test_config.py."""

import json

import pytest

from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from tests.test_config import PUBLISHED, edited


def test_a_file_and_its_directory_read_the_same(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    assert config_json.read(tmp_path) == config_json.read(tmp_path / "config.json") == config_json.parse(PUBLISHED)


def test_an_error_in_a_file_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(edited(PUBLISHED, "depth", 1) | {"vocab_size": -1}))
    with pytest.raises(InputError, match=rf"{tmp_path}/config\.json text_config\.vocab_size: got -1"):
        config_json.read(tmp_path)


def test_a_missing_file_is_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.json"):
        with pytest.raises(InputError, match="no file") as error:
            config_json.read(path)
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b'{"model_type": "qwen2_5_vl",', b"\xff\xfe{}", b"[1]\n2"])
def test_broken_json_is_one_line_with_the_file(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError) as error:
        config_json.read(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path / "config.json") in str(error.value)

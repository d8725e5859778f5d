"""A state that is saved and loaded says the very same words; another model's, or a broken one, is refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from svlm_jax import hf_config
from svlm_jax.checkpoint import hf
from svlm_jax.config import StreamConfig
from svlm_jax.data.processor import load_tokenizer
from svlm_jax.errors import InputError
from svlm_jax.model.vlm import from_parameters, parameters
from svlm_jax.stream import saved
from svlm_jax.stream.sampling import Sampling
from svlm_jax.stream.session import Session
from tests.test_session import DRAWN, GREEDY, GRID, WINDOWS, chunk, said


@pytest.fixture(scope="module")
def tokenizer(processor_dir):
    return load_tokenizer(processor_dir)


@pytest.fixture(scope="module")
def model(tiny_dir):
    config = hf_config.read(tiny_dir)
    return from_parameters(config, hf.load(tiny_dir, config))


@pytest.fixture(scope="module")
def make(model, tokenizer):
    def made(*, sampling: Sampling = DRAWN, rows: int = 1, **config) -> Session:
        return Session(model, tokenizer, StreamConfig(**{**WINDOWS, **config}), GRID, sampling=sampling, rows=rows)

    return made


@pytest.fixture
def state_file(make, tmp_path):
    """A stream of five chunks, saved."""
    made = make()
    state = made.join(made.start(), query="Commentate", seed=3)
    for number in range(5):
        state, _ = made.step(state, [chunk(number)])
    saved.save(tmp_path / "a.state", made, state, {"next": 5.0})
    return tmp_path / "a.state"


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, 1),
        ({"rebase": "append"}, 2),
        ({"moved": "computed"}, 2),
        ({"mode": "recompute"}, 1),
        ({"mode": "full", "question_tokens": 1}, 1),
    ],
    ids=["streaming", "two rows, appended", "two rows, moved anew", "recomputed", "grown"],
)
def test_what_is_loaded_goes_on_bit_by_bit(make, tmp_path, monkeypatch, settings, rows):
    monkeypatch.setattr("svlm_jax.stream.session.GROWTH", 2)
    made = make(rows=rows, **settings)
    state = made.start()
    for row in range(rows):
        state = made.join(state, row, query="Commentate", previous="red blue ", seed=row)
    for number in range(5):
        state, _ = made.step(state, [chunk(number, row) for row in range(rows)])
    saved.save(tmp_path / "a.state", made, state, {"next": 5.0})
    loaded = saved.load(tmp_path / "a.state", make(rows=rows, **settings))
    assert saved.peek(tmp_path / "a.state") == {"next": 5.0}
    assert loaded.cache.capacity == state.cache.capacity
    for number in range(5, 9):
        both = []
        for which in (0, 1):
            made_state = (state, loaded)[which]
            after, replies = made.step(made_state, [chunk(number, row) for row in range(rows)], record=True)
            both.append(replies)
            state, loaded = (after, loaded) if which == 0 else (state, after)
        assert said(both[0]) == said(both[1])
        for ours, theirs in zip(*both, strict=True):
            np.testing.assert_array_equal(ours.logits, theirs.logits)


def test_a_free_row_stays_free(make, tmp_path):
    made = make(rows=2)
    state = made.join(made.start(), 1)
    state, _ = made.step(state, [None, chunk(0)])
    saved.save(tmp_path / "a.state", made, state)
    loaded = saved.load(tmp_path / "a.state", made)
    assert loaded.streams[0] is None and loaded.streams[1] is not None


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"sampling": GREEDY}, r"temperature: got 1\.5, expected 0\.0"),
        ({"vision_window": 4}, r"vision_window: got 3, expected 4"),
        ({"mode": "recompute"}, r"mode: got 'streaming', expected 'recompute'"),
        ({"rows": 2}, r"rows: got 1, expected 2"),
        ({"fps": 4}, r"fps: got 2\.0, expected 4"),
    ],
)
def test_other_settings_are_refused_by_name(make, state_file, other, named):
    with pytest.raises(InputError, match=named) as error:
        saved.load(state_file, make(**other))
    assert "\n" not in str(error.value)


def test_other_weights_are_refused(make, model, tokenizer, state_file):
    values = parameters(model)
    path = "text.layers.2.mlp.up.kernel"
    values |= {path: values[path].at[3, 5].add(1e-6)}
    made = Session(from_parameters(model.config, values), tokenizer, StreamConfig(**WINDOWS), GRID, sampling=DRAWN)
    with pytest.raises(InputError, match=r"weights: got "):
        saved.load(state_file, made)
    assert saved.load(state_file, make()).streams[0] is not None


def test_a_file_that_is_no_state_is_one_line(make, state_file, tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "weights.safetensors")
    save_file({"a": np.zeros(3)}, tmp_path / "old.state", {"svlm_state": "0", "state": "{}"})
    torn = tmp_path / "torn.state"
    shutil.copy(state_file, torn)
    torn.write_bytes(torn.read_bytes()[:-1000])
    for name, line in (
        ("weights.safetensors", "got another kind of file"),
        ("old.state", "got version 0, expected a state of version 2"),
        ("torn.state", "got an unreadable file"),
        ("none.state", "got an unreadable file"),
    ):
        for use in (saved.peek, lambda path: saved.load(path, make())):
            with pytest.raises(InputError, match=line) as error:
                use(tmp_path / name)
            assert "\n" not in str(error.value)


def test_a_failed_write_leaves_the_file_of_before(make, state_file, monkeypatch):
    made, before = make(), state_file.read_bytes()
    state = made.join(made.start())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match=r"a\.state: got a file that cannot be written"):
        saved.save(state_file, made, state)
    assert state_file.read_bytes() == before and [path.name for path in state_file.parent.iterdir()] == ["a.state"]
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"cannot be written"):
        saved.save(state_file.parent / "no folder" / "a.state", made, state)


def test_a_state_does_not_depend_on_what_the_config_file_says_besides(make, model, tokenizer, state_file):
    config = replace(model.config, hf_extra="{}")
    assert config.text == model.config.text
    assert saved.load(state_file, make()).cache.capacity == make().capacity

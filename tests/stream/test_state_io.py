"""A state that is saved and loaded says the very same words, and saving stalls nothing; another model's state is refused."""

import os
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from svlm_jax.checkpoint import huggingface
from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.media.processor import load_tokenizer
from svlm_jax.model.parameters import from_parameters, parameters
from svlm_jax.stream import state_file as state_format
from svlm_jax.stream import state_io
from svlm_jax.stream.session import Session
from svlm_jax.stream.stream_settings import StreamSettings
from tests.stream.test_state_file import refused
from tests.support import HANG
from tests.support.sessions import DRAWN, GREEDY, GRID, WINDOWS, Compiled, chunk, said


@pytest.fixture(scope="module")
def tokenizer(processor_dir):
    return load_tokenizer(processor_dir)


@pytest.fixture(scope="module")
def model(shallow_dir):
    config = config_json.read(shallow_dir)
    return from_parameters(config, huggingface.load(shallow_dir, config))


@pytest.fixture(scope="module")
def make(model, tokenizer):
    def made(*, sampling: Sampling = DRAWN, num_streams: int = 1, **config) -> Session:
        return Session(
            model, tokenizer, StreamConfig(**{**WINDOWS, **config}), GRID, sampling=sampling, num_streams=num_streams
        )

    return made


@pytest.fixture
def state_file(make, tmp_path):
    """A stream of five chunks, saved."""
    made = make()
    settings = StreamSettings(query="Commentate", seed=3, sampling=DRAWN, config=made.config)
    state = made.join(made.init_state(), settings=settings)
    for number in range(5):
        state, _ = made.step(state, [chunk(number)])
    state_io.save(tmp_path / "a.state", made, state, {"next": 5.0})
    return tmp_path / "a.state"


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, 1),
        ({"rope_positions": "native"}, 2),
        ({"moved_reply_kv": "recompute"}, 2),
        ({"mode": "recompute"}, 1),
        ({"mode": "full", "question_tokens": 1}, 1),
    ],
    ids=["streaming", "two rows, appended", "two rows, moved anew", "recomputed", "grown"],
)
def test_what_is_loaded_goes_on_bit_by_bit(make, tmp_path, monkeypatch, settings, rows):
    monkeypatch.setattr("svlm_jax.stream.admission.GROWTH_CHUNKS", 2)
    made = make(num_streams=rows, **settings)
    state = made.init_state()
    for row in range(rows):
        state = made.join(state, row, StreamSettings(query="Commentate", previous="red blue ", seed=row))
    for number in range(5):
        state, _ = made.step(state, [chunk(number, row) for row in range(rows)])
    state_io.save(tmp_path / "a.state", made, state, {"next": 5.0})
    loaded = state_io.load(tmp_path / "a.state", make(num_streams=rows, **settings))
    assert state_io.peek(tmp_path / "a.state") == {"next": 5.0}
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
    made = make(num_streams=2)
    state = made.join(made.init_state(), 1)
    state, _ = made.step(state, [None, chunk(0)])
    state_io.save(tmp_path / "a.state", made, state)
    loaded = state_io.load(tmp_path / "a.state", made)
    assert loaded.streams[0] is None and loaded.streams[1] is not None


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"sampling": GREEDY}, r"temperature: got 1\.5, expected 0\.0"),
        ({"vision_window": 4}, r"vision_window: got 3, expected 4"),
        ({"mode": "recompute"}, r"mode: got 'streaming', expected 'recompute'"),
        ({"num_streams": 2}, r"num_streams: got 1, expected 2"),
        ({"fps": 4}, r"fps: got 2\.0, expected 4"),
    ],
)
def test_other_settings_are_refused_by_name(make, state_file, other, named):
    with pytest.raises(InputError, match=named) as error:
        state_io.load(state_file, make(**other))
    assert "\n" not in str(error.value)


def test_other_weights_are_refused(make, model, tokenizer, state_file):
    values = parameters(model)
    path = "text.layers.1.mlp.up.kernel"
    values |= {path: values[path].at[3, 5].add(1e-6)}
    made = Session(from_parameters(model.config, values), tokenizer, StreamConfig(**WINDOWS), GRID, sampling=DRAWN)
    with pytest.raises(InputError, match=r"weights: got "):
        state_io.load(state_file, made)
    assert state_io.load(state_file, make()).streams[0] is not None


def test_a_file_that_is_no_state_is_one_line(make, state_file, tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "weights.safetensors")
    save_file({"a": np.zeros(3)}, tmp_path / "old.state", {"svlm_state": "0", "state": "{}"})
    torn = tmp_path / "torn.state"
    shutil.copy(state_file, torn)
    torn.write_bytes(torn.read_bytes()[:-1000])
    for name, line in (
        ("weights.safetensors", "got another kind of file"),
        ("old.state", "got version 0, expected a state of version 4"),
        ("torn.state", "got an unreadable file"),
        ("none.state", "got an unreadable file"),
    ):
        for use in (state_io.peek, lambda path: state_io.load(path, make())):
            with pytest.raises(InputError, match=line) as error:
                use(tmp_path / name)
            assert "\n" not in str(error.value)


def rewritten(path, change) -> None:
    """Write a state anew with a checksum that is right and a content that is not."""
    notes, tensors = state_format.read(path)
    tensors = {name: array.copy() for name, array in tensors.items()}
    change(notes, tensors)
    state_format.write(path, notes, tensors)


def set_slot(notes, tensors):
    tensors["0.slots"][3] = 10**6


def set_mask(notes, mask):
    """A mask for the first vision tokens, of as many bits as there are tokens, or not."""
    next(span for span in notes["streams"][0]["spans"] if span[3] is not None)[-1] = mask


ABSURD = {
    "capacity": lambda notes, tensors: notes.update(capacity=10**12),
    "no capacity": lambda notes, tensors: notes.pop("capacity"),
    "capacity in words": lambda notes, tensors: notes.update(capacity="640"),
    "small": lambda notes, tensors: notes.update(capacity=1),
    "no streams": lambda notes, tensors: notes.update(streams=[]),
    "many streams": lambda notes, tensors: notes.update(streams=notes["streams"] * 1000),
    "no settings": lambda notes, tensors: notes.update(settings=5),
    "ids": lambda notes, tensors: tensors["0.ids"].fill(10**9),
    "slots": set_slot,
    "one slot for all": lambda notes, tensors: tensors["0.slots"].fill(0),
    "positions": lambda notes, tensors: tensors["0.positions"].fill(np.nan),
    "a layer less": lambda notes, tensors: tensors.pop("0.keys.1"),
    "another layer": lambda notes, tensors: tensors.update({"0.keys.1": np.zeros((1, 1, 1), np.float32)}),
    "spans": lambda notes, tensors: notes["streams"][0].update(spans=notes["streams"][0]["spans"][:-1]),
    "a mask": lambda notes, tensors: set_mask(notes, "ff"),
    "a long mask": lambda notes, tensors: set_mask(notes, "00" * 9 + "fc"),
    "a kind": lambda notes, tensors: notes["streams"][0]["spans"][0].__setitem__(0, 99),
    "no stream settings": lambda notes, tensors: notes["streams"][0].pop("settings"),
    "a seed": lambda notes, tensors: notes["streams"][0]["settings"].update(seed="1"),
    "a longest reply": lambda notes, tensors: notes["streams"][0]["settings"].update(max_new_tokens=2.5),
    "a top_k": lambda notes, tensors: notes["streams"][0]["settings"]["sampling"].update(top_k="all"),
    "a temperature": lambda notes, tensors: notes["streams"][0]["settings"]["sampling"].update(temperature=float("nan")),
    "windows": lambda notes, tensors: notes["streams"][0]["settings"]["config"].update(vision_window=1.5),
    "pacing": lambda notes, tensors: notes["streams"][0]["settings"].update(pacing=None),
    "time": lambda notes, tensors: notes["streams"][0].update(window_start=99),
}


@pytest.mark.parametrize("change", ABSURD.values(), ids=ABSURD.keys())
def test_an_absurd_state_takes_no_memory_and_is_one_line(make, state_file, change, monkeypatch):
    made, start = make(), Session.init_state

    def small(self, capacity=None):
        assert capacity is None or capacity < 2000
        return start(self, capacity)

    monkeypatch.setattr(Session, "init_state", small)
    rewritten(state_file, change)
    line = refused(state_io.load, state_file, made)
    assert "a content that no release writes" in line or "as the session has it" in line


def test_a_device_that_holds_keys_in_another_type_is_told(make, state_file):
    rewritten(state_file, lambda notes, tensors: notes.update(kv_dtype="bfloat16"))
    assert "keys and values: got bfloat16, expected float32, as this device holds them" in refused(
        state_io.load, state_file, make()
    )


def test_saving_and_loading_compile_nothing(make, tmp_path):
    """Else a stream stalls at every save, and memory creeps, for as long as it lives."""
    made = make()
    state = made.join(made.init_state(), settings=StreamSettings(query="Commentate", seed=3))
    state, _ = made.step(state, [chunk(0)])
    writer = state_io.Writer(tmp_path / "b.state", made)
    with Compiled() as compiled:
        for number in range(1, 11):
            state, _ = made.step(state, [chunk(number)])  # every time as many tokens as never before
            state_io.save(tmp_path / "a.state", made, state)
            writer.save(state, {})
        writer.wait()
        loaded = state_io.load(tmp_path / "a.state", made)
        made.step(loaded, [chunk(11)])
    assert compiled.count == 0 and writer.failure() is None
    assert (tmp_path / "a.state").stat().st_size and state_io.peek(tmp_path / "b.state") == {}


def test_the_weights_are_looked_at_once_a_session(make, tmp_path, monkeypatch):
    made, looked = make(), []
    monkeypatch.setattr(state_io, "_checksum", lambda values: looked.append(1) or np.uint32(7))
    for _ in range(3):
        state_io.save(tmp_path / "a.state", made, made.join(made.init_state()))
    state_io.load(tmp_path / "a.state", made)
    assert len(looked) == 1


def test_a_stream_goes_on_while_its_state_is_written(make, tmp_path, monkeypatch):
    """What is written is the stream as it was when the save began, whatever it has said since."""
    made, going, let, write = make(), threading.Event(), threading.Event(), state_format.StateFile.write
    state = made.join(made.init_state(), settings=StreamSettings(seed=3))
    state, _ = made.step(state, [chunk(0)])
    state_io.save(tmp_path / "then.state", made, state, {"next": 1.0})
    writer, order = state_io.Writer(tmp_path / "a.state", made), []

    def held(*args):
        going.set()
        assert let.wait(HANG)
        write(*args)

    monkeypatch.setattr(state_format.StateFile, "write", held)
    with writer:
        writer.save(state, {"next": 1.0}, first=lambda: order.append("first"))
        assert going.wait(HANG) and writer.busy and writer.failure() is None and order == ["first"]
        state, _ = made.step(state, [chunk(1)])  # its cache is donated meanwhile
        assert not (tmp_path / "a.state").exists()
        let.set()
    assert not writer.busy and (tmp_path / "a.state").read_bytes() == (tmp_path / "then.state").read_bytes()


def test_of_what_is_saved_on_a_slow_disk_the_newest_is_written_even_if_nothing_comes_after_it(make, tmp_path, monkeypatch):
    """Else: where a camera goes away, the file stays as old as the last save that the disk was quick enough for."""
    session, writing, release, write = make(), threading.Event(), threading.Event(), state_format.StateFile.write
    written = []

    def slow_write(file, metadata, *args):
        writing.set()
        assert release.wait(HANG)
        written.append(metadata["extra"]["next"])
        write(file, metadata, *args)

    monkeypatch.setattr(state_format.StateFile, "write", slow_write)
    state = session.join(session.init_state())
    with state_io.Writer(tmp_path / "a.state", session) as writer:
        writer.save(state, {"next": 1.0})
        assert writing.wait(HANG)
        for second in (2.0, 3.0, 4.0):
            state, _ = session.step(state, [chunk(int(second))])
            writer.save(state, {"next": second})
        release.set()
        writer.wait()
        assert not writer.busy and written == [1.0, 4.0] and state_io.peek(tmp_path / "a.state")["next"] == 4.0
        state_io.save(tmp_path / "now.state", session, state, {"next": 4.0})
    assert (tmp_path / "a.state").read_bytes() == (tmp_path / "now.state").read_bytes()


def test_a_failure_is_reported_while_the_next_state_is_being_written(make, tmp_path, monkeypatch):
    """Else: on a slow disk that is full, where one always is, nobody hears of it."""
    session, writing, release, calls = make(), threading.Event(), threading.Event(), []

    def write(*_):
        calls.append(None)
        if len(calls) == 1:
            raise OSError("full")
        writing.set()
        assert release.wait(HANG)

    monkeypatch.setattr(state_format.StateFile, "write", write)
    state = session.join(session.init_state())
    with state_io.Writer(tmp_path / "a.state", session) as writer:
        writer.save(state, {})
        writer.wait()
        writer.save(state, {})
        assert writing.wait(HANG) and writer.busy and str(writer.failure()) == "full" and writer.failure() is None
        release.set()
    assert writer.failure() is None


def test_a_save_that_fails_in_its_thread_is_told_once_and_the_next_succeeds(make, tmp_path):
    made = make()
    writer = state_io.Writer(tmp_path / "gone" / "a.state", made)
    writer.save(made.join(made.init_state()), {})
    writer.wait()
    assert "gone/a.state: got a file that cannot be written" in str(writer.failure()) and writer.failure() is None
    (tmp_path / "gone").mkdir()
    writer.save(made.join(made.init_state()), {})
    writer.wait()
    assert writer.failure() is None and state_io.peek(tmp_path / "gone" / "a.state") == {}


def test_an_interrupt_calls_a_save_off_and_leaves_the_file_of_before(make, state_file, monkeypatch):
    made, before, begun = make(), state_file.read_bytes(), threading.Event()
    pieces = state_format._blocks

    def slow(*args):
        for number, piece in enumerate(pieces(*args)):
            begun.set()
            while number == 1 and not writer.cancelled:
                pass
            yield piece

    monkeypatch.setattr(state_format, "_blocks", slow)
    with pytest.raises(KeyboardInterrupt), state_io.Writer(state_file, made) as writer:
        writer.save(made.join(made.init_state()), {})
        assert begun.wait(HANG)
        raise KeyboardInterrupt
    assert state_file.read_bytes() == before and os.listdir(state_file.parent) == ["a.state"]


def test_a_loss_of_power_leaves_the_new_file_or_the_one_of_before(make, state_file, monkeypatch):
    """The disk has the bytes before the name, and the name before the save counts as done."""
    made, told = make(), []
    fsync, rename = os.fsync, os.replace

    def synced(number):
        told.append("folder" if os.path.isdir(f"/proc/self/fd/{number}") else "file")
        fsync(number)

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr("os.replace", lambda *names: (told.append("name"), rename(*names)))
    state_io.save(state_file, made, made.join(made.init_state()))
    assert told == ["file", "name", "folder"]


def test_a_failed_write_leaves_the_file_of_before(make, state_file, monkeypatch):
    made, before = make(), state_file.read_bytes()
    state = made.join(made.init_state())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match=r"a\.state: got a file that cannot be written"):
        state_io.save(state_file, made, state)
    assert state_file.read_bytes() == before and [path.name for path in state_file.parent.iterdir()] == ["a.state"]
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"cannot be written"):
        state_io.save(state_file.parent / "no folder" / "a.state", made, state)


def test_a_state_does_not_depend_on_what_the_config_file_says_besides(make, model, tokenizer, state_file):
    config = replace(model.config, hf_extra="{}")
    assert config.text == model.config.text
    assert state_io.load(state_file, make()).cache.capacity == make().capacity

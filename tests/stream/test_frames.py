"""Frames that go to the device as they are: a stream says what it says with the host's patches, whatever the sizes of frames,
and nothing compiles for a size."""

import math
import threading
from dataclasses import replace

import jax
import numpy as np
import pytest

import svlm_jax
from svlm_jax.config import StreamConfig
from svlm_jax.data.annotation import Annotation, Word
from svlm_jax.errors import InputError
from svlm_jax.families import family_named
from svlm_jax.inputs import Clip, Frames
from svlm_jax.media.processor import Processor
from svlm_jax.media.resize_weights import FrameBox
from svlm_jax.media.video import write_video
from svlm_jax.replay import stream
from svlm_jax.replay.format import noise_frames
from svlm_jax.serve.engine.session import session_for
from svlm_jax.serve.sources.images import Box, fit_size
from svlm_jax.sharding import make_mesh
from svlm_jax.stream import frames
from svlm_jax.stream.events import Caption
from svlm_jax.stream.playback import Playback
from svlm_jax.stream.runner import VIDEO, Runner
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Session
from svlm_jax.stream.stream_settings import StreamSettings
from svlm_jax.stream.warmup import compile_programs
from svlm_jax.stream.watch import watch
from svlm_jax.touchline.scratch import scratch
from tests.stream.test_runner import CONFIG, Film
from tests.support import FIXTURES
from tests.support.pixels import STREAM_FRAME, hard_frame
from tests.support.sessions import Compiled, said

SIZES = ((56, 84), (90, 70))  # of two streams: as it is, and resized
BOX = (100, 100)  # of the session that watches both


@pytest.fixture(scope="module")
def vlm(tiny_dir, processor_dir):
    return svlm_jax.from_pretrained(tiny_dir, processor=processor_dir)


@pytest.fixture(scope="module")
def box(vlm):
    return FrameBox.largest(2, *BOX, vlm.processor.video_config, max_aspect_ratio=2)


def chunk(vlm, number: int, size: tuple[int, int], seed: int, on_device: bool) -> Chunk:
    pair = np.stack([hard_frame(*size, seed + 2 * number + i) for i in range(2)])
    clip = vlm.processor.frames(pair) if on_device else vlm.processor.video(pair, raw=True)
    return Chunk(number, number + 1, clip)


def session(vlm, box: FrameBox | None, model=None) -> Session:
    """For two streams, always as one batch: a stream that waits is an idle row of it."""
    options = {"num_streams": 2, "sampling": vlm.sampling, "frame_box": box}
    grid = vlm.processor.frames(np.zeros((2, *BOX, 3), np.uint8)).grid
    made = Session(model or vlm.model, vlm.tokenizer, CONFIG, (1, 2, 2 * grid[1] * grid[2]), **options)
    made.batch_sizes = (2,)
    return made


def replies(vlm, made: Session, on_device: bool) -> list[list[int]]:
    """Of both streams over four seconds; in one of them only the second has a chunk."""
    state = made.join(made.join(made.init_state(), 0, StreamSettings(seed=1)), 1, StreamSettings(seed=2))
    every = []
    for number in range(4):
        chunks = [chunk(vlm, number, size, 100 * b, on_device) for b, size in enumerate(SIZES)]
        state, some = made.step(state, [None if number == 2 else chunks[0], chunks[1]])
        every += [reply for reply in some if reply is not None]
    return said(every)


@pytest.fixture(scope="module")
def on_host(vlm):
    return replies(vlm, session(vlm, None), on_device=False)


@pytest.fixture(scope="module")
def compiled_session(vlm, box) -> Session:
    made = session(vlm, box)
    compile_programs(made, (2,), made.init_state(), chunk(vlm, 0, SIZES[1], 0, True).clip)
    return made


def test_streams_of_two_sizes_say_the_same_and_share_their_programs(vlm, compiled_session, on_host):
    """Else words depend on where pixels are made, or a second viewer's camera stops the page for a minute."""
    with Compiled() as compiled:
        got = replies(vlm, compiled_session, on_device=True)
    assert compiled.count == 0
    assert got == on_host and len(got) == 7


@pytest.mark.slow
def test_over_devices_each_stream_is_resized_where_it_is(vlm, box, on_host, tiny_dir, processor_dir):
    """Else a mesh that shares the streams is refused raw frames, or every device is sent all of them."""
    cut = svlm_jax.from_pretrained(tiny_dir, processor=processor_dir, mesh=make_mesh(data=2))
    made = session(vlm, box, cut.model)
    assert made.upload(clip := chunk(vlm, 0, SIZES[0], 0, True).clip) is clip
    assert replies(vlm, made, on_device=True) == on_host


def test_a_recorded_stream_of_the_original_replays(data_dir, processor_dir):
    """The words of the original implementation, from frames that only the device has seen as patches."""
    recording = stream.read(FIXTURES / "streams" / "greedy.json")
    settings = recording.settings
    vlm = svlm_jax.from_pretrained(data_dir / "models" / "tiny", processor=processor_dir, dtype="float32")
    height, width = settings["frame_height"], settings["frame_width"]
    grid = (1, height // 14, width // 14)
    box = FrameBox.of(2, height, width, height, width)
    options = {"sampling": recording.sampling, "markup": True, "frame_box": box}
    runner = Runner(Session(vlm.model, vlm.tokenizer, recording.config, grid, **options))
    runner.join(VIDEO, StreamSettings(query=settings["query"], previous=settings["previous_text"]))
    for recorded in recording.rounds[:10]:
        pixels = noise_frames(settings["seed"], recorded["frames"], height, width)
        clip = Clip(np.zeros((0, 1176), np.uint8), grid, 1.0, video=True, frames=Frames(pixels, height, width))
        caption = runner.caption(VIDEO, Chunk(recorded["start"], recorded["end"], clip))
        assert caption.tokens.tolist() == recorded["generated"]


def test_frames_are_sent_by_the_thread_that_reads_them(vlm, compiled_session, monkeypatch):
    """Else the device waits for each chunk's frames to travel. And no frames are sent for a stream that waits."""
    sent: list[tuple[str, int]] = []
    put = jax.device_put

    def recorded_put(x, *args, **kwargs):
        if isinstance(x, np.ndarray) and x.dtype == np.uint8:
            sent.append((threading.current_thread().name, x.nbytes))
        return put(x, *args, **kwargs)

    def start(clip: Clip) -> Runner:
        runner = Runner(compiled_session)
        runner.join(VIDEO)
        return runner

    monkeypatch.setattr(jax, "device_put", recorded_put)
    with Playback(vlm.processor, on_device=True) as playback:
        words = [event for event in watch(playback, Film(8), start) if isinstance(event, Caption)]
    assert len(words) == 4
    assert sent == [("decode", 2 * 3 * math.prod(BOX))] * 4


def test_a_page_takes_every_picture_that_it_fits_into_its_box(vlm, monkeypatch):
    """Else a camera held upright is refused for its shape."""
    monkeypatch.setattr("svlm_jax.serve.engine.session.warm", lambda *_, **__: None)
    config = replace(CONFIG, chunk_seconds=1)
    made, clip = session_for(vlm, config, Box(168, 112), 1, vlm.sampling, resize_on="device")
    assert clip.frames is not None and made.frame_box is not None and made.frame_box[:3] == (2, 112, 168)
    for size in ((1280, 720), (720, 1280), (400, 100), (100, 400), (10, 37), (31, 8), (168, 112)):
        width, height = fit_size(*size, Box(168, 112))
        fitted = vlm.processor.frames(np.zeros((2, height, width, 3), np.uint8))
        frames.check_clip(fitted, made.grid, made.frame_box, vlm.model.config)


@pytest.mark.parametrize("size", [(101, 100), (100, 101)])
def test_a_frame_that_does_not_fit_is_refused_in_a_line(vlm, box, size):
    made = session(vlm, box)
    with pytest.raises(InputError, match=r"^frames of a chunk: got .* make a session for them"):
        made.prepare(made.join(made.init_state()), 0, chunk(vlm, 0, size, 0, True))
    with pytest.raises(ValueError, match="got patches of a chunk, expected frames"):
        made.prepare(made.join(made.init_state()), 0, chunk(vlm, 0, SIZES[0], 0, False))


@pytest.mark.slow
def test_a_stream_of_qwen3_vl_says_the_same_on_the_device(tmp_path):
    """Patches of 16 pixels with a normalisation of their own, blocks of one pair, learned positions."""
    scratch(tmp_path / "0", [Annotation(None, 0, 1, "Tell", "", (Word(0, 1, "Home"),))], family=family_named("qwen3-vl"))
    write_video(tmp_path / "v.mp4", np.stack([hard_frame(224, 336, seed) for seed in range(6)]), 2)
    qwen3 = svlm_jax.from_pretrained(tmp_path / "0")
    events = [list(qwen3.watch(tmp_path / "v.mp4", resize_on=on, max_new_tokens=4)) for on in ("host", "device")]
    host, device = ([event.tokens.tolist() for event in half if isinstance(event, Caption)] for half in events)
    assert host == device and len(host) == 3


def test_the_setting_says_where_frames_are_resized(vlm, monkeypatch):
    def choice(setting, pixels=STREAM_FRAME, model=vlm.model.config, **config):
        return frames.resizes_on_device(setting, Processor(model, vlm.tokenizer, video=pixels), StreamConfig(**config))

    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    own = replace(STREAM_FRAME, **half)
    other = replace(vlm.model.config.vision, **{f"image_{name}": value for name, value in half.items()})  # as in Qwen3-VL
    assert not choice("auto") and not choice("host") and choice("device")  # this is a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choice("auto") and not choice("host")
    assert not choice("auto", own) and not choice("auto", mode="recompute")
    assert choice("auto", own, replace(vlm.model.config, vision=other))  # whose tower normalises so
    for pixels, config in ((own, {}), (STREAM_FRAME, {"mode": "recompute"})):
        with pytest.raises(InputError, match=r"^--resize-on: got device with "):
            choice("device", pixels, **config)
    with pytest.raises(InputError, match="less than 2 GiB"):
        frames.check_box(FrameBox.of(90, 2160, 3840, 560, 1008))

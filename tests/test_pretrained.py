"""Claims about svlm_jax.from_pretrained: a directory captions images and clips; whatever is missing is said in one line."""

import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import svlm_jax
from svlm_jax.checkpoint import huggingface, orbax
from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.media.video import write_video
from svlm_jax.model.parameters import parameters, stack
from svlm_jax.sharding import make_mesh
from svlm_jax.stream.events import Caption, Ended, Started
from svlm_jax.stream.runner import Runner

LENGTH = {"max_new_tokens": 16}


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (70, 90, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def vlm(shallow_dir, processor_dir):
    return svlm_jax.from_pretrained(shallow_dir, processor=processor_dir)


@pytest.fixture
def copy(shallow_dir, processor_dir, tmp_path):
    """A directory with everything in it, to be damaged."""
    for source in (processor_dir, shallow_dir):
        shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    return tmp_path


def refusal(name, **options):
    with pytest.raises(InputError) as error:
        svlm_jax.from_pretrained(name, **options)
    message = str(error.value)
    assert "\n" not in message and ": got " in message and "; " in message
    return message


# --- captions ---


def test_an_image_is_captioned_the_same_as_array_as_picture_and_as_file(vlm, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "photo.png")
    want = vlm.caption(picture(), **LENGTH)
    assert isinstance(want, str) and want
    for source in (Image.fromarray(picture()), tmp_path / "photo.png", str(tmp_path / "photo.png")):
        assert vlm.caption(source, **LENGTH) == want


def test_a_caption_is_the_reply_to_the_default_prompt(vlm):
    sample = vlm.processor.prompt("Describe this image.", vlm.processor.image(picture()))
    assert vlm.caption(picture(), **LENGTH) == vlm.generate([sample], **LENGTH)[0]
    asked = vlm.processor.prompt("What?", vlm.processor.image(picture()))
    assert vlm.caption(picture(), "What?", **LENGTH) == vlm.generate([asked], **LENGTH)[0]


def test_options_of_a_multiple_choice_have_log_probabilities(vlm):
    sample = vlm.processor.prompt("What?", vlm.processor.image(picture()))
    options = ["yes", "no", "a long answer of several words"]
    sums = vlm.score(sample, options)
    assert sums.shape == (3,) and sums.dtype == np.float32 and (sums < 0).all() and len(set(sums.tolist())) == 3
    lengths = [len(vlm.tokenizer.encode(option, add_special_tokens=False)) for option in options]
    means = vlm.score(sample, options, length_normalized=True)
    np.testing.assert_allclose(means * lengths, sums, rtol=1e-6)


def test_a_list_of_frames_is_captioned_as_a_clip(vlm):
    frames = [picture(seed) for seed in range(4)]
    clip = vlm.processor.video(frames)
    assert clip.video and clip.grid[0] == 2 and clip.step == 2.0
    want = vlm.generate([vlm.processor.prompt("Describe this video.", clip)], **LENGTH)[0]
    assert vlm.caption(frames, **LENGTH) == want
    assert vlm.caption([Image.fromarray(frame) for frame in frames], **LENGTH) == want
    assert vlm.caption(np.stack(frames), **LENGTH) == want


def test_a_video_file_is_captioned(vlm, tmp_path):
    frames = np.repeat(np.stack([picture(seed)[:64, :64] for seed in range(2)]), 2, axis=0)
    write_video(tmp_path / "clip.mp4", frames, 2)
    clip = vlm.processor.open(tmp_path / "clip.mp4")
    assert clip.video and clip.grid[0] == 2
    want = vlm.generate([vlm.processor.prompt("Describe this video.", clip)], **LENGTH)[0]
    assert vlm.caption(str(tmp_path / "clip.mp4"), **LENGTH) == want


def test_a_batch_of_prompts_gets_the_replies_of_each_alone(vlm):
    samples = [
        vlm.processor.prompt("Describe this image.", vlm.processor.image(picture(1))),
        vlm.processor.prompt("Hello"),
        vlm.processor.prompt("And these?", vlm.processor.image(picture(2)), vlm.processor.image(picture(3)[:60, :60])),
    ]
    together = vlm.generate(samples, **LENGTH)
    assert together == [vlm.generate([sample], **LENGTH)[0] for sample in samples]


def test_a_reply_of_a_seed_of_its_own_does_not_depend_on_its_place_in_the_batch(vlm):
    """Else a sampled answer of a benchmark changes with the batch size."""
    samples = [vlm.processor.prompt("Hello"), vlm.processor.prompt("Hello")]
    sampling = Sampling(temperature=1.0)
    first, second = vlm.replies(samples, sampling=sampling, seed=(5, 6), **LENGTH)
    assert vlm.replies(samples, sampling=sampling, seed=(6, 5), **LENGTH) == [second, first]
    assert first != second and 1 <= first.num_tokens <= 16
    with pytest.raises(InputError, match="seed: got 1 of them, expected 2"):
        vlm.replies(samples, seed=(5,), **LENGTH)


# --- loading ---


def same(one, other):
    """The same weights, token ids and patches: so the same captions."""
    assert one.eos_token_ids == other.eos_token_ids == (435,)
    values, wanted = parameters(one.model), parameters(other.model)
    assert values.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(values[path], value, err_msg=path)
    mine, theirs = (vlm.processor.prompt("What is this?", vlm.processor.image(picture())) for vlm in (one, other))
    np.testing.assert_array_equal(mine.ids, theirs.ids)
    np.testing.assert_array_equal(mine.clips[0].patches, theirs.clips[0].patches)


def test_a_directory_with_everything_in_it_needs_no_processor(copy, vlm):
    same(svlm_jax.from_pretrained(str(copy)), vlm)


def test_the_orbax_form_is_the_same_model(shallow_dir, processor_dir, tmp_path, vlm):
    config = config_json.read(shallow_dir)
    orbax.save(tmp_path, config, stack(huggingface.load(shallow_dir, config)))
    same(svlm_jax.from_pretrained(tmp_path, processor=processor_dir), vlm)


def test_a_model_on_a_mesh_captions_the_same(shallow_dir, processor_dir, vlm):
    spread = svlm_jax.from_pretrained(shallow_dir, processor=processor_dir, mesh=make_mesh(fsdp=4, tensor=2))
    assert spread.caption(picture(), **LENGTH) == vlm.caption(picture(), **LENGTH)


def test_the_precision_may_be_chosen(shallow_dir, processor_dir, vlm):
    assert {str(value.dtype) for value in parameters(vlm.model).values()} == {"float32"}
    half = svlm_jax.from_pretrained(shallow_dir, processor=processor_dir, dtype="bfloat16")
    assert {str(value.dtype) for value in parameters(half.model).values()} == {"bfloat16"}
    assert half.model.config.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("content", "ids"), [('{"eos_token_id": [5, 6]}', (5, 6)), ('{"eos_token_id": 7}', (7,)), ("{}", (435,))]
)
def test_the_generation_config_has_the_last_word_on_the_end(copy, content, ids):
    (copy / huggingface.GENERATION).write_text(content)
    assert svlm_jax.from_pretrained(copy).eos_token_ids == ids


def test_progress_is_passed_on(shallow_dir, processor_dir):
    seen = []
    svlm_jax.from_pretrained(shallow_dir, processor=processor_dir, progress=lambda done, total: seen.append(done / total))
    assert seen[-1] == 1.0 and len(seen) > 50


# --- what is missing or wrong ---


def test_a_missing_tokenizer_is_one_line_before_the_weights_are_read(shallow_dir):
    seen = []
    assert "no tokenizer.json or vocab.json" in refusal(shallow_dir, progress=lambda *n: seen.append(n))
    assert not seen


@pytest.mark.parametrize("name", ["nobody/nothing-at-all", "not a hub id", "a/b/c/d", "/no/such/directory", "missing"])
def test_a_name_that_is_neither_a_directory_nor_a_hub_id_is_one_line(name):
    assert refusal(name).startswith(f"model: got {name} (")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("tokenizer.json", "{"),
        ("preprocessor_config.json", "{"),
        ("video_preprocessor_config.json", "[]"),
        (huggingface.GENERATION, "{"),
        (huggingface.GENERATION, "[]"),
        (huggingface.GENERATION, '{"eos_token_id": "<|im_end|>"}'),
        (huggingface.SINGLE, "{"),
    ],
)
def test_a_broken_file_is_one_line_that_names_its_directory(copy, file, content):
    (copy / file).write_text(content)
    assert str(copy) in refusal(copy)


@pytest.mark.parametrize("file", ["config.json", huggingface.SINGLE])
def test_a_missing_file_is_one_line(copy, file):
    (copy / file).unlink()
    assert str(copy) in refusal(copy)


def test_an_unknown_precision_is_refused(shallow_dir, processor_dir):
    assert "float16" in refusal(shallow_dir, processor=processor_dir, dtype="float16")


# --- watching ---


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (12, 56, 84, 3), dtype=np.uint8)
    write_video(path, iter(frames), 4)
    return path


SMALL = {"vision_window": 2, "text_rounds": 2, "sink": 4, "text_window": 4, "max_new_tokens": 5}


def test_settings_of_a_stream_are_given_by_name(vlm, film):
    """Else four frames a second need a whole config."""
    captions = list(vlm.watch(film, fps=4, **SMALL))
    expected = list(vlm.watch(film, config=StreamConfig(fps=4, **SMALL)))
    assert [caption.tokens.tolist() for caption in captions] == [caption.tokens.tolist() for caption in expected]
    assert len(expected) == 3


def test_events_hold_the_captions_and_tokens_come_before_them(vlm, film):
    """Else a program that shows words as they come shows others than one that waits."""
    deltas = []
    events = list(vlm.events(film, fps=4, on_token=deltas.append, **SMALL))
    captions = [event for event in events if isinstance(event, Caption)]
    assert isinstance(events[0], Started) and isinstance(events[-1], Ended)
    assert [caption.text for caption in captions] == [caption.text for caption in vlm.watch(film, fps=4, **SMALL)]
    assert [delta.token for delta in deltas] == [token for caption in captions for token in caption.tokens.tolist()]


def test_public_names_are_there_and_cost_no_jax_until_they_need_it():
    """Else `import svlm_jax` takes seconds, or a name of the documentation is not in the package."""
    assert svlm_jax.__all__ == sorted(svlm_jax.__all__, key=lambda name: (name[0].islower(), name))
    assert all(getattr(svlm_jax, name) is not None for name in svlm_jax.__all__)
    code = "import sys, svlm_jax; svlm_jax.Caption, svlm_jax.StreamConfig, svlm_jax.open_source; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_nothing_compiles_in_the_first_second_of_a_stream(vlm, film, monkeypatch):
    """Else its milliseconds are those of the compiler."""
    events: list[str] = []
    compiled = Runner.compiled

    def compile_and_forget(*args, **options):
        runner = compiled(*args, **options)
        events.clear()
        return runner

    def listen(event, duration_secs, **_):
        events.append(event)

    monkeypatch.setattr(Runner, "compiled", compile_and_forget)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        next(vlm.watch(film, fps=4, vision_window=2, max_new_tokens=6))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert "/jax/core/compile/backend_compile_duration" not in events


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"vision_windows": 3},
            r"^setting vision_windows: got no field of StreamConfig, expected one of mode, vision_window, ",
        ),
        ({"fps": 3}, r"^fps: got 3 fps in chunks of 1 s, expected an even number of frames a chunk; "),
        ({"mode": "fast"}, r"^mode: got 'fast', expected one of "),
        ({"query": "who scored? " * 60}, r"^query: got \d+ tokens, expected at most 256 "),
    ],
)
def test_a_wrong_setting_of_a_stream_is_one_line_at_once(vlm, settings, line):
    with pytest.raises(InputError, match=line):
        vlm.watch("not looked at", **settings)

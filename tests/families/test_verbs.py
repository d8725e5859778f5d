"""The commands do with a tiny model of every family what they do with Qwen2.5-VL, which most other tests have: convert there
and back, caption, stream (in 8 bits), serve."""

import json
import sys
from itertools import islice

import numpy as np
import pytest
from PIL import Image

import svlm_jax
from svlm_jax.checkpoint import huggingface
from svlm_jax.cli import caption, convert, stream
from svlm_jax.decode.sampling import COMMENTARY
from svlm_jax.families import FAMILIES, config_json
from svlm_jax.inputs import Inputs
from svlm_jax.media.video import write_video
from svlm_jax.model.parameters import from_parameters
from svlm_jax.model.transforms import fuse
from svlm_jax.serve.engine.session import session_for
from svlm_jax.touchline.film import Film
from tests.support.families import tiny_checkpoint
from tests.support.serving import BOX, CONFIG, film, serving  # noqa: F401

OTHERS = [family for name, family in FAMILIES.items() if name != "qwen2_5_vl"]


@pytest.fixture(scope="module", params=[family.name for family in OTHERS])
def directory(request, tmp_path_factory):
    family = next(family for family in OTHERS if family.name == request.param)
    return tiny_checkpoint(family, tmp_path_factory.mktemp("model") / "0")


@pytest.fixture
def command(monkeypatch, capsys):
    """What a command prints, run in this process."""

    def run(module, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["svlm", *map(str, words)])
        module.main()
        return capsys.readouterr().out

    return run


def test_a_checkpoint_comes_back_from_orbax_bit_by_bit(command, directory, tmp_path):
    command(convert, directory, tmp_path / "jax")
    command(convert, tmp_path / "jax", tmp_path / "hf")
    for name in (huggingface.SINGLE, "config.json", "tokenizer.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (directory / name).read_bytes(), name


def test_a_film_is_watched(command, directory, tmp_path):
    write_video(tmp_path / "film.mp4", islice(Film(1, size=(168, 112)).frames(10), 30), 10)
    windows = ("--vision-window", 2, "--text-rounds", 2, "--sink", 6, "--text-window", 6, "--max-new-tokens", 6)
    options = ("--model", directory, "--weights", "int8", "--jsonl", tmp_path / "a.jsonl", "--compile-cache", "none")
    command(stream, tmp_path / "film.mp4", "--query", "Commentate", *options, *windows)
    captions = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(line["start"], line["end"]) for line in captions] == [(n, n + 1) for n in range(3)]
    assert all(0 < len(line["tokens"]) <= 6 for line in captions)


@pytest.mark.slow
def test_an_image_is_captioned(command, directory, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 168, 3), np.uint8)).save(tmp_path / "photo.png")
    said = command(caption, tmp_path / "photo.png", "--model", directory, "--max-new-tokens", 4, "--compile-cache", "none")
    assert said.splitlines()[0] and "1 x " in said.splitlines()[-1]


@pytest.mark.slow
def test_fused_projections_compute_what_separate_ones_compute(directory):
    config = config_json.read(directory)
    values = huggingface.load(directory, config)
    ids = np.arange(8, dtype=np.int32)[None]
    inputs = Inputs(ids, ids, np.broadcast_to(ids[:, None].astype(np.float32), (1, 3, 8)), np.full((1, 8), -1, np.int32))
    want = np.asarray(from_parameters(config, values)(inputs))
    np.testing.assert_allclose(from_parameters(*fuse(config, values))(inputs), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.slow
def test_two_viewers_are_served(directory, film):
    vlm = svlm_jax.from_pretrained(directory)
    compiled = vlm.processor, *session_for(vlm, CONFIG, BOX, 2, COMMENTARY)
    with serving(compiled, film) as server, server.viewer() as first, server.viewer() as second:
        name = first.start(source="match", seed=7)
        second.send("join", stream=name)
        numbers = [first.receive("caption")["number"] for _ in range(3)]
        assert numbers == [numbers[0] + n for n in range(3)] and second.receive("caption")
        first.stop()

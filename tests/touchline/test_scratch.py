"""Claims about a model from nothing: of every family it is one that the library, and transformers, take for a published one."""

import json

import numpy as np
import pytest

from svlm_jax.data.annotation import Annotation, Word
from svlm_jax.errors import InputError
from svlm_jax.families import FAMILIES, config_json, family_named
from svlm_jax.media.processor import Processor
from svlm_jax.touchline.scratch import scratch

WORDS = (Word(0, 1, "Home"), Word(1, 2, "scores"))
FILM = np.zeros((2, 224, 336, 3), np.uint8)


@pytest.fixture(scope="module", params=[family.name.lower() for family in FAMILIES.values()])
def made(request, tmp_path_factory):
    family, directory = family_named(request.param), tmp_path_factory.mktemp(request.param) / "0"
    config = scratch(directory, [Annotation(None, 0, 2, "Tell", "", WORDS)], family=family)
    return family, config, directory


def test_it_is_read_as_it_was_written(made):
    family, config, directory = made
    read = config_json.read(directory)
    assert (read.text, read.vision, read.model_type) == (config.text, config.vision, family.model_type)
    processor = Processor.from_directory(directory, config)
    clip = processor.video(FILM, raw=True)
    assert clip.grid == (1, 8, 12) and clip.patches.dtype == np.uint8  # 6 x 4 tokens
    assert processor.image(FILM[0]).grid == (1, 8, 12)
    assert processor.video(np.repeat(FILM, 20, axis=0)).grid == (20, 8, 12)  # of many frames each is as large


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise Exception("No space left on device (os error 28)")  # as tokenizers says it

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", fail)
    with pytest.raises(InputError, match=r"a failed write \(No space left on device\)"):
        scratch(tmp_path / "made", [Annotation(None, 0, 2, "Tell", "", WORDS)])
    assert not list(tmp_path.iterdir())


def test_transformers_reads_it(made):
    transformers = pytest.importorskip("transformers")
    library = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    family, config, directory = made
    theirs = transformers.AutoConfig.from_pretrained(directory)
    assert theirs.model_type == family.model_type and theirs.vision_config.patch_size == config.vision.patch_size
    pixels = library.Qwen2VLImageProcessorPil.from_pretrained(directory)(images=FILM[0], return_tensors="np")
    assert pixels["image_grid_thw"].tolist() == [[1, 8, 12]]
    np.testing.assert_array_equal(pixels["pixel_values"], Processor.from_directory(directory, config).image(FILM[0]).patches)
    for file, key in (("preprocessor", "image_processor"), ("video_preprocessor", "video_processor")):
        settings = json.loads((directory / f"{file}_config.json").read_text())
        assert settings[f"{key}_type"] == family.processor_classes[key]
        assert settings["processor_class"] == family.processor_classes["processor"]
    if family.video_size == "video":
        video = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl").Qwen3VLVideoProcessor(**settings)
        assert video.get_num_of_video_patches(40, 224, 336) == 20 * 8 * 12


def test_its_weights_are_a_model(made):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    _, _, directory = made
    auto = transformers.AutoModelForImageTextToText
    _, report = auto.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]

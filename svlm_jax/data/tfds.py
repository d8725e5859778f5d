"""Windows with their frames already decoded and resized, as a tensorflow-datasets directory. Works without TensorFlow.

Owns the fields of a record, how the directory is written and how it is read. Does not know patches or tokens. Host side, never
jax; tensorflow-datasets (of the `train` extra) only inside the functions that need it. Axes: F frames · H, W pixels.

A record is the id of a window, its annotation as the line of JSON it came from, fps, and its frames in order of time: JPEG of
quality 95, resized for the model that is to be trained (`pixels.stream_frame`), so that reading them resizes nothing; `factor`
says for which: the pixels on a side of its vision tokens, 28 or 32. JPEG is lossy: on
a smooth picture with edges and grain a pixel is off by less than 2 of 255 in the mean (tests/data/test_tfds.py); where that
matters, train from the video files.
"""

import contextlib
import importlib
import io
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from svlm_jax.data.annotation import Annotation, parse_line
from svlm_jax.data.frames import check_fps, window_frames
from svlm_jax.data.records import Record, Records
from svlm_jax.errors import InputError
from svlm_jax.files import atomic_directory, local_path
from svlm_jax.media.pixels import PixelConfig, resize, smart_resize

NAME, VERSION, SPLIT = "svlm_windows", "1.1.0", "train"
FIRST_FACTOR = 28  # of sets of version 1.0.0, which do not say it
QUALITY = 95
WINDOWS_A_FILE = 32  # all of them are in memory while it is written (24 s of 720p: some 10 MB each)


class Counts(NamedTuple):
    """Windows in a directory, their frames, and records left out."""

    windows: int
    frames: int
    bad: int


def prepare(
    records: Records,
    directory: str | Path,
    frame: PixelConfig,
    *,
    fps: float = 2.0,
    root: str | Path | None = None,
    max_bad: int = 0,
    on_bad: Callable[[str, str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Counts:
    """Decode the windows of all records into a new directory, complete or not at all, in their order.

    Args:
        frame: bounds on a frame of the model that is to be trained.
        fps, root: see `frames.window_frames`.
        max_bad: bad records that are left out; one more is an error.
        on_bad: called with (id, reason) of every bad record.
        progress: called with (records done, records in all).

    Raises:
        InputError: the directory exists or cannot be written; fps; too many bad records, or no good one.
    """
    check_fps(fps)
    directory = local_path(directory).absolute()
    counts = {"windows": 0, "frames": 0, "bad": 0}

    def shard(numbers: range) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in numbers:
            try:
                example = _example(records[number], frame, fps, root)
            except (InputError, OSError) as error:
                counts["bad"] += 1
                if on_bad:
                    on_bad(records.name(number), " ".join(str(error).split()))
                if counts["bad"] > max_bad:
                    got, remedy = f"{counts['bad']} bad records", "mend them or allow more (--max-bad)"
                    raise InputError(str(directory), got, f"at most {max_bad}", remedy) from None
                continue
            finally:
                if progress:
                    progress(number + 1, len(records))
            counts["windows"] += 1
            counts["frames"] += len(example["frames"])
            yield number, example

    starts = range(0, len(records), WINDOWS_A_FILE)
    shards = [range(start, min(start + WINDOWS_A_FILE, len(records))) for start in starts]
    with atomic_directory(directory) as draft:
        _build(draft, [partial(shard, numbers) for numbers in shards])
        if not counts["windows"]:
            raise InputError(str(directory), "no good records", "at least one", "mend the records")
    return Counts(**counts)


class TfdsDataset:
    """A directory that `prepare` wrote, window by window. Threads and processes may share it."""

    def __init__(self, directory: str | Path) -> None:
        """Raises:
        InputError: not such a directory.
        """
        self.directory = Path(directory)
        if not self.files() or not (self.directory / "features.json").is_file():
            raise InputError(str(directory), f"no {NAME} dataset", "a directory written by svlm windows --tfds", "make it")
        self._source = _tfds().builder_from_directory(self.directory).as_data_source(split=SPLIT)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> tuple[str, Annotation, np.ndarray]:
        """(id, annotation, frames uint8 [F, H, W, 3]): those of the k-th second with frames are [k * fps, (k + 1) * fps)."""
        record = self._source[range(len(self))[number]]  # IndexError past the end, which iteration needs
        name = record["id"].decode()
        frames = np.stack([np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in record["frames"]])
        return name, parse_line(record["annotation"], name), frames

    def line(self, number: int) -> bytes:
        """The annotation of a window, as its line of JSON; its frames are read with it."""
        return self._source[number]["annotation"]

    def files(self) -> list[Path]:
        """The files of the windows."""
        return sorted(self.directory.glob(f"{NAME}-{SPLIT}.array_record-*"))

    @property
    def fps(self) -> float:
        """Frames a second, the same in all windows."""
        return float(self._source[0]["fps"])

    @property
    def factor(self) -> int:
        """The sides of frames are multiples of it."""
        return int(self._source[0].get("factor", FIRST_FACTOR))


def _example(record: Record, frame: PixelConfig, fps: float, root: str | Path | None) -> dict[str, Any]:
    seconds = window_frames(parse_line(record.line, "record"), fps, root)
    if not seconds:
        raise InputError("record", "no video", "one to decode", "train from the JSONL file")
    with ThreadPoolExecutor() as pool:  # PIL releases the interpreter lock
        frames = list(pool.map(partial(_jpeg, config=frame), itertools.chain.from_iterable(seconds)))
    return {"id": record.id, "annotation": record.line, "fps": fps, "factor": frame.factor, "frames": frames}


def _jpeg(frame: np.ndarray, config: PixelConfig) -> bytes:
    height, width, _ = frame.shape
    resized = resize(frame, *smart_resize(height, width, config))
    file = io.BytesIO()
    Image.fromarray(resized).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _tfds() -> Any:
    try:
        return importlib.import_module("tensorflow_datasets")
    except ModuleNotFoundError as error:
        expected, remedy = "the packages of the train extra", "pip install 'svlm-jax[train]'"
        raise InputError("tensorflow_datasets", f"no module {error.name}", expected, remedy) from None


def _build(directory: Path, shards: Sequence[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]) -> None:
    """By shards: past 1 GB, `_generate_examples` needs TensorFlow (tfds 4.9.10, `core/shuffle.py`)."""
    tfds = _tfds()

    class Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """Not among the public data sets: looking there leaves an empty directory in the temporary ones."""

    with tfds.core.registered.skip_registration():  # two registered classes of one name are an error

        class Builder(tfds.core.ShardBasedBuilder):
            name = NAME
            VERSION = tfds.core.Version(VERSION)

            def _info(self) -> Any:
                text, fps, factor = tfds.features.Text(), *map(tfds.features.Scalar, (np.float32, np.int32))
                features = {"id": text, "annotation": text, "fps": fps, "factor": factor}
                features["frames"] = tfds.features.Sequence(text)
                return Info(builder=self, features=tfds.features.FeaturesDict(features))

            def _shard_iterators_per_split(self, dl_manager: Any) -> Any:
                return {SPLIT: shards}

    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it downloads
        try:
            Builder(data_dir=directory, file_format="array_record").download_and_prepare()
        except RuntimeError as error:  # array_record's error for a full disk
            raise OSError(str(error)) from error
    # The builder makes NAME/VERSION in its directory: what is in there goes to the top.
    for path in (directory / NAME / VERSION).iterdir():
        path.rename(directory / path.name)
    shutil.rmtree(directory / NAME)

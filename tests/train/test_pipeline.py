"""Claims about the order of samples and their batches: the same on any number of hosts and workers, from any sample on."""

import json
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from svlm_jax.data.annotation import NO_LOSS
from svlm_jax.data.config import Bucket, DataConfig
from svlm_jax.data.dataset import load_examples
from svlm_jax.data.pipeline import BadSampleCounter, Example, HostShard, ShuffledIndex, bucket_index, micro_batches, pad_batch
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.media.processor import Processor
from tests.train.conftest import BUCKETS, SAMPLES, WINDOW, record


@pytest.fixture(scope="module")
def processor(shallow_dir, small_frames):
    return Processor.from_directory(small_frames, config_json.read(shallow_dir))


@pytest.fixture
def data(windows):
    return DataConfig(paths=(str(windows),), root=str(windows.parent), buckets=BUCKETS)


class Named:
    """Examples that cost nothing."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        return Example(str(number), None, np.zeros(0, np.int32), 0.0)


def ids(rows, start=0, steps=6, count=10, micro_batch_size=4, workers=0):
    shard = HostShard(ShuffledIndex(count, 7), rows, micro_batch_size, start, steps)
    return [[example.id for example in examples] for examples in micro_batches(Named(count), shard, workers=workers, threads=2)]


def test_hosts_share_the_samples_of_one_host():
    single_host = ids(range(4))
    halves = [ids((0, 1)), ids((2, 3))]
    assert single_host == [left + right for left, right in zip(*halves, strict=True)]
    assert single_host == [list(chain(*parts)) for parts in zip(*(ids((row,)) for row in range(4)), strict=True)]


def test_every_sample_comes_once_an_epoch_in_a_new_order():
    all_ids = list(chain(*ids(range(4), steps=10)))
    epochs = [all_ids[first : first + 10] for first in range(0, 40, 10)]
    assert all(sorted(epoch, key=int) == [str(n) for n in range(10)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_run_goes_on_from_any_sample():
    assert ids(range(4), start=12, steps=3) == ids(range(4))[3:6]
    apart = [part for some in ids(range(4))[3:6] for part in (some[:2], some[2:])]
    assert ids(range(2), start=12, steps=6, micro_batch_size=2) == apart


def test_worker_processes_change_no_order():
    assert ids(range(4), workers=2) == ids(range(4))


def test_a_batch_holds_its_samples_and_where_they_are_learned(data, processor):
    all_ = load_examples(data.paths, data, processor)
    chosen = [all_[0], all_[3]]
    padded = pad_batch(chosen, BUCKETS[0], processor.config)
    assert padded.inputs.ids.shape == (2, BUCKETS[0].tokens) and padded.inputs.vision.frame_span == BUCKETS[0].frame_patches
    for row, example in enumerate(chosen):
        real = padded.labels[row] != NO_LOSS
        assert real.sum() == (example.labels[1:] >= 0).sum() > 2 * WINDOW
        np.testing.assert_array_equal(padded.inputs.ids[row, padded.token_index[row][real] + 1], padded.labels[row][real])
    assert all_[0].seconds == WINDOW and len(all_) == SAMPLES


def test_the_smallest_size_that_holds_all_is_taken(data, processor):
    example = load_examples(data.paths, data, processor)[0]
    tokens = len(example.sample.ids)
    sizes = (Bucket(tokens - 1, 64, 192, 16), Bucket(tokens, 64, 192, 16), Bucket(4096, 64, 192, 16))
    assert bucket_index([example], sizes) == 1
    assert bucket_index([example._replace(sample=None)], sizes) == 0


def broken(windows, tmp_path, change):
    lines = [json.loads(line) for line in windows.read_text().splitlines()]
    (tmp_path / "train.jsonl").write_text("".join(change(number, line) + "\n" for number, line in enumerate(lines)))
    return DataConfig(paths=(str(tmp_path / "train.jsonl"),), root=str(windows.parent), buckets=BUCKETS, threads=2)


BROKEN = {
    "a missing video": (lambda n, line: json.dumps(record("gone.mp4", 0) if n == 1 else line), "gone.mp4"),
    "a video that is too short": (lambda n, line: json.dumps(record("film.mp4", 11) if n == 1 else line), "film.mp4"),
    "broken JSON": (lambda n, line: json.dumps(line)[:40] if n == 1 else json.dumps(line), "broken JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_sample_is_reported_and_masked(name, windows, tmp_path, processor):
    change, word = BROKEN[name]
    data = broken(windows, tmp_path, change)
    bad = load_examples(data.paths, data, processor)[1]
    assert bad.sample is None and word in bad.error and bad.id == "train.jsonl:2"
    padded = pad_batch([bad, bad], BUCKETS[0], processor.config)
    assert (padded.labels == NO_LOSS).all() and padded.inputs.vision.patches.shape == (2, BUCKETS[0].patches, 1176)


def test_a_sample_beyond_the_largest_bucket_is_bad(data, processor):
    small = replace(data, buckets=(Bucket(64, 64, 64, 16),))
    bad = load_examples(small.paths, small, processor)[0]
    assert bad.sample is None and "tokens of a sample: got" in bad.error


def test_too_many_bad_samples_stop_the_run():
    log_lines = []
    bad = BadSampleCounter(0.1, log_lines.append)
    good, wrong = (Example(name, None, np.zeros(0, np.int32), 0.0, error) for name, error in (("a", ""), ("b", "gone")))
    bad.add([wrong])  # one is always borne
    bad.add([good] * 30 + [wrong])
    assert log_lines == ["bad sample b: gone"]
    with pytest.raises(InputError, match="got 5 of 35, the last b"):
        bad.add([wrong] * 3)
    with pytest.raises(InputError, match=r"at most 0\.00%"):
        BadSampleCounter(0.0, log_lines.append).add([good, wrong])


class Killed:
    """A worker process of grain that the system has killed, as grain tells it."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> Example:
        raise RuntimeError("Worker process was terminated unexpectedly with exit code -9. Search the logs above.")


def test_a_worker_that_was_killed_is_told_in_one_line():
    shard = HostShard(ShuffledIndex(8, 0), [0, 1], 2, 0, 4)
    with pytest.raises(InputError, match=r"data\.workers: got a process that ended with -9, expected all alive"):
        next(micro_batches(Killed(), shard, workers=0, threads=1))  # pyright: ignore[reportArgumentType]

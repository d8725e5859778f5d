"""From annotated windows to batches of one static size: in a reproducible order, divided over hosts, from any step on.

Owns the order of samples, which of them a host prepares, what becomes of a bad one, and padding. The order is a function of
seed and number alone: sample g of a run is the same on any number of hosts and workers, and a run resumes at a micro-step
without reading those before. Host side: numpy and grain, never jax (workers must not touch a device).

Axes: B samples of a batch (here: those of this host), T tokens, K labels of a sample, P patches.
"""

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from svlm_jax.config import ModelConfig
from svlm_jax.data.annotation import NO_LOSS
from svlm_jax.data.batch import collate
from svlm_jax.data.config import Bucket
from svlm_jax.errors import InputError
from svlm_jax.inputs import Inputs, Sample, pack_vision
from svlm_jax.spans import Kind, Span

PREFETCH = 2  # micro-batches that are prepared ahead, in threads or in each worker process


class Example(NamedTuple):
    """A sample, its labels [n] and its seconds of video; or what was wrong with it."""

    id: str
    sample: Sample | None
    labels: np.ndarray
    seconds: float
    error: str = ""


FILLER = Example("", None, np.zeros(0, np.int32), 0.0)  # a row without a sample, which is neither good nor bad


class Batch(NamedTuple):
    """inputs of B samples. labels [B, K]: ids to predict (negative: none), each from the hidden state of token
    token_index [B, K]."""

    inputs: Inputs
    token_index: Any
    labels: Any


class Window(NamedTuple):
    """A window of a video: its id, its annotation, and the frames of each second."""

    id: str
    annotation: Any
    frames: list[np.ndarray]


class Examples:
    """Windows by number, as examples; a bad one is an example too, with its error."""

    def __init__(
        self,
        source: Any,
        build: Callable[[Window], tuple[Sample, np.ndarray]],
        largest: Bucket,
    ) -> None:
        """Args:
        source: `source[i]` gives a Window or raises; `source.name(i)` its id without reading it; `source.fingerprint()`
            identifies the set.
        build: the sample and labels of a window.
        largest: bucket; a sample that does not fit in it is bad.
        """
        self.source, self.build, self.largest = source, build, largest

    def __len__(self) -> int:
        return len(self.source)

    def fingerprint(self) -> dict[str, Any]:
        """Identifies the set (`data.fingerprint`)."""
        return self.source.fingerprint()

    def __getitem__(self, number: int) -> Example:
        try:
            window = self.source[number]
            sample, labels = self.build(window)
            _check_fits(sample, labels, self.largest)
        except (InputError, OSError) as error:
            reason = " ".join(str(error).split())
            return Example(self.source.name(number), None, np.zeros(0, np.int32), 0.0, reason)
        return Example(window.id, sample, labels, float(len(window.frames)))


def _check_fits(sample: Sample, labels: np.ndarray, bucket: Bucket) -> None:
    frame_patches = [h * w for _, h, w in (clip.grid for clip in sample.clips)]
    counts = {
        "tokens": len(sample.ids),
        "patches": sum(len(clip.patches) for clip in sample.clips),
        "labels": int((labels[1:] >= 0).sum()),
        "frame_patches": max(frame_patches, default=0),
    }
    for name, count in counts.items():
        if count > getattr(bucket, name):
            raise InputError(f"{name} of a sample", count, f"at most {getattr(bucket, name)}", "make a larger bucket")


class ShuffledIndex(NamedTuple):
    """Record number of each sample of a run, by g = micro_step * batch size + row: the set is shuffled anew for each epoch."""

    num_records: int
    seed: int

    def dataset(self) -> Any:
        """A grain MapDataset of record numbers without end."""
        import grain

        return grain.MapDataset.range(self.num_records).seed(self.seed).shuffle().repeat()


class HostShard:
    """Record numbers that this host prepares: `rows` of each of `num_steps` micro-batches, the first of which begins with
    sample number `start` of the run. From sample number `end` on there are none (-1): filler rows."""

    def __init__(
        self,
        index: ShuffledIndex,
        rows: Sequence[int],
        micro_batch_size: int,
        start: int,
        num_steps: int,
        end: int | None = None,
    ) -> None:
        self.index, self.rows, self.micro_batch_size = index, tuple(rows), micro_batch_size
        self.start, self.num_steps, self.end = start, num_steps, end
        self.records: Any = None  # opened on first use, in each worker process

    def __len__(self) -> int:
        return self.num_steps * len(self.rows)

    def __getitem__(self, item: int) -> int:
        if self.records is None:
            self.records = self.index.dataset()
        # `item` counts the rows of this host alone, `number` the samples of the run
        step, row = divmod(item, len(self.rows))
        number = self.start + step * self.micro_batch_size + self.rows[row]
        return -1 if self.end is not None and number >= self.end else int(self.records[number])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"records": None}  # worker processes open their own


class _Fetch:
    """Record number -> Example, for grain (which pickles it into its workers); of no record FILLER."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __call__(self, number: int) -> Example:
        return self.examples[number] if number >= 0 else FILLER


def micro_batches(examples: Examples, shard: HostShard, *, workers: int, threads: int) -> Generator[list[Example]]:
    """The examples of this host, micro-batch by micro-batch, prepared ahead by threads or worker processes."""
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain 0.2.18 reads its flags, and complains when nobody parsed them
    rows, fetch = len(shard.rows), _Fetch(examples)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, PREFETCH * rows))
    source: Any = shard
    dataset = grain.MapDataset.source(source).map(fetch).to_iter_dataset(options)
    if workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=PREFETCH))
    iterator = iter(dataset)
    try:
        # `zip` takes no example from the iterator beyond the last of a batch
        while batch := [example for _, example in zip(range(rows), iterator, strict=False)]:
            yield batch
    except RuntimeError as error:
        if not (match := re.search(r"[Ww]orker process .*exit code (-?\d+)", str(error))):
            raise
        got, remedy = f"a process that ended with {match[1]}", "lower data.workers or data.threads, start again"
        raise InputError("data.workers", got, "all alive (-9 is killed, mostly for want of memory)", remedy) from error
    finally:
        if hasattr(iterator, "close"):
            iterator.close()


def bucket_index(examples: Sequence[Example], buckets: Sequence[Bucket]) -> int:
    """Index of the smallest bucket that holds all examples (each fits the largest)."""
    for index, bucket in enumerate(buckets[:-1]):  # what does not fit the largest is no sample, but an error
        try:
            for example in examples:
                if example.sample is not None:
                    _check_fits(example.sample, example.labels, bucket)
        except InputError:
            continue
        return index
    return len(buckets) - 1


def pad_batch(examples: Sequence[Example], bucket: Bucket, config: ModelConfig) -> Batch:
    """Examples padded to a bucket; a bad one (or FILLER) is one token without a label."""
    filler = Sample(np.zeros(1, np.int32), (Span(Kind.SYSTEM, 1),), ())
    samples = [example.sample or filler for example in examples]
    inputs = collate(samples, config.vision, token_buckets=(bucket.tokens,), patch_buckets=(bucket.patches,))
    vision = inputs.vision or pack_vision([[]] * len(samples), config.vision, bucket.patches, np.uint8)[0]
    # The same span for every batch: one compiled program, whatever the size of the frames.
    inputs = inputs._replace(vision=replace(vision, frame_span=bucket.frame_patches))
    token_index, labels = (np.full((len(samples), bucket.labels), fill, np.int32) for fill in (0, NO_LOSS))
    for row, example in enumerate(examples):
        # token i predicts the label of token i + 1
        predicting = np.flatnonzero(example.labels[1:] >= 0)
        token_index[row, : len(predicting)] = predicting
        labels[row, : len(predicting)] = example.labels[1:][predicting]
    return Batch(inputs, token_index, labels)


class BadSampleCounter:
    """Counts bad samples, logs each once, and stops the run past a fraction."""

    def __init__(self, max_fraction: float, log: Callable[[str], None], logged: dict[str, str] | None = None) -> None:
        """Args:
        max_fraction: of the samples that were read.
        logged: errors that need not be logged again, by id; those logged here are added.
        """
        self.max_fraction, self.log = max_fraction, log
        self.num_samples = self.num_bad = 0
        self.logged = {} if logged is None else logged

    def add(self, examples: Sequence[Example]) -> None:
        """Raises:
        InputError: more bad samples than allowed; one is always allowed unless the fraction is 0.
        """
        self.num_samples += sum(example.id != FILLER.id for example in examples)
        last = ""
        for example in examples:
            if not example.error:
                continue
            self.num_bad, last = self.num_bad + 1, example.id
            if example.id not in self.logged:
                self.logged[example.id] = example.error
                self.log(f"bad sample {example.id}: {example.error}")
        # the second bound: one bad sample stops a run only if none is allowed
        if self.num_bad > max(self.max_fraction * self.num_samples, min(1, self.max_fraction * 1e9)):
            got, expected = f"{self.num_bad} of {self.num_samples}, the last {last}", f"at most {self.max_fraction:.2%}"
            raise InputError("bad samples", got, expected, "mend the data or raise data.max_bad_fraction")

"""From annotated windows to batches of one static size: in a set order, cut over hosts, from any step on.

Owns the order of samples, which of them a host prepares, what becomes of a bad one, and padding. The order is a function of
seed and number alone: sample g of a run is the same on any number of hosts and workers, and a run goes on from a micro-step
without looking at those before. Host side: numpy and grain, never jax (workers must not touch a device).

Axes: B samples of a batch (here: those of this host), T tokens, K learned tokens, P patches.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from svlm_jax.data.annotation import NO_LOSS
from svlm_jax.data.batch import collate
from svlm_jax.data.config import Bucket
from svlm_jax.errors import InputError
from svlm_jax.inputs import Inputs, Sample, pack_vision, stack_vision
from svlm_jax.spans import Kind, Span

PREFETCH = 2  # micro-batches that are prepared ahead, in threads; each worker holds as many


class Example(NamedTuple):
    """A sample and its labels [n]; or what was wrong with it."""

    id: str
    sample: Sample | None
    labels: np.ndarray
    seconds: float
    error: str = ""


FILLER = Example("", None, np.zeros(0, np.int32), 0.0)  # a row without a sample, which is neither good nor bad


class Batch(NamedTuple):
    """inputs of B samples; at [B, K]: the token whose hidden state is scored, labels [B, K]: on which id (negative: none)."""

    inputs: Inputs
    at: Any
    labels: Any


class Window(NamedTuple):
    """What a source gives: where it is from, its annotation, and the frames of each second."""

    id: str
    annotation: Any
    frames: list[np.ndarray]


class Examples:
    """Windows by number, as examples; a bad one is an example too, with its error."""

    def __init__(
        self,
        source: Any,
        make: Callable[[Window], tuple[Sample, np.ndarray]],
        largest: Bucket,
    ) -> None:
        """Args:
        source: `source[i]` gives a Window or raises; `source.name(i)` its id without looking; `source.fingerprint()` what
            they are.
        make: the sample and labels of a window.
        largest: what does not fit in it is bad.
        """
        self.source, self.make, self.largest = source, make, largest

    def __len__(self) -> int:
        return len(self.source)

    def fingerprint(self) -> dict[str, Any]:
        """What the set is (`data.fingerprint`)."""
        return self.source.fingerprint()

    def __getitem__(self, number: int) -> Example:
        try:
            window = self.source[number]
            sample, labels = self.make(window)
            _fits(sample, labels, self.largest)
        except (InputError, OSError) as error:
            told = " ".join(str(error).split())
            return Example(self.source.name(number), None, np.zeros(0, np.int32), 0.0, told)
        return Example(window.id, sample, labels, float(len(window.frames)))


def _fits(sample: Sample, labels: np.ndarray, size: Bucket) -> None:
    frames = [h * w for _, h, w in (clip.grid for clip in sample.clips)]
    has = {
        "tokens": len(sample.ids),
        "patches": sum(len(clip.patches) for clip in sample.clips),
        "labels": int((labels[1:] >= 0).sum()),
        "frame_patches": max(frames, default=0),
    }
    for name, count in has.items():
        if count > getattr(size, name):
            raise InputError(f"{name} of a sample", count, f"at most {getattr(size, name)}", "make a larger bucket")


class Order(NamedTuple):
    """The samples of a run, by number g = micro_step * batch + row: the whole set shuffled, again and again, anew each time."""

    count: int
    seed: int

    def __call__(self) -> Any:
        """A grain MapDataset of record numbers without end."""
        import grain

        return grain.MapDataset.range(self.count).seed(self.seed).shuffle().repeat()


class Ours:
    """Record numbers of this host: `rows` of each of `steps` micro-batches of `batch`, the first of which begins with sample
    number `start` of the run. From sample number `end` on there are none (-1): rows that are filled up."""

    def __init__(self, order: Order, rows: Sequence[int], batch: int, start: int, steps: int, end: int | None = None) -> None:
        self.order, self.rows, self.batch, self.start, self.steps = order, tuple(rows), batch, start, steps
        self.end = end
        self.records: Any = None

    def __len__(self) -> int:
        return self.steps * len(self.rows)

    def __getitem__(self, place: int) -> int:
        if self.records is None:
            self.records = self.order()
        step, row = divmod(place, len(self.rows))
        number = self.start + step * self.batch + self.rows[row]
        return -1 if self.end is not None and number >= self.end else int(self.records[number])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"records": None}


class _Fetch:
    """Record number -> Example, for grain (which pickles it into its workers); of no record FILLER."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __call__(self, number: int) -> Example:
        return self.examples[number] if number >= 0 else FILLER


def micro_batches(examples: Examples, ours: Ours, *, workers: int, threads: int) -> Generator[list[Example]]:
    """The examples of this host, micro-batch by micro-batch, prepared ahead by threads or worker processes."""
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain 0.2.18 reads its flags, and complains when nobody parsed them
    rows, fetch = len(ours.rows), _Fetch(examples)
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, PREFETCH * rows))
    source: Any = ours
    made = grain.MapDataset.source(source).map(fetch).to_iter_dataset(ahead)
    if workers:
        made = made.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=PREFETCH))
    iterator = iter(made)
    try:
        while batch := [example for _, example in zip(range(rows), iterator, strict=False)]:
            yield batch
    finally:
        if hasattr(iterator, "close"):
            iterator.close()


def size_of(examples: Sequence[Example], sizes: Sequence[Bucket]) -> int:
    """Number of the smallest size that holds all examples (each fits the largest)."""
    for number, size in enumerate(sizes[:-1]):
        try:
            for example in examples:
                if example.sample is not None:
                    _fits(example.sample, example.labels, size)
        except InputError:
            continue
        return number
    return len(sizes) - 1


def batch(examples: Sequence[Example], size: Bucket, config: Any) -> Batch:
    """Examples padded to a size; a bad one (or FILLER) is a token that nothing is learned from. `config`: the model's."""
    filler = Sample(np.zeros(1, np.int32), (Span(Kind.SYSTEM, 1),), ())
    samples = [example.sample or filler for example in examples]
    inputs = collate(samples, config.vision, token_buckets=(size.tokens,), patch_buckets=(size.patches,))
    vision = inputs.vision or stack_vision([pack_vision([], config.vision, size.patches, np.uint8)[0] for _ in samples])
    # One span for all, or frames of another size would be another program.
    inputs = inputs._replace(vision=replace(vision, frame_span=size.frame_patches))
    at, labels = (np.full((len(samples), size.labels), fill, np.int32) for fill in (0, NO_LOSS))
    for row, example in enumerate(examples):
        learned = np.flatnonzero(example.labels[1:] >= 0)
        at[row, : len(learned)], labels[row, : len(learned)] = learned, example.labels[1:][learned]
    return Batch(inputs, at, labels)


class Bad:
    """Counts bad samples, tells each once, and stops the run past a share."""

    def __init__(self, most: float, say: Callable[[str], None], told: dict[str, str] | None = None) -> None:
        """Args:
        most: share of those seen.
        told: errors that need not be told again, by id; those told here are added.
        """
        self.most, self.say = most, say
        self.seen = self.count = 0
        self.told = {} if told is None else told

    def look(self, examples: Sequence[Example]) -> None:
        """Raises:
        InputError: more bad samples than may be; at least one is always allowed if any share is.
        """
        self.seen += sum(example.id != FILLER.id for example in examples)
        last = ""
        for example in examples:
            if not example.error:
                continue
            self.count, last = self.count + 1, example.id
            if example.id not in self.told:
                self.told[example.id] = example.error
                self.say(f"bad sample {example.id}: {example.error}")
        if self.count > max(self.most * self.seen, min(1, self.most * 1e9)):
            got = f"{self.count} of {self.seen}, the last {last}"
            raise InputError("bad samples", got, f"at most {self.most:.2%}", "mend the data or raise data.max_bad_fraction")

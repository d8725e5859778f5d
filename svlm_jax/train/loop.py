"""The loop of a run: micro-batches in, steps made, metrics written, checkpoints saved; a clean end for every way that it can
end.

Reads top to bottom: `Trainer.run` makes steps, `_step` one of them from micro-steps. The position in the data is one number,
the samples trained on; a step that was not finished is repeated. Units: seconds, samples.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import jax

from svlm_jax.data.pipeline import BadSampleCounter, Examples, HostShard, ShuffledIndex
from svlm_jax.errors import InputError
from svlm_jax.files import report_write_errors
from svlm_jax.model.parameters import Parameters
from svlm_jax.train import dataset_check, model_check
from svlm_jax.train.checkpoints import Checkpoints
from svlm_jax.train.config import Log, TrainConfig
from svlm_jax.train.logs import MetricsWriter
from svlm_jax.train.optimizer import learning_rates
from svlm_jax.train.prefetch import BatchPrefetcher, host_rows
from svlm_jax.train.run_lock import RunLock
from svlm_jax.train.step import GradAccumulator, StepMetrics, TrainState, TrainStep
from svlm_jax.train.throughput import StepStats, Workload

HUNG = 70  # exit code
IN_FLIGHT = 2  # micro-steps that are dispatched and not waited for


class Preempted(Exception):
    """Asked to stop, and saved: start again and the run resumes."""


class PendingStep(NamedTuple):
    """A step that the devices still compute: its metrics are read when the next one has been dispatched."""

    number: int
    learning_rate: float
    start_time: float
    data_wait: float
    stats: StepStats
    metrics: StepMetrics


class Trainer:
    """A run on a mesh. `run` returns when all steps are made and saved."""

    def __init__(
        self,
        config: TrainConfig,
        step: TrainStep,
        trainable: Parameters,
        frozen: Parameters,
        data: tuple[Examples, Examples | None],
        *,
        log: Log = lambda line: None,
        should_stop: Callable[[int], bool] = lambda micro_step: False,
        model_fingerprint: str = "",
        lock: RunLock | None = None,
    ) -> None:
        """Args:
        trainable: initial ones (donated), for a run without a checkpoint.
        data: the training set and the evaluation set.
        log: called with what happens, a line at a time.
        should_stop: called before each micro-step, with its number: whether to save and end the run (on all hosts alike).
        model_fingerprint: of the initial model (`model_check`).
        lock: of the run's directory, closed at the end of the run.
        """
        self.config, self.step, self.frozen, self.log, self.should_stop = config, step, frozen, log, should_stop
        self.train_set, self.eval_set = data
        self.rows = host_rows(step.mesh, config.micro_batch_size)
        self.workload = Workload(step.config, trainable, step.mesh, len(self.rows), config.micro_batch_size)
        self.total_steps = config.total_steps(len(self.train_set))
        self.learning_rates = learning_rates(config.optimizer, self.total_steps)
        self.bad = BadSampleCounter(config.data.max_bad_fraction, log)
        self.logged_eval_errors: dict[str, str] = {}  # by sample id: an evaluation logs each once a run, not each time
        self.eval_bad_samples = 0
        # Before the checkpoint is loaded: hosts with other data would agree on a state and not on the samples after it.
        self.fingerprints = {"data": dataset_check.check_across_hosts(self.train_set.fingerprint()), "model": model_fingerprint}
        self.fingerprints["eval_data"] = None if self.eval_set is None else self.eval_set.fingerprint()
        self.lock = lock
        self.checkpoints = Checkpoints(config.run_dir, keep_last=config.keep_last, keep_every=config.keep_every)
        loaded = self.checkpoints.load(step.abstract_state)
        if loaded is None:
            self.state, self.samples = step.init_state(trainable), 0
        else:
            self.state, meta = loaded
            self.samples = int(meta["samples"])
            model_check.check_since_checkpoint(meta, config.model, model_fingerprint)
            dataset_check.check_since_checkpoint(meta, self.fingerprints, allow_changed=config.data.allow_changed, log=log)
            for name in self.checkpoints.put_aside:
                log(f"the damaged checkpoint is {self.checkpoints.directory / name} now: remove it when you like")
            step_number = int(self.state.step)
            log(f"resumes after step {step_number} of {self.total_steps}, {self.samples} samples")
            if step_number >= self.total_steps:
                log(f"nothing is left to do: the run has {step_number} steps, and {self.total_steps} are asked for")
        self.watchdog, self.micro_step, self.tracing = Watchdog(0), 0, False

    def run(self) -> TrainState:
        """Raises:
        Preempted: after saving, when `should_stop` was true.
        InputError: too many bad samples or non-finite steps, a full disk.
        """
        config, first = self.config, int(self.state.step)
        writer = None
        if jax.process_index() == 0:
            options = {"tensorboard": config.tensorboard, "wandb": config.wandb, "config": asdict(config)}
            writer = MetricsWriter(config.run_dir, first, **options)
        batches = self._prefetcher((self.total_steps - first) * config.accumulation)
        self.watchdog = Watchdog(config.hang_seconds)  # from here on: loading a checkpoint may take longer
        try:
            with jax.set_mesh(self.step.mesh):
                self._run(first, batches, writer)
        finally:
            self._profile(0)
            self.watchdog.close()
            batches.close()
            if writer is not None:
                writer.close()
            self.checkpoints.close(quiet=sys.exc_info()[0] is not None)
            if self.lock is not None:
                self.lock.close()
        return self.state

    def _run(self, first: int, batches: BatchPrefetcher, writer: MetricsWriter | None) -> None:
        accumulator, pending = self.step.zero_grads(), None
        try:
            for number in range(first + 1, self.total_steps + 1):
                self._profile(number)
                dispatched, accumulator = self._step(number, accumulator, batches)
                # Metrics of the step before: reading those of this one would keep the devices idle until the next dispatch.
                self._report(pending, writer, end_time=dispatched.start_time)
                pending = dispatched
                is_last = number == self.total_steps
                save, evaluate = is_last or number % self.config.save_every == 0, self._is_eval_step(number)
                if save or evaluate:  # both wait for the devices, and an evaluation must not count as time of a step
                    self._report(pending, writer)
                    pending = None
                if save:  # before the evaluation: should that fail, the step is not lost
                    self._save(wait=is_last)
                if evaluate:
                    self._evaluate_and_report(number, writer)
        except Preempted:
            self._report(pending, writer)
            raise

    def _is_eval_step(self, number: int) -> bool:
        every = self.config.eval_every
        return self.eval_set is not None and (number == self.total_steps or bool(every and number % every == 0))

    def _step(self, number: int, accumulator: GradAccumulator, batches: BatchPrefetcher) -> tuple[PendingStep, GradAccumulator]:
        start_time, data_wait, stats = time.perf_counter(), 0.0, StepStats(self.workload)
        losses: deque[jax.Array] = deque()
        for _ in range(self.config.accumulation):
            if self.should_stop(self.micro_step):
                # The accumulated gradients are dropped: the run repeats this step from its first micro-step.
                self._save(wait=True)
                raise Preempted(f"saved after step {number - 1}")
            wait_start = time.perf_counter()
            examples, batch, padded_tokens, global_examples = next(batches)
            data_wait += time.perf_counter() - wait_start
            self.bad.add(global_examples)
            stats.add(examples, padded_tokens)
            # Or the batches of a whole step would lie in device memory. The devices are busy with the micro-step after it.
            if len(losses) == IN_FLIGHT:
                jax.block_until_ready(losses.popleft())
            accumulator, loss = self.step.accumulate(self.state.trainable, accumulator, self.frozen, batch)
            losses.append(loss)
            self.micro_step += 1
            self.watchdog.beat()
        self.state, accumulator, metrics = self.step.apply_gradients(self.state, accumulator)
        self.samples += self.config.batch_size
        learning_rate = float(self.learning_rates[number - 1])
        return PendingStep(number, learning_rate, start_time, data_wait, stats, metrics), accumulator

    def _report(self, pending: PendingStep | None, writer: MetricsWriter | None, end_time: float | None = None) -> None:
        """Write and log the metrics of a step. end_time: when the next one started; by default now."""
        if pending is None:
            return
        values = {name: float(value) for name, value in pending.metrics._asdict().items()}
        seconds = (end_time or time.perf_counter()) - pending.start_time
        line = {"step": pending.number, "learning_rate": pending.learning_rate}
        line |= {name: values[name] for name in ("loss", "grad_norm", "param_norm", "update_norm")}
        line |= {"labels": int(values["count"]), "finite": int(values["finite"]), "bad_samples": self.bad.num_bad}
        line |= {"step_seconds": round(seconds, 4), "data_wait_seconds": round(pending.data_wait, 4)}
        line |= pending.stats.rates(seconds)
        if writer is not None:
            writer.write(line)
        mfu = f", MFU {100 * line['mfu']:.1f} %" if line["mfu"] else ""
        self.log(
            f"step {pending.number}/{self.total_steps}: loss {line['loss']:.4f}, learning rate {pending.learning_rate:.2e}, "
            f"gradient norm {line['grad_norm']:.3g}, {line['tokens_per_second']:.0f} tokens/s{mfu}"
        )
        if not line["finite"]:
            self._report_skipped(pending, int(values["skipped"]))

    def _report_skipped(self, pending: PendingStep, skipped_in_a_row: int) -> None:
        path = Path(self.config.run_dir) / f"not_finite_{jax.process_index()}.jsonl"
        with report_write_errors(path), path.open("a") as file:
            file.write(json.dumps({"step": pending.number, "ids": pending.stats.ids}) + "\n")
        self.log(f"step {pending.number}: gradients are not finite, the step was skipped (samples in {path})")
        if skipped_in_a_row >= self.config.max_skipped_steps:
            got, remedy = f"not finite in {skipped_in_a_row} steps in a row", f"look at the samples in {path}"
            expected = f"fewer than max_skipped_steps = {self.config.max_skipped_steps}"
            raise InputError("gradients", got, expected, remedy)

    def _save(self, wait: bool) -> None:
        if step := int(self.state.step):  # step 0 is the initial model
            config = json.dumps(asdict(self.config))
            meta = {"samples": self.samples, "step": step, "config": config, **self.fingerprints}
            self.checkpoints.save(step, self.state, meta, wait=wait)

    def _evaluate_and_report(self, number: int, writer: MetricsWriter | None) -> None:
        loss = self.evaluate()
        self.log(f"step {number}: evaluation loss {loss:.4f}")
        if writer is not None:
            writer.write({"step": number, "eval_loss": loss, "eval_bad_samples": self.eval_bad_samples})

    def evaluate(self) -> float:
        """Mean loss over the labels of the first `eval_batches` micro-batches, always the same; no sample counts twice.

        Raises:
            InputError: more bad samples than allowed, or no label.
        """
        assert self.eval_set is not None
        config, total, count, num_samples = self.config, 0.0, 0, len(self.eval_set)
        # Always from sample 0 in the order of seed 0, whatever the run's seed and position.
        num_batches = min(config.eval_batches, -(-num_samples // config.micro_batch_size))
        shard = HostShard(ShuffledIndex(num_samples, 0), self.rows, config.micro_batch_size, 0, num_batches, end=num_samples)
        bad = BadSampleCounter(config.data.max_bad_fraction, self.log, self.logged_eval_errors)
        batches = BatchPrefetcher(self.eval_set, shard, config.data, self.step.config, self.step.mesh, workers=0)
        try:
            for _, batch, _, global_examples in batches:
                bad.add(global_examples)
                loss, labels = self.step.eval_loss(self.state.trainable, self.frozen, batch)
                total, count = total + float(loss), count + int(labels)
                self.watchdog.beat()
        finally:
            batches.close()
        if not count:
            got, remedy = f"no label in {bad.num_samples} samples, {bad.num_bad} of them bad", "mend them or leave them out"
            raise InputError("data.eval_paths", got, "at least one token with a label", remedy)
        self.eval_bad_samples = bad.num_bad
        return total / count

    def _prefetcher(self, micro_steps: int) -> BatchPrefetcher:
        """The batches of the micro-steps that are left."""
        data, index = self.config.data, ShuffledIndex(len(self.train_set), self.config.seed)
        shard = HostShard(index, self.rows, self.config.micro_batch_size, self.samples, micro_steps)
        return BatchPrefetcher(self.train_set, shard, data, self.step.config, self.step.mesh, workers=data.workers)

    def _profile(self, number: int) -> None:
        """Start or stop the trace of `config.profile` before step `number`; 0: the run is over."""
        first, count = self.config.profile
        if count and number == first:
            jax.profiler.start_trace(str(Path(self.config.run_dir) / "profile"))
            self.tracing = True
        elif self.tracing and number in (0, first + count):
            jax.block_until_ready(self.state)  # or the trace would end before the devices do
            jax.profiler.stop_trace()
            self.tracing = False


class Watchdog:
    """Ends the process with every thread's stack on stderr when nothing was finished for too long."""

    def __init__(self, seconds: float | int) -> None:
        self.seconds, self.last_beat, self.closed = seconds, time.monotonic(), threading.Event()
        if seconds:
            threading.Thread(target=self._watch, daemon=True).start()

    def beat(self) -> None:
        self.last_beat = time.monotonic()

    def close(self) -> None:
        self.closed.set()

    def _watch(self) -> None:
        while not self.closed.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self.last_beat > self.seconds:
                print(f"error: nothing finished for {self.seconds:g} s (hang_seconds): a host or a disk hangs", file=sys.stderr)
                faulthandler.dump_traceback()
                os._exit(HUNG)  # no clean-up: it may wait for what hangs

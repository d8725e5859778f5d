"""The loop of a run: batches in, steps made, metrics told, checkpoints kept; an orderly end for every way it can end.

Reads top to bottom: `Trainer.run` makes steps, `_step` one of them from micro-steps. Where the data stands is one number, the
samples seen; a step that was not finished is made again. Units: seconds, samples.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from svlm_jax.config import ModelConfig
from svlm_jax.data.pipeline import Bad, Batch, Example, Examples, Order, Ours, batch, micro_batches, size_of
from svlm_jax.errors import InputError
from svlm_jax.model.vlm import Parameters
from svlm_jax.sharding import batch_sharding
from svlm_jax.train import flops
from svlm_jax.train.checkpoints import Checkpoints
from svlm_jax.train.config import TrainConfig
from svlm_jax.train.logs import Logs
from svlm_jax.train.optimizer import schedule
from svlm_jax.train.step import Metrics, State, Step, Sums

HUNG = 70  # exit code
Say = Callable[[str], None]


class Preempted(Exception):
    """Asked to stop, and saved: start again and the run goes on."""


class Trainer:
    """A run on a mesh. `run` returns when all steps are made and saved."""

    def __init__(
        self,
        config: TrainConfig,
        model: ModelConfig,
        step: Step,
        trained: Parameters,
        frozen: Parameters,
        data: tuple[Examples, Examples | None],
        *,
        say: Say = lambda line: None,
        stop: Callable[[int], bool] = lambda micro_step: False,
    ) -> None:
        """Args:
        data: what is learned from and what is evaluated on.
        say: told what happens, a line at a time.
        stop: asked before each micro-step, by its number, whether the run is to be saved and ended (on all hosts alike).
        """
        self.config, self.model, self.step, self.frozen, self.say, self.stop = config, model, step, frozen, say, stop
        self.learned, self.evaluated = data
        self.rows = rows_of(step, config.micro_batch)
        self.steps = config.total_steps(len(self.learned))
        self.rate: Callable[[int], Any] = schedule(config.optimizer, self.steps)
        self.bad = Bad(config.data.max_bad, say)
        self.checkpoints = Checkpoints(config.run_dir, keep=config.keep, keep_every=config.keep_every)
        loaded = self.checkpoints.load(step.state)
        if loaded is None:
            self.state, self.samples = step.start(trained), 0
        else:
            self.state, meta = loaded
            self.samples = int(meta["samples"])
            say(f"goes on after step {int(self.state.step)} of {self.steps}, {self.samples} samples")
        self.vision_trained = any(path.startswith("vision.") for path in trained)
        self.watchdog, self.micro_step, self.traced = Watchdog(0), 0, False

    def run(self) -> State:
        """Raises:
        Preempted: after saving, when `stop` said so.
        InputError: too many bad samples or non-finite steps, a full disk.
        """
        with jax.set_mesh(self.step.mesh):
            return self._run()

    def _run(self) -> State:
        config, first = self.config, int(self.state.step)
        logs = None
        if jax.process_index() == 0:
            extras = {"tensorboard": config.tensorboard, "wandb": config.wandb, "config": asdict(config)}
            logs = Logs(config.run_dir, first, **extras)
        batches = self._batches((self.steps - first) * config.accumulation)
        sums, told = self.step.empty(), None
        self.watchdog = Watchdog(config.hang_seconds)
        try:
            for number in range(first + 1, self.steps + 1):
                self._profile(number)
                done, sums = self._step(number, sums, batches)
                last = number == self.steps
                saved, tested = last or number % config.save_every == 0, self._tests(number)
                self._tell(told, logs, done.started)  # one step late, so that the device never waits for it
                told = done
                if saved or tested:
                    self._tell(told, logs)
                    told = None
                if saved:
                    self._save(wait=last)
                if tested:
                    loss = self.evaluate()
                    self.say(f"step {number}: evaluation loss {loss:.4f}")
                    if logs is not None:
                        logs.write({"step": number, "evaluation_loss": loss})
        except Preempted:
            self._tell(told, logs)
            raise
        finally:
            self._profile(0)
            self.watchdog.close()
            batches.close()
            if logs is not None:
                logs.close()
            self.checkpoints.close(quiet=sys.exc_info()[0] is not None)
        return self.state

    def _tests(self, number: int) -> bool:
        every = self.config.evaluate_every
        return self.evaluated is not None and (number == self.steps or bool(every and number % every == 0))

    def _step(self, number: int, sums: Sums, batches: Iterator) -> tuple["_Done", Sums]:
        began, waited, before, seen = time.perf_counter(), 0.0, None, _Seen(self.model, self.vision_trained)
        for _ in range(self.config.accumulation):
            if self.stop(self.micro_step):
                self._save(wait=True)
                raise Preempted(f"saved after step {number - 1}")
            started = time.perf_counter()
            examples, padded = next(batches)
            waited += time.perf_counter() - started
            seen.add(examples, padded)
            placed = place(padded, self.rows, self.config.micro_batch, self.step)
            jax.block_until_ready(before)  # or the batches of a whole step would lie on the device
            sums, before = self.step.micro(self.state.trained, sums, self.frozen, placed)
            self.micro_step += 1
            self.watchdog.beat()
        self.state, sums, metrics = self.step.apply(self.state, sums)
        self.samples += self.config.batch
        return _Done(number, float(self.rate(number - 1)), began, waited, seen, metrics), sums

    def _tell(self, done: "_Done | None", logs: Logs | None, until: float | None = None) -> None:
        """`until`: when the next step began; now, when there is none yet."""
        if done is None:
            return
        values = {name: float(value) for name, value in done.metrics._asdict().items()}
        seconds = (until or time.perf_counter()) - done.started
        line = {"step": done.number, "learning_rate": done.rate}
        line |= {name: values[name] for name in ("loss", "gradient_norm", "parameter_norm", "update_norm")}
        line |= {"learned_tokens": int(values["count"]), "finite": int(values["finite"]), "bad_samples": self.bad.count}
        line |= {"step_s": round(seconds, 4), "data_wait_s": round(done.waited, 4)} | done.seen.rates(seconds)
        if logs is not None:
            logs.write(line)
        mfu = f", MFU {100 * line['mfu']:.1f} %" if line["mfu"] else ""
        self.say(
            f"step {done.number}/{self.steps}: loss {line['loss']:.4f}, rate {done.rate:.2e}, "
            f"gradient {line['gradient_norm']:.3g}, {line['tokens_per_s']:.0f} tokens/s{mfu}"
        )
        if not line["finite"]:
            self._skipped(done, int(values["skipped"]))

    def _skipped(self, done: "_Done", in_a_row: int) -> None:
        path = Path(self.config.run_dir) / f"not_finite_{jax.process_index()}.jsonl"
        with path.open("a") as file:
            file.write(json.dumps({"step": done.number, "ids": done.seen.ids}) + "\n")
        self.say(f"step {done.number}: gradients are not finite, nothing was changed (samples in {path})")
        if in_a_row >= self.config.bad_steps:
            got, remedy = f"not finite in {in_a_row} steps in a row", f"look at the samples in {path}"
            raise InputError("gradients", got, f"fewer than bad_steps = {self.config.bad_steps}", remedy)

    def _save(self, wait: bool) -> None:
        if step := int(self.state.step):
            meta = {"samples": self.samples, "step": step, "config": json.dumps(asdict(self.config))}
            self.checkpoints.save(step, self.state, meta, wait=wait)

    def evaluate(self) -> float:
        """Mean loss over the learned tokens of the first `evaluate_batches` micro-batches, always the same."""
        assert self.evaluated is not None
        config, total, count = self.config, 0.0, 0
        steps = min(config.evaluate_batches, -(-len(self.evaluated) // config.micro_batch))
        ours = Ours(Order(len(self.evaluated), 0), self.rows, config.micro_batch, 0, steps)
        for examples in micro_batches(self.evaluated, ours, workers=0, threads=config.data.threads):
            padded = batch(examples, config.data.buckets[_agreed(size_of(examples, config.data.buckets))], self.model)
            one = self.step.loss(self.state.trained, self.frozen, place(padded, self.rows, config.micro_batch, self.step))
            total, count = total + float(one[0]), count + int(one[1])
            self.watchdog.beat()
        return total / max(1, count)

    def _batches(self, steps: int) -> Any:
        """(examples of this host, padded) of each micro-step that is left."""
        data = self.config.data
        ours = Ours(Order(len(self.learned), self.config.seed), self.rows, self.config.micro_batch, self.samples, steps)
        for examples in micro_batches(self.learned, ours, workers=data.workers, threads=data.threads):
            self.bad.look(examples)
            size = data.buckets[_agreed(size_of(examples, data.buckets))]
            yield examples, batch(examples, size, self.model)

    def _profile(self, number: int) -> None:
        """Begin or end the trace that `profile` asks for; `number` 0: the run is over."""
        first, many = self.config.profile
        if many and number == first:
            jax.profiler.start_trace(str(Path(self.config.run_dir) / "profile"))
            self.traced = True
        elif self.traced and number in (0, first + many):
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()
            self.traced = False


class _Done(NamedTuple):
    """A step that was given to the device: its number, learning rate, when it began, seconds waited for data, and what it
    learned from."""

    number: int
    rate: float
    started: float
    waited: float
    seen: "_Seen"
    metrics: Metrics


class _Seen:
    """What went through a step on this host, and its rates over all hosts."""

    def __init__(self, model: ModelConfig, vision_trained: bool) -> None:
        self.model, self.vision_trained = model, vision_trained
        self.tokens = self.room = self.learned = 0
        self.seconds = self.flops = 0.0
        self.ids: list[str] = []

    def add(self, examples: list[Example], padded: Batch) -> None:
        self.room += padded.inputs.ids.size
        self.ids += [example.id for example in examples]
        for example in examples:
            if example.sample is None:
                continue
            tokens, learned = len(example.sample.ids), int((example.labels[1:] >= 0).sum())
            grids = [clip.grid for clip in example.sample.clips]
            patches, frame = sum(t * h * w for t, h, w in grids), max((h * w for _, h, w in grids), default=0)
            needs = flops.sample_flops(self.model, tokens, learned, patches, frame, vision_trained=self.vision_trained)
            self.tokens, self.learned = self.tokens + tokens, self.learned + learned
            self.seconds, self.flops = self.seconds + example.seconds, self.flops + needs

    def rates(self, seconds: float | int) -> dict[str, Any]:
        hosts, devices = jax.process_count(), jax.device_count()
        achieved = hosts * self.flops / seconds / devices
        best = flops.peak(jax.devices()[0].device_kind)
        return {
            "tokens_per_s": round(hosts * self.tokens / seconds, 1),
            "learned_tokens_per_s": round(hosts * self.learned / seconds, 1),
            "video_seconds_per_s": round(hosts * self.seconds / seconds, 3),
            "padding": round(1 - self.tokens / max(1, self.room), 4),
            "tflops_per_device": round(achieved / 1e12, 4),
            "mfu": None if best is None else round(achieved / best, 4),
            "device_memory_peak": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        }


class Watchdog:
    """Ends the process with every thread's stack on stderr when nothing has been finished for too long."""

    def __init__(self, seconds: float | int) -> None:
        self.seconds, self.last, self.done = seconds, time.monotonic(), threading.Event()
        if seconds:
            threading.Thread(target=self._watch, daemon=True).start()

    def beat(self) -> None:
        self.last = time.monotonic()

    def close(self) -> None:
        self.done.set()

    def _watch(self) -> None:
        while not self.done.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self.last > self.seconds:
                print(f"error: nothing finished for {self.seconds:g} s (hang_seconds): a host or a disk hangs", file=sys.stderr)
                faulthandler.dump_traceback()
                os._exit(HUNG)


def rows_of(step: Step, micro_batch: int) -> list[int]:
    """Rows of a micro-batch that this host's devices hold."""
    ways = step.mesh.shape["data"] * step.mesh.shape["fsdp"]
    if micro_batch % ways:
        raise InputError("micro_batch", micro_batch, f"a multiple of data x fsdp = {ways}", "change it or the mesh")
    places = batch_sharding(step.mesh, 1).addressable_devices_indices_map((micro_batch,))
    return sorted({row for index in places.values() if index for row in range(*index[0].indices(micro_batch))})


def place(padded: Batch, rows: list[int], micro_batch: int, step: Step) -> Batch:
    """A host's rows as global arrays, cut over data and fsdp."""

    def put(x: np.ndarray) -> jax.Array:
        def shard(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(micro_batch)
            return x[rows.index(first) : rows.index(first) + last - first]

        return jax.make_array_from_callback((micro_batch, *x.shape[1:]), batch_sharding(step.mesh, x.ndim), shard)

    return jax.tree.map(put, padded)


def _agreed(size: int) -> int:
    """The largest size that any host needs."""
    if jax.process_count() == 1:
        return size
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(size))))

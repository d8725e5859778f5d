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
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import jax

from svlm_jax.config import ModelConfig
from svlm_jax.data.pipeline import Bad, Examples, Order, Ours
from svlm_jax.errors import InputError
from svlm_jax.model.parameters import Parameters
from svlm_jax.train import same_data
from svlm_jax.train.batches import Batches, place, rows_of
from svlm_jax.train.checkpoints import Checkpoints
from svlm_jax.train.config import Say, TrainConfig
from svlm_jax.train.logs import Logs
from svlm_jax.train.optimizer import rates
from svlm_jax.train.step import Metrics, State, Step, Sums
from svlm_jax.train.throughput import Seen, Work

HUNG = 70  # exit code


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
        self.work = Work(model, trained, step.mesh, len(self.rows), config.micro_batch)
        self.steps = config.total_steps(len(self.learned))
        self.rates = rates(config.optimizer, self.steps)
        self.bad = Bad(config.data.max_bad, say)
        self.told_in_evaluation: dict[str, str] = {}
        self.bad_in_evaluation = 0
        self.data = same_data.everywhere(self.learned.fingerprint())
        self.checkpoints = Checkpoints(config.run_dir, keep=config.keep, keep_every=config.keep_every)
        loaded = self.checkpoints.load(step.state)
        if loaded is None:
            self.state, self.samples = step.start(trained), 0
        else:
            self.state, meta = loaded
            self.samples = int(meta["samples"])
            same_data.check(meta.get("data"), self.data, allowed=config.data.changed, say=say)
            say(f"goes on after step {int(self.state.step)} of {self.steps}, {self.samples} samples")
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
                        bad = self.bad_in_evaluation
                        logs.write({"step": number, "evaluation_loss": loss, "evaluation_bad_samples": bad})
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

    def _step(self, number: int, sums: Sums, batches: Batches) -> tuple["_Done", Sums]:
        began, waited, before, seen = time.perf_counter(), 0.0, None, Seen(self.work)
        for _ in range(self.config.accumulation):
            if self.stop(self.micro_step):
                self._save(wait=True)
                raise Preempted(f"saved after step {number - 1}")
            started = time.perf_counter()
            examples, padded, everyone = next(batches)
            waited += time.perf_counter() - started
            self.bad.look(everyone)
            seen.add(examples, padded)
            placed = place(padded, self.rows, self.config.micro_batch, self.step)
            jax.block_until_ready(before)  # or the batches of a whole step would lie on the device
            sums, before = self.step.micro(self.state.trained, sums, self.frozen, placed)
            self.micro_step += 1
            self.watchdog.beat()
        self.state, sums, metrics = self.step.apply(self.state, sums)
        self.samples += self.config.batch
        return _Done(number, float(self.rates[number - 1]), began, waited, seen, metrics), sums

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
            meta = {"samples": self.samples, "step": step, "config": json.dumps(asdict(self.config)), "data": self.data}
            self.checkpoints.save(step, self.state, meta, wait=wait)

    def evaluate(self) -> float:
        """Mean loss over the learned tokens of the first `evaluate_batches` micro-batches, always the same; no sample twice.

        Raises:
            InputError: more bad samples than may be, or no token that is learned.
        """
        assert self.evaluated is not None
        config, total, count, samples = self.config, 0.0, 0, len(self.evaluated)
        steps = min(config.evaluate_batches, -(-samples // config.micro_batch))
        ours = Ours(Order(samples, 0), self.rows, config.micro_batch, 0, steps, end=samples)
        bad = Bad(config.data.max_bad, self.say, self.told_in_evaluation)
        batches = Batches(self.evaluated, ours, config.data, self.model, workers=0)
        try:
            for _, padded, everyone in batches:
                bad.look(everyone)
                one = self.step.loss(self.state.trained, self.frozen, place(padded, self.rows, config.micro_batch, self.step))
                total, count = total + float(one[0]), count + int(one[1])
                self.watchdog.beat()
        finally:
            batches.close()
        if not count:
            got, remedy = f"nothing to learn in {bad.seen} samples, {bad.count} of them bad", "mend them or leave them out"
            raise InputError("data.evaluation", got, "at least one learned token", remedy)
        self.bad_in_evaluation = bad.count
        return total / count

    def _batches(self, steps: int) -> Batches:
        """Those of the micro-steps that are left."""
        data, order = self.config.data, Order(len(self.learned), self.config.seed)
        ours = Ours(order, self.rows, self.config.micro_batch, self.samples, steps)
        return Batches(self.learned, ours, data, self.model, workers=data.workers)

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
    seen: Seen
    metrics: Metrics


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

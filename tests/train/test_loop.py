"""Claims about the loop: the devices never wait for the host, nor the host for the devices where it could go on."""

import threading
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import pytest

from svlm_jax.train import loop, prefetch
from svlm_jax.train.run import build_trainer
from svlm_jax.train.step import StepMetrics


class Read(float):
    """A number of a step that notes when the host reads it."""

    events: list[str]
    name: str

    def __float__(self) -> float:
        self.events.append(self.name)
        return 1.0


@pytest.fixture
def events(config, shallow_dir, monkeypatch) -> list[str]:
    """What a run of 3 steps of 4 micro-steps does, in order; devices that compute nothing."""
    events: list[str] = []
    config = replace(config, batch_size=4, micro_batch_size=1, steps=3, save_every=3)
    trainer = build_trainer(config, shallow_dir, devices=jax.devices()[:1])
    micro_steps = iter(range(12))

    def accumulate(trainable, accumulator, frozen, batch):
        name = f"micro-step {next(micro_steps)}"
        events.append(name)
        return accumulator, name

    def apply_gradients(state, accumulator):
        step = sum(event.startswith("update") for event in events)
        events.append(f"update {step}")
        value = Read(1.0)
        value.events, value.name = events, f"read {step}"
        metrics: Any = StepMetrics(*[value, *[1.0] * (len(StepMetrics._fields) - 1)])  # pyright: ignore[reportArgumentType]
        return state._replace(step=state.step + 1), accumulator, metrics

    wait = jax.block_until_ready

    def block_until_ready(value):
        if isinstance(value, str):
            events.append(f"wait for {value}")
            return value
        return wait(value)

    monkeypatch.setattr(trainer.step, "accumulate", accumulate)
    monkeypatch.setattr(trainer.step, "apply_gradients", apply_gradients)
    monkeypatch.setattr(loop.jax, "block_until_ready", block_until_ready)

    def recorded(function, *args):
        events.append(f"{function.__name__} in {threading.current_thread().name}")
        return function(*args)

    for name in ("pad_batch", "shard_batch"):
        monkeypatch.setattr(prefetch, name, partial(recorded, getattr(prefetch, name)))
    trainer.run()
    return events


def test_a_device_has_the_next_micro_step_before_it_ends_this_one(events):
    """With one in flight it would idle while the host dispatches; with all, a whole step's batches would be in its memory."""
    host = [event for event in events if " in " not in event]
    assert host[:7] == [
        "micro-step 0",
        "micro-step 1",
        "wait for micro-step 0",
        "micro-step 2",
        "wait for micro-step 1",
        "micro-step 3",
        "update 0",
    ]
    # Metrics are read when the step after theirs has been dispatched; the last have none after them.
    assert host.index("read 0") > host.index("update 1") and host.index("read 1") > host.index("update 2")
    assert [event for event in host if event.startswith("read")] == ["read 0", "read 1", "read 2"]
    waits = [event for event in host if event.startswith("wait")]
    assert waits == [f"wait for micro-step {number}" for number in (0, 1, 4, 5, 8, 9)]


def test_padding_and_copies_are_made_in_the_prefetch_thread(events):
    for name in ("pad_batch", "shard_batch"):
        made = [event for event in events if event.startswith(name)]
        assert made == [f"{name} in batches"] * 12

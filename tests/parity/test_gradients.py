"""Claims about training against the library: the gradients of every parameter, the tower's too, and which of them decay."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svlm_jax.checkpoint import huggingface
from svlm_jax.checkpoint.tensor_files import table_name
from svlm_jax.data.batch import collate
from svlm_jax.families import family_of
from svlm_jax.model.parameters import from_parameters, unstack
from svlm_jax.train.config import OptimizerConfig
from svlm_jax.train.loss import cross_entropy
from svlm_jax.train.optimizer import build_optimizer
from tests.parity import reference as ref
from tests.parity.reference import image, torch, video

# Images and clips of several grids, two of them in a sample; a sample without any.
PROMPTS = ((5, image(6, 10), 9, video(2, 8, 4), 6), (11,), (3, image(4, 4), 8))
TRAINING = {"scan_layers": True, "remat": "full"}


@pytest.mark.parametrize(
    "name", ["qwen3_vl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3_vl_tied", "qwen2_vl"))]
)
def test_gradients_of_all_parameters_are_those_of_the_library(pair, name):
    both = pair(name)
    samples = ref.make_samples(PROMPTS, both.config)
    want = library_gradients(both, samples)
    got = gradients(both, samples)
    assert got.keys() == want.keys()
    worst = {key: float(np.linalg.norm(got[key] - want[key]) / np.linalg.norm(want[key])) for key in want}
    print("".join(f"{key}: {value:.1e}\n" for key, value in worst.items()))
    assert {key: value for key, value in worst.items() if not value <= ref.TOLERANCE} == {}


@pytest.mark.parametrize("name", ["qwen3_vl", pytest.param("qwen2_vl", marks=pytest.mark.slow)])
def test_weights_decay_that_the_trainer_of_the_library_decays(pair, name):
    """Learned positions among them; norms and biases are not."""
    both, trainer = pair(name), pytest.importorskip("transformers.trainer").Trainer
    aliases = family_of(both.config).weights.aliases
    want = {table_name(key, aliases) for key in trainer.get_decay_parameter_names(None, both.torch)}
    values = {row.path: jnp.ones((2,) * len(row.shape)) for row in huggingface.rows(both.config)}
    update = build_optimizer(OptimizerConfig(learning_rate=1.0, warmup_ratio=0.0, weight_decay=0.1), 10)
    updates, _ = update.update(jax.tree.map(jnp.zeros_like, values), update.init(values), values)
    assert {row.name for row in huggingface.rows(both.config) if np.any(updates[row.path])} == want


def library_gradients(both: ref.Pair, samples) -> dict[str, np.ndarray]:
    """By the names of our weight table, of the mean loss over all next tokens."""
    model, inputs = both.torch, ref.torch_inputs(samples, both.config)
    named = dict(model.named_parameters())
    labels = torch.where(inputs["attention_mask"] > 0, inputs["input_ids"], -100)
    logits = model(**inputs, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    aliases = family_of(both.config).weights.aliases
    found = torch.autograd.grad(loss, list(named.values()))
    return {table_name(name, aliases): ref.as_numpy(value) for name, value in zip(named, found, strict=True)}


def gradients(both: ref.Pair, samples) -> dict[str, np.ndarray]:
    config = replace(both.config, **TRAINING)
    inputs = collate(samples, config.vision, token_buckets=(64,), patch_buckets=(128,))
    labels = jnp.where(inputs.index >= 0, inputs.ids, -100)

    def loss(values):
        model = from_parameters(config, values)
        return cross_entropy(model.text, model.hidden(inputs), labels)[0]

    found = unstack(jax.jit(jax.grad(loss))(huggingface.load(both.directory, config)))
    return {row.name: row.write(np.asarray(found[row.path])) for row in huggingface.rows(config)}

"""What most commands import (see `commands.py`). Nothing here may start a backend of jax, or a thread: it is forked."""
# ruff: noqa: F401

import av
from orbax.checkpoint import v1
from transformers import AutoTokenizer

import svlm_jax.checkpoint.convert
import svlm_jax.checkpoint.orbax
import svlm_jax.cli.caption
import svlm_jax.cli.convert
import svlm_jax.cli.stream
import svlm_jax.pretrained
import svlm_jax.stream.runner
import svlm_jax.stream.state_io
import svlm_jax.train.export

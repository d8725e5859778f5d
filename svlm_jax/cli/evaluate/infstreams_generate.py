"""The verb `generate` of `svlm evaluate infstreams`: its flags, and what it does with them."""

import argparse

from svlm_jax.cli.flags import Parser


def add_flags(parser: Parser) -> None:
    """Flags of `generate`."""


def run(args: argparse.Namespace) -> None:
    """Have a model comment on games."""
    raise NotImplementedError

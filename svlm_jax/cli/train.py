"""Fine-tune on annotated windows of video.

    svlm train --config sft_stage1 --run-dir RUN --data.paths train.jsonl
    svlm train --config my_run.py --run-dir RUN --optimizer.learning-rate 2e-5     # any field; --help lists them
    svlm train --config sft_stage1 --run-dir RUN --nproc 4                         # 4 processes on this machine
    svlm train --config sft_stage1 --run-dir RUN --dry-run h100x8                  # does it fit? nothing is run

--config is a Python file with a `config` in it, a name in configs/ of a checkout, or touchline_stage1 to 6. A run whose
directory has checkpoints resumes from the newest. On a cluster start the same command on every host (docs/cluster.md). Exit
codes: 0 done, 75 asked to stop and saved (start again), 130 interrupted, 70 hung, 2 bad input, 1 error.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

from svlm_jax.cli.flags import Parser, integer
from svlm_jax.cli.model_flags import check_attention, compile_cache_flag, set_compile_cache
from svlm_jax.cli.progress import interruptible
from svlm_jax.cli.run import user_error
from svlm_jax.errors import InputError
from svlm_jax.files import local_path
from svlm_jax.topology import MEMORY_FRACTION

PREEMPTED = 75  # EX_TEMPFAIL: schedulers start such a job again
CONFIGS = Path(__file__).parents[2] / "configs"


def read(name: str) -> Any:
    """The `config` of a Python file, of a name in configs/ (in a checkout), or of a stage of the shipped model.

    Raises:
        InputError: no such file, or no TrainConfig in it.
    """
    from svlm_jax.touchline.recipe import CONFIGS as STAGES
    from svlm_jax.train.config import TrainConfig, unknown_setting

    if name in STAGES:
        return STAGES[name]
    files = {path.stem: path for path in sorted(CONFIGS.glob("*.py"))}
    path = files.get(name, Path(name))
    if path.suffix != ".py" or not path.is_file():
        raise InputError("--config", name, f"a Python file, or one of {', '.join([*files, *STAGES])}", "check the name")
    # By its path and not as a module: a user's own package `configs` in the current folder must not hide ours.
    spec = importlib.util.spec_from_file_location("run_config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except TypeError as error:  # a field that TrainConfig does not have (any more)
        match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if match is None:
            raise
        raise unknown_setting(name, match[1], "rename it") from error
    config = getattr(module, "config", None)
    if not isinstance(config, TrainConfig):
        raise InputError("--config", f"{name} without a TrainConfig named `config`", "one", "see configs/sft_stage1.py")
    return config


def parse(config: Any, flags: list[str], program: str) -> Any:
    """The config with the flags' values in it; what is wrong with them in one line, where tyro draws a box."""
    try:
        import tyro
    except ImportError:
        raise InputError("svlm train", "no tyro", "the train extra", "pip install 'svlm-jax[train]'") from None

    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(type(config), default=config, args=flags, prog=program)
    except SystemExit as end:
        if end.code:
            line = " ".join(re.sub(r"[─-╿]", " ", captured.getvalue()).split())
            print(f"error: {line}", file=sys.stderr)
        sys.exit(end.code)


def main() -> None:
    first = Parser(description=__doc__, add_help=False, allow_abbrev=False)
    first.add_argument("--config", help="a name in configs/, or a Python file")
    compile_cache_flag(first)
    first.add_argument("--nproc", type=integer(1, 1024), default=1, help="processes on this machine (default 1)")
    first.add_argument("--devices-each", type=integer(1, 1024), help="virtual CPU devices of each process")
    first.add_argument(
        "--dry-run",
        nargs="?",
        const="local",
        metavar="TOPOLOGY",
        help="does it fit? compile for h100x8, v5p-64 ... or this machine; nothing is run",
    )
    command_args, rest = first.parse_known_args()
    if command_args.config is None:
        if {"-h", "--help"} & set(rest):
            first.print_help()
            return
        raise InputError("--config", "nothing", "a name in configs/ or a file", "see --help")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(MEMORY_FRACTION))  # before jax is there
    config = parse(read(command_args.config), rest, f"svlm train --config {command_args.config}")
    if command_args.nproc > 1:
        from svlm_jax.cluster.local import spawn

        cache = [] if command_args.compile_cache is None else ["--compile-cache", command_args.compile_cache]
        argv = ["svlm_jax.cli", "train", "--config", command_args.config, *cache, *rest]
        sys.exit(spawn(command_args.nproc, argv, devices_each=command_args.devices_each))
    if command_args.dry_run:
        from svlm_jax.train.dry_run import report

        with interruptible():
            report(config, command_args.dry_run)
        return
    train(config, command_args)


class Screen:
    """What a run says, on stderr: on a terminal steps move a bar, elsewhere each is a line.

    Attributes:
        before_steps: left at the first step.
    """

    def __init__(self, chief: bool) -> None:
        self.chief, self.bar, self.before_steps = chief, None, contextlib.ExitStack()

    def __call__(self, line: str) -> None:
        step = re.match(r"step (\d+)/(\d+): (.*)", line)
        if step is not None:
            self.before_steps.close()
        if not self.chief:  # all hosts are told of all
            return
        if not sys.stderr.isatty():
            print(line, file=sys.stderr, flush=True)
            return
        from tqdm import tqdm

        if step is None:
            tqdm.write(line, file=sys.stderr)
            return
        self.bar = self.bar or tqdm(total=int(step[2]), initial=int(step[1]) - 1, unit=" steps")
        self.bar.set_postfix_str(step[3], refresh=False)
        self.bar.update(int(step[1]) - self.bar.n)


def refusal_of(error: Exception) -> InputError | None:
    """What a user can mend of an error that is not ours."""
    if "RESOURCE_EXHAUSTED" in str(error):  # of XLA: the first of many lines says how much
        got, remedy = f"too little ({str(error).splitlines()[0]})", "lower micro_batch_size, or see --dry-run for what fits"
        return InputError("memory of a device", got, "room for a micro-step", remedy)
    return user_error(error)


def train(config: Any, command_args: argparse.Namespace) -> None:
    """The run on this process's share of the devices; `own`: flags of the command."""
    from svlm_jax.cluster import distributed

    if not config.run_dir:  # "" would be the current folder, and a file of that name in it ours
        raise InputError("run_dir", "nothing", "a directory for checkpoints and metrics", "set --run-dir")
    local_path(config.run_dir, "--run-dir")

    distributed.initialize()
    import jax
    from jax.experimental import multihost_utils

    from svlm_jax.compile_cache import where_kept
    from svlm_jax.pretrained import local_directory
    from svlm_jax.train.loop import Preempted
    from svlm_jax.train.run import build_trainer

    chief, preempted_marker = jax.process_index() == 0, Path(config.run_dir) / "preempted"
    log = Screen(chief)
    try:
        if chief:
            preempted_marker.unlink(missing_ok=True)
        check_attention(config.attention)
        set_compile_cache(command_args)
        trainer = build_trainer(
            config, local_directory(config.model), log=log, should_stop=multihost_utils.reached_preemption_sync_point
        )
        log(
            f"{jax.device_count()} x {jax.devices()[0].device_kind}, {trainer.total_steps} steps of {config.batch_size} samples"
        )
        if int(trainer.state.step) < trainer.total_steps:
            note = f" (kept in {directory} for the next start)" if (directory := where_kept()) else ""
            log(f"compiling; the first step comes after that{note} ...")
        with log.before_steps as compiling:  # later a checkpoint may be under way, which Ctrl-C waits for
            compiling.enter_context(interruptible())
            trainer.run()
    except Preempted as request:
        log(f"asked to stop: {request}; start again and the run resumes")
        if chief:
            preempted_marker.touch()
        distributed.leave(PREEMPTED)
    except Exception as error:
        distributed.fail(refusal_of(error) or error)
    log(f"done: svlm convert {config.run_dir} DIR exports it")

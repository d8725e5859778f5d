"""Kill a run at each moment at which it changes the disk, go on, and compare. In an interpreter of its own, without threads:
it forks."""

import os
import signal
import sys
from itertools import count
from pathlib import Path

from svlm_jax.curate.running.input_lines import InputLines
from svlm_jax.curate.running.run import Run, run_step
from svlm_jax.curate.running.step_files import step_files
from tests.curate.steps import Shout, results, write_input


def run(folder: Path, out: str) -> Run:
    return run_step(Shout(), InputLines.of_file(folder / "words.jsonl"), step_files(folder / out))


def kill_at(number: int) -> None:
    """This process, before the `number`-th change from now on."""
    left = iter(range(number))

    def counted(function):
        def call(*args, **options):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    for name in ("fsync", "replace"):
        setattr(os, name, counted(getattr(os, name)))
    Path.unlink = counted(Path.unlink)


def main(folder: Path) -> None:
    uninterrupted: list[bytes] = []
    for number in count():
        for path in folder.iterdir():
            path.unlink()
        write_input(folder / "words.jsonl", 2)
        run(folder, "g.jsonl")
        write_input(folder / "words.jsonl", 4)
        run(folder, "whole.jsonl")
        uninterrupted = uninterrupted or [*results(folder, "whole").values()]
        if not (child := os.fork()):
            kill_at(number)
            run(folder, "g.jsonl")
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), code
        done = run(folder, "g.jsonl")
        assert done.before >= 2, number
        assert [*results(folder).values()] == uninterrupted, number
        if code == 0:
            assert done.before == 4
            print(number)
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))

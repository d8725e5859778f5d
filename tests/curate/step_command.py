"""`svlm curate shout`: the step of the tests as a command, for those that signal a running one."""

from pathlib import Path

from svlm_jax.cli.curate.step_flags import run, step_flags
from svlm_jax.cli.flags import Parser
from svlm_jax.cli.run import run as run_command
from tests.curate.steps import Shout


def main() -> None:
    parser = Parser(description=__doc__)
    step_flags(parser)
    parser.add_argument("--begins", type=Path)
    parser.add_argument("--waits-for", type=Path)
    args = parser.parse_args()
    run(args, Shout(begins=args.begins, waits_for=args.waits_for))


if __name__ == "__main__":
    run_command(main)

"""Put the files of all shards of a step together, checked: the same bytes as of one run.

    svlm curate clean --in words.jsonl --out clean.jsonl --shard 1/2
    svlm curate clean --in words.jsonl --out clean.jsonl --shard 2/2
    svlm curate merge --out clean.jsonl

Nothing is removed. What is not complete, or not of one run, is an error.
"""

import sys
from pathlib import Path

from svlm_jax.cli.curate.step_flags import INCOMPLETE, summary
from svlm_jax.cli.flags import Parser
from svlm_jax.curate.running.merge import merge


def main() -> None:
    parser = Parser(description=__doc__)
    out = "as the shards were given it; theirs are G.shard_1_of_N.jsonl and so on, in the same folder"
    parser.add_argument("--out", type=Path, required=True, metavar="G.jsonl", help=out)
    report, files = merge(parser.parse_args().out)
    print(summary(report, files))
    if not report["videos"]["kept"]:
        sys.exit(INCOMPLETE)

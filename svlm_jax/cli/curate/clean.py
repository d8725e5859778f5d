"""Mend the times of words, and delete what an ASR wrote and nobody said.

    svlm curate clean --in words.jsonl --out clean.jsonl
    svlm curate clean --in words.jsonl --out clean.jsonl --language en --jobs 8    # other languages are set aside
    svlm curate clean --in words.jsonl --out clean.jsonl --shard 2/8               # one of 8 processes or hosts

Every repair and deletion is in clean.changes.jsonl, every video that is beyond repair in clean.set_aside.jsonl with its reason.
To clean a clean file changes nothing; after an editor it is worth another run.
"""

from svlm_jax.cli.curate.step_flags import run, step_flags
from svlm_jax.cli.flags import Parser, number
from svlm_jax.curate.cleaning.clean import CleanStep, Limits
from svlm_jax.curate.languages import language_code
from svlm_jax.errors import InputError


def main() -> None:
    parser = Parser(description=__doc__)
    step_flags(parser)
    limits = Limits()
    parser.add_argument("--language", default="", metavar="CODE", help="en: set others aside; unknown ones stay (default: any)")
    for flag, bounds, help_text in (
        ("--words-per-second", (1, 100), "delete words that are faster, over 3 s"),
        ("--min-probability", (0, 1), "delete sentences of which the ASR was less sure in the mean"),
        ("--min-no-speech", (0, 1), "delete where the ASR hears no speech with this probability"),
        ("--max-deleted", (0, 1), "set a video aside if more of its words were deleted"),
        ("--min-words-per-second", (0, 100), "set a video aside if it has fewer"),
    ):
        default = getattr(limits, flag[2:].replace("-", "_"))
        help_text = f"{help_text} (default {default:g})"
        parser.add_argument(flag, type=number(*bounds), default=default, metavar="X", help=help_text)
    args = parser.parse_args()
    if args.language and not language_code(args.language):
        raise InputError("--language", repr(args.language), "a code of a language", "en is English")
    run(args, CleanStep(Limits(**{name: getattr(args, name) for name in Limits.__dataclass_fields__})))

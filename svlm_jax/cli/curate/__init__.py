"""Make training data of raw videos: `svlm curate STEP ...`, a step after the other, a video a line.

Each step is a module of this package with a `main`, which parses what follows its name.
"""

from svlm_jax.cli.subcommands import dispatch

STEPS = {
    "transcribe": "words with their times: subtitles, files of words, or speech recognition",
    "clean": "repair times, and set aside what is no speech",
    "edit": "keep, edit or delete each sentence: by a language model, or by rules",
    "windows": "cut into training windows, with the text before each",
    "anneal": "clips of live commentary alone, for the last part of training",
    "report": "a page of what each step kept, changed and set aside",
    "merge": "the files of all shards as those of one run",
}


def main() -> None:
    dispatch("curate", "STEP", STEPS, "svlm curate STEP --help lists its flags")

"""Flags of who edits a commentary: a language model behind a server, or rules."""

import argparse
from pathlib import Path

from svlm_jax.cli.curate.chat_flags import chat_client, chat_flags
from svlm_jax.curate.editing.edit import Editor
from svlm_jax.curate.editing.llm_editor import FIELDS, LlmEditor
from svlm_jax.errors import InputError
from svlm_jax.remote.prompt import Prompt

FLAG = "--editor"


def editor_flags(parser: argparse.ArgumentParser) -> None:
    """What `make_editor` reads."""
    group = parser.add_argument_group("editor")
    editor = "who edits without a model: a glossary and patterns (the default where no --editor-url is given)"
    group.add_argument("--editor", choices=["rules"], help=editor)
    glossary = 'names and how they are misheard, for the rules: {"Reds": ["Redz", "the Rets"]}'
    group.add_argument("--glossary", type=Path, metavar="F.json", help=glossary)
    group.add_argument("--patterns", type=Path, metavar="F.toml", help="kinds of sentences that the rules delete")
    chat_flags(parser, FLAG, "{sentences}, and {title} {language} {start} {end} {previous} {last} where it wants them")


def make_editor(args: argparse.Namespace, cache: Path) -> Editor:
    """The editor of the flags; nothing is asked yet.

    Raises:
        InputError: flags that do not go together, a file that cannot be used, or those of `chat_client`.
    """
    client = chat_client(args, FLAG, cache)
    if client is None:
        if args.prompt_file:
            raise InputError("--prompt-file", "without --editor-url", "a model that reads it", "leave it out")
        return _rule_editor(args)
    for flag, value in (("--editor", args.editor), ("--glossary", args.glossary), ("--patterns", args.patterns)):
        if value:
            raise InputError(flag, "together with --editor-url", "rules or a model", "leave one of them out")
    prompt = Prompt.read(args.prompt_file, FIELDS) if args.prompt_file else None
    return LlmEditor(client, prompt, args.concurrency)


def _rule_editor(args: argparse.Namespace) -> Editor:
    from svlm_jax.curate.editing.glossary import Glossary
    from svlm_jax.curate.editing.rule_editor import RuleEditor
    from svlm_jax.curate.patterns import Patterns

    glossary = Glossary.read(args.glossary) if args.glossary else None
    return RuleEditor(glossary, Patterns.read(args.patterns, "--patterns") if args.patterns else None)

"""What the README says can be run as it stands."""

import re

import pytest

from tests.support import ROOT

README = (ROOT / "README.md").read_text()
CHECKED = (ROOT / "docs" / "checked.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def test_the_examples_on_the_small_model_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    examples = [text for language, text in BLOCKS if language == "python" and "tests/fixtures" in text]
    assert examples
    for text in examples:
        exec(compile(text, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_the_first_example_prints_what_stands_below_it(capsys):
    """Else: the first thing that a newcomer types prints something else, random words or milliseconds with 15 digits."""
    (place,) = (number for number, (language, _) in enumerate(BLOCKS) if language == "text")
    (language, example), (_, shown) = BLOCKS[place - 1 : place + 1]
    assert language == "python" and len(example.strip().splitlines()) <= 7
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.rpartition("  [")[0] for line in printed] == shown.splitlines()
    assert all(re.fullmatch(r"\d+ ms\]", line.rpartition("  [")[2]) for line in printed)


def test_its_first_commands_are_what_a_checkout_has():
    """Else: README does not work as typed: `python` without .venv, before anything said to activate it."""
    first = next(text for language, text in BLOCKS if language == "bash")
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", ". .venv/bin/activate", "make serve"]


def test_its_contents_name_its_sections():
    named = re.findall(r"\]\(#([\w-]+)\)", README)
    titles = [title.lower().replace(" ", "-") for title in re.findall(r"(?m)^## (.*)$", README)]
    assert named and set(named) == set(titles) - {"start"}


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m (launch\.\w+)", README + CHECKED))))
def test_every_command_it_names_exists(module):
    place = ROOT / module.replace(".", "/")
    assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()


def test_every_path_it_names_exists():
    named = re.findall(r"`((?:svlm_jax|tests|launch|docs|pallas_kernels|configs)/[\w/.]+)`", README + CHECKED)
    named += re.findall(r"\]\(((?!http)[\w/.]+)\)", README)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?m)(?:`|^)make ([\w-]+)", README))))
def test_every_make_target_it_names_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)

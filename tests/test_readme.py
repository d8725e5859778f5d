"""What the README says can be run as it stands."""

import re

import pytest

from svlm_jax import cli
from tests.support import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]


def test_it_can_be_read_in_five_minutes():
    assert len(README.splitlines()) <= 160


def test_the_example_of_the_functional_core_runs(monkeypatch, capsys):
    """Else: whoever builds on sessions begins with an example that is wrong."""
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs/architecture.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "architecture.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_first_example_prints_what_stands_below_it(capsys):
    """Else: the first thing that a newcomer types prints something else."""
    (index,) = (number for number, (language, _) in enumerate(BLOCKS) if language == "text")
    (language, example), (_, printed) = BLOCKS[index - 1 : index + 1]
    assert language == "python"
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out == printed


def test_its_first_commands_are_what_a_checkout_has():
    """Else: README does not work as typed: `svlm` before anything said where it comes from."""
    first = next(text for language, text in BLOCKS if language == "bash")
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make serve"]
    assert README.index(". .venv/bin/activate") < README.index("```bash\nsvlm ")


def test_every_command_it_names_exists():
    names = {match for line in COMMANDS for match in re.findall(r"(?:^|&& )svlm (\w+)", line)}
    assert names and names <= set(cli.COMMANDS)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?m)(?:`|^)make ([\w-]+)", README))))
def test_every_make_target_it_names_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)

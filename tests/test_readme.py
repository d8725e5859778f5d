"""What the README says can be run as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def test_the_examples_on_the_small_model_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    examples = [text for language, text in BLOCKS if language == "python" and "tests/data" in text]
    assert examples
    for text in examples:
        exec(compile(text, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 2


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m (launch\.\w+)", README))))
def test_every_command_it_names_exists(module):
    place = ROOT / module.replace(".", "/")
    assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()


def test_every_path_it_names_exists():
    named = re.findall(r"`((?:svlm_jax|tests|launch|docs|pallas_kernels|configs)/[\w/.]+)`", README)
    named += re.findall(r"\]\(((?!http)[\w/.]+)\)", README)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?m)(?:`|^)make ([\w-]+)", README))))
def test_every_make_target_it_names_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)

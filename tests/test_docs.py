"""What the pages in docs/ name is there."""

import re

import pytest

from tests.support import ROOT

PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY"))]
GUIDES = ("architecture", "adding_a_model", "adding_a_kernel")
FOLDERS = ("svlm_jax", "pallas_kernels", "tests", "launch", "configs", "benchmarks", "docs")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    targets = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page):
    """Else: a page sends its reader to a file that was renamed."""
    paths = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w/.-]+)`", page.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", GUIDES)
def test_every_name_is_found_by_grep(page):
    """The guides promise it: names of code in backticks, and paths below svlm_jax without the package's name."""
    text = re.sub(r"```.*?```", "", (ROOT / "docs" / f"{page}.md").read_text(), flags=re.DOTALL)
    source = "\n".join(
        path.read_text() for folder in FOLDERS[:-1] for path in (ROOT / folder).rglob("*.py") if "fixtures" not in path.parts
    )
    for name in re.findall(r"`([A-Za-z_][\w.]*)`", text):
        assert all(re.search(rf"\b{re.escape(part)}\b", source) for part in name.split(".")), name
    for path in re.findall(r"`([a-z_]+/[a-z_/0-9]+\.py)`", text):
        assert (ROOT / path).exists() or (ROOT / "svlm_jax" / path).exists(), path

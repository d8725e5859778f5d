"""Claims about what is installed: the two packages alone, with their data, and one version everywhere."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import svlm_jax
from tests.support import ROOT

DATA = (
    "svlm_jax/py.typed",
    "pallas_kernels/py.typed",
    "svlm_jax/h100.txtpb",
    "svlm_jax/serve/page/index.html",
    "svlm_jax/eval/prompts/infstreams.txt",
    "svlm_jax/touchline/weights/touchline/model.safetensors",
    "svlm_jax/touchline/weights/touchline-base/config.json",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools writes into the tree that it builds from."""
    folder = tmp_path_factory.mktemp("wheel")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    kept = [name for name in names if not name.startswith(("tests/", "docs/")) and (ROOT / name).is_file()]
    for name in kept:
        (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "src" / name).write_bytes((ROOT / name).read_bytes())
    build = "import setuptools.build_meta as backend; print(backend.build_wheel('..'))"
    result = subprocess.run([sys.executable, "-c", build], cwd=folder / "src", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return folder / result.stdout.split()[-1]


def test_a_wheel_holds_the_library_alone_with_its_data(wheel):
    """Else: packages called launch, configs or tests stand in site-packages beside a user's own; or the page has no files."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"svlm_jax", "pallas_kernels"}
    assert set(DATA) <= set(names)
    assert not [name for name in names if "__pycache__" in name]


def test_every_module_of_the_library_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("svlm_jax", "pallas_kernels"):
        modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")}
        assert modules <= names


def test_the_version_is_the_same_everywhere(wheel):
    version = svlm_jax.__version__
    assert wheel.name.startswith(f"svlm_jax-{version}-")
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"(?m)^## \[?(\d[\w.]*)", (ROOT / "CHANGELOG.md").read_text())[0] == version


def test_nothing_in_the_library_reaches_out_of_it():
    """Else: an installed command looks for tests/ or docs/ where there are none."""
    reaching = re.compile(r"Path\(__file__\)\.parents\[[2-9]\]")
    places = [path for path in (ROOT / "svlm_jax").rglob("*.py") if reaching.search(path.read_text())]
    assert [path.relative_to(ROOT).as_posix() for path in places] == ["svlm_jax/cli/train.py"]  # configs/, where there are some


@pytest.mark.slow
def test_an_installed_wheel_runs_from_any_folder(wheel, tmp_path):
    """Commands as a user types them, in a folder that is no checkout, with the wheel alone on the path."""
    site, cwd = tmp_path / "site", tmp_path / "cwd"
    cwd.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")} | {
        "PYTHONPATH": str(site)
    }

    def svlm(*args: object) -> str:
        line = [sys.executable, "-m", "svlm_jax.cli", *map(str, args)]
        result = subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    where = subprocess.run(
        [sys.executable, "-c", "import svlm_jax; print(svlm_jax.__file__)"], cwd=cwd, env=env, capture_output=True
    )
    assert str(site) in where.stdout.decode()
    assert "scores right: " in svlm("demo", "--seconds", 20)
    assert "Welcome" in svlm("stream", "match:1000000", "--duration", 10)
    assert "fits" in svlm("train", "--config", ROOT / "configs" / "sft_smoke.py", "--dry-run")

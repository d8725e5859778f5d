"""What every test runs on: eight virtual CPU devices, float32 matmuls, no network; and where the small models lie.

The environment is set before jax is imported. A given JAX_PLATFORMS or OMP_NUM_THREADS is respected.
"""

import atexit
import os
import shutil
import ssl
import tempfile
from pathlib import Path

from tests.support import FIXTURES, XLA_FLAGS

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "SVLM_TESTS_CACHE" not in os.environ:  # of commands that tests start: compiled programs, never in the user's home
    os.environ["SVLM_TESTS_CACHE"] = os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="svlm-tests-cache-")
    atexit.register(shutil.rmtree, os.environ["SVLM_TESTS_CACHE"], ignore_errors=True)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch; the tests are parallel already
# Tests compile far more than they run, and LLVM's optimisations took a third of all their time; the HLO is the same without.
# Commands that tests start inherit it. Claims about bits have programs as users do: the fixture `optimized`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if XLA_FLAGS not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += f" {XLA_FLAGS}"

import jax
import jaxtyping
import pytest
from hypothesis import settings
from jax._src import compiler

from tests.support.models import write_shallow

# Shapes and types in signatures are checked on every call (once a trace, inside jit).
jaxtyping.install_import_hook(
    ["svlm_jax.model", "svlm_jax.stream", "svlm_jax.train", "svlm_jax.inputs", "svlm_jax.spans"], "beartype.beartype"
)

jax.config.update("jax_default_matmul_precision", "highest")

# The same examples in every run, on machines of any speed: a change does not fail by chance. `pytest
# --hypothesis-profile=default` looks for others.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")


def pytest_configure(config):
    """What Orbax leaves of a read that failed may be collected, and its threads may find their event loop closed, in any test
    that comes later."""
    for filter in (
        "ignore:coroutine 'PyTreeHandler:RuntimeWarning",
        r"ignore:Exception ignored in. None[\s\S]*Event loop is closed:pytest.PytestUnraisableExceptionWarning",
    ):
        config.addinivalue_line("filterwarnings", filter)


@pytest.fixture(scope="session", autouse=True)
def no_authorities():
    """No test speaks TLS, and a client of the openai package reads all certificate authorities: 40 ms each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl.SSLContext, "load_verify_locations", lambda *args, **options: None)
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def tiny_dir() -> Path:
    """A checkpoint with its own output head."""
    return FIXTURES / "models" / "tiny"


@pytest.fixture(scope="session")
def shallow_dir(tiny_dir, tmp_path_factory) -> Path:
    """The same with two layers and two blocks: for claims that need no more, and compile a lot."""
    return write_shallow(tiny_dir, tmp_path_factory.mktemp("shallow"))


@pytest.fixture(scope="session")
def tiny_tied_dir() -> Path:
    """A checkpoint whose output head is the embedding."""
    return FIXTURES / "models" / "tiny_tied"


@pytest.fixture(scope="session")
def processor_dir() -> Path:
    """Tokenizer, chat template and image settings."""
    return FIXTURES / "processor"


@pytest.fixture(scope="module")
def optimized():
    """Programs of this module are compiled as users compile them: what is bit for bit must survive XLA's optimisations."""
    name = "jax_disable_most_optimizations"
    if not jax.config.values[name]:
        yield
        return

    def options(*args, env_options_overrides=None, make=compiler.get_compile_options, **settings):
        settings["env_options_overrides"] = (env_options_overrides or {}) | {"xla_backend_extra_options": ""}
        return make(*args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", options)
        jax.clear_caches()  # they do not tell the two apart
        jax.config.update(name, False)
        yield
        jax.config.update(name, True)
    jax.clear_caches()

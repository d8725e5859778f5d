"""GPU interpret mode, made fast enough for tests: by itself it compiles a kernel anew for every block of the grid."""

import threading

import jax
import pytest
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import reset_gpu_interpret_mode_state


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels run in GPU interpret mode; one that failed leaves nothing behind for the next."""
    compiled, lock = {}, threading.Lock()

    def run(jaxpr, consts, *args):
        with lock:
            if jaxpr not in compiled:
                body = jax.jit(lambda consts, *args: jax.core.eval_jaxpr(jaxpr, consts, *args))
                compiled[jaxpr] = body.lower(consts, *args).compile()
        compiled[jaxpr](consts, *args)

    monkeypatch.setattr(thread_map, "_run_jaxpr", run)
    yield
    reset_gpu_interpret_mode_state()

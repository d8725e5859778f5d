"""Claims about what is read from compiled programs, and about decode steps side by side: a wrong table would send the next
optimisation astray."""

from types import SimpleNamespace

import jax
import pytest
from jax.sharding import SingleDeviceSharding

from benchmarks import aot
from benchmarks.aot import count_large_copies
from benchmarks.decode import measured
from benchmarks.launches import decode_columns, mosaic_kernels, program_columns, thunks
from benchmarks.model_configs import model_config
from pallas_kernels.dispatch import platform

SEQUENCE = """000: kCommandBuffer [source       | next=002 (1)]
    001: kCustomKernel [source       | sink        ] rotate grid: [1, 1, 1]
002: kWhile         [prev=000 (1) | sink        ]
condition:
    003: kCustomKernel [source | sink] limit grid: [1, 1, 1]
  body:
    000: kCommandBuffer [source       | next=006 (1)]
        004: kCustomKernel [source       | next=005 (1)] norm grid: [1, 1, 1]
        005: kCustomKernel [prev=004 (1) | sink        ] split_product grid: [4, 1, 1]
    006: kCustomCall    [prev=000 (1) | next=007 (1)] kCustomCall
    007: kCustomKernel [prev=006 (1) | next=010 (1)] norm grid: [1, 1, 1]
    010: kConditional   [prev=007 (1) | sink        ]
      false_branch:
        000: kCommandBuffer [source | sink]
            008: kCustomKernel [source | sink] sort grid: [1, 1, 1]
      true_branch:
        009: kCopy [source | sink] kCopy
"""
HLO = "\n".join(
    f'  %{name} = f32[2] fusion(%x), metadata={{op_name="jit(f)/while/body/{scope}/mul"}}'
    for name, scope in (
        ("norm.1", "layer_0/attention"),
        ("call", "layer_0/attention"),
        ("norm.2", "layer_1/mlp"),
        ("sort", "top_k"),
    )
)
INSTRUCTIONS = {4: "norm.1", 5: "split_product", 6: "call", 7: "norm.2", 8: "sort"}


def dumped(directory, sequence: str = SEQUENCE) -> list:
    (directory / "m.thunk_sequence.txt").write_text("")
    (directory / "m.thunk_sequence_after_thunk_passes.txt").write_text(sequence)
    metadata = [f'thunk_info {{ profile_annotation: "{name}" thunk_id: {n} }}' for n, name in INSTRUCTIONS.items()]
    (directory / "m.thunk_metadata.txt").write_text("\n".join(metadata))
    return thunks(directory, HLO)


def test_launches_are_counted_by_layer_and_by_who_launches_them(tmp_path):
    found = dumped(tmp_path)
    assert sum(thunk.is_launch for thunk in found) == 8  # the rotation, the limit, six in the body
    # The product without a scope belongs to the norm before it. The lower median of 3 and 1 is 1.
    columns = decode_columns(found, 2)
    assert columns["kernels a layer and token"] == 1 and columns["kernels a token outside layers"] == 4
    # A graph, the custom call, a kernel, the branch, the graph and the copy inside it.
    assert columns["launches by the host a token"] == 6
    assert program_columns(found)["launches by the host"] == 9


def test_a_loop_inside_a_graph_needs_no_launch(tmp_path):
    inside = "000: kCommandBuffer [source | sink]\n" + "\n".join("  " + line for line in SEQUENCE.splitlines())
    found = dumped(tmp_path, inside.replace("  condition:", "condition:"))
    assert decode_columns(found, 2)["launches by the host a token"] == 0


def test_copies_inside_a_fusion_move_nothing():
    hlo = """%fused_computation.1 (p: f32[8,8]) -> f32[8,8] {
  %transpose.1 = f32[8,8]{1,0} transpose(%p), dimensions={1,0}
}
ENTRY %main (p: f32[8,8]) -> f32[8,8] {
  %copy.1 = f32[8,8]{1,0} copy(%p)
  %copy.2 = f32[2,2]{1,0} copy(%q)
  ROOT %transpose_fusion = f32[8,8]{1,0} fusion(%copy.1), kind=kInput, calls=%fused_computation.1
}"""
    assert count_large_copies(hlo, 64) == 2


def test_spills_of_a_kernel_are_told(tmp_path):
    report = (
        "Compiling entry function '{}_mosaic_gpu_kernel' for 'sm_90a'\n 0 bytes stack frame, {} bytes spill stores, 0 bytes"
    )
    for name, spills, registers in (("decode_step", 16, 255), ("add_norm", 0, 56)):
        (tmp_path / f"{name}.ptxas").write_text(report.format(name, spills) + f"\nUsed {registers} registers, used 1 barriers")
    assert mosaic_kernels(tmp_path) == {
        "add_norm": "56 registers, 0 B spilled",
        "decode_step": "255 registers, 16 B spilled",
    }


@pytest.mark.slow
def test_a_decode_step_that_does_not_run_here_has_its_row():
    (fused,) = measured(model_config("tiny", "float32"), ["fused decode"], num_streams=1, slots=64)
    assert fused["error"].startswith("fused_decode: got attention xla") and fused["ms/token"] == "-"


def test_a_program_for_a_gpu_is_traced_for_one(monkeypatch):
    """Else it holds what suits the CPU that compiles it, and its counts are not those of the GPU."""
    platforms = []

    def program():  # a new one each time: jax does not trace a function again
        return lambda x, unused: (platforms.append(platform()), x * 3)[1]

    gpu = SimpleNamespace(platform="gpu", compute_capability="9.0")
    sharding = SingleDeviceSharding(jax.devices()[0])
    monkeypatch.setattr(aot, "h100_device", lambda: gpu)
    monkeypatch.setattr(aot, "on_device", lambda device: sharding)
    monkeypatch.setattr(aot, "h100_columns", lambda *_: {})
    arguments = aot.abstract_array(8), aot.abstract_array(1)
    for target in ("cpu", "h100"):
        aot.compile_stats((program(), arguments), target, 1, 1)
    assert platforms == ["cpu", "gpu"]

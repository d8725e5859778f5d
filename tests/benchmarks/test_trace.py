"""Claims about a profile: what the device did is found, under the names of the model's parts, and no time is counted twice."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import trace
from benchmarks.hlo_scopes import module_scopes, scope_of
from benchmarks.trace import Kernel, Operation, Profile, covered, kernel_name, rows, summarize, with_own_time

STEPS = 7


@pytest.fixture(scope="module")
def profile() -> Profile:
    @jax.jit
    def decode(x):
        def step(_, x):
            for layer in range(2):
                with jax.named_scope(f"layer_{layer}"), jax.named_scope("mlp"):
                    x = jnp.tanh(x @ x)
            return x

        with jax.named_scope("decode"):
            return jax.lax.fori_loop(0, STEPS, step, x)

    x = jnp.ones((64, 64))
    jax.block_until_ready(decode(x))
    return trace.profile(lambda: jax.block_until_ready(decode(x)))


def test_a_trace_names_the_parts_of_a_model_and_counts_what_ran(profile):
    """Else: a table of fusions that nobody can place, or of a model's first layer only."""
    in_layers = [kernel for kernel in profile.kernels if kernel.scope == "decode/layer/mlp"]
    assert sum(kernel.count for kernel in in_layers) >= 2 * STEPS  # of both layers, and of every step of the loop
    assert {kernel.scope.split("/")[0] for kernel in profile.kernels} == {"decode"}


def test_kernels_of_a_gpu_are_placed_by_the_module_that_the_trace_holds():
    """Else: the first minute on a GPU shows that its trace is read as a CPU's is. The layout is CUPTI's: streams are lines,
    kernels events, names of instruction and module stats that refer to a table."""

    def prefill(x):
        with jax.named_scope("prefill"), jax.named_scope("layer_3"), jax.named_scope("mlp"):
            return jnp.tanh(x)

    executable = jax.jit(prefill).lower(jnp.ones(4)).compile().runtime_executable()
    assert executable is not None
    proto = executable.hlo_modules()[0].as_serialized_hlo_module_proto()
    name = next(iter(module_scopes(proto)))
    size = bytes([10, len(proto) & 127 | 128, len(proto) >> 7])  # the first field of an HloProto is the module
    hlo = "".join(f"\\{byte:03o}" for byte in size + proto)
    kernel = """metadata_id: 1 duration_ps: 3000000 stats { metadata_id: 1 ref_value: 3 }
      stats { metadata_id: 2 str_value: "jit_prefill" } stats { metadata_id: 4 int64_value: 7 }"""
    xspace = f"""
    planes {{ name: "/host:metadata" event_metadata {{ key: 9 value {{ id: 9 name: "jit_prefill(7)"
      stats {{ metadata_id: 1 bytes_value: "{hlo}" }} }} }} stat_metadata {{ key: 1 value {{ id: 1 name: "hlo_proto" }} }} }}
    planes {{ name: "/device:GPU:0"
      lines {{ name: "Stream #13(Compute)" events {{ offset_ps: 0 {kernel} }}
               events {{ offset_ps: 9000000 {kernel} }} }}
      lines {{ name: "Stream #14(MemcpyH2D)" events {{ metadata_id: 2 offset_ps: 2000000 duration_ps: 4000000 }} }}
      lines {{ name: "XLA Modules" events {{ metadata_id: 2 duration_ps: 90000000 }} }}
      event_metadata {{ key: 1 value {{ id: 1 name: "loop_tanh_fusion_12" }} }}
      event_metadata {{ key: 2 value {{ id: 2 name: "MemcpyH2D" }} }}
      stat_metadata {{ key: 1 value {{ id: 1 name: "hlo_op" }} }}
      stat_metadata {{ key: 2 value {{ id: 2 name: "hlo_module" }} }}
      stat_metadata {{ key: 3 value {{ id: 3 name: "{name}" }} }}
      stat_metadata {{ key: 4 value {{ id: 4 name: "program_id" }} }} }}
    """
    serialized = jax.profiler.ProfileData.text_proto_to_serialized_xspace(xspace)
    kernels, busy_ms, span_ms = summarize(serialized)
    assert [(*kernel[:3], round(kernel.ms, 6)) for kernel in kernels] == [
        ("prefill/layer/mlp", "loop_tanh_fusion", 2, 0.006),
        ("other", "MemcpyH2D", 1, 0.004),
    ]
    assert busy_ms == pytest.approx(0.009) and span_ms == pytest.approx(0.012)  # the copy overlaps with a kernel by 1 us


def test_no_time_is_counted_twice(profile):
    """Else: a loop counts with its body, and the shares add up to more than the device worked."""
    assert 0 < sum(kernel.ms for kernel in profile.kernels) <= profile.busy_ms * 1.001 <= profile.span_ms * 1.002


def test_a_table_adds_up(profile):
    table = rows(profile, runs=1)
    whole, scopes = table[0], [row for row in table[1:] if row["kernel"] == "all"]
    assert whole["scope"] == "all" and whole["n"] == sum(row["n"] for row in scopes)
    assert whole["ms"] == pytest.approx(sum(row["ms"] for row in scopes), abs=0.01)
    assert rows(Profile([Kernel("a", "k", 4, 2.0)], 1.0, 2.0), runs=2)[-1] == {
        "scope": "a", "kernel": "k", "n": 2.0, "us each": 500.0, "ms": 1.0, "share (%)": 100.0
    }  # fmt: skip


def test_time_of_the_device_is_the_union_of_its_streams():
    assert covered([(0, 4), (1, 3), (2, 6), (8, 9)]) == 7


def test_a_loop_is_charged_without_its_body():
    outer, inner, last = (Operation("", "", "", *span) for span in ((0, 10, 10), (2, 5, 3), (11, 12, 1)))
    assert [operation.own for operation in with_own_time([outer, inner, last])] == [7, 3, 1]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("loop_add_fusion_12.3", "loop_add_fusion"),
        ("fusion.7", "fusion"),
        ("nvjet_tst_128x64_64x7_1x2_h_bz_coopB_TNT", "nvjet_tst_128x64_64x7_1x2_h_bz_coopB_TNT"),
        ("MemcpyH2D", "MemcpyH2D"),
    ],
)
def test_kernels_of_other_layers_are_one_and_tilings_are_not(name, shown):
    assert kernel_name(name) == shown


def test_scopes_are_those_of_the_source():
    assert scope_of("jit(decode)/decode/while/body/closed_call/layer_31/attention/dot_general") == "decode/layer/attention"
    assert scope_of("jit(f)/vision/block_0/mlp/add;jit(f)/vision/block_0/mlp/mul") == "vision/block/mlp"
    assert scope_of("jit(f)/prefill/layer_1/attention/bkmh,bksh->bkms/dot_general") == "prefill/layer/attention"
    assert scope_of("jit(f)/add") == scope_of("") == ""

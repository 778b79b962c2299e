"""The programs that are compiled for other devices, here for the CPU; and what is read of them."""

import jax
import pytest
from benchmarks.speed.estimates import Case

import reptile_jax as rj
from benchmarks.speed import estimates, hlo, programs, targets

pytestmark = pytest.mark.usefixtures("relaxed")

HLO = """HloModule jit_f

FileNames
1 "/x/site-packages/reptile_jax/nn/layers.py"
2 "/x/site-packages/optax/update.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=9 end_line=9 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=5 end_line=5 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=2 parent_frame_id=1}


%fused (p: f32[2]) -> f32[2] {
  %inside = f32[2]{0} add(%p, %p), "estimated_cycles":"999"
}

%step (arg: (s32[], f32[2])) -> (s32[], f32[2]) {
  %arg = (s32[]{:T(128)}, f32[2]{0}) parameter(0)
  %a = f32[2]{0} fusion(%arg), metadata={op_name="jvp()" stack_frame_id=2}, "estimated_cycles":"30"
  %b = f32[2]{0} copy(%a), metadata={op_name="mul" stack_frame_id=3}, "estimated_cycles":"10"
  ROOT %out = (s32[], f32[2]{0}) tuple(%b)
}

%limit (arg: (s32[], f32[2])) -> pred[] {
  %five = s32[]{:T(128)} constant(5), metadata={op_name="x"}
  ROOT %lt = pred[] compare(%count, %five), direction=LT
}

%chunk (arg: (s32[], f32[2])) -> (s32[], f32[2]) {
  %inner = (s32[], f32[2]{0}) while(%arg), condition=%limit, body=%step
  %after = f32[2]{0} fusion(%inner), metadata={op_name="jvp()"}, "estimated_cycles":"7"
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %chunks = (s32[], f32[2]{0}) while(%p), body=%chunk, "known_trip_count":{"n":"4"}
  %sum = f32[2]{0} all-reduce-start(%chunks), to_apply=%fused
  ROOT %done = f32[2]{0} all-reduce-done(%sum)
}
"""


def test_loops_are_counted_and_costs_belong_to_lines_of_the_library():
    found = hlo.Program(HLO)
    assert [(run.times, run.cost, run.kernels) for run in found.runs] == [
        (1, 0, 0),
        (4, 7, 1),
        (20, 40, 2),
    ]
    assert found.cost == 20 * 40 + 4 * 7
    assert [run.times for run in found.inner] == [20]
    assert found.collectives == {"all-reduce": 1}
    assert found.lines() == [("nn/layers.py:9", 0.75), ("the compiler's own", 0.25)]
    (costliest, share), *_ = found.costliest(1)
    assert (costliest.name, share) == ("a", 0.75)


def test_costs_are_for_one_task_and_one_inner_step():
    case = Case("o15-step", targets.CHIPS["v5e"], 1, tasks=64)
    found = estimates.read(hlo.Program(HLO), case, programs.Program(None, (), 5, 131072.0))
    assert found["at_once"] == 16
    assert found["cost"] == 40 / 16
    assert found["cost_of_the_rest"] == pytest.approx(4 * 7 / (64 * 5))
    # At its peak the chip does 131,072 operations in a cycle.
    assert found["share_of_peak"] == pytest.approx(1 / 2.5)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("kind", programs.KINDS)
def test_every_kind_of_program_compiles_from_shapes_alone(kind, devices):
    mesh = rj.task_mesh(jax.devices()[:devices])
    program = programs.KINDS[kind]("sinusoid", mesh, 8, 2)
    leaves = jax.tree.leaves(program.shapes)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding for leaf in leaves)
    found = hlo.Program(program.jitted.lower(*program.shapes).compile().as_text())
    assert found.inner
    chunks = 8 // devices // 2
    assert {run.times for run in found.inner} == {chunks * program.inner_steps}
    if kind != "evaluate":  # which gathers the scores
        assert found.collectives == ({} if devices == 1 else {"all-reduce": 1})

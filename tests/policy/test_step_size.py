"""The scale of sigma's step, as arithmetic."""

import math

import pytest

from oialr_peft.policy.step_size import RAMP, Ramp, StepSize


@pytest.mark.parametrize(("rows", "cols", "rank"), [(64, 64, 64), (64, 64, 16), (256, 64, 16), (64, 256, 4)])
def test_an_entrywise_step_moves_the_weight_as_far_at_every_rank(rows, cols, rank):
    scale = StepSize("match").scale("entrywise", (rows, cols), (rank, rank))
    assert scale * rank == pytest.approx(math.sqrt(rows * cols))  # Frobenius norms of steps whose entries are 1


@pytest.mark.parametrize("adjustment", [None, "original", "match_rms_adamw"])
@pytest.mark.parametrize(("rows", "cols"), [(64, 64), (256, 64), (64, 256)])
def test_a_spectral_step_has_the_norm_of_the_dense_one(rows, cols, adjustment):
    def norm(shape):
        return math.sqrt(max(shape)) if adjustment == "match_rms_adamw" else math.sqrt(max(1, shape[0] / shape[1]))

    scale = StepSize("match").scale("spectral", (rows, cols), (16, 16), muon_adjustment=adjustment)
    assert scale * norm((16, 16)) == pytest.approx(norm((rows, cols)))


@pytest.mark.parametrize("kind", ["linear", "relative"])
def test_steps_that_follow_gradient_or_weight_are_left_alone(kind):
    assert StepSize("match").scale(kind, (64, 64), (8, 8)) == 1


@pytest.mark.parametrize("kind", ["entrywise", "spectral", "linear"])
def test_none_and_dense_weights_have_no_scale(kind):
    assert StepSize("none").scale(kind, (64, 64), (8, 8)) == 1
    assert StepSize("match").scale(kind, (64, 48), (64, 48)) == 1
    assert StepSize(3.0).scale(kind, (64, 48), (64, 48), factored=False) == 1
    assert StepSize(3.0).scale(kind, (64, 48), (64, 48)) == 3  # from step 1 on, as in rectangular layers


def test_groups_of_a_convolution_count_as_single_matrices():
    grouped = StepSize("match").scale("entrywise", (4, 16, 36), (4, 8, 8))
    assert grouped == StepSize("match").scale("entrywise", (16, 36), (8, 8))


def test_a_ramp_reaches_its_target_in_time_and_turns_from_where_it_is():
    ramp = Ramp(1.0, 1.0)
    ramp.aim(3.0)
    values = []
    for _ in range(RAMP):
        ramp.advance()
        values.append(ramp.value)
    assert values == sorted(values)
    assert values[0] > 1
    assert values[-1] == 3
    ramp.aim(5.0)
    ramp.advance()
    half = ramp.value
    ramp.aim(1.0)
    assert ramp.value == half

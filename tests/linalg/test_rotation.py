"""A rotation keeps the weight; a cut removes exactly the dropped singular values; bases stay orthonormal."""

import pytest
import torch

from oialr_peft.linalg import Factors, orthonormality_error, rotate, rotate_lowrank


SHAPES = [(24, 24), (40, 24), (24, 40), (7, 1), (1, 7), (1, 1)]


def relative(difference: torch.Tensor, reference: torch.Tensor) -> float:
    return float(torch.linalg.norm(difference) / torch.linalg.norm(reference))


def trained(factors: Factors, seed: int, step: float = 0.05) -> Factors:
    """The factors after sigma was trained for a while."""
    noise = torch.randn(factors.core.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return factors._replace(core=factors.core + step * noise.to(factors.core.dtype))


@pytest.mark.parametrize("shape", [(12, 12), (20, 12), (2, 6, 10)])
def test_what_the_loss_feels_of_a_direction_is_the_gradient_along_it(shape):
    weight = torch.randn(shape, dtype=torch.float64)
    rotation = rotate(weight)
    torch.testing.assert_close(rotation.sensitivities(4 * torch.ones_like(weight)), 2 * rotation.singular_values)
    deviations = torch.rand(shape, dtype=torch.float64)
    gradients = torch.randn(5_000, *shape, dtype=torch.float64) * deviations
    along = (rotation.left.mT @ gradients @ rotation.right).diagonal(dim1=-2, dim2=-1)
    felt = rotation.sensitivities(deviations.square()) / rotation.singular_values
    torch.testing.assert_close(felt, along.square().mean(0).sqrt(), rtol=0.1, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_factorisation_and_rotation_keep_the_weight(shape, dtype, tolerance):
    weight = torch.randn(shape, dtype=dtype)
    factors = rotate(weight).factorise(dtype)
    assert relative(factors.compose() - weight, weight) < tolerance
    before = trained(factors, seed=1)
    after = rotate(before.core).change(before).factors
    assert relative(after.compose() - before.compose(), before.compose()) < tolerance
    assert torch.equal(after.core, torch.diag(after.core.diagonal()))
    assert bool((after.core.diagonal().diff() <= 0).all())


@pytest.mark.parametrize("shape", [(24, 24), (40, 24), (24, 40)])
def test_a_cut_changes_the_weight_by_exactly_the_dropped_singular_values(shape):
    before = trained(rotate(torch.randn(shape, dtype=torch.float64)).factorise(torch.float64), seed=1)
    rotation = rotate(before.core)
    after = rotation.cut(15).change(before).factors
    dropped = torch.linalg.svdvals(before.compose() - after.compose())
    torch.testing.assert_close(dropped[: rotation.rank - 15], rotation.singular_values[15:], rtol=1e-10, atol=1e-12)
    assert float(dropped[rotation.rank - 15 :].max()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_factors_are_contiguous_and_own_their_memory(dtype):
    factors = rotate(torch.randn(40, 24)).cut(5).factorise(dtype)
    for part in factors:
        assert part.dtype == dtype
        assert part.is_contiguous()
        assert part.untyped_storage().nbytes() == part.numel() * part.element_size()


def test_bases_stay_orthonormal_over_200_updates_in_float32():
    factors = rotate(torch.randn(64, 48)).factorise(torch.float32)
    for seed in range(200):
        factors = trained(factors, seed)
        factors = rotate(factors.core).change(factors).factors
    assert orthonormality_error(factors.left) < 1e-5
    assert orthonormality_error(factors.right.T) < 1e-5


def test_bfloat16_follows_float32_as_closely_as_its_rounding_allows():
    """500 updates with the same training steps. Every update rounds three factors to 8 bits, an error of at most 2**-8
    in each; independent roundings add up like a random walk."""
    runs = {}
    for dtype in (torch.float32, torch.bfloat16):
        factors = rotate(torch.randn(48, 48, generator=torch.Generator().manual_seed(3))).factorise(dtype)
        for seed in range(500):
            # The same change of W in both runs, put into the coordinates of each.
            change = 0.02 * torch.randn(48, 48, generator=torch.Generator().manual_seed(seed))
            sigma = factors.core.float() + factors.left.float().T @ change @ factors.right.float().T
            factors = factors._replace(core=sigma.to(dtype))
            factors = rotate(factors.core).change(factors).factors
        runs[dtype] = (factors.left.float() @ factors.core.float() @ factors.right.float(), factors)
    error = relative(runs[torch.bfloat16][0] - runs[torch.float32][0], runs[torch.float32][0])
    assert error < 3**0.5 * 500**0.5 * 2**-8
    assert orthonormality_error(runs[torch.bfloat16][1].left) < 3 * 2**-8


@pytest.mark.parametrize(
    "matrix",
    [torch.zeros(6, 6), torch.eye(6), torch.outer(torch.arange(6.0), torch.ones(4)), torch.full((5, 5), 1e-30)],
    ids=["zero", "identity", "rank one", "tiny"],
)
def test_degenerate_matrices_decompose(matrix):
    factors = rotate(matrix).factorise(torch.float32)
    assert torch.allclose(factors.compose(), matrix, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_matrix_is_refused(bad):
    matrix = torch.randn(6, 6)
    matrix[2, 3] = bad
    assert rotate(matrix) is None


def test_svd_falls_back_to_float64_and_then_gives_up(monkeypatch):
    svd, calls = torch.linalg.svd, []

    def failing(matrix, **kwargs):
        calls.append(matrix.dtype)
        if matrix.dtype == torch.float32 or len(calls) > 2:
            raise torch.linalg.LinAlgError("did not converge")
        return svd(matrix, **kwargs)

    monkeypatch.setattr(torch.linalg, "svd", failing)
    matrix = torch.randn(6, 6)
    assert torch.allclose(rotate(matrix).factorise(torch.float32).compose(), matrix, atol=1e-5)
    assert calls == [torch.float32, torch.float64]
    assert rotate(matrix) is None


def test_lowrank_initialisation_repeats_leaves_the_global_generator_alone_and_is_near_optimal():
    spectrum = torch.cat([torch.linspace(10, 5, 8), 0.1 * torch.rand(192).sort(descending=True).values])
    left, right = (torch.linalg.qr(torch.randn(200, 200)).Q for _ in range(2))
    weight = left @ torch.diag(spectrum) @ right.T
    state = torch.get_rng_state()
    first, second = rotate_lowrank(weight, 8, seed=1), rotate_lowrank(weight, 8, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.left, second.left)
    error = torch.linalg.norm(weight - first.factorise(torch.float32).compose())
    assert float(error) < 1.01 * float(torch.linalg.norm(spectrum[8:]))


def test_lowrank_uses_the_exact_svd_when_the_rank_is_not_far_below_full():
    weight = torch.randn(20, 20)
    assert torch.equal(rotate_lowrank(weight, 10, seed=1).left, rotate(weight).cut(10).left)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_the_dropped_energy_is_a_share_at_every_scale(scale):
    values = torch.tensor([4.0, 2.0, 1.0])
    matrix = torch.diag(values * scale)
    assert rotate(matrix).cut(2).dropped_energy(matrix) == pytest.approx(1 / 21, rel=1e-5)


def test_a_zero_matrix_drops_nothing():
    assert rotate(torch.zeros(3, 3)).cut(1).dropped_energy(torch.zeros(3, 3)) == 0.0

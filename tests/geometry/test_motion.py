"""What may move, as numbers: projections on free strains."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax.geometry.motion import (
    STRAIN_BASIS,
    Motion,
    everything_free,
    in_plane_strains,
    project_strain,
    rotate_projection,
    strain_projection,
)
from ase_deeprelax.models.layers import symmetric_matrix
from tests.strategies import quick, rotations, seeds


def random_strains(seed, n):
    """(n, 3, 3) symmetric matrices, of which some may depend on the others."""
    rng = np.random.default_rng(seed)
    strains = rng.normal(size=(n, 3, 3))
    strains = strains + strains.transpose(0, 2, 1)
    if n > 2 and rng.integers(2):
        strains[-1] = strains[0] - 2 * strains[1]
    return strains


def normals():
    return seeds().map(lambda seed: unit(np.random.default_rng(seed).normal(size=3)))


def unit(vector):
    return vector / np.linalg.norm(vector)


def test_the_basis_is_orthonormal_and_symmetric():
    products = np.einsum('aij,bij->ab', STRAIN_BASIS, STRAIN_BASIS)
    np.testing.assert_allclose(products, np.eye(6), atol=1e-15)
    np.testing.assert_array_equal(STRAIN_BASIS, STRAIN_BASIS.transpose(0, 2, 1))


def test_the_basis_is_that_of_the_networks():
    """The traceless ones are those of `symmetric_matrix`, in its order."""
    import torch

    parts = torch.eye(5, dtype=torch.float64)
    theirs = symmetric_matrix(parts).numpy()
    lengths = np.linalg.norm(theirs, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(STRAIN_BASIS[1:], theirs / lengths, atol=1e-7)


@quick
@given(seeds(), st.integers(0, 8))
def test_a_projection_is_symmetric_idempotent_and_keeps_what_is_free(seed, n):
    strains = random_strains(seed, n)
    projection = strain_projection(strains)
    np.testing.assert_allclose(projection, projection.T, atol=1e-12)
    np.testing.assert_allclose(projection @ projection, projection, atol=1e-12)
    rank = np.linalg.matrix_rank(strains.reshape(n, 9)) if n else 0
    assert np.trace(projection) == pytest.approx(rank)
    for strain in strains:
        np.testing.assert_allclose(project_strain(projection, strain), strain, atol=1e-9)


@quick
@given(seeds(), st.integers(0, 6))
def test_what_is_not_free_goes_and_what_is_left_is_nearest(seed, n):
    strains = random_strains(seed, n)
    projection = strain_projection(strains)
    wanted = random_strains(seed + 1, 1)[0]
    left = project_strain(projection, wanted)
    np.testing.assert_allclose(left, left.T, atol=1e-12)
    np.testing.assert_allclose(project_strain(projection, left), left, atol=1e-9)
    for strain in strains:
        assert np.sum((wanted - left) * strain) == pytest.approx(0, abs=1e-8)


@quick
@given(seeds(), st.integers(1, 5), st.floats(1e-6, 1e6))
def test_the_size_of_the_strains_does_not_matter(seed, n, factor):
    strains = random_strains(seed, n)
    np.testing.assert_allclose(
        strain_projection(factor * strains), strain_projection(strains), atol=1e-9
    )


@quick
@given(seeds(), st.integers(0, 6), rotations())
def test_projections_turn_with_the_structure(seed, n, rotation):
    strains = random_strains(seed, n)
    turned = rotation.T @ strains @ rotation
    projection = rotate_projection(strain_projection(strains), rotation)
    np.testing.assert_allclose(projection, strain_projection(turned), atol=1e-9)
    strain = random_strains(seed + 1, 1)[0]
    np.testing.assert_allclose(
        project_strain(projection, rotation.T @ strain @ rotation),
        rotation.T @ project_strain(strain_projection(strains), strain) @ rotation,
        atol=1e-9,
    )


@quick
@given(seeds(), rotations(), rotations())
def test_two_turns_are_one(seed, first, second):
    projection = strain_projection(random_strains(seed, 3))
    np.testing.assert_allclose(
        rotate_projection(rotate_projection(projection, first), second),
        rotate_projection(projection, first @ second),
        atol=1e-9,
    )


@quick
@given(normals(), seeds())
def test_strains_in_the_plane_leave_the_normal(normal, seed):
    strains = in_plane_strains(normal, thickness=False)
    assert strains.shape == (3, 3, 3)
    np.testing.assert_allclose(strains @ normal, 0, atol=1e-12)
    wanted = random_strains(seed, 1)[0]
    flat = np.eye(3) - np.outer(normal, normal)
    left = project_strain(strain_projection(strains), wanted)
    np.testing.assert_allclose(left, flat @ wanted @ flat, atol=1e-12)


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize('sense', [1, -1])
def test_strains_across_an_axis(axis, sense):
    strains = in_plane_strains(sense * np.eye(3)[axis], thickness=False)
    flat = np.arange(3) != axis
    expected = strain_projection(np.array([flat[:, None] * flat * x for x in STRAIN_BASIS]))
    np.testing.assert_allclose(strain_projection(strains), expected, atol=1e-12)


@quick
@given(normals(), seeds())
def test_with_thickness_the_plane_stays_a_plane(normal, seed):
    strains = in_plane_strains(normal, thickness=True)
    assert strains.shape == (4, 3, 3)
    wanted = random_strains(seed, 1)[0]
    flat = np.eye(3) - np.outer(normal, normal)
    along = np.outer(normal, normal)
    left = project_strain(strain_projection(strains), wanted)
    np.testing.assert_allclose(
        left, flat @ wanted @ flat + along @ wanted @ along, atol=1e-12
    )
    np.testing.assert_allclose(np.cross(left @ normal, normal), 0, atol=1e-12)


@quick
@given(normals())
def test_the_sense_of_the_normal_does_not_matter(normal):
    for thickness in (True, False):
        first, second = (
            strain_projection(in_plane_strains(sense * normal, thickness=thickness))
            for sense in (1, -1)
        )
        np.testing.assert_allclose(first, second, atol=1e-12)


def test_all_free_says_whether_nothing_is_held():
    assert everything_free(3).all_free
    fixed = np.array([False, True, False])
    assert not Motion(fixed, np.eye(6)).all_free
    assert not Motion(np.zeros(3, bool), strain_projection(np.eye(3)[None])).all_free
    np.testing.assert_array_equal(everything_free(2).fixed, [False, False])

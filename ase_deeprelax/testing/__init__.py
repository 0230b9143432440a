"""What any `RelaxationModel` must hold to, ours or a user's, as functions that raise.

Each check takes a model and a float type and goes through the `Predictor`, as users do. It
raises ``AssertionError`` where the model does not hold to its promise, and
``unittest.SkipTest``, which pytest shows as skipped, where it promises no such thing.

Examples
--------
In a test file, with pytest::

    @pytest.mark.parametrize('dtype', ['float32', 'float64'])
    @pytest.mark.parametrize('check', testing.CHECKS, ids=lambda check: check.__name__)
    def test_my_model(check, dtype):
        check(testing.awaken(MyModel()), dtype)
"""

from ase_deeprelax.testing.checks import (
    awaken,
    ignores_company,
    ignores_images,
    ignores_lattice_vectors,
    ignores_order,
    ignores_orientation,
    ignores_origin,
    ignores_supercell,
    keeps_single_atoms,
    keeps_space_group,
    leaves_input_alone,
    says_something,
)
from ase_deeprelax.testing.crystals import generic_crystals, symmetric_crystals
from ase_deeprelax.testing.motion_checks import (
    holds_what_is_held,
    ignores_orientation_of_a_layer,
    ignores_the_box_of_a_layer,
    keeps_layer_group,
    tells_fixed_atoms_apart,
)
from ase_deeprelax.testing.output_checks import output_is_sound

# What is wrong with the output itself is named first.
CHECKS = (
    output_is_sound,
    says_something,
    ignores_orientation,
    ignores_origin,
    ignores_order,
    ignores_images,
    ignores_lattice_vectors,
    ignores_supercell,
    ignores_company,
    leaves_input_alone,
    keeps_single_atoms,
    keeps_space_group,
    holds_what_is_held,
    tells_fixed_atoms_apart,
    ignores_the_box_of_a_layer,
    ignores_orientation_of_a_layer,
    keeps_layer_group,
)

__all__ = [
    'CHECKS',
    'awaken',
    'generic_crystals',
    'holds_what_is_held',
    'ignores_company',
    'ignores_images',
    'ignores_lattice_vectors',
    'ignores_order',
    'ignores_orientation',
    'ignores_orientation_of_a_layer',
    'ignores_origin',
    'ignores_supercell',
    'ignores_the_box_of_a_layer',
    'keeps_layer_group',
    'keeps_single_atoms',
    'keeps_space_group',
    'leaves_input_alone',
    'output_is_sound',
    'says_something',
    'symmetric_crystals',
    'tells_fixed_atoms_apart',
]

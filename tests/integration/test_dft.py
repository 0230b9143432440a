"""DFT as the last stage: GPAW, Quantum ESPRESSO and VASP, each where it is installed.

There is no VASP without a licence; in its place stands a program that reads VASP's input
and writes VASP's output, so that what is tested is the way through ASE's calculator.
"""

import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.espresso import Espresso, EspressoProfile
from ase.calculators.vasp import Vasp
from ase.optimize import BFGS

from ase_deeprelax import keys
from ase_deeprelax.calculators.registry import GPAW_SETTINGS, get_calculator
from ase_deeprelax.compare.savings import compare
from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer
from ase_deeprelax.optimize.stage import Stage

# Where Debian's quantum-espresso-data puts them.
PSEUDO = Path('/usr/share/espresso/pseudo')
SILICON = 'Si.pbe-rrkj.UPF'
COARSE = {
    'mode': {'name': 'pw', 'ecut': 200, 'dedecut': 'estimate'},
    'kpts': {'size': (2, 2, 2), 'gamma': True},
}
# Predictions of silicon are so near that a wider limit would leave nothing to do, eV/A.
FMAX = 0.02
# With fewer, the lattice of silicon is far from what it is.
ENOUGH = {'kpts': {'size': (3, 3, 3), 'gamma': True}}


@pytest.fixture
def gpaw():
    """A function that makes coarse GPAW calculators."""
    reason = "needs GPAW: pip install 'ase-deeprelax[gpaw]' (see docs/chain.md)"
    pytest.importorskip('gpaw', reason=reason, exc_type=ImportError)
    return partial(get_calculator, 'gpaw', **COARSE)


def silicon(a=5.8):
    """Far too large."""
    return bulk('Si', 'diamond', a=a)


def displaced():
    """Pressed, without symmetry."""
    atoms = silicon(5.2)
    shear = [[0, 0.01, -0.02], [0, 0.015, 0.01], [0, 0, -0.01]]
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + shear), scale_atoms=True)
    atoms.positions[1] += [0.08, -0.12, 0.05]
    return atoms


def relaxed_with(calculator, atoms, *, steps=None, **options):
    """The optimizer after prediction and one stage."""
    optimizer = DeepRelaxOptimizer(
        atoms, refine=[Stage(calculator, fmax=FMAX)], logfile=None, **options
    )
    optimizer.run(**({} if steps is None else {'steps': steps}))
    return optimizer


def check_relaxed(optimizer, name, edge):
    """The record says that the stage relaxed the crystal, and it did."""
    said, record = optimizer.stages
    assert (said.name, record.name) == ('prediction', name)
    assert record.converged, record
    assert record.fmax < FMAX
    assert record.energy_after <= record.energy_before
    assert record.spacegroup == 227
    assert optimizer.atoms.info[keys.STAGE] == f'{name}, {record.optimizer}'
    assert (4 * optimizer.atoms.get_volume()) ** (1 / 3) == pytest.approx(edge, abs=0.08)


# --- GPAW ------------------------------------------------------------------------------


def test_gpaw_is_the_last_stage_and_goes_on_after_an_interruption(gpaw, tmp_path):
    whole = relaxed_with(gpaw(**ENOUGH), silicon())
    check_relaxed(whole, 'gpaw', edge=5.47)
    assert whole.stages[1].steps > 0

    restart = tmp_path / 'restart.json'
    # one that the user makes does as well
    from gpaw import GPAW

    own = GPAW(xc='PBE', txt=None, **GPAW_SETTINGS | COARSE | ENOUGH)
    stopped = relaxed_with(own, silicon(), steps=2, restart=restart)
    assert stopped.stages[-1].status == 'running'
    again = relaxed_with(gpaw(**ENOUGH), silicon(), restart=restart)
    assert again.stages[1].steps == whole.stages[1].steps
    energies = [optimizer.stages[1].energy_after for optimizer in (again, whole)]
    assert energies[0] == pytest.approx(energies[1], abs=1e-4)
    np.testing.assert_allclose(again.atoms.cell, whole.atoms.cell, atol=1e-3)


def test_gpaw_stress_and_forces_are_derivatives_of_its_energy(gpaw):
    atoms = displaced()
    # A fixed number of plane waves: those that enter and leave make steps in the energy.
    calculator = gpaw(mode={'name': 'pw', 'ecut': 250, 'cell': atoms.cell.array})
    atoms.calc = calculator
    stress, forces = atoms.get_stress(), atoms.get_forces()
    shift = np.array([[0.0, 0.0, 0.0], [0.5, -0.7, 0.5]])

    def energy(strained, shifted):
        twin = displaced()
        twin.set_cell(twin.cell.array * (1 + strained), scale_atoms=True)
        twin.positions += shifted * shift
        twin.calc = calculator
        return twin.get_potential_energy()

    by_strain = (energy(0.01, 0) - energy(-0.01, 0)) / 0.02 / atoms.get_volume()
    by_shift = (energy(0, 0.01) - energy(0, -0.01)) / 0.02
    assert stress[:3].sum() == pytest.approx(by_strain, rel=0.05)
    assert -(forces * shift).sum() == pytest.approx(by_shift, rel=0.03)


def test_one_gpaw_serves_many_structures(gpaw):
    """Other cells, elements and symmetries; nothing of one is left in the next."""

    def answer(atoms, calculator):
        atoms.calc = calculator
        energy = atoms.get_potential_energy()
        return energy, atoms.get_forces()

    one = gpaw()
    moved = silicon()
    moved.positions[1] += [0.1, 0.0, 0.05]
    structures = (silicon(), moved, bulk('AlP', 'zincblende', a=5.5), silicon())
    answers = [answer(atoms, one) for atoms in structures]
    assert answers[3][0] == pytest.approx(answers[0][0], abs=1e-4)
    for atoms, (energy, forces) in zip(structures[1:3], answers[1:3], strict=True):
        fresh = answer(atoms, gpaw())
        assert energy == pytest.approx(fresh[0], abs=2e-3)
        np.testing.assert_allclose(forces, fresh[1], atol=0.01)
    assert np.abs(answers[1][1]).max() > 0.3


def test_the_grid_of_a_crystal_is_held_while_its_cell_moves(gpaw):
    """Silicon 3 % larger would get one point less along each axis, and 0.1 eV more."""
    calculator = gpaw(kpts={'density': 2.0, 'gamma': True})

    def grid(atoms):
        atoms.calc = calculator
        atoms.get_potential_energy()
        return calculator.calculator.wfs.kd.N_c.tolist()

    first = grid(silicon(5.43))
    assert grid(silicon(5.43 * 1.03)) == first
    alone = get_calculator('gpaw', **COARSE | {'kpts': {'density': 2.0, 'gamma': True}})
    atoms = silicon(5.43 * 1.03)
    atoms.calc = alone
    atoms.get_potential_energy()
    assert alone.calculator.wfs.kd.N_c.tolist() != first
    assert grid(bulk('Si', cubic=True)) != first


def test_compare_with_gpaw(gpaw):
    inputs = {'Si2': silicon(5.8), 'AlP': bulk('AlP', 'zincblende', a=5.8)}
    nearer = {'Si2': silicon(5.6), 'AlP': bulk('AlP', 'zincblende', a=5.6)}

    def oracle(structures):
        return [nearer[str(atoms.symbols)] for atoms in structures]

    result = compare(inputs, {'dft': gpaw}, optimizers=[BFGS], model=oracle, fmax=0.1)
    [row] = result['summary']
    assert row['both']['n'] == 2
    assert row['both']['equal'] == 1
    assert row['both']['median_calls_ratio'] < 1


# --- Quantum ESPRESSO ------------------------------------------------------------------


@pytest.mark.skipif(
    not shutil.which('pw.x') or not (PSEUDO / SILICON).exists(),
    reason=f'needs pw.x and {PSEUDO / SILICON}: apt-get install quantum-espresso-data',
)
def test_quantum_espresso_is_the_last_stage(tmp_path):
    espresso = Espresso(
        profile=EspressoProfile('pw.x', PSEUDO),
        directory=tmp_path,
        pseudopotentials={'Si': SILICON},
        input_data={
            'control': {'tprnfor': True, 'tstress': True},
            'system': {'ecutwfc': 16},
        },
        kpts=(3, 3, 3),
    )
    check_relaxed(relaxed_with(espresso, silicon()), 'espresso', edge=5.47)


# --- VASP ------------------------------------------------------------------------------

FAKE = """
import numpy as np
from ase.calculators.emt import EMT
from ase.io import read
from ase.units import GPa

def rows(name, values):
    lines = ''.join(f'<v>{x:.12f} {y:.12f} {z:.12f}</v>' for x, y, z in values)
    return f'<varray name="{name}">{lines}</varray>'

assert 'ENCUT = 520' in open('INCAR').read()
atoms = read('POSCAR')
assert open('POTCAR').read().split() == list(dict.fromkeys(atoms.symbols))
atoms.calc = EMT()
energy = atoms.get_potential_energy()
kbar = -10 * atoms.get_stress(voigt=False) / GPa
energies = f'<energy><i name="e_fr_energy">{energy:.12f}</i>'
energies += f'<i name="e_0_energy">{energy:.12f}</i></energy>'
crystal = f'<crystal>{rows("basis", atoms.cell.array)}</crystal>'
place = crystal + rows('positions', atoms.get_scaled_positions())
names = ''.join(f'<rc><c>{symbol}</c><c>1</c></rc>' for symbol in atoms.symbols)
open('vasprun.xml', 'w').write(
    '<modeling><kpoints><varray name="kpointlist"><v>0 0 0</v></varray>'
    '<varray name="weights"><v>1</v></varray></kpoints>'
    f'<atominfo><array name="atoms"><set>{names}</set></array></atominfo>'
    f'<structure name="initialpos">{place}</structure>'
    f'<calculation><scstep>{energies}</scstep><structure>{place}</structure>'
    f'{rows("forces", atoms.get_forces())}{rows("stress", kbar)}{energies}'
    '</calculation></modeling>'
)
open('OUTCAR', 'w').write(
    ' vasp.6.4.2 stand-in\\n aborting loop because EDIFF is reached\\n'
)
"""


def alloy():
    """In an order that VASP's input cannot have."""
    atoms = bulk('Cu', cubic=True, a=3.85)
    atoms.symbols[[0, 2]] = 'Au'
    atoms.rattle(0.02, seed=1)
    return atoms


def test_vasp_is_the_last_stage(tmp_path, monkeypatch):
    for symbol in ('Cu', 'Au'):
        folder = tmp_path / 'potpaw_PBE' / symbol
        folder.mkdir(parents=True)
        (folder / 'POTCAR').write_text(f'{symbol}\n')
    monkeypatch.setenv('VASP_PP_PATH', str(tmp_path))
    program = tmp_path / 'vasp.py'
    program.write_text(FAKE)
    vasp = Vasp(
        command=f'{sys.executable} {program}',
        directory=str(tmp_path / 'run'),
        xc='PBE',
        encut=520,
        kspacing=0.25,
        ismear=0,
        sigma=0.05,
        ediff=1e-6,
    )
    twin = alloy()
    expected = relaxed_with(EMT(), twin)
    atoms = alloy()
    optimizer = relaxed_with(vasp, atoms)
    record = optimizer.stages[1]
    assert (record.name, record.converged) == ('vasp', True)
    assert record.steps == expected.stages[1].steps > 0
    assert record.energy_after == pytest.approx(expected.stages[1].energy_after, abs=1e-6)
    np.testing.assert_allclose(atoms.positions, twin.positions, atol=1e-6)


def test_a_vasp_that_crashes_is_a_failed_stage(tmp_path, monkeypatch):
    (tmp_path / 'potpaw_PBE/Cu').mkdir(parents=True)
    (tmp_path / 'potpaw_PBE/Cu/POTCAR').write_text('Cu\n')
    monkeypatch.setenv('VASP_PP_PATH', str(tmp_path))
    command = f'{sys.executable} -c "raise SystemExit(3)"'
    vasp = Vasp(command=command, directory=str(tmp_path), xc='PBE')
    atoms = bulk('Cu', a=3.7)
    with pytest.warns(UserWarning, match='vasp.*failed and was rolled back'):
        optimizer = relaxed_with(vasp, atoms)
    assert optimizer.stages[1].status == 'failed'
    assert 'returned an error: 3' in optimizer.stages[1].reason

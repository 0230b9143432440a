"""The ordinary ASE optimizer that goes on from a prediction."""

from functools import partial

import numpy as np
from ase.filters import Filter, StrainFilter
from vesin import NeighborList

from ase_deeprelax.errors import RefinementError, StructureError
from ase_deeprelax.geometry.degrees_of_freedom import unwrap

# Atoms closer than this are on one site, A: calculators drop such pairs, or divide by zero.
SAME_SITE = 1e-3
# What optimizers count anew in each run.
OF_THE_RUN = ('nsteps', 'max_steps', 'fmax')


class Refinement:
    """Steps of an ordinary optimizer, whose state can be kept and whose numbers are finite.

    Parameters
    ----------
    target : ase.Atoms or ase.filters.Filter
    optimizer : callable
        ``optimizer(target, logfile=None)`` makes an ``ase.optimize.optimize.Optimizer``.
    keep : callable
        Called with the optimizer's state, ready for JSON, after each step.
    memory : optional
        Such a state to go on from.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> from ase.optimize import FIRE
    >>> atoms = bulk('Cu', a=3.7)
    >>> atoms.calc = EMT()
    >>> Refinement(atoms, FIRE, keep=lambda memory: None).name
    'FIRE'
    """

    def __init__(self, target, optimizer, keep, memory=None):
        self.target, self.atoms = target, unwrap(target)
        self.name = optimizer_name(optimizer)
        self.optimizer = optimizer(target, logfile=None)
        self._keep = keep
        if memory is not None:
            self.optimizer.load = lambda: memory['dumped']
            self.optimizer.read()
            vars(self.optimizer).update(memory['numbers'])
        self.optimizer.dump = self._remember

    def _remember(self, dumped):
        # What FIRE writes into its restart file lacks its mixing and its count of steps.
        numbers = {
            name: value
            for name, value in vars(self.optimizer).items()
            if type(value) in (int, float) and name not in OF_THE_RUN
        }
        self._keep({'dumped': dumped, 'numbers': numbers})

    def step(self, fmax):
        """Take one step; whatever is raised, the atoms are as before it.

        Raises
        ------
        RefinementError
            Forces or new positions are not finite.
        """
        atoms = self.atoms
        gradient = self.optimizer.optimizable.get_gradient()
        check_finite(atoms, gradient)
        state = get_state(self.target)
        self.optimizer.fmax = fmax
        try:
            self.optimizer.step()
            self._check_moved()
        except BaseException:  # an interrupted step has moved some of the atoms, or half
            put_state(self.target, state)
            raise

    def _check_moved(self):
        if np.isfinite(self.atoms.positions).all() and np.isfinite(self.atoms.cell).all():
            return
        raise RefinementError(
            f'{self.name} proposed positions that are not finite; the atoms are as they '
            'were before this step. Use another optimizer or calculator'
        )


def check_finite(atoms, gradient):
    """Refuse forces that are not finite.

    Parameters
    ----------
    atoms : ase.Atoms
        With its calculator.
    gradient : (3 * n,)
        Of the atoms, then of the cell.

    Raises
    ------
    RefinementError
        Naming the atom.
    """
    if np.isfinite(gradient).all():
        return
    raise RefinementError(
        f'{calculator_name(atoms.calc)}: {_where(atoms, gradient)} is not finite; look for '
        'atoms on one site or elements that the calculator does not know. The atoms are as '
        'they were before this step'
    )


def get_state(target):
    """Copies of all that a step changes, for `put_state`.

    Parameters
    ----------
    target : ase.Atoms or ase.filters.Filter

    Returns
    -------
    dict of str to array
    """
    atoms = unwrap(target)
    state = {'cell': atoms.cell.array.copy(), 'positions': atoms.positions.copy()}
    if isinstance(target, StrainFilter):  # which keeps its strain itself
        state['strain'] = target.strain.copy()
    return state


def put_state(target, state):
    """Put a structure back, bit for bit and past all constraints."""
    atoms = unwrap(target)
    atoms.set_cell(state['cell'], apply_constraint=False)
    atoms.set_positions(state['positions'], apply_constraint=False)
    if 'strain' in state:
        target.strain[:] = state['strain']


def get_origin(target):
    """What a filter measures strain from, and strain it keeps itself, for `put_origin`."""
    names = ('orig_cell', 'origcell', 'strain') if isinstance(target, Filter) else ()
    return {
        name: np.array(getattr(target, name)) for name in names if hasattr(target, name)
    }


def put_origin(target, origin):
    """Let a new filter measure strain as an earlier one did."""
    for name, value in origin.items():
        setattr(target, name, np.array(value, float))


def check_refinable(atoms):
    """Refuse what no calculator can answer sensibly, molecules and slabs included.

    Parameters
    ----------
    atoms : ase.Atoms

    Raises
    ------
    StructureError
        No atoms, numbers that are not finite, a periodic cell without volume, two atoms on
        one site.

    Examples
    --------
    >>> from ase.build import molecule
    >>> check_refinable(molecule('H2O'))
    """
    if len(atoms) == 0:
        raise StructureError('0 atoms: there is nothing to relax')
    if not np.isfinite(atoms.cell).all():
        raise StructureError(f'cell {atoms.cell.tolist()} is not finite; set another one')
    for i, axis in np.argwhere(~np.isfinite(atoms.positions)):
        raise StructureError(
            f'{_label(atoms, i)}: position {"xyz"[axis]} is {atoms.positions[i, axis]}; '
            'set it to a number'
        )
    vectors = atoms.cell.array[atoms.pbc]
    if len(vectors) and np.linalg.matrix_rank(vectors) < len(vectors):
        raise StructureError(f'cell {atoms.cell.tolist()} has no volume; set another one')
    pairs = NeighborList(cutoff=0.1, full_list=False)
    first, second, distances = pairs.compute(
        points=np.asarray(atoms.positions, dtype=float),
        box=atoms.cell.complete().array,
        periodic=atoms.pbc,
        quantities='ijd',
    )
    for i, j in zip(
        first[distances < SAME_SITE], second[distances < SAME_SITE], strict=True
    ):
        raise StructureError(
            f'{_label(atoms, i)} and {_label(atoms, j)} are on one site; remove or move one'
        )


def optimizer_name(optimizer):
    """Name of a class, or of the class in a ``functools.partial``.

    >>> from ase.optimize import LBFGS
    >>> optimizer_name(LBFGS), optimizer_name(partial(LBFGS, maxstep=0.1))
    ('LBFGS', 'LBFGS')
    """
    # By type: LBFGS has a method called func.
    optimizer = optimizer.func if isinstance(optimizer, partial) else optimizer
    return getattr(optimizer, '__name__', type(optimizer).__name__)


def calculator_name(calculator):
    """What a calculator calls itself, or else its class.

    >>> from ase.calculators.emt import EMT
    >>> calculator_name(EMT()), calculator_name(None)
    ('emt', 'NoneType')
    """
    name = getattr(calculator, 'name', None)
    return name if isinstance(name, str) else type(calculator).__name__


def _label(atoms, index):
    return f'atom {index} ({atoms.symbols[index]})'


def _where(atoms, gradient):
    row = int(np.flatnonzero(~np.isfinite(gradient))[0]) // 3
    return f'the force on {_label(atoms, row)}' if row < len(atoms) else 'the stress'

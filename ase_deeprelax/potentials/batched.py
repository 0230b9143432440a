"""Many crystals per forward pass of a potential, each with an ASE optimizer of its own."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

# Beyond these ratios of volumes neighbour lists grow without end, or atoms lose sight of
# each other.
RUNAWAY = (0.2, 5.0)


@dataclass(frozen=True)
class Outcome:
    """How the relaxation of one structure ended.

    Attributes
    ----------
    atoms : ase.Atoms
        The relaxed structure with energy, forces and stress attached, or, where
        ``converged`` is False, the last one that could be evaluated.
    converged : bool
    reason : str
        Why not, or ''.
    steps : int
        Evaluations of the potential.
    """

    atoms: Atoms
    converged: bool
    reason: str
    steps: int


class _Run:
    """One structure on its way down."""

    def __init__(self, key, atoms, optimizer, cell_filter):
        self.key, self.atoms, self.evaluations = key, atoms, 0
        self.before = atoms.copy()  # the last one that could be evaluated
        self.volume = atoms.get_volume()
        self.optimizer = optimizer(cell_filter(atoms), logfile=None)

    def advance(self, results, fmax, steps):
        """Take in results and, unless that was the last step, move; the end or None."""
        self.evaluations += 1
        for name, value in results.items():
            if not np.isfinite(value).all():
                self.atoms = self.before
                return self.end(f'{name} is not finite')
        self.atoms.calc = SinglePointCalculator(self.atoms, **results)
        gradient = self.optimizer.optimizable.get_gradient()
        self.optimizer.fmax = fmax
        if self.optimizer.gradient_converged(gradient):
            return self.end('')
        if self.evaluations > steps:
            return self.end(f'not converged in {steps} steps')
        self.before = self.atoms.copy()
        self.before.calc = self.atoms.calc
        self.optimizer.step()
        ratio, (low, high) = self.atoms.get_volume() / self.volume, RUNAWAY
        if not (np.isfinite(self.atoms.positions).all() and low < ratio < high):
            self.atoms = self.before
            return self.end(f'exploded: volume {ratio:.3g} times that of the input')
        return None

    def end(self, reason):
        return self.key, Outcome(self.atoms, not reason, reason, self.evaluations)


def relax_batched(
    structures,
    potential: Callable,
    *,
    optimizer=FIRE,
    cell_filter=FrechetCellFilter,
    fmax=0.05,
    steps=200,
    batch_atoms=200,
):
    """Relax positions and cells of many crystals together.

    Each step evaluates all crystals of the batch in one call of the potential; then each
    crystal's own ASE optimizer moves it. A crystal that has converged leaves, and the next
    one takes its place, so that batches stay full.

    Parameters
    ----------
    structures : iterable of (key, ase.Atoms)
        Taken one by one as places get free; copied.
    potential : callable
        ``potential(list of Atoms)`` gives a list of dictionaries with ``energy`` (eV),
        ``forces`` (n_atoms, 3) (eV/A) and ``stress`` (6,) (eV/A^3), for example
        `batch_potential`'s.
    optimizer : callable
        An ASE optimizer class whose ``step`` moves once per evaluation (FIRE, BFGS,
        LBFGS ...; none with a line search), default FIRE.
    cell_filter : callable
        What of the cell moves, default all of it (``FrechetCellFilter``).
    fmax : float, eV/A
        Default 0.05, on atoms and cell.
    steps : int
        At most so many steps each, default 200.
    batch_atoms : int
        Atoms per forward pass, default 200.

    Yields
    ------
    (key, Outcome)
        As they finish, which is not the order that they came in.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> inputs = enumerate([bulk('Cu', a=3.5), bulk('Au', a=4.2)])
    >>> ends = dict(relax_batched(inputs, batch_potential(EMT()), fmax=0.01))
    >>> [ends[k].converged for k in (0, 1)]
    [True, True]
    """
    waiting, active, used = iter(structures), [], 0
    exhausted = False
    while True:
        while not exhausted and (not active or used < batch_atoms):
            key, atoms = next(waiting, (None, None))
            if atoms is None:
                exhausted = True
                break
            active.append(_Run(key, atoms.copy(), optimizer, cell_filter))
            used += len(atoms)
        if not active:
            return
        still = []
        results = potential([run.atoms for run in active])
        for run, result in zip(active, results, strict=True):
            end = run.advance(result, fmax, steps)
            if end is None:
                still.append(run)
            else:
                used -= len(run.atoms)
                yield end
        active = still


def batch_potential(calculator, *, compile_model=False):
    """The function from crystals to energies, forces and stresses that batches need.

    Parameters
    ----------
    calculator : ase Calculator
        Such as `get_calculator` gives. matgl's potentials (M3GNet, TensorNet)
        and CHGNet take all crystals in one forward pass, any other calculator is asked one
        by one.
    compile_model : bool
        Compile a matgl model first: a minute, then two to three times faster; default no.

    Returns
    -------
    callable
        See `relax_batched`.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> [result] = batch_potential(EMT())([bulk('Cu')])
    >>> sorted(result)
    ['energy', 'forces', 'stress']
    """
    bare = getattr(calculator, 'calculator', calculator)
    kind = type(bare).__module__.split('.')[0]
    if kind == 'matgl':
        return MatglBatch(bare.potential, compile_model)
    if kind == 'chgnet':
        return ChgnetBatch(bare.model)
    return lambda structures: [_ask(calculator, atoms) for atoms in structures]


def _ask(calculator, atoms):
    # A copy without the results of the last step, so that they cannot be taken for these.
    atoms = atoms.copy()
    atoms.calc = calculator
    return {
        'energy': atoms.get_potential_energy(),
        'forces': atoms.get_forces(apply_constraint=False),
        'stress': atoms.get_stress(apply_constraint=False),
    }


class MatglBatch:
    """matgl's potentials, M3GNet and TensorNet, on many crystals at once."""

    def __init__(self, potential, compile_model):
        from matgl.ext.ase import Atoms2Graph

        self.potential = potential.eval().requires_grad_(False)
        self.convert = Atoms2Graph(potential.model.element_types, potential.model.cutoff)
        if compile_model:
            self.potential.model.compile(dynamic=True)

    def __call__(self, structures):
        """Energies, forces and stresses of a list of Atoms."""
        import torch
        from matgl.utils.constants import EV_PER_ANG3_TO_GPA
        from torch_geometric.data import Batch

        graphs, cells, _ = zip(*map(self.convert.get_graph, structures), strict=True)
        batch = Batch.from_data_list(list(graphs))
        energies, forces, stresses, *_ = self.potential(batch, torch.cat(cells))
        energies, forces, stresses = (
            x.detach().cpu().double().numpy() for x in (energies, forces, stresses)
        )
        stresses = stresses.reshape(-1, 3, 3) / EV_PER_ANG3_TO_GPA
        return _split(structures, energies.reshape(-1), forces, stresses)


class ChgnetBatch:
    """CHGNet on many crystals at once."""

    def __init__(self, potential):
        self.potential = potential

    def __call__(self, structures):
        """Energies, forces and stresses of a list of Atoms."""
        from ase.units import GPa
        from pymatgen.io.ase import AseAtomsAdaptor

        graphs = [
            self.potential.graph_converter(AseAtomsAdaptor.get_structure(atoms))
            for atoms in structures
        ]
        predictions = self.potential.predict_graph(
            graphs, task='efs', batch_size=len(graphs)
        )
        if len(graphs) == 1:
            predictions = [predictions]
        return _split(
            structures,
            [p['e'] * len(atoms) for p, atoms in zip(predictions, structures, strict=True)],
            np.concatenate([p['f'] for p in predictions]),
            [p['s'] * GPa for p in predictions],
        )


def _split(structures, energies, forces, stresses):
    """One dictionary per structure; stresses as ASE's six numbers."""
    ends = np.cumsum([len(atoms) for atoms in structures])[:-1]
    voigt = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
    return [
        {'energy': float(energy), 'forces': force, 'stress': np.asarray(stress)[voigt]}
        for energy, force, stress in zip(
            energies, np.split(np.asarray(forces, float), ends), stresses, strict=True
        )
    ]

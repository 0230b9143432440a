"""Many structures per forward pass of a potential, each with its own ASE optimizer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.optimize import FIRE

from ase_deeprelax.calculators.periodic import periodic_box
from ase_deeprelax.errors import DeepRelaxError
from ase_deeprelax.geometry.cell_filter import free_cell
from ase_deeprelax.geometry.free_strain import RelaxCell

# Beyond these ratios of volumes neighbour lists grow without end, or atoms lose sight of
# each other.
RUNAWAY = (0.2, 5.0)
# A cell with less room or less height than this is flat or missing: within the cutoff of a
# potential lie so many images that memory runs out. A^3 per atom, and A.
SMALLEST_VOLUME, SMALLEST_HEIGHT = 1.0, 0.7
# How the reason of an `Outcome` begins where the potential raised an exception.
RAISED = 'the potential failed: '


@dataclass(frozen=True)
class Outcome:
    """How the relaxation of one structure ended.

    Attributes
    ----------
    atoms : ase.Atoms
        The relaxed structure with energy, forces and, where the potential has it, stress
        attached, or, where ``converged`` is False, the last one that could be evaluated
        (the input as it is where none could).
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

    def __init__(self, key, atoms, optimizer, relax_cell):
        self.key, self.atoms, self.evaluations = key, atoms, 0
        self.before = atoms.copy()  # the last one that could be evaluated
        self.volume = atoms.get_volume()
        self.optimizer = optimizer(free_cell(atoms, relax_cell), logfile=None)

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
        if problem := _unusable(self.atoms):
            self.atoms = self.before
            return self.end(problem)
        return None

    def fail(self, error):
        """The end of a structure that an exception stopped."""
        self.atoms = self.before
        return self.end(f'{type(error).__name__}: {error}')

    def end(self, reason):
        return self.key, Outcome(self.atoms, not reason, reason, self.evaluations)


def relax_batched(
    structures: Iterable[tuple[Hashable, Atoms]],
    potential: Callable[[list[Atoms]], list[dict[str, Any]]],
    *,
    optimizer: Callable = FIRE,
    relax_cell: RelaxCell | Callable[[Hashable], RelaxCell] = True,
    fmax: float = 0.05,
    steps: int = 200,
    batch_atoms: int = 200,
) -> Iterator[tuple[Hashable, Outcome]]:
    """Relax positions and cells of many structures together.

    Each step evaluates all structures of the batch in one call of the potential; then each
    structure's own ASE optimizer moves it. A structure that has converged leaves, and the
    next one takes its place, so that batches stay full.

    A structure that cannot be relaxed ends with the reason and disturbs no other one: a
    batch for which the potential raises an exception is evaluated again in halves.

    Parameters
    ----------
    structures : iterable of (key, ase.Atoms)
        Taken one by one as places get free; copied. Constraints are honoured.
    potential : callable
        ``potential(list of Atoms)`` gives a list of dictionaries with ``energy`` (eV),
        ``forces`` (n_atoms, 3) (eV/A) and, unless all cells are held, ``stress`` (6,)
        (eV/A^3), for example `batch_potential`'s.
    optimizer : callable
        An ASE optimizer class whose ``step`` moves once per evaluation (FIRE, BFGS,
        LBFGS ...; none with a line search), default FIRE.
    relax_cell : bool, str, array or callable
        What of the cells relaxes, see `freedom.check_relax_cell`; default True, all of
        it (of a layer, its two lattice vectors). A function says it for each key.
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
            run = _start(key, atoms, optimizer, relax_cell)
            if isinstance(run, _Run):
                active.append(run)
                used += len(atoms)
            else:
                yield run
        if not active:
            return
        still = []
        for run, result in zip(active, _evaluate(potential, active), strict=True):
            end = _advance(run, result, fmax, steps)
            if end is None:
                still.append(run)
            else:
                used -= len(run.atoms)
                yield end
        active = still


def _start(key, atoms, optimizer, relax_cell):
    """The run of a structure, or the end of one that cannot be relaxed."""
    atoms = atoms.copy()
    if problem := _unusable(atoms):
        return key, Outcome(atoms, False, problem, 0)
    wanted = relax_cell(key) if callable(relax_cell) else relax_cell
    try:
        return _Run(key, atoms, optimizer, wanted)
    except DeepRelaxError as error:
        return key, Outcome(atoms, False, f'{type(error).__name__}: {error}', 0)


def _advance(run, result, fmax, steps):
    """One step of a run; its end, or None."""
    if isinstance(result, Exception):
        run.evaluations += 1
        run.atoms = run.before
        return run.end(f'{RAISED}{type(result).__name__}: {result}')
    try:
        return run.advance(result, fmax, steps)
    except (ArithmeticError, np.linalg.LinAlgError, DeepRelaxError) as error:
        return run.fail(error)


def _evaluate(potential, runs):
    """What the potential says of each structure: its results, or the exception."""
    try:
        return potential([run.atoms for run in runs])
    except Exception as error:  # noqa: BLE001 - potentials raise anything
        if len(runs) == 1:
            return [error]
    half = len(runs) // 2
    return [*_evaluate(potential, runs[:half]), *_evaluate(potential, runs[half:])]


def _unusable(atoms):
    """Why no potential can be asked about a structure, or ''."""
    cell = atoms.cell.array
    if not (np.isfinite(cell).all() and np.isfinite(atoms.positions).all()):
        return 'positions or cell are not finite'
    volume = abs(np.linalg.det(cell))
    if len(atoms) == 0 or volume < SMALLEST_VOLUME * len(atoms):
        return f'{len(atoms)} atoms in a cell of {volume:.3g} A^3'
    height = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0).max()
    if height < SMALLEST_HEIGHT:
        return f'the cell is flat: its smallest height is {height:.2g} A'
    return ''


def batch_potential(calculator, *, compile_model: bool = False) -> Callable:
    """The function from structures to energies, forces and stresses that batches need.

    Parameters
    ----------
    calculator : ase Calculator
        Such as `get_calculator` gives. matgl's potentials (M3GNet, TensorNet)
        and CHGNet take all structures in one forward pass, any other calculator is asked
        one by one.
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
    try:
        results = {
            'energy': atoms.get_potential_energy(),
            'forces': atoms.get_forces(apply_constraint=False),
        }
        if 'stress' in calculator.implemented_properties:
            results['stress'] = atoms.get_stress(apply_constraint=False)
    except Exception:
        # Asked about the same atoms again, it would take itself for prepared.
        calculator.reset()
        raise
    return results


class MatglBatch:
    """matgl's potentials, M3GNet and TensorNet, on many structures at once."""

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

        boxes = [periodic_box(atoms) for atoms in structures]
        graphs, cells, _ = zip(*map(self.convert.get_graph, boxes), strict=True)
        batch = Batch.from_data_list(list(graphs))
        energies, forces, stresses, *_ = self.potential(batch, torch.cat(cells))
        energies, forces, stresses = (
            x.detach().cpu().double().numpy() for x in (energies, forces, stresses)
        )
        stresses = stresses.reshape(-1, 3, 3) / EV_PER_ANG3_TO_GPA
        return _split(structures, boxes, energies.reshape(-1), forces, stresses)


class ChgnetBatch:
    """CHGNet on many structures at once."""

    def __init__(self, potential):
        self.potential = potential

    def __call__(self, structures):
        """Energies, forces and stresses of a list of Atoms."""
        from ase.units import GPa
        from pymatgen.io.ase import AseAtomsAdaptor

        boxes = [periodic_box(atoms) for atoms in structures]
        graphs = [
            self.potential.graph_converter(AseAtomsAdaptor.get_structure(box))
            for box in boxes
        ]
        predictions = self.potential.predict_graph(
            graphs, task='efs', batch_size=len(graphs)
        )
        if len(graphs) == 1:
            predictions = [predictions]
        return _split(
            structures,
            boxes,
            [p['e'] * len(atoms) for p, atoms in zip(predictions, structures, strict=True)],
            np.concatenate([p['f'] for p in predictions]),
            [p['s'] * GPa for p in predictions],
        )


def _split(structures, boxes, energies, forces, stresses):
    """One dictionary per structure; stresses as ASE's six numbers, per its own volume."""
    ends = np.cumsum([len(atoms) for atoms in structures])[:-1]
    forces = np.split(np.asarray(forces, float), ends)
    voigt = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
    results = []
    for k, (atoms, box) in enumerate(zip(structures, boxes, strict=True)):
        stress = np.asarray(stresses[k], float)[voigt]
        stress = stress * (box.cell.volume / atoms.cell.volume)
        results.append(
            {'energy': float(energies[k]), 'forces': forces[k], 'stress': stress}
        )
    return results

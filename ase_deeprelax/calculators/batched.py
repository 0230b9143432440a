"""Many structures per forward pass of a potential."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from ase_deeprelax.calculators.attached import has_stress, one_number
from ase_deeprelax.calculators.periodic import periodic_box, right_handed
from ase_deeprelax.calculators.potential import Potential


def batch_potential(
    calculator: Any, *, compile_model: bool = False
) -> Callable[[Sequence[Atoms]], list[dict[str, Any]]]:
    """The function from structures to energies, forces and stresses that batches need.

    Parameters
    ----------
    calculator : ase Calculator
        Such as `get_calculator` gives. matgl's potentials (M3GNet, TensorNet)
        and CHGNet take all structures in one forward pass, any other calculator is asked
        one by one. Constraints do not enter the results.
    compile_model : bool
        Compile a matgl model first: a minute, then two to three times faster; default no.

    Returns
    -------
    callable
        From a list of Atoms to a list of dictionaries with ``energy`` (eV), ``forces``
        (n_atoms, 3) (eV/A) and, where it has one, ``stress`` (6,) (eV/A^3). As the
        calculator, it refuses elements that a `Potential` was not trained on.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> [result] = batch_potential(EMT())([bulk('Cu')])
    >>> sorted(result)
    ['energy', 'forces', 'stress']
    """
    own = calculator.calculator if isinstance(calculator, Potential) else calculator
    kind = type(own).__module__.split('.')[0]
    if kind == 'matgl':
        return MatglBatch(calculator, own.potential, compile_model)
    if kind == 'chgnet':
        return ChgnetBatch(calculator, own.model)
    return lambda structures: [_ask(calculator, atoms) for atoms in structures]


def _ask(calculator: Any, atoms: Atoms) -> dict[str, Any]:
    # A copy without the results of the last step, so that they cannot be taken for these.
    atoms = atoms.copy()
    atoms.calc = calculator
    try:
        results = {
            'energy': one_number(atoms.get_potential_energy(apply_constraint=False)),
            'forces': atoms.get_forces(apply_constraint=False),
        }
        if has_stress(calculator):
            results['stress'] = atoms.get_stress(apply_constraint=False)
    except Exception:
        # Asked about the same atoms again, it would take itself for prepared.
        if hasattr(calculator, 'reset'):
            calculator.reset()
        raise
    return results


class OnePass:
    """A potential that takes many structures in one forward pass.

    It refuses the elements that its calculator refuses.
    """

    def __init__(self, calculator: Any):
        self.calculator = calculator

    def __call__(self, structures: Sequence[Atoms]) -> list[dict[str, Any]]:
        """Energies, forces and stresses of a list of Atoms."""
        if isinstance(self.calculator, Potential):
            for atoms in structures:
                self.calculator.check_elements(atoms)
        return self._results(structures)

    def _results(self, structures: Sequence[Atoms]) -> list[dict[str, Any]]:
        raise NotImplementedError


class MatglBatch(OnePass):
    """matgl's potentials, M3GNet and TensorNet, on many structures at once."""

    def __init__(self, calculator: Any, potential: Any, compile_model: bool):
        from matgl.ext.ase import Atoms2Graph

        super().__init__(calculator)
        self.potential = potential.eval().requires_grad_(False)
        self.convert = Atoms2Graph(potential.model.element_types, potential.model.cutoff)
        if compile_model:
            self.potential.model.compile(dynamic=True)

    def _results(self, structures: Sequence[Atoms]) -> list[dict[str, Any]]:
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


class ChgnetBatch(OnePass):
    """CHGNet on many structures at once."""

    def __init__(self, calculator: Any, potential: Any):
        super().__init__(calculator)
        self.potential = potential

    def _results(self, structures: Sequence[Atoms]) -> list[dict[str, Any]]:
        from ase.units import GPa
        from pymatgen.io.ase import AseAtomsAdaptor

        boxes = [right_handed(periodic_box(atoms)) for atoms in structures]
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


def _split(
    structures: Sequence[Atoms],
    boxes: Sequence[Atoms],
    energies: Sequence[float | np.floating] | np.ndarray,
    forces: np.ndarray,
    stresses: Sequence[np.ndarray] | np.ndarray,
) -> list[dict[str, Any]]:
    """One dictionary per structure; stresses as ASE's six numbers, per its own volume."""
    ends = np.cumsum([len(atoms) for atoms in structures])[:-1]
    parts = np.split(np.asarray(forces, float), ends)
    voigt = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
    results = []
    for k, (atoms, box) in enumerate(zip(structures, boxes, strict=True)):
        stress = np.asarray(stresses[k], float)[voigt]
        stress = stress * (box.cell.volume / atoms.cell.volume)
        results.append({'energy': float(energies[k]), 'forces': parts[k], 'stress': stress})
    return results

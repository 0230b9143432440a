"""Structures of pymatgen to Atoms, and relaxed Atoms back to structures of pymatgen.

pymatgen takes long to import, so nothing here imports it before a structure of it is there
or wanted.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixScaled

from ase_deeprelax import keys
from ase_deeprelax.errors import StructureError, UnsupportedElementError

if TYPE_CHECKING:
    from pymatgen.core import IStructure

# Site properties with a name of their own in ASE.
ARRAYS = {'magmom': 'initial_magmoms', 'charge': 'initial_charges', 'tags': 'tags'}
# Site properties that are no arrays of the Atoms: constraints, results of calculations.
OTHERS = ('selective_dynamics', 'final_magmom', 'final_charge', 'numbers', 'positions')


def as_atoms(obj: Any) -> Atoms:
    """``ase.Atoms`` of what users hand in.

    Parameters
    ----------
    obj : ase.Atoms or pymatgen Structure
        Atoms, subclasses included, are returned as they are, not copied. Of a structure,
        selective dynamics become constraints, magnetic moments, charges and other site
        properties become arrays as far as they are numbers or text, and its properties
        become ``info``.

    Returns
    -------
    ase.Atoms

    Raises
    ------
    StructureError
        For anything else, and for disordered structures.

    Examples
    --------
    >>> from ase.build import bulk
    >>> cu = bulk('Cu')
    >>> as_atoms(cu) is cu
    True
    """
    if isinstance(obj, Atoms):
        return obj
    if 'pymatgen.core' not in sys.modules:
        raise StructureError(_not_accepted(obj))
    from pymatgen.core import DummySpecies, IStructure

    if not isinstance(obj, IStructure):
        raise StructureError(_not_accepted(obj))
    for k, site in enumerate(obj):
        if not site.is_ordered:
            raise StructureError(
                f'site {k} ({site.species_string}) is disordered or partially occupied; '
                'order the structure first, e.g. with pymatgen '
                'OrderDisorderedStructureTransformation'
            )
        if isinstance(site.specie, DummySpecies):
            raise UnsupportedElementError(
                f'site {k} ({site.species_string}) is a dummy species, no element; remove '
                'or replace it'
            )
    return _from_structure(obj)


def _from_structure(structure: IStructure) -> Atoms:
    atoms = Atoms(
        [site.specie.Z for site in structure],
        positions=structure.cart_coords,
        cell=structure.lattice.matrix,
        pbc=structure.lattice.pbc,
        info=copy.deepcopy(structure.properties),
    )
    properties = dict(structure.site_properties)
    states = [getattr(site.specie, 'oxi_state', None) for site in structure]
    if any(state is not None for state in states):
        properties.setdefault('oxi_states', states)
    for name, values in properties.items():
        if name not in OTHERS:
            array = _array(values, numbers_only=name in ARRAYS)
            if array is not None:
                atoms.set_array(ARRAYS.get(name, name), array)
    flags = properties.get('selective_dynamics')
    if flags is not None:
        atoms.set_constraint(_held(flags))
    return atoms


def _array(values: Sequence[Any], *, numbers_only: bool) -> np.ndarray | None:
    """One row for each site, or None where the values are neither numbers nor text."""
    if numbers_only:
        values = [0 if value is None else value for value in values]
    try:
        array = np.array(values)
        if array.dtype == object:  # numbers with gaps, or moments of pymatgen's own class
            array = np.array(values, dtype=float)
    except (TypeError, ValueError):
        return None
    return array if array.dtype.kind in ('biufU' if not numbers_only else 'biuf') else None


def _held(flags: Sequence[Any]) -> list[FixAtoms | FixScaled]:
    """Constraints of selective dynamics, where True means free; None: free.

    They act along the lattice vectors, as in VASP and in the POSCAR files that ASE reads.
    """
    held: dict[tuple[bool, ...], list[int]] = {}
    for index, free in enumerate(flags):
        mask = tuple(not along for along in (free if free is not None else [True] * 3))
        if any(mask):
            held.setdefault(mask, []).append(index)
    return [
        FixAtoms(indices) if all(mask) else FixScaled(indices, mask)
        for mask, indices in held.items()
    ]


def as_structure(atoms: Atoms, source: IStructure | None = None) -> IStructure:
    """A pymatgen structure of relaxed Atoms.

    Parameters
    ----------
    atoms : ase.Atoms
    source : pymatgen Structure or IStructure, optional
        The unrelaxed structure, with the same sites in the same order. The result is of
        its class and keeps its species with their oxidation states and spins, charge, site
        properties, labels and properties; arrays among them become lists. Default: the
        atoms are all that is known.

    Returns
    -------
    pymatgen.core.Structure or IStructure
        With the names of `keys` among its properties and site properties.
    """
    from pymatgen.core import IStructure, Lattice, Structure
    from pymatgen.io.ase import AseAtomsAdaptor

    if source is None:
        plain = atoms.copy()
        plain.info = _lists(atoms.info)
        plain.set_constraint([_cartesian(constraint) for constraint in atoms.constraints])
        return AseAtomsAdaptor.get_structure(plain)
    lattice = Lattice(atoms.cell.array, pbc=tuple(atoms.pbc.tolist()))
    names = dict.fromkeys(name for site in source for name in site.properties)
    properties = {
        name: copy.deepcopy([site.properties.get(name) for site in source])
        for name in names
    }
    if keys.SIGMA in atoms.arrays:
        properties[keys.SIGMA] = atoms.arrays[keys.SIGMA].tolist()
    cls = Structure if isinstance(source, Structure) else IStructure
    return cls(
        lattice,
        [site.species for site in source],
        atoms.positions,
        coords_are_cartesian=True,
        charge=source._charge,  # noqa: SLF001 - `charge` adds up oxidation states
        site_properties=_lists(properties),
        labels=list(source.labels),
        properties=_lists(copy.deepcopy(source.properties) | keys.ours(atoms)),
    )


def _cartesian(constraint: Any) -> Any:
    """Selective dynamics, which POSCAR files give along lattice vectors, as pymatgen's."""
    if isinstance(constraint, FixScaled):
        return FixCartesian(constraint.get_indices(), constraint.mask)
    return constraint


def _lists(value: Any) -> Any:
    """Lists in place of arrays: pymatgen cannot compare structures that hold arrays."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _lists(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_lists(part) for part in value)
    return value


def _not_accepted(obj: Any) -> str:
    kind = type(obj)
    hint = ''
    if isinstance(obj, Mapping):
        hint = '; hand in the structures themselves, list(d.values())'
        if '@class' in obj:
            hint = '; make the object first: Structure.from_dict(d)'
    elif isinstance(obj, (list, tuple)):
        hint = '; hand in its elements one by one'
    elif isinstance(obj, str) or hasattr(obj, '__fspath__'):
        hint = '; read the file first: ase.io.read(path)'
    elif hasattr(obj, 'atoms'):
        hint = '; hand in its .atoms'
    return (
        f'{kind.__module__}.{kind.__qualname__} is not a structure: accepted are '
        f'ase.Atoms and pymatgen.core.Structure{hint}'
    )

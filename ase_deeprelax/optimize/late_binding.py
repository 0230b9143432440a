"""An ASE optimizer that can be made without atoms, and is bound to some later."""

from __future__ import annotations

import threading
from typing import Any, Self

from ase.filters import Filter
from ase.optimize.optimize import OptimizableAtoms, Optimizer

from ase_deeprelax.errors import warn
from ase_deeprelax.geometry.snapshot import innermost

# Two threads that bind one optimizer at once: the first takes it, the other has a copy.
TAKING = threading.Lock()
BINDING = 'use atoms.optimizer = ..., bind(atoms) or run(atoms)'


class LateBinding(Optimizer):
    """Binding, forgetting and copying of an optimizer.

    Two attributes belong to the optimizer whatever its atoms are: ``_ase`` holds the
    arguments of ASE's ``Optimizer``, ``_options`` all others. What belongs to the atoms is
    made in `_start`.
    """

    atoms: Any
    nsteps: int
    _ase: dict[str, Any]
    _options: Any
    _bound_later: bool  # whether it was made without atoms
    _appends: bool  # whether the trajectory holds frames of other atoms

    def bind(self, atoms: Any) -> Self:
        """The optimizer of these atoms: this one, or a copy where it belongs to others.

        A copy has no observers and no restart file, and appends to the trajectory. An
        optimizer of a filter stays with it for the atoms inside; a copy for other atoms is
        without the filter, with a warning.

        Parameters
        ----------
        atoms : ase.Atoms or ase.filters.Filter

        Returns
        -------
        DeepRelaxOptimizer
        """
        if self.atoms is atoms or innermost(self.atoms) is atoms:
            return self
        with TAKING:
            if self.atoms is None:
                self._take(atoms)
                return self
        if isinstance(self.atoms, Filter) and not isinstance(atoms, Filter):
            warn(
                f'the {type(self.atoms).__name__} of this optimizer is around other atoms '
                'and does not go along with its copy; give the copy a filter of its own, '
                'or say with relax_cell= what of the cell may change'
            )
        twin = object.__new__(type(self))
        twin.__dict__.update(self._settings())
        twin._ase = {**self._ase, 'restart': None, 'append_trajectory': True}
        twin._bound_later, twin._appends, twin.atoms = True, True, None
        return twin.bind(atoms)

    def unbind(self) -> None:
        """Forget the atoms."""
        if self.atoms is not None:
            self.close()
        settings = self._settings()
        self.__dict__.clear()
        self.__dict__.update(settings, _bound_later=True, _appends=False, atoms=None)

    def _settings(self) -> dict[str, Any]:
        return {'_ase': self._ase, '_options': self._options}

    def _take(self, atoms: Any) -> None:
        if isinstance(atoms, OptimizableAtoms):  # as ase.optimize.basin hands them over
            atoms = atoms.atoms
        self._start(atoms)

    def _start(self, atoms: Any) -> None:
        """Make what belongs to the atoms, or refuse those that do not fit the settings.

        Out of a pickle atoms may come half made.
        """
        raise NotImplementedError

    def _progress(self) -> dict[str, Any]:
        """Return the state from which a copy can go on."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        # Only what is missing comes here; ASE makes its attributes when there are atoms.
        message = f'{type(self).__name__!r} object has no attribute {name!r}'
        if self.__dict__.get('atoms', self) is None:
            message += f' before it is bound to atoms: {BINDING}'
        raise AttributeError(message)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies: without weights, observers and open files."""
        kept = '_bound_later', '_appends', 'atoms', 'nsteps', 'max_steps', 'fmax'
        state = {name: self.__dict__[name] for name in kept if name in self.__dict__}
        state |= self._settings()
        if self.atoms is not None and self.nsteps:
            state |= self._progress()
        state['_ase'] = {**self._ase, 'restart': None, 'trajectory': None}
        if hasattr(self._ase['logfile'], 'write'):
            state['_ase']['logfile'] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.atoms is not None:
            self._start(self.atoms)
            self.__dict__.update(state)

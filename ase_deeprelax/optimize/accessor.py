"""``atoms.optimizer = DeepRelaxOptimizer()``: the one thing this package adds to ASE.

``import ase_deeprelax`` installs a descriptor on ``ase.Atoms`` that binds an optimizer on
assignment. Until something is assigned, ``hasattr(atoms, 'optimizer')`` is False, as in
plain ASE. `uninstall` takes it away again.
"""

from __future__ import annotations

from typing import Any

from ase import Atoms

from ase_deeprelax.errors import warn

NAME = 'optimizer'


class OptimizerAccessor:
    """Data descriptor behind ``atoms.optimizer``.

    The optimizer is kept in the instance's ``__dict__``, so that copying and pickling treat
    it as they treat any attribute: ``atoms.copy()`` leaves it behind, pickle and deepcopy
    take it along.
    """

    def __get__(self, atoms: Atoms | None, owner: type | None = None) -> Any:
        if atoms is None:
            return self
        try:
            return atoms.__dict__[NAME]
        except KeyError:
            raise AttributeError(
                f'{type(atoms).__name__} has no optimizer yet; '
                'assign one: atoms.optimizer = DeepRelaxOptimizer()'
            ) from None

    def __set__(self, atoms: Atoms, optimizer: Any) -> None:
        if isinstance(optimizer, type) or not hasattr(optimizer, 'run'):
            raise TypeError(
                f'atoms.optimizer takes an optimizer, not {optimizer!r}: assign one, as '
                'atoms.optimizer = DeepRelaxOptimizer()'
            )
        if hasattr(optimizer, 'bind'):
            optimizer = optimizer.bind(atoms)
        atoms.__dict__[NAME] = optimizer

    def __delete__(self, atoms: Atoms) -> None:
        optimizer = self.__get__(atoms)
        del atoms.__dict__[NAME]
        if hasattr(optimizer, 'unbind'):
            optimizer.unbind()


def install() -> None:
    """Add ``Atoms.optimizer``; a second call changes nothing.

    Where something else already uses that name, it is left alone with a warning.

    Examples
    --------
    >>> install()
    >>> hasattr(Atoms(), 'optimizer')
    False
    """
    present = vars(Atoms).get(NAME)
    if present is None:
        setattr(Atoms, NAME, OptimizerAccessor())
    elif not isinstance(present, OptimizerAccessor):
        warn(
            f'ase.Atoms.{NAME} exists already ({present!r}); use '
            'DeepRelaxOptimizer(atoms) instead of atoms.optimizer = DeepRelaxOptimizer()'
        )


def uninstall() -> None:
    """Take ``Atoms.optimizer`` away again; optimizers already assigned stay attributes."""
    if isinstance(vars(Atoms).get(NAME), OptimizerAccessor):
        delattr(Atoms, NAME)

"""An ASE optimizer whose first step is a prediction of the relaxed structure."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.filters import Filter
from ase.optimize.optimize import DEFAULT_MAX_STEPS

from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.files import check_writable
from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.geometry.free_strain import (
    RelaxCell,
    check_relax_cell,
    plain_relax_cell,
)
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.optimize.ase_optimizers import find_optimizer, optimizer_name
from ase_deeprelax.optimize.chain import Chain
from ase_deeprelax.optimize.elastic_bfgs import ElasticBFGS
from ase_deeprelax.optimize.late_binding import BINDING, LateBinding
from ase_deeprelax.optimize.options import Options
from ase_deeprelax.optimize.relaxation_step import check_fmax
from ase_deeprelax.optimize.restart import load_restart, save_restart
from ase_deeprelax.optimize.stage import Stage, StageRecord, as_stages
from ase_deeprelax.optimize.verify import Verification


class DeepRelaxOptimizer(LateBinding):
    """Relax a crystal in one shot; with a calculator, refine it from there.

    Without a calculator (or with the stored results of one) `run` takes one step: the
    structure becomes the predicted one once that passed the checks, else an error says
    what is wrong and the atoms stay as they were. ``fmax`` is a force and plays no part;
    the log shows ``dmax`` (A) and ``strain`` (%), the largest displacement and change of a
    length that are still to be made, and ``sigma`` (A). What filters and constraints hold
    stays as it is: see `degrees_of_freedom`. Of the cell the same moves in the prediction
    and the refinement:

    - of a filter around Atoms: what the filter frees;
    - of Atoms with ``relax_cell=``: what that says;
    - of ``DeepRelaxOptimizer(atoms)`` with a calculator and without ``refine``: nothing, as
      in all of ASE's optimizers;
    - of any other crystal: all of it;
    - of any other layer or slab: its two lattice vectors, or nothing if atoms are fixed;
    - of a molecule or wire, which is only refined: nothing.

    The vacuum vector of a layer stays, unless the user's own filter moves it in the
    refinement. The first line of the log says what was decided where it may be unexpected,
    and ``atoms.info['deeprelax_kind']`` does once a step was taken.

    With a calculator the first step is the prediction, and an ordinary ASE optimizer goes
    on from there to ``fmax``, in the same run, log and trajectory. The prediction is made
    once, unless the forces are below ``fmax`` from the start. It is rolled back where it
    raises the energy (``energy_gate``). Where it cannot be made (molecules and wires,
    elements that the model has not seen, constraints that it cannot honour), a warning says
    so and the relaxation is an ordinary one. The log and ``atoms.info['deeprelax_stage']``
    say what became of it.

    With ``refine`` the refinement is a chain of stages, each with its calculator, from a
    quick potential to DFT, as ``refine=['chgnet', Stage(GPAW(...), steps=20)]``. A stage
    that fails is rolled back to the structure of lowest energy, with a warning, and the
    next one goes on from there, see `Chain`; `run` is True if the last one converged.
    `stages` holds what each did.

    Where the atoms get another calculator between two runs, the relaxation begins anew
    with that; stages of ``refine`` go on with their own.

    Assigning to ``atoms.optimizer``, `bind` and ``run(atoms)`` bind an optimizer made
    without atoms; one that is bound to other atoms is copied, never shared.

    Parameters
    ----------
    atoms : ase.Atoms or ase.filters.Filter, optional
        What is relaxed, in place. Default: what it is bound to later.
    restart : str or Path, optional
        JSON file of the refinement's state, written after each step, read if it exists.
        Atoms that are as they were at the start are moved to where it stopped; those that
        are at neither place begin anew, with a warning.
    logfile : file, str or Path, optional
        Default '-', standard output.
    trajectory : Trajectory, str or Path, optional
        File that gets the structure after each step; default none.
    append_trajectory : bool
        Default False: an existing file is overwritten.
    refine : str, ase Calculator, callable, Stage or a list of them, optional
        What to refine with, one after another. Default: with the atoms' own calculator,
        where they have one.
    guided : bool or float
        Whether the prediction pulls during the refinement: it ends at the most probable
        structure given prediction and potential, see `guide` and `Stage`. A `Stage` in
        ``refine`` says it itself. Log and trajectory hold energies with this pull,
        `stages` and the atoms at the end without. Default False.
    verify : str or ase Calculator, optional
        A potential that is called once, after a prediction that is not refined: the log,
        ``atoms.info['deeprelax_verified']`` and `verification` say whether the prediction
        lies within the potential's own error. Where the potential fails, the prediction
        stays, and a warning says so. Where the atoms have a calculator it is left out with
        a warning. Default: none.
    model : str, path or RelaxationModel
        Default 'default', the shipped model that measured best.
    symmetry : 'keep' or 'free'
        Whether the prediction keeps the space group, default 'keep'.
    relax_cell : bool, str or array, optional
        What of the cell of bare Atoms may change: True, False, 'in-plane', 'hydrostatic'
        or a mask, as `relax` takes it. Default: see the list above.
    optimizer : str or callable
        The refinement's optimizer: the name of one in ``ase.optimize``, its class, or
        anything that makes one from ``(atoms, logfile=None)``, as
        ``functools.partial(FIRE, dt=0.05)``. Default `ElasticBFGS`.
    energy_gate : float, optional, eV/atom
        How much a prediction may raise the energy before it is rolled back; default 0,
        None: any amount.
    device : str
        Default 'auto': a GPU where there is one.
    dtype : 'float32' or 'float64'
        Of the network, default 'float32'.
    **kwargs
        ``master``, ``comm``, ``loginterval``, as for ASE's ``Optimizer``.

    Examples
    --------
    >>> from ase.build import bulk
    >>> atoms = bulk('NaCl', 'rocksalt', a=5.9)
    >>> atoms.optimizer = DeepRelaxOptimizer(logfile=None)
    >>> atoms.optimizer.run()
    True
    >>> print(f'{atoms.cell.volume:.1f} A^3, sigma {atoms.info["deeprelax_sigma"]:.2f} A')
    46.4 A^3, sigma 0.01 A
    """

    fmax: float | None
    restart: Any

    def __init__(
        self,
        atoms: Atoms | Filter | None = None,
        restart: str | Path | None = None,
        logfile: Any = '-',
        trajectory: Any = None,
        append_trajectory: bool = False,
        *,
        refine: Any = None,
        guided: bool | float = False,
        verify: Any = None,
        model: str | Path | RelaxationModel = 'default',
        symmetry: str = 'keep',
        relax_cell: RelaxCell | None = None,
        optimizer: str | Callable = ElasticBFGS,
        energy_gate: float | None = 0.0,
        device: str = 'auto',
        dtype: str = 'float32',
        **kwargs: Any,
    ):
        self._options = Options(
            model=model,
            symmetry=symmetry,
            device=device,
            dtype=dtype,
            relax_cell=None if relax_cell is None else check_relax_cell(relax_cell),
            stages=as_stages(refine, guided=guided),
            optimizer=find_optimizer(optimizer),
            energy_gate=energy_gate,
            ordinary=Stage(None, guided=guided),
            judge=None if verify is None else Stage(verify),
        )
        if verify is not None and self._options.stages:
            raise ValueError(
                'verify judges a prediction alone; leave it out where refine goes on'
            )
        self._ase: dict[str, Any] = {
            'restart': restart,
            'logfile': logfile,
            'trajectory': trajectory,
            'append_trajectory': append_trajectory,
            **kwargs,
        }
        self._bound_later, self._appends, self.atoms = atoms is None, False, None
        if atoms is not None:
            self._take(atoms)

    def __repr__(self) -> str:
        parts = [] if self.atoms is None else [chemical_formula(unwrap(self.atoms))]
        parts.append(f'model={self._options.model_name!r}')
        if self._options.stages:
            parts.append(f'refine={self._options.stages}')
        return f'{type(self).__name__}({", ".join(parts)})'

    # --- for LateBinding ---------------------------------------------------------------

    def _start(self, atoms: Any) -> None:
        asked = self._options.relax_cell
        if isinstance(atoms, Filter) and asked is not None:
            raise ValueError(
                f'relax_cell={plain_relax_cell(asked)!r} beside {type(atoms).__name__}: a '
                'filter says itself whether the cell relaxes; leave relax_cell out'
            )
        self._chain = Chain(atoms, self._options, bound_later=self._bound_later)
        self._state = None  # of an earlier run that goes on in the next one
        super().__init__(atoms, **self._ase)

    def _progress(self) -> dict[str, Any]:
        return {'_state': self._chain.state_dict(copied=True)}

    # --- ASE's interface ---------------------------------------------------------------

    def run(self, *args: Any, **kwargs: Any) -> bool:
        """``run(fmax=0.05, steps=100_000_000)``, or ``run(atoms, ...)`` to bind first.

        Parameters
        ----------
        fmax : float, eV/A
            Converged when all forces are smaller; without a calculator it means nothing.
        steps : int
            Most steps to take.

        Returns
        -------
        bool
            Whether the forces are below ``fmax``, in the last stage of a chain; without a
            calculator, whether the prediction is in the atoms.

        Raises
        ------
        StructureError, UnsupportedConstraintError, PredictionError
            As `relax`; with a calculator only where the structure is broken.
        RefinementError
            Without ``refine``: the refinement met numbers that are not finite.
        MissingDependencyError, ModelError
            A calculator or the model is not there.
        ConfigError
            No such optimizer can be made, or the restart file not be written.
        RestartError
            The restart file is of another structure or refinement.
        """
        if args and not np.isscalar(args[0]):
            return self.bind(args[0]).run(*args[1:], **kwargs)
        converged = False
        with closing(self.irun(*args, **kwargs)) as states:
            for converged in states:  # noqa: B007
                pass
        return converged

    def irun(
        self, fmax: float = 0.05, steps: int = DEFAULT_MAX_STEPS
    ) -> Generator[bool, None, None]:
        """As `run`, step by step: ``n + 1`` bool for ``n`` steps."""
        if self.atoms is None:
            raise ValueError(f'{type(self).__name__} is not bound to atoms: {BINDING}')
        check_fmax(fmax)
        if self.restart is not None and self.comm.rank == 0:
            check_writable(self.restart)
        self._begin(fmax)
        return self._released(super().irun(fmax=fmax, steps=steps))

    def _begin(self, fmax: float) -> None:
        """Start at the first stage, or where the run before stopped."""
        if self._state is not None:
            self._chain.load_state_dict(self._state)
            self._state = None
        self._chain.begin(fmax)
        self.optimizable = self._chain.present

    def _released(self, states: Iterator[bool]) -> Generator[bool, None, None]:
        """The states of a run, after which the atoms have their bare calculator."""
        try:
            yield from states
        finally:
            if self.atoms is not None:
                self._chain.release()

    def step(self) -> None:
        """Put the prediction into the atoms; once that is done, a step of refinement."""
        if self.fmax is None:  # a step before the first run: no force is small enough
            self.fmax = 0.0
            self._begin(self.fmax)
        self._chain.step(self.fmax)
        self.optimizable = self._chain.present
        if self._chain.exhausted:
            self.max_steps = self.nsteps + 1  # this step was the last
        if self._chain.stages and self.restart is not None and self.comm.rank == 0:
            save_restart(self.restart, self._chain.state_dict())

    def gradient_converged(self, gradient: np.ndarray) -> bool:
        """Whether the run is over: never with a number that is not finite."""
        atoms = unwrap(self.atoms)
        finite = all(np.isfinite(x).all() for x in (gradient, atoms.positions, atoms.cell))
        if not finite or self._chain.waiting:
            return False
        return bool(super().gradient_converged(gradient))

    def log(self, gradient: np.ndarray) -> None:
        """Write a line; what became of the prediction stands at the end of it."""
        chain = self._chain
        if chain.run is None:
            titles = 'dmax [A]', 'strain [%]', 'sigma [A]'
            values = *chain.one_shot.left, chain.one_shot.prediction.sigma
        else:
            titles = 'Energy', 'fmax'
            values = chain.run.get_value(), chain.run.gradient_norm(gradient)
        name, clock = type(self).__name__, time.strftime('%H:%M:%S')
        if self.nsteps == 0:
            if decision := chain.target.decision(self._options.relax_cell):
                self.logfile.write(f'{decision}\n')
            columns = ' '.join(f'{title:>15}' for title in titles)
            self.logfile.write(f'{" " * len(name)}  {"Step":>4} {"Time":>8} {columns}\n')
        numbers = ' '.join(f'{value:15.6f}' for value in values)
        note = f'  {chain.one_shot.note}' if chain.one_shot.note else ''
        self.logfile.write(f'{name}:  {self.nsteps:3d} {clock} {numbers}{note}\n')
        chain.one_shot.note = ''
        while chain.lines:
            self.logfile.write(f'{chain.lines.pop(0)}\n')

    def todict(self) -> dict[str, Any]:
        """What goes into the header of a trajectory."""
        options = self._options
        cell = options.relax_cell
        return super().todict() | {
            'model': options.model_name,
            'symmetry': options.symmetry,
            'relax_cell': 'default' if cell is None else plain_relax_cell(cell),
            'refinement': optimizer_name(options.optimizer),
            'stages': [stage.name for stage in options.stages],
        }

    @property
    def stages(self) -> list[StageRecord]:
        """What was done so far: a `StageRecord` of the prediction, then one per stage.

        Examples
        --------
        >>> from ase.build import bulk
        >>> from ase.calculators.emt import EMT
        >>> atoms = bulk('Cu', a=3.8)
        >>> atoms.optimizer = DeepRelaxOptimizer(refine=EMT(), logfile=None)
        >>> atoms.optimizer.run(fmax=0.02)
        True
        >>> for record in atoms.optimizer.stages:
        ...     print(record)
        prediction: converged, 1 step, energy 0.118... -> -0.00... eV, ...
        emt, ElasticBFGS: converged, 2 steps, energy -0.00... -> -0.00... eV, ...
        """
        return [] if self.atoms is None else self._chain.records

    @property
    def verification(self) -> Verification | None:
        """What the potential of ``verify`` says of the prediction; None: not known."""
        return None if self.atoms is None else self._chain.verification

    def read(self) -> None:
        """Go on from the restart file in the run to come."""
        self._state = load_restart(self.restart)

    def _replay_trajectory(self, trajectory: Any) -> None:
        self._chain.begin(fmax=0.0)  # the run to come says what is converged
        self._chain.one_shot.pending = False
        if self._chain.run is not None:
            self._chain.run.guarded.optimizer.replay_trajectory(trajectory)

    def _traj_is_empty(self) -> bool:
        # A trajectory of several structures holds the first frame of each of them.
        return self._appends or super()._traj_is_empty()

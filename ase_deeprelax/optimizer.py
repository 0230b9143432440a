"""An ASE optimizer whose first step is a prediction of the relaxed structure."""

import time

import numpy as np
from ase.filters import Filter, FrechetCellFilter
from ase.optimize import BFGS
from ase.optimize.optimize import DEFAULT_MAX_STEPS, Optimizer

from ase_deeprelax import keys
from ase_deeprelax.errors import (
    PredictionError,
    StructureError,
    UnsupportedConstraintError,
    warn,
)
from ase_deeprelax.freedom import unwrap
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.plan import OneShot, has_calculator, make_plan
from ase_deeprelax.predict import Predictor
from ase_deeprelax.refine import (
    Refinement,
    check_refinable,
    load_restart,
    optimizer_name,
)
from ase_deeprelax.weights.store import available_models

# What a structure that has a calculator can do without a prediction.
SKIPPED = (PredictionError, StructureError, UnsupportedConstraintError)


class DeepRelaxOptimizer(Optimizer):
    """Relax a crystal in one shot; with a calculator, refine it from there.

    Without a calculator (or with the stored results of one) `run` takes one step: the
    structure becomes the predicted one once that passed the checks, else an error says
    what is wrong and the atoms stay as they were. ``fmax`` is a force and plays no part;
    the log shows ``dmax``, the largest displacement still to be made, and ``sigma``, both
    in A. What is frozen by filters and constraints stays so: see `freedom`.

    With a calculator the first step is the prediction, and an ordinary ASE optimizer goes
    on from there to ``fmax``, in the same run, log and trajectory. The prediction is rolled
    back where it raises the energy (``energy_gate``). Where it cannot be made (molecules
    and slabs, elements that the model has not seen, constraints that it cannot honour), a
    warning says so and the relaxation is an ordinary one. Either is told in the log line of
    the step and in ``atoms.info['deeprelax_stage']``. There is one prediction in the life
    of an optimizer; after it, or where the forces are below ``fmax`` from the start, `run`
    is that of the ordinary optimizer.

    Assigning to ``atoms.optimizer``, `bind` and ``run(atoms)`` bind an optimizer made
    without atoms; one that is bound to other atoms is copied, never shared.

    Parameters
    ----------
    atoms : ase.Atoms or ase.filters.Filter, optional
    restart : str or Path, optional
        JSON file that keeps the refinement's state; read if it exists.
    logfile : file, str or Path, optional
        Default '-', standard output.
    trajectory : Trajectory, str or Path, optional
    append_trajectory : bool
        Default False: an existing file is overwritten.
    model : str, path or RelaxationModel
        Default 'default', the shipped model that measured best.
    symmetry : 'keep' or 'free'
        Whether the prediction keeps the space group, default 'keep'.
    relax_cell : bool, optional
        Whether the cell of bare Atoms may change (a filter decides for itself). Default:
        yes, except where Atoms with a calculator are handed over here, which is ASE's
        usual call and leaves the cell as it is in all of ASE's optimizers.
    optimizer : callable
        Class of the refinement's optimizer, or anything that makes one from ``(atoms,
        logfile=None)``, as ``functools.partial(FIRE, dt=0.05)``. Default ``BFGS``.
    energy_gate : float, optional, eV/atom
        How much a prediction may raise the energy before it is rolled back; default 0,
        None: any amount.
    device : str
        Default 'auto': a GPU where there is one.
    dtype : 'float32' or 'float64'
        Of the network, default 'float32'.
    **kwargs
        For ASE's ``Optimizer``: ``master``, ``comm``, ``loginterval``.

    Examples
    --------
    >>> from ase.build import bulk
    >>> atoms = bulk('NaCl', 'rocksalt', a=5.9)
    >>> atoms.optimizer = DeepRelaxOptimizer()  # doctest: +SKIP
    >>> atoms.optimizer.run()  # doctest: +SKIP
    True
    >>> atoms.info['deeprelax_sigma']  # doctest: +SKIP
    0.03
    """

    def __init__(
        self,
        atoms=None,
        restart=None,
        logfile='-',
        trajectory=None,
        append_trajectory=False,
        *,
        model='default',
        symmetry='keep',
        relax_cell=None,
        optimizer=BFGS,
        energy_gate=0.0,
        device='auto',
        dtype='float32',
        **kwargs,
    ):
        self._model = model
        self._how = {'symmetry': symmetry, 'device': device, 'dtype': dtype}
        self._relax_cell = relax_cell
        self._optimizer = optimizer
        self._energy_gate = energy_gate
        self._ase = {
            'restart': restart,
            'logfile': logfile,
            'trajectory': trajectory,
            'append_trajectory': append_trajectory,
            **kwargs,
        }
        self._bound_later = atoms is None
        self.atoms = None
        if atoms is not None:
            self._take(atoms)

    # --- binding -----------------------------------------------------------------------

    def bind(self, atoms):
        """The optimizer of these atoms: this one, or a copy where it belongs to others.

        A copy has no observers and no restart file, and appends to the trajectory.

        Parameters
        ----------
        atoms : ase.Atoms or ase.filters.Filter

        Returns
        -------
        DeepRelaxOptimizer
        """
        if self.atoms is atoms:
            return self
        if self.atoms is None:
            self._take(atoms)
            return self
        twin = object.__new__(type(self))
        twin.__dict__.update({name: self.__dict__[name] for name in SETTINGS})
        twin._ase = {**self._ase, 'restart': None, 'append_trajectory': True}
        twin._bound_later, twin.atoms = True, None
        return twin.bind(atoms)

    def unbind(self):
        """Forget the atoms, and what was done to them."""
        if self.atoms is not None:
            self.close()
        settings = {name: self.__dict__[name] for name in SETTINGS}
        self.__dict__.clear()
        self.__dict__.update(settings, _bound_later=True, atoms=None)

    def _take(self, atoms):
        unwrap(atoms)
        if isinstance(atoms, Filter) and self._relax_cell is not None:
            raise ValueError(
                f'relax_cell={self._relax_cell} beside {type(atoms).__name__}: a filter '
                'says itself whether the cell relaxes; leave relax_cell out'
            )
        self._start(atoms)

    def _start(self, atoms):
        # Touches nothing of the atoms: on the way out of a pickle they may be half made.
        self._tried = False  # whether the prediction had its chance
        self._outcome = ''  # what became of it, where it is not in the atoms
        self._note = ''  # for the end of the next log line
        self._cell_filter = None  # around bare Atoms whose cell is refined
        self._refinement = None
        self._memory = None  # what the refinement wants kept for a restart
        super().__init__(atoms, **self._ase)

    def __getattr__(self, name):
        # Only what is missing comes here; ASE makes its attributes when there are atoms.
        message = f'{type(self).__name__!r} object has no attribute {name!r}'
        if self.__dict__.get('atoms', self) is None:
            message += f' before it is bound to atoms: {BINDING}'
        raise AttributeError(message)

    def __getstate__(self):
        """What travels with the atoms: no weights, no observers, no files that grow."""
        kept = (*SETTINGS, '_bound_later', 'atoms', '_tried', '_outcome')
        kept += ('nsteps', 'max_steps', 'fmax')
        state = {name: self.__dict__[name] for name in kept if name in self.__dict__}
        state['_ase'] = {**self._ase, 'restart': None, 'trajectory': None}
        if hasattr(self._ase['logfile'], 'write'):
            state['_ase']['logfile'] = None
        if isinstance(self._model, RelaxationModel):
            name = getattr(self._model, 'name', None)
            card = available_models().get(name, {})
            if card and card['sha256'] == self._model.sha256:
                state['_model'] = name
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        if self.atoms is not None:
            self._start(self.atoms)
            self.__dict__.update(state)

    # --- ASE's interface ---------------------------------------------------------------

    def run(self, *args, **kwargs):
        """``run(fmax=0.05, steps=100_000_000)``, or ``run(atoms, ...)`` to bind first.

        Parameters
        ----------
        fmax : float, eV/A
            Converged when all forces are smaller; without meaning where there is no
            calculator.
        steps : int
            Most steps to take.

        Returns
        -------
        bool
            Whether it converged: with a calculator, forces are below ``fmax``; without one,
            the prediction is in the atoms.

        Raises
        ------
        StructureError, UnsupportedConstraintError, PredictionError
            As `relax`; with a calculator only where the structure is broken.
        RefinementError
            The refinement met numbers that are not finite.
        """
        if args and not np.isscalar(args[0]):
            return self.bind(args[0]).run(*args[1:], **kwargs)
        converged = False
        for converged in self.irun(*args, **kwargs):  # noqa: B007
            pass
        return converged

    def irun(self, fmax=0.05, steps=DEFAULT_MAX_STEPS):
        """As `run`, step by step: a generator of bool, ``n + 1`` for ``n`` steps."""
        if self.atoms is None:
            raise ValueError(f'{type(self).__name__} is not bound to atoms: {BINDING}')
        if not fmax >= 0:
            raise ValueError(f'fmax is {fmax}; it must be a force in eV/A, 0 or larger')
        if has_calculator(unwrap(self.atoms)):
            check_refinable(unwrap(self.atoms))
        self._choose_optimizable()
        return super().irun(fmax=fmax, steps=steps)

    def step(self):
        """Put the prediction into the atoms; once that is done, a step of refinement."""
        self._choose_optimizable()
        if isinstance(self.optimizable, OneShot):
            self.optimizable.write()
            self._tried, self._note = True, self.optimizable.plan.note
        elif self._tried or not self._try_prediction():
            refinement = self._get_refinement()
            refinement.step(self.fmax)
            unwrap(self.atoms).info[keys.STAGE] = refinement.name + self._outcome

    def gradient_converged(self, gradient):
        """Whether the run is over: never with a number that is not finite."""
        atoms = unwrap(self.atoms)
        finite = all(np.isfinite(x).all() for x in (gradient, atoms.positions, atoms.cell))
        return bool(finite and super().gradient_converged(gradient))

    def log(self, gradient):
        """Write a line; what became of the prediction stands at the end of it."""
        if isinstance(self.optimizable, OneShot):
            titles = 'dmax [A]', 'sigma [A]'
            values = self.optimizable.dmax, self.optimizable.sigma
        else:
            titles = 'Energy', 'fmax'
            values = self.optimizable.get_value(), self.optimizable.gradient_norm(gradient)
        name, clock = type(self).__name__, time.strftime('%H:%M:%S')
        if self.nsteps == 0:
            blank = ' ' * len(name)
            self.logfile.write(
                f'{blank}  {"Step":>4} {"Time":>8} {titles[0]:>15}  {titles[1]:>12}\n'
            )
        note = f'  {self._note}' if self._note else ''
        self.logfile.write(
            f'{name}:  {self.nsteps:3d} {clock} {values[0]:15.6f} {values[1]:15.6f}{note}\n'
        )
        self._note = ''

    def todict(self):
        """What goes into the header of a trajectory."""
        model = self._model
        if isinstance(model, RelaxationModel):
            model = getattr(model, 'name', type(model).__name__)
        return super().todict() | {
            'model': str(model),
            'symmetry': self._how['symmetry'],
            'refinement': optimizer_name(self._optimizer),
        }

    # --- the prediction ----------------------------------------------------------------

    def _choose_optimizable(self):
        """By whether there is a calculator now."""
        atoms = unwrap(self.atoms)
        if not has_calculator(atoms):
            if not isinstance(self.optimizable, OneShot):
                self.optimizable = OneShot(atoms, self._predict)
            return
        if self._cell_filter is None and self.atoms is atoms and self._cell_moves(atoms):
            self._cell_filter = FrechetCellFilter(atoms)
        shown = getattr(self.optimizable, 'filterobj', self.atoms)
        if isinstance(self.optimizable, OneShot) or shown is not self._target:
            self.optimizable = self._target.__ase_optimizable__()

    @property
    def _target(self):
        """What is refined."""
        return self.atoms if self._cell_filter is None else self._cell_filter

    def _cell_moves(self, atoms):
        """Whether the cell of bare Atoms may change."""
        if self._relax_cell is not None:
            return self._relax_cell
        return bool(atoms.pbc.all()) and (self._bound_later or not has_calculator(atoms))

    def _predict(self):
        atoms = unwrap(self.atoms)
        cell_moves = self.atoms is atoms and self._cell_moves(atoms)
        return make_plan(self.atoms, cell_moves, Predictor(self._model, **self._how))

    def _try_prediction(self):
        """The step of a run with calculator in which the prediction has its chance."""
        self._tried = True
        atoms = unwrap(self.atoms)
        try:
            plan = self._predict()
        except SKIPPED as error:
            return self._skip(atoms, error)
        kept, rise = plan.try_on(self.optimizable, self._energy_gate)
        if not kept:
            keys.strip(atoms)
            self._outcome = ' (prediction rolled back)'
            self._note = f'prediction rolled back, energy {rise:+.6f} eV/atom'
            return False
        plan.sign()
        self._note = plan.note
        self._save()
        return True

    def _skip(self, atoms, error):
        keys.strip(atoms)
        self._outcome = ' (not predicted)'
        self._note = 'no prediction'
        warn(f'relaxed without a prediction: {error}')
        return False

    # --- the refinement ----------------------------------------------------------------

    def _get_refinement(self):
        if self._refinement is None:
            self._refinement = Refinement(
                self._target, self._optimizer, self._keep, self._memory
            )
        return self._refinement

    def _replay_trajectory(self, trajectory):
        self._choose_optimizable()
        self._tried = True
        self._get_refinement().optimizer.replay_trajectory(trajectory)

    # --- restart -----------------------------------------------------------------------

    def _keep(self, memory):
        self._memory = memory
        self._save()

    def _save(self):
        origin = getattr(self._target, 'orig_cell', None)
        self.dump(
            {
                'outcome': self._outcome,
                'relax_cell': self._cell_filter is not None,
                'orig_cell': None if origin is None else np.array(origin),
                'refinement': self._memory,
            }
        )

    def read(self):
        """Go on from the restart file, which is written once the prediction is done."""
        data = self.load()
        self._tried, self._outcome = True, data['outcome']
        self._memory = data['refinement']
        if data['relax_cell']:
            self._cell_filter = FrechetCellFilter(self.atoms)
        if data['orig_cell'] is not None and hasattr(self._target, 'orig_cell'):
            self._target.orig_cell = data['orig_cell']

    def load(self):
        """Content of the restart file; ``RestartError`` where it is not one."""
        return load_restart(
            self.restart, ('outcome', 'relax_cell', 'orig_cell', 'refinement')
        )


# What an optimizer is made with.
SETTINGS = ('_model', '_how', '_relax_cell', '_optimizer', '_energy_gate', '_ase')
BINDING = 'use atoms.optimizer = ..., bind(atoms) or run(atoms)'

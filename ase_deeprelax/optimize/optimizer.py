"""An ASE optimizer whose first step is a prediction of the relaxed structure."""

import time

import numpy as np
from ase.filters import Filter
from ase.optimize.optimize import DEFAULT_MAX_STEPS, Optimizer

from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.geometry.free_strain import check_relax_cell
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.models.store import available_models
from ase_deeprelax.optimize.course import Course
from ase_deeprelax.optimize.elastic_bfgs import ElasticBFGS
from ase_deeprelax.optimize.plan import OneShot, has_calculator, make_plan
from ase_deeprelax.optimize.relaxation_step import optimizer_name
from ase_deeprelax.optimize.restart import load_restart, save_restart
from ase_deeprelax.optimize.stage import as_stages
from ase_deeprelax.predict import Predictor


class DeepRelaxOptimizer(Optimizer):
    """Relax a crystal in one shot; with a calculator, refine it from there.

    Without a calculator (or with the stored results of one) `run` takes one step: the
    structure becomes the predicted one once that passed the checks, else an error says
    what is wrong and the atoms stay as they were. ``fmax`` is a force and plays no part;
    the log shows ``dmax``, the largest displacement still to be made, and ``sigma``, both
    in A. What filters and constraints freeze stays so: see `freedom`. Of the cell the same
    moves in the prediction and the refinement:

    ==================================  ==========================================
    what is optimized                   what of its cell relaxes
    ==================================  ==========================================
    a filter around Atoms               what the filter frees
    Atoms with ``relax_cell=``          what that says
    ``DeepRelaxOptimizer(atoms)``,      nothing, as in all of ASE's optimizers
    with a calculator, no ``refine``
    else: a crystal                     all of it
    a layer or slab (vacuum along one   its two lattice vectors; with fixed atoms,
    vector: ``pbc``, or a wide gap)     nothing
    a molecule or wire, refined         nothing
    ==================================  ==========================================

    The vacuum vector of a layer stays in every case, unless the user's own filter moves it
    in the refinement. The first line of the log says what was decided where it may be
    unexpected, ``atoms.info['deeprelax_kind']`` in every case.

    With a calculator the first step is the prediction, and an ordinary ASE optimizer goes
    on from there to ``fmax``, in the same run, log and trajectory. The prediction is rolled
    back where it raises the energy (``energy_gate``). Where it cannot be made (molecules
    and wires, elements that the model has not seen, constraints that it cannot honour), a
    warning says so and the relaxation is an ordinary one. Either is told in the log line of
    the step and in ``atoms.info['deeprelax_stage']``. There is one prediction in the life
    of an optimizer; after it, or where the forces are below ``fmax`` from the start, `run`
    is that of the ordinary optimizer.

    With ``refine`` the refinement is a chain of stages, each with its calculator, from a
    quick potential to DFT. A stage that fails (its calculator raises or returns what is not
    finite, the structure explodes or ends above where the stage began) is rolled back to
    the structure of lowest energy, with a warning, and the next one goes on from there;
    `run` is True if the last one converged. `stages` holds what each did.

    Assigning to ``atoms.optimizer``, `bind` and ``run(atoms)`` bind an optimizer made
    without atoms; one that is bound to other atoms is copied, never shared.

    Parameters
    ----------
    atoms : ase.Atoms or ase.filters.Filter, optional
    restart : str or Path, optional
        JSON file that keeps the refinement's state, written after each step; read if it
        exists. Atoms that are as they were at the very start are moved to where it stopped.
    logfile : file, str or Path, optional
        Default '-', standard output.
    trajectory : Trajectory, str or Path, optional
    append_trajectory : bool
        Default False: an existing file is overwritten.
    refine : str, ase Calculator, callable, Stage or a list of them, optional
        What to refine with, one after another. Default: with the atoms' own calculator,
        where they have one.
    model : str, path or RelaxationModel
        Default 'default', the shipped model that measured best.
    symmetry : 'keep' or 'free'
        Whether the prediction keeps the space group, default 'keep'.
    relax_cell : bool, str or array, optional
        What of the cell of bare Atoms may change: True, False, 'in-plane', 'hydrostatic'
        or a mask, as `relax` takes it. Default: see the table above.
    optimizer : callable
        Class of the refinement's optimizer, or anything that makes one from ``(atoms,
        logfile=None)``, as ``functools.partial(FIRE, dt=0.05)``. Default `ElasticBFGS`.
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

    >>> chain = ['chgnet', Stage(GPAW(mode=PW(400)), steps=20)]  # doctest: +SKIP
    >>> DeepRelaxOptimizer(atoms, refine=chain).run(fmax=0.03)  # doctest: +SKIP
    True
    """

    def __init__(
        self,
        atoms=None,
        restart=None,
        logfile='-',
        trajectory=None,
        append_trajectory=False,
        *,
        refine=None,
        model='default',
        symmetry='keep',
        relax_cell=None,
        optimizer=ElasticBFGS,
        energy_gate=0.0,
        device='auto',
        dtype='float32',
        **kwargs,
    ):
        self._model = model
        self._how = {'symmetry': symmetry, 'device': device, 'dtype': dtype}
        self._refine = as_stages(refine)
        self._relax_cell = None if relax_cell is None else check_relax_cell(relax_cell)
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
                f'relax_cell={_plain(self._relax_cell)!r} beside {type(atoms).__name__}: a '
                'filter says itself whether the cell relaxes; leave relax_cell out'
            )
        self._start(atoms)

    def _start(self, atoms):
        # Touches nothing of the atoms: on the way out of a pickle they may be half made.
        self._course = Course(
            atoms,
            self._refine,
            optimizer=self._optimizer,
            gate=self._energy_gate,
            relax_cell=self._free_cell,
            predict=self._predict,
        )
        self._memory = None  # of an earlier run that goes on in the next one
        super().__init__(atoms, **self._ase)

    def __getattr__(self, name):
        # Only what is missing comes here; ASE makes its attributes when there are atoms.
        message = f'{type(self).__name__!r} object has no attribute {name!r}'
        if self.__dict__.get('atoms', self) is None:
            message += f' before it is bound to atoms: {BINDING}'
        raise AttributeError(message)

    def __getstate__(self):
        """What travels with the atoms: no weights, no observers, no files that grow."""
        kept = (*SETTINGS, '_bound_later', 'atoms', 'nsteps', 'max_steps', 'fmax')
        state = {name: self.__dict__[name] for name in kept if name in self.__dict__}
        if self.atoms is not None and self.nsteps:
            state['_memory'] = self._course.travel()
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
            Whether it converged: with a calculator, forces are below ``fmax``, in the last
            stage of a chain; without one, the prediction is in the atoms.

        Raises
        ------
        StructureError, UnsupportedConstraintError, PredictionError
            As `relax`; with a calculator only where the structure is broken.
        RefinementError
            The refinement met numbers that are not finite; with ``refine`` no such thing
            is raised, but the stage rolled back.
        MissingDependencyError, ModelError
            A potential or the model is not there.
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
        memory, self._memory = self._memory, None
        if memory is not None:
            self._course.recall(memory)
        self._course.begin(fmax)
        self.optimizable = self._course.shown
        return super().irun(fmax=fmax, steps=steps)

    def step(self):
        """Put the prediction into the atoms; once that is done, a step of refinement."""
        course = self._course
        course.step(self.fmax)
        self.optimizable = course.shown
        if course.over:
            self.max_steps = self.nsteps + 1  # this step was the last
        if course.chain is not None:
            self.dump(course.remember())

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
            if decision := self._course.target.decision(self._relax_cell):
                self.logfile.write(f'{decision}\n')
            self.logfile.write(
                f'{blank}  {"Step":>4} {"Time":>8} {titles[0]:>15}  {titles[1]:>12}\n'
            )
        prediction, chain = self._course.prediction, self._course.chain
        note = f'  {prediction.note}' if prediction.note else ''
        self.logfile.write(
            f'{name}:  {self.nsteps:3d} {clock} {values[0]:15.6f} {values[1]:15.6f}{note}\n'
        )
        prediction.note = ''
        while chain is not None and chain.lines:
            self.logfile.write(f'{chain.lines.pop(0)}\n')

    def todict(self):
        """What goes into the header of a trajectory."""
        model = self._model
        if isinstance(model, RelaxationModel):
            model = getattr(model, 'name', type(model).__name__)
        return super().todict() | {
            'model': str(model),
            'symmetry': self._how['symmetry'],
            'relax_cell': _plain(self._relax_cell),
            'refinement': optimizer_name(self._optimizer),
            'stages': [stage.name for stage in self._refine],
        }

    @property
    def stages(self):
        """What was done so far: a `StageRecord` of the prediction, then one per stage.

        Examples
        --------
        >>> for record in optimizer.stages:  # doctest: +SKIP
        ...     print(record)
        prediction: converged, 1 step, energy -6.10 -> -7.02 eV, 0.0 s, space group 225
        chgnet, ElasticBFGS: converged, 4 steps, energy -7.02 -> -7.03 eV, ...
        >>> json.dumps([record.to_dict() for record in optimizer.stages])  # doctest: +SKIP
        """
        return [] if self.atoms is None else self._course.records

    # --- what the course asks for ------------------------------------------------------

    def _free_cell(self):
        """What of the cell of bare Atoms may change, see `find_freedom`."""
        if self._relax_cell is not None:
            return self._relax_cell
        atoms = unwrap(self.atoms)
        as_in_ase = not (self._bound_later or self._refine) and has_calculator(atoms)
        return False if as_in_ase else None

    def _predict(self):
        predictor = Predictor(self._model, **self._how)
        return make_plan(self.atoms, self._free_cell(), predictor)

    # --- restart -----------------------------------------------------------------------

    def _replay_trajectory(self, trajectory):
        self._course.look(self.fmax)
        self._course.prediction.tried = True
        self._course.chain.attempt.refinement.optimizer.replay_trajectory(trajectory)

    def dump(self, data):
        """Write the restart file, if there is to be one."""
        if self.restart is not None and self.comm.rank == 0:
            save_restart(self.restart, data)

    def read(self):
        """Go on from the restart file in the run to come."""
        self._memory = self.load()

    def load(self):
        """Content of the restart file; ``RestartError`` where it is not one."""
        names = 'began', 'atoms', 'info', 'prediction', 'chain'
        return load_restart(self.restart, names)


# What an optimizer is made with.
SETTINGS = ('_model', '_how', '_refine', '_relax_cell', '_optimizer', '_energy_gate')
SETTINGS += ('_ase',)
BINDING = 'use atoms.optimizer = ..., bind(atoms) or run(atoms)'


def _plain(relax_cell):
    """For a trajectory's header: 'default' where nothing was asked for."""
    if relax_cell is None:
        return 'default'
    return relax_cell.tolist() if isinstance(relax_cell, np.ndarray) else relax_cell

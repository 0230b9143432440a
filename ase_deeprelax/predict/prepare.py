"""One structure on its way: checks, symmetry, graph; then its answers, checked as well."""

from contextlib import contextmanager
from time import perf_counter

import numpy as np
import torch
from ase import Atoms
from ase.filters import Filter

from ase_deeprelax import __version__, keys
from ase_deeprelax.data.convert import as_atoms, to_graph
from ase_deeprelax.errors import DeepRelaxError, PredictionError, StructureError
from ase_deeprelax.geometry.degrees_of_freedom import find_freedom, unwrap
from ase_deeprelax.geometry.symmetry import find_symmetry
from ase_deeprelax.predict.checks import check_prediction, check_structure
from ase_deeprelax.predict.two_pass import add_second, second_weight
from ase_deeprelax.result import Relaxation, no_uncertainty

PARTS = ('checks', 'symmetry', 'graph', 'network', 'solver')


class Job:
    """A structure, made ready for the network; what is wrong with it stays with it.

    Parameters
    ----------
    predictor : Predictor
    structure : ase.Atoms, pymatgen Structure, ase.filters.Filter
        Or anything else, which then is an error.
    relax_cell : bool, str, array or None
        See `find_freedom`.

    Attributes
    ----------
    initial : ase.Atoms or None
        A copy of the input.
    freedom : Freedom or None
        What may move in it.
    graph, frame
        As `to_graph` gives them, of what the network shall look at next.
    first : tuple of (3, 3) and (n_atoms, 3) array, or None
        Deformation and displacement of the first answer, where a second is wanted.
    error : DeepRelaxError or None
    result : Relaxation or None
        Once the job has failed or was finished.
    timings : dict of str to float, s
        By `PARTS`.
    """

    def __init__(self, predictor, structure, relax_cell=None):
        self.predictor, self.ood = predictor, ''
        self.initial = self.symmetry = self.freedom = self.graph = self.frame = None
        self.first = self.said = self.error = self.result = None
        self.timings = dict.fromkeys(PARTS, 0.0)
        with self._alone():
            self._prepare(structure, relax_cell)

    def _prepare(self, structure, relax_cell):
        card = self.predictor.card
        with self._timed('checks'):
            filtered = isinstance(structure, Filter)
            # A copy has no calculator, so no result of it can outlive the move.
            self.initial = (unwrap(structure) if filtered else as_atoms(structure)).copy()
            outside = check_structure(
                self.initial, card.get('elements') or None, ranges=card.get('range')
            )
            target = structure if filtered else self.initial
            freedom = self.freedom = find_freedom(target, relax_cell)
            unlearned = _not_learned(freedom, card)
            self.ood = '; '.join(filter(None, (outside, unlearned)))
        with self._timed('symmetry'):
            if self.predictor.symmetry == 'keep':
                labels = freedom.labels if freedom.labels.any() else None
                found = find_symmetry(self.initial, labels=labels, layer=freedom.layer)
                self.symmetry = found.keeping(freedom.motion.free_strain)
        self._look_at(self.initial)

    def _look_at(self, atoms):
        """Make ``graph`` that of these atoms."""
        spec = self.predictor.model.spec
        with self._timed('graph'):
            self.graph, self.frame = to_graph(
                atoms,
                spec,
                self.predictor.dtype,
                motion=self.freedom.motion,
                layer=self.freedom.layer,
            )
            _check_neighbors(atoms, self.graph, self.frame, spec)

    def take(self, answer):
        """What network and solver said of ``graph``: makes the result.

        Or, where they shall look again, the graph of their answer.
        """
        with self._alone():
            if not answer.finite:
                self.give_up(_not_finite(self.initial, self.predictor.name))
                return
            with self._timed('symmetry'):
                moved = self.frame.to_user(answer.deformation, answer.displacement)
                if self.symmetry is not None:
                    # The answer has the symmetry of the input, so this holds for both.
                    moved = self.symmetry.project(*moved)
            if self.first is not None:
                self._conclude_both(moved)
                return
            self._say(answer)
            if not self._asks_again(moved):
                self._conclude(moved)

    def give_up(self, error):
        """No answer is to be had: the first one holds, or ``error`` where there is none."""
        with self._alone():
            if self.first is None:
                raise error
            self._conclude(self.first)

    def _asks_again(self, moved):
        """Whether to look at this answer as well; then ``graph`` is made that of it."""
        if not (self.predictor.second_look and second_weight(moved[0])):
            return False
        atoms = _placed(self.initial, *self.freedom.allowed(*moved))
        self._check(atoms)
        try:
            self._look_at(atoms)
        except StructureError:  # neighbours have left the cutoff
            return False
        self.first = moved
        return True

    def _conclude(self, moved):
        """Constraints, checks and record of what was predicted."""
        atoms, deformation, displacement = self._allowed(*moved)
        self._check(atoms)
        self._record(
            atoms=atoms,
            deformation=deformation,
            displacement=displacement,
            problem='',
            **self.said,
        )
        _write_keys(self.result)

    def _conclude_both(self, second):
        """Both answers as one; the first alone where the second leads too far."""
        try:
            self._conclude(add_second(self.first, second, second_weight(self.first[0])))
        except PredictionError:
            self._conclude(self.first)

    def _say(self, answer):
        """Keep what the first answer says beside the structure: that is of its bonds."""
        bonds, offsets = self.frame.bonds(*answer.bonds, answer.offsets)
        self.said = {
            'sigma': answer.sigma,
            'sigma_atoms': self.frame.per_atom(answer.sigma_atoms),
            'bonds': bonds,
            'bond_offsets': offsets,
            'sigma_bonds': answer.sigma_bonds,
            'residual': answer.residual,
        }

    def fail(self, error):
        """The input is the answer, and ``error`` says why."""
        self.error = error
        if self.initial is None:
            self.initial = Atoms()
        n = len(self.initial)
        self._record(
            atoms=self.initial.copy(),
            deformation=np.eye(3),
            displacement=np.zeros((n, 3)),
            **no_uncertainty(n),
            problem=str(error),
        )

    def free(self):
        """Drop what is of no more use, the graph above all."""
        self.graph = self.frame = self.symmetry = self.first = self.said = None
        self.freedom = None

    def _record(self, *, problem, **said):
        self.result = Relaxation(
            initial=self.initial,
            ok=self.error is None,
            problem=problem,
            ood=self.ood,
            kind='' if self.freedom is None else self.freedom.kind,
            model=self.predictor.name,
            sha256=self.predictor.sha256,
            version=__version__,
            timings=self.timings,
            **said,
        )

    def _check(self, atoms):
        with self._timed('checks'):
            check_prediction(
                self.initial,
                atoms,
                residual=self.said['residual'],
                layer=self.freedom.layer,
            )

    def _allowed(self, deformation, displacement):
        """The relaxed atoms, and the prediction as far as it is allowed."""
        before = self.initial
        cell, positions = self.freedom.allowed(deformation, displacement)
        if not self.freedom.all_free:
            deformation = np.linalg.solve(before.cell.array, cell)
            displacement = positions @ np.linalg.inv(deformation) - before.positions
        return _placed(before, cell, positions), deformation, displacement

    @contextmanager
    def _alone(self):
        """What goes wrong with one structure stays with it."""
        try:
            yield
        except DeepRelaxError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001 - constraints and subclasses raise anything
            named = StructureError(f'{type(error).__name__}: {error}')
            named.__cause__ = error
            self.fail(named)

    @contextmanager
    def _timed(self, part):
        start = perf_counter()
        try:
            yield
        finally:
            self.timings[part] += perf_counter() - start


def _placed(atoms, cell, positions):
    """A copy at another place, whatever its constraints."""
    atoms = atoms.copy()
    atoms.set_cell(cell, apply_constraint=False)
    atoms.arrays['positions'] = positions  # the input's may be of integers
    return atoms


def _not_finite(atoms, model):
    return PredictionError(
        f'{atoms.get_chemical_formula()}: model {model!r} returned numbers that are not '
        'finite; use another model or float64'
    )


def _not_learned(freedom, card):
    """What is asked that the model was not trained on, or ''."""
    # Models of before say nothing of it: they have learned from bulk crystals only.
    learned = card.get('learned') or ['bulk']
    asked = ['bulk' if freedom.layer is None else 'layer']
    if freedom.strain is None:
        asked.append('held cell')
    elif freedom.layer is None and not freedom.strain.frees_all:
        asked.append('partly held cell')
    if (freedom.labels == 1).any():
        asked.append('fixed atoms')
    missing = [what for what in asked if what not in learned]
    return f'the model was not trained on: {", ".join(missing)}' if missing else ''


def _check_neighbors(atoms, graph, frame, spec):
    """A network can say nothing about an atom that has no neighbour."""
    counts = torch.bincount(graph.edge_index[1], minlength=len(atoms))
    lonely = (counts == 0).nonzero().flatten()
    if len(lonely):
        first = int(lonely[0]) if frame.order is None else int(frame.order[lonely[0]])
        raise StructureError(
            f'atom {first} ({atoms.symbols[first]}) has no neighbour within '
            f'{spec.cutoff:g} A ({len(lonely)} of {len(atoms)} atoms have none); the model '
            'predicts dense periodic crystals, not molecules or atoms far apart'
        )


def _write_keys(result):
    """The flat names of `keys` into the relaxed atoms."""
    info, sigma_atoms = result.atoms.info, result.sigma_atoms
    keys.strip(result.atoms)
    info[keys.SIGMA] = result.sigma
    info[keys.SIGMA_MAX] = float(sigma_atoms.max())
    info[keys.SIGMA_ATOMS] = sigma_atoms.copy()
    info[keys.DMAX] = result.dmax
    info[keys.VOLUME_RATIO] = result.volume_ratio
    info[keys.RESIDUAL] = result.residual
    info[keys.MODEL] = result.model
    info[keys.SHA256] = result.sha256
    info[keys.VERSION] = result.version
    info[keys.KIND] = result.kind
    info[keys.STAGE] = 'predicted'
    if result.ood:  # extxyz cannot hold an empty string: it swallows what follows it
        info[keys.OOD] = result.ood
    result.atoms.arrays[keys.SIGMA] = sigma_atoms.copy()

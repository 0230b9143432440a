"""From structures to checked, relaxed structures with an uncertainty.

checks -> graphs -> packs -> network -> distance geometry -> symmetry -> checks
"""

import copy
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter

import numpy as np
import torch
from ase import Atoms

from ase_deeprelax import keys
from ase_deeprelax._version import __version__
from ase_deeprelax.checks import check_prediction, check_structure
from ase_deeprelax.data.convert import as_atoms, to_graph
from ase_deeprelax.data.pack import halve, pack
from ase_deeprelax.errors import (
    DeepRelaxError,
    ModelError,
    PredictionError,
    StructureError,
    warn,
)
from ase_deeprelax.freedom import find_freedom
from ase_deeprelax.infer import BATCH_EDGES, DTYPES, infer, is_shortage, resolve_device
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.result import Relaxation
from ase_deeprelax.symmetry import find_symmetry
from ase_deeprelax.weights.store import load_shared

PARTS = ('checks', 'symmetry', 'graph', 'network', 'solver')
# Structures whose graphs are held, and sorted by size, at a time.
WINDOW = 1024


def relax(
    structures,
    model='default',
    *,
    device='auto',
    dtype='float32',
    symmetry='keep',
    progress=False,
    on_bad=None,
):
    """Predict relaxed structures in one shot; the input is not changed.

    Constraints on atoms are honoured as ASE's cell filters do: a fixed atom keeps its
    fractional coordinates. Calculators are not used and not carried over.

    Parameters
    ----------
    structures : ase.Atoms, pymatgen Structure, or an iterable of them
        Periodic along all three vectors.
    model : str, path or RelaxationModel
        Default 'default', the shipped model that measured best.
    device : str
        'cpu', 'cuda', 'cuda:1'; default 'auto': a GPU where there is one.
    dtype : 'float32' or 'float64'
    symmetry : 'keep' or 'free'
        Whether strain and displacements are projected on the input's space group;
        default 'keep'.
    progress : bool
        Show a bar; default False.
    on_bad : 'raise' or 'keep', optional
        What happens where a structure or its prediction fails the checks: an error, or a
        `Relaxation` with ``ok=False``, the reason in ``problem`` and a copy of the input in
        ``atoms``. Default: 'raise' for a single structure, 'keep' for many.

    Returns
    -------
    Relaxation, or a list of them in the order of the input

    Raises
    ------
    StructureError
        What was given cannot be relaxed.
    PredictionError
        What was predicted did not pass the checks.
    DeviceError, ModelError
        The device or the model is not there.

    Examples
    --------
    >>> from ase.build import bulk
    >>> result = relax(bulk('NaCl', 'rocksalt', a=5.9))  # doctest: +SKIP
    >>> result.atoms.cell.volume, result.sigma  # doctest: +SKIP
    (44.6, 0.03)
    """
    predictor = Predictor(model, device=device, dtype=dtype, symmetry=symmetry)
    if _is_one(structures):
        return predictor.relax([structures], progress=progress, on_bad=on_bad or 'raise')[0]
    return predictor.relax(structures, progress=progress, on_bad=on_bad or 'keep')


class Predictor:
    """A model on a device, ready for many structures.

    Parameters
    ----------
    model : str, path or RelaxationModel
        Default 'default'. A model object is copied, not changed.
    device : str
        Default 'auto': a GPU where there is one.
    dtype : 'float32' or 'float64'
    symmetry : 'keep' or 'free'
    batch_edges : int, optional
        Edges that go through the network at once; default by the kind of device. A pack
        that does not fit into memory is halved.

    Attributes
    ----------
    timings : dict of str to float, s
        Wall time of the latest `relax` by part: checks, symmetry, graph, network, solver.

    Examples
    --------
    >>> predictor = Predictor(device='cpu')  # doctest: +SKIP
    >>> results = predictor.relax(list_of_atoms, progress=True)  # doctest: +SKIP
    """

    def __init__(
        self,
        model='default',
        *,
        device='auto',
        dtype='float32',
        symmetry='keep',
        batch_edges=None,
    ):
        if symmetry not in ('keep', 'free'):
            raise ValueError(f"symmetry is {symmetry!r}; it must be 'keep' or 'free'")
        if dtype not in DTYPES:
            raise ModelError(
                f'dtype is {dtype!r}; predictions are good to 1e-4 A, which 16 bits cannot '
                "hold: use 'float32' or 'float64'"
            )
        self.device = resolve_device(device)
        self.dtype = DTYPES[dtype]
        self.symmetry = symmetry
        self.batch_edges = batch_edges or BATCH_EDGES[self.device.type]
        if isinstance(model, RelaxationModel):
            model = copy.deepcopy(model).to(self.device, self.dtype)
            self.model = model.eval().requires_grad_(False)
        else:
            self.model = load_shared(model, self.device, self.dtype)
        self.card = getattr(self.model, 'card', {})
        self.name = getattr(self.model, 'name', type(self.model).__name__)
        self.sha256 = getattr(self.model, 'sha256', '')
        self.timings = dict.fromkeys(PARTS, 0.0)

    def relax(self, structures, *, progress=False, on_bad='keep'):
        """Relax an iterable of structures; see `relax`.

        Returns
        -------
        list of Relaxation
            In the order of the input; a bad structure changes no other.
        """
        if on_bad not in ('raise', 'keep'):
            raise ValueError(f"on_bad is {on_bad!r}; it must be 'raise' or 'keep'")
        from tqdm.auto import tqdm

        self.timings = dict.fromkeys(PARTS, 0.0)
        total = len(structures) if hasattr(structures, '__len__') else None
        results, structures = [], iter(structures)
        with tqdm(
            total=total, desc='relax', unit='structures', disable=not progress
        ) as bar:
            while window := list(islice(structures, WINDOW)):
                jobs = [self._prepare(structure) for structure in window]
                self._run(jobs, bar)
                for job in jobs:
                    if job.error is not None and on_bad == 'raise':
                        raise _located(job.error, len(results), total)
                    results.append(job.result)
        self._warn(results)
        return results

    def _prepare(self, structure):
        """Checks, symmetry and graph of one structure; what is wrong goes into the job."""
        job = _Job()
        with self._alone(job):
            with self._timed('checks', job):
                # A copy has no calculator, so no result of it can outlive the move.
                job.initial = as_atoms(structure).copy()
                job.ood = check_structure(
                    job.initial,
                    self.card.get('elements') or None,
                    ranges=self.card.get('range'),
                )
                if job.initial.constraints:
                    job.freedom = find_freedom(job.initial, cell_moves=True)
            with self._timed('symmetry', job):
                if self.symmetry == 'keep':
                    job.symmetry = find_symmetry(job.initial)
            with self._timed('graph', job):
                job.graph, job.frame = to_graph(job.initial, self.model.spec, self.dtype)
                _check_neighbors(job.initial, job.graph, job.frame, self.model.spec)
        return job

    def _run(self, jobs, bar):
        """Network and solver in packs, then the rest one by one; fills ``job.result``."""
        ready = [job for job in jobs if job.error is None]
        bar.update(len(jobs) - len(ready))
        sizes = [(len(job.initial), job.graph.num_edges) for job in ready]
        packs = pack(*zip(*sizes, strict=True), self.batch_edges) if sizes else []
        packs.reverse()
        while packs:
            indices = packs.pop()
            part = [ready[index] for index in indices]
            answers = self._infer(part)
            if answers is None and len(part) > 1:
                packs.extend(reversed(halve(indices)))
                continue
            if answers is None:
                self._fail(part[0], _too_large(part[0], self.device))
            else:
                for job, answer in zip(part, answers, strict=True):
                    self._finish(job, answer)
            for job in part:  # frees the graphs of packs that are done
                job.graph = job.frame = job.symmetry = None
            bar.update(len(part))

    def _infer(self, jobs):
        """Answers for a pack, or None where it does not fit into memory."""
        try:
            answers, seconds = infer(self.model, [job.graph for job in jobs], self.device)
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
        else:
            for part, spent in seconds.items():
                self._spend(part, jobs, spent)
            return answers
        # Here, not in the handler: the error's traceback held the tensors until now.
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()
        return None

    def _finish(self, job, answer):
        """Symmetry, constraints, checks and record of one structure."""
        with self._alone(job):
            if not answer.finite:
                raise PredictionError(
                    f'{job.initial.get_chemical_formula()}: model {self.name!r} returned '
                    'numbers that are not finite; use another model or float64'
                )
            with self._timed('symmetry', job):
                moved = job.frame.to_user(answer.deformation, answer.displacement)
                if job.symmetry is not None:
                    moved = job.symmetry.project(*moved)
                atoms, deformation, displacement = _moved(job, *moved)
            with self._timed('checks', job):
                check_prediction(job.initial, atoms, residual=answer.residual)
            self._record(job, answer, atoms, deformation, displacement)

    def _record(self, job, answer, atoms, deformation, displacement):
        bonds, offsets = job.frame.bonds(*answer.bonds, answer.offsets)
        job.result = Relaxation(
            atoms=atoms,
            initial=job.initial,
            deformation=deformation,
            displacement=displacement,
            sigma=answer.sigma,
            sigma_atoms=job.frame.per_atom(answer.sigma_atoms),
            bonds=bonds,
            bond_offsets=offsets,
            sigma_bonds=answer.sigma_bonds,
            residual=answer.residual,
            ok=True,
            problem='',
            **self._provenance(job),
        )
        _write_keys(job.result)

    def _fail(self, job, error):
        job.error = error
        initial = Atoms() if job.initial is None else job.initial
        n = len(initial)
        job.result = Relaxation(
            atoms=initial.copy(),
            initial=initial,
            deformation=np.eye(3),
            displacement=np.zeros((n, 3)),
            sigma=np.nan,
            sigma_atoms=np.full(n, np.nan),
            bonds=np.zeros((0, 2), dtype=np.int64),
            bond_offsets=np.zeros((0, 3), dtype=np.int64),
            sigma_bonds=np.zeros(0),
            residual=np.nan,
            ok=False,
            problem=str(error),
            **self._provenance(job),
        )

    def _provenance(self, job):
        return {
            'ood': job.ood,
            'model': self.name,
            'sha256': self.sha256,
            'version': __version__,
            'timings': job.timings,
        }

    def _warn(self, results):
        outside = [index for index, result in enumerate(results) if result.ood]
        if outside:
            warn(
                f'{len(outside)} of {len(results)} structures lie outside the training '
                f'range of model {self.name!r}, the first at index {outside[0]}: '
                f'{results[outside[0]].ood}'
            )

    @contextmanager
    def _alone(self, job):
        """What goes wrong with one structure stays with it."""
        try:
            yield
        except DeepRelaxError as error:
            self._fail(job, error)
        except Exception as error:  # noqa: BLE001 - constraints and subclasses raise anything
            named = StructureError(f'{type(error).__name__}: {error}')
            named.__cause__ = error
            self._fail(job, named)

    @contextmanager
    def _timed(self, part, job):
        start = perf_counter()
        try:
            yield
        finally:
            self._spend(part, [job], perf_counter() - start)

    def _spend(self, part, jobs, seconds):
        """Add wall time to the totals and, in shares, to the jobs."""
        self.timings[part] += seconds
        for job in jobs:
            job.timings[part] += seconds / len(jobs)


@dataclass
class _Job:
    """One structure on its way through the predictor."""

    initial: Atoms | None = None
    symmetry: object = None
    freedom: object = None
    graph: object = None
    frame: object = None
    ood: str = ''
    error: Exception | None = None
    result: Relaxation | None = None
    timings: dict = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))


def _moved(job, deformation, displacement):
    """The relaxed atoms, and the prediction as far as constraints allow it."""
    atoms = job.initial.copy()
    cell = atoms.cell.array
    if job.freedom is None:
        positions = (atoms.positions + displacement) @ deformation
        cell = cell @ deformation
    else:
        cell, positions = job.freedom.allowed(deformation, displacement)
        deformation = np.linalg.solve(atoms.cell.array, cell)
        displacement = positions @ np.linalg.inv(deformation) - atoms.positions
    atoms.set_cell(cell, apply_constraint=False)
    atoms.arrays['positions'] = positions  # the input's may be of integers
    return atoms, deformation, displacement


def _is_one(structures):
    if isinstance(structures, (Atoms, str)) or hasattr(structures, 'is_ordered'):
        return True
    return not hasattr(structures, '__iter__')


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
    info[keys.STAGE] = 'predicted'
    if result.ood:  # extxyz cannot hold an empty string: it swallows what follows it
        info[keys.OOD] = result.ood
    result.atoms.arrays[keys.SIGMA] = sigma_atoms.copy()


def _located(error, index, total):
    """The error with the place of the structure in the list, where there is a list."""
    return error if total == 1 else type(error)(f'structure {index}: {error}')


def _too_large(job, device):
    return PredictionError(
        f'{len(job.initial)} atoms with {job.graph.num_edges} edges do not fit into the '
        f"memory of device '{device}'; use device='cpu', a smaller cell or a smaller model"
    )

"""Many structures through a model on a device: in packs that fit into its memory."""

import copy
from itertools import islice

import torch
from ase import Atoms
from ase.filters import Filter

from ase_deeprelax.data.batching import halve, pack
from ase_deeprelax.errors import ModelError, PredictionError, warn
from ase_deeprelax.geometry.free_strain import check_relax_cell
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.models.store import load_shared
from ase_deeprelax.predict.forward import (
    BATCH_EDGES,
    DTYPES,
    is_shortage,
    resolve_device,
    run_model,
)
from ase_deeprelax.predict.prepare import PARTS, Job

# Structures whose graphs are held, and sorted by size, at a time.
WINDOW = 1024


def relax(
    structures,
    model='default',
    *,
    device='auto',
    dtype='float32',
    symmetry='keep',
    relax_cell=None,
    progress=False,
    on_bad=None,
):
    """Predict relaxed structures in one shot; the input is not changed.

    Constraints on atoms are honoured as ASE's cell filters do: a fixed atom keeps its
    fractional coordinates. Calculators are not used and not carried over.

    A structure with vacuum along one lattice vector (``pbc`` is False there, or a wide gap
    between its atoms tells) is a layer or slab: its vacuum vector stays.

    Parameters
    ----------
    structures : ase.Atoms, pymatgen Structure, or an iterable of them
        Crystals and layers. A filter around Atoms says itself what may move.
    model : str, path or RelaxationModel
        Default 'default', the shipped model that measured best.
    device : str
        'cpu', 'cuda', 'cuda:1'; default 'auto': a GPU where there is one.
    dtype : 'float32' or 'float64'
    symmetry : 'keep' or 'free'
        Whether strain and displacements are projected on the input's space group;
        default 'keep'.
    relax_cell : bool, str or array, optional
        What of the cells may change: True (of a layer: its two vectors), False,
        'in-plane', 'hydrostatic', or a mask of the strains xx, yy, zz, yz, xz, xy as
        ``ase.filters.FrechetCellFilter`` takes it. Default True, but False for a layer
        with fixed atoms.
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
        [result] = predictor.relax(
            [structures], relax_cell=relax_cell, progress=progress, on_bad=on_bad or 'raise'
        )
        return result
    return predictor.relax(
        structures, relax_cell=relax_cell, progress=progress, on_bad=on_bad or 'keep'
    )


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
    second_look : bool
        Whether the model is asked again about answers far from the input, as its card
        says (`second_look.add_second`); may be set.

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
        # A card that says nothing of it: not known to have learned from relaxed inputs.
        self.second_look = self.card.get('second_look', False)
        self.timings = dict.fromkeys(PARTS, 0.0)

    def relax(self, structures, *, relax_cell=None, progress=False, on_bad='keep'):
        """Relax an iterable of structures; see `relax`.

        Returns
        -------
        list of Relaxation
            In the order of the input; a bad structure changes no other.
        """
        if on_bad not in ('raise', 'keep'):
            raise ValueError(f"on_bad is {on_bad!r}; it must be 'raise' or 'keep'")
        if relax_cell is not None:
            relax_cell = check_relax_cell(relax_cell)
        from tqdm.auto import tqdm

        self.timings = dict.fromkeys(PARTS, 0.0)
        total = len(structures) if hasattr(structures, '__len__') else None
        results, structures = [], iter(structures)
        with tqdm(
            total=total, desc='relax', unit='structures', disable=not progress
        ) as bar:
            while window := list(islice(structures, WINDOW)):
                jobs = [Job(self, structure, relax_cell) for structure in window]
                self._run(jobs, bar)
                for job in jobs:
                    for part, seconds in job.timings.items():
                        self.timings[part] += seconds
                    if job.error is not None and on_bad == 'raise':
                        raise _located(job.error, len(results), total)
                    results.append(job.result)
        self._warn(results)
        return results

    def _run(self, jobs, bar):
        """Fills ``job.result``: a look at all, then a second one at those far away."""
        ready = [job for job in jobs if job.error is None]
        bar.update(len(jobs) - len(ready))
        while ready:
            ready = self._look(ready, bar)

    def _look(self, jobs, bar):
        """Network and solver in packs, the rest one by one; jobs that want another look."""
        again = []
        sizes = [(len(job.initial), job.graph.num_edges) for job in jobs]
        packs = pack(*zip(*sizes, strict=True), self.batch_edges)
        packs.reverse()
        while packs:
            indices = packs.pop()
            part = [jobs[index] for index in indices]
            answers = self._infer(part)
            if answers is None and len(part) > 1:
                packs.extend(reversed(halve(indices)))
                continue
            if answers is None:
                part[0].give_up(_too_large(part[0], self.device))
            else:
                for job, answer in zip(part, answers, strict=True):
                    job.take(answer)
            done = [job for job in part if job.result is not None]
            for job in done:
                job.free()
            bar.update(len(done))
            again += [job for job in part if job.result is None]
        return again

    def _infer(self, jobs):
        """Answers for a pack, or None where it does not fit into memory."""
        try:
            answers, seconds = run_model(
                self.model, [job.graph for job in jobs], self.device
            )
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
        else:
            for job in jobs:
                for part, spent in seconds.items():
                    job.timings[part] += spent / len(jobs)
            return answers
        # Here, not in the handler: the error's traceback held the tensors until now.
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()
        return None

    def _warn(self, results):
        outside = [index for index, result in enumerate(results) if result.ood]
        if outside:
            warn(
                f'{len(outside)} of {len(results)} structures lie outside the training '
                f'range of model {self.name!r}, the first at index {outside[0]}: '
                f'{results[outside[0]].ood}'
            )


def _is_one(structures):
    if isinstance(structures, (Atoms, Filter, str)) or hasattr(structures, 'is_ordered'):
        return True
    return not hasattr(structures, '__iter__')


def _located(error, index, total):
    """The error with the place of the structure in the list, where there is a list."""
    return error if total == 1 else type(error)(f'structure {index}: {error}')


def _too_large(job, device):
    return PredictionError(
        f'{len(job.initial)} atoms with {job.graph.num_edges} edges do not fit into the '
        f"memory of device '{device}'; use device='cpu', a smaller cell or a smaller model"
    )

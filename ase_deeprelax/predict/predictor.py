"""Many structures through a model on a device, in batches that fit into its memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ase import Atoms
from ase.filters import Filter

from ase_deeprelax.device import resolve_device
from ase_deeprelax.errors import (
    DeepRelaxError,
    ModelError,
    PredictionError,
    StructureError,
    warn,
)
from ase_deeprelax.geometry.free_strain import RelaxCell, check_relax_cell
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.models.compiled import CompiledNetwork, with_machine_code
from ase_deeprelax.models.folders import find_model
from ase_deeprelax.models.store import for_prediction, load_shared
from ase_deeprelax.predict.batches import BATCH_EDGES, run_batches
from ase_deeprelax.predict.forward import DTYPES, StructureOutput
from ase_deeprelax.predict.options import check_options
from ase_deeprelax.predict.passes import MAX_PASSES
from ase_deeprelax.predict.prepare import PARTS, Prepared, Settings
from ase_deeprelax.predict.stream import relax_windows
from ase_deeprelax.result import Relaxation

if TYPE_CHECKING:
    from pymatgen.core import IStructure


@overload
def relax(
    structures: Atoms | Filter | IStructure, *args: Any, **options: Any
) -> Relaxation: ...
@overload
def relax(structures: Iterable[Any], *args: Any, **options: Any) -> list[Relaxation]: ...


def relax(
    structures: Any,
    model: str | Path | RelaxationModel = 'default',
    *,
    device: str = 'auto',
    dtype: str = 'float32',
    symmetry: str = 'keep',
    relax_cell: RelaxCell | None = None,
    accept_below: float | None = None,
    workers: int = 1,
    progress: bool = False,
    on_bad: str | None = None,
) -> Relaxation | list[Relaxation]:
    """Predict relaxed structures in one shot; the input is not changed.

    Constraints on atoms are honoured as ASE's cell filters do: a fixed atom keeps its
    fractional coordinates, so it moves with a cell that relaxes, and not at all where the
    cell is fixed. Calculators are not used and not carried over. Charges and
    magnetic moments are kept, but the prediction does not depend on them.

    A structure with vacuum along one lattice vector (``pbc`` is False there, or a wide gap
    between its atoms tells) is a layer or slab: its vacuum vector stays.

    Parameters
    ----------
    structures : ase.Atoms, pymatgen Structure, or an iterable of them
        Crystals and layers. A filter around Atoms says itself what may move, whatever
        ``relax_cell`` is.
    model : str, path or RelaxationModel
        Default 'default', the shipped model that measured best.
    device : str
        'cpu', 'cuda', 'cuda:1'; default 'auto': a GPU where there is one.
    dtype : 'float32' or 'float64'
        Of the network; default 'float32'.
    symmetry : 'keep' or 'free'
        Whether strain and displacements are projected on the input's space group;
        default 'keep'.
    relax_cell : bool, str or array, optional
        What of the cells may change: True (of a layer: its two vectors), False,
        'in-plane', 'hydrostatic', or a mask of the strains xx, yy, zz, yz, xz, xy as
        ``ase.filters.FrechetCellFilter`` takes it. Default True, but False for a layer
        with fixed atoms.
    accept_below : float, optional, A
        A prediction whose expected error (`Relaxation.error`) is not below this fails like
        one that did not pass the checks; default: errors are only reported.
    workers : int
        How many processes share many structures, -1: one for each core. The first call
        waits some seconds for them to start. Default 1: this process alone.
    progress : bool
        Show a bar; default False.
    on_bad : 'raise' or 'keep', optional
        What happens where a structure or its prediction fails the checks: an error, or a
        `Relaxation` with ``ok=False``, the reason in ``problem`` and a copy of the input in
        ``atoms``. Default: 'raise' for a single structure; for many 'keep', with a
        warning that counts them.

    Returns
    -------
    Relaxation or list of Relaxation
        One for a single structure, else a list in the order of the input.

    Raises
    ------
    StructureError, UnsupportedConstraintError
        What was given cannot be relaxed, or not under its constraints.
    PredictionError
        What was predicted did not pass the checks.
    DeviceError, ModelError
        The device or the model is not there.
    ConfigError
        There cannot be so many workers, something cannot be sent to them, or one of them
        was killed.
    ValueError
        Another argument makes no sense.

    Examples
    --------
    >>> from ase.build import bulk
    >>> result = relax(bulk('NaCl', 'rocksalt', a=5.9))
    >>> print(f'{result.atoms.cell.volume:.1f} A^3, error about {result.error:.2f} A')
    46.4 A^3, error about 0.01 A
    """
    predictor = Predictor(
        model, device=device, dtype=dtype, symmetry=symmetry, accept_below=accept_below
    )
    if is_one(structures):
        [result] = predictor.relax(
            [structures],
            relax_cell=relax_cell,
            workers=workers,
            progress=progress,
            on_bad=on_bad or 'raise',
        )
        return result
    results = predictor.relax(
        structures,
        relax_cell=relax_cell,
        workers=workers,
        progress=progress,
        on_bad=on_bad or 'keep',
    )
    if on_bad is None:
        _warn_of_failures(results)
    return results


class Predictor:
    """A model on a device, ready for many structures.

    Parameters
    ----------
    model : str, path or RelaxationModel
        Default 'default'. A model object is copied, not changed.
    device : str
        Default 'auto': a GPU where there is one.
    dtype : 'float32' or 'float64'
        Of the network; default 'float32'.
    symmetry : 'keep' or 'free'
        Whether answers keep the space group; default 'keep'.
    accept_below : float, optional, A
        See `relax`.
    batch_edges : int, optional
        Edges that go through the network at once; default by the kind of device. A batch
        that does not fit into memory is halved.

    Attributes
    ----------
    timings : dict of str to float, s
        Time of the latest `relax` by part: checks, symmetry, graph, network, solver. It is
        wall time, summed over the processes.
    max_passes : int
        How often a structure goes through the network at most (`predict.passes`); default
        `MAX_PASSES`, or 1 where the model saw no relaxed inputs in training; may be set.

    Raises
    ------
    DeviceError, ModelError
        The device or the model is not there; a ``dtype`` with 16 bits; ``accept_below`` for
        a model without a calibration.
    ValueError
        Another argument makes no sense.

    Examples
    --------
    >>> from ase.build import bulk
    >>> predictor = Predictor('deeprelax', device='cpu')
    >>> results = predictor.relax([bulk('NaCl', 'rocksalt', a=a) for a in (5.5, 5.9)])
    >>> [result.ok for result in results]
    [True, True]
    """

    def __init__(
        self,
        model: str | Path | RelaxationModel = 'default',
        *,
        device: str = 'auto',
        dtype: str = 'float32',
        symmetry: str = 'keep',
        accept_below: float | None = None,
        batch_edges: int | None = None,
    ):
        check_options(symmetry, dtype, accept_below, batch_edges)
        self.device = resolve_device(device)
        self.dtype = DTYPES[dtype]
        self.symmetry = symmetry
        self.accept_below = accept_below
        if isinstance(model, RelaxationModel):
            self.model = for_prediction(copy.deepcopy(model).to(self.device, self.dtype))
            self._folder, self._network = None, self.model
        else:
            self._folder = find_model(model).absolute()
            self.model = load_shared(self._folder, self.device, self.dtype)
            self._network = with_machine_code(self.model)
        compiled = isinstance(self._network, CompiledNetwork)
        where = 'machine code' if compiled else self.device.type
        self.batch_edges = batch_edges or BATCH_EDGES[where]
        if accept_below is not None and self.model.calibration is None:
            raise ModelError(
                f'accept_below needs a calibrated model, and {self.model.name!r} is not; '
                'run "deeprelax calibrate" with pairs that it was not trained on'
            )
        self.card = self.model.card
        self.name = self.model.name or type(self.model).__name__
        self.sha256 = self.model.sha256
        self.max_passes = MAX_PASSES if self.card.saw_relaxed else 1
        self.timings = dict.fromkeys(PARTS, 0.0)

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix('torch.')
        return (
            f'Predictor({self.name!r}, {self.device}, {dtype}, symmetry={self.symmetry!r})'
        )

    def copy_in_worker(self) -> Callable[[], Predictor]:
        """A function that can be sent to another process and makes this predictor there.

        It reads a model that has a folder from that folder, once in each process, and
        carries any other model along.
        """
        options = {
            'device': str(self.device),
            'dtype': str(self.dtype).removeprefix('torch.'),
            'symmetry': self.symmetry,
            'accept_below': self.accept_below,
            'batch_edges': self.batch_edges,
        }
        model = self.model if self._folder is None else self._folder
        return partial(_make_again, model, self.sha256, self.max_passes, options)

    @property
    def settings(self) -> Settings:
        """What `prepare` and `finish` need to know."""
        return Settings(
            spec=self.model.spec,
            dtype=self.dtype,
            keep_symmetry=self.symmetry == 'keep',
            name=self.name,
            sha256=self.sha256,
            elements=self.card.elements or None,
            ranges=self.card.ranges or None,
            learned=self.card.learned,
            calibration=self.model.calibration,
            accept_below=self.accept_below,
            shrinks=self.card.saw_relaxed,
        )

    def relax(
        self,
        structures: Iterable[Any],
        *,
        relax_cell: RelaxCell | None = None,
        workers: int = 1,
        progress: bool = False,
        on_bad: str = 'keep',
    ) -> list[Relaxation]:
        """Relax an iterable of structures; see `relax`.

        Returns
        -------
        list of Relaxation
            In the order of the input; a bad structure changes no other.
        """
        if on_bad not in ('raise', 'keep'):
            raise ValueError(f"on_bad is {on_bad!r}; it must be 'raise' or 'keep'")
        if is_one(structures):
            raise StructureError(
                f'Predictor.relax takes a list of structures, and this is one '
                f'{type(structures).__name__}: hand in a list, or call ase_deeprelax.relax'
            )
        if relax_cell is not None:
            relax_cell = check_relax_cell(relax_cell)
        self.timings = dict.fromkeys(PARTS, 0.0)
        total = len(structures) if isinstance(structures, Sized) else None
        results: list[Relaxation] = []
        with (
            _progress_bar(total) if progress else nullcontext() as bar,
            # Left open after an error, it would end the processes of a later call.
            closing(
                relax_windows(self, structures, relax_cell, workers=workers, bar=bar)
            ) as windows,
        ):
            for found, errors in windows:
                if on_bad == 'raise' and errors:
                    first = min(errors)
                    located = _located(errors[first], len(results) + first, total)
                    raise located from errors[first].__cause__
                for result in found:
                    for part, seconds in result.timings.items():
                        self.timings[part] += seconds
                results += found
        self._warn(results)
        return results

    def outputs(
        self, prepared: Mapping[int, Prepared]
    ) -> Iterator[tuple[int, StructureOutput | PredictionError]]:
        """Network and solver on structures, batch by batch; see `batches.run_batches`."""
        return run_batches(self._network, prepared, self.device, self.batch_edges)

    def _warn(self, results: list[Relaxation]) -> None:
        outside = [index for index, result in enumerate(results) if result.ood]
        if outside:
            warn(
                f'{len(outside)} of {len(results)} structures lie outside the training '
                f'range of model {self.name!r}, the first at index {outside[0]}: '
                f'{results[outside[0]].ood}'
            )


def _warn_of_failures(results: list[Relaxation]) -> None:
    failures = [index for index, result in enumerate(results) if not result.ok]
    if failures:
        first = failures[0]
        warn(
            f'{len(failures)} of {len(results)} structures were not relaxed (ok is False), '
            f'the first at index {first}: {results[first].problem}'
        )


def _make_again(
    model: Path | RelaxationModel, sha256: str, max_passes: int, options: dict[str, Any]
) -> Predictor:
    """The predictor with the same answers."""
    predictor = Predictor(model, **options)
    if predictor.sha256 != sha256:
        raise ModelError(f'{model} was changed while it was in use; give the call again')
    predictor.max_passes = max_passes
    return predictor


def is_one(structures: Any) -> bool:
    """Whether something is one structure, usable or not, rather than many of them."""
    known = isinstance(structures, (Atoms, Filter, str, bytes, Mapping))
    if known or hasattr(structures, 'is_ordered'):  # the latter, as those of pymatgen
        return True
    try:  # Slices of an ASE trajectory have no __iter__, but can be walked through.
        iter(structures)
    except TypeError:
        return True
    return False


def _progress_bar(total: int | None) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc='relax', unit='structures')


def _located(error: DeepRelaxError, index: int, total: int | None) -> DeepRelaxError:
    """The error with the place of the structure in the list, where there is a list."""
    return error if total == 1 else type(error)(f'structure {index}: {error}')

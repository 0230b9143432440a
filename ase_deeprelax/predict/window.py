"""Some structures on their way through a prediction, each on its own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ase import Atoms

from ase_deeprelax.errors import DeepRelaxError, PredictionError, StructureError
from ase_deeprelax.predict.finish import failed, finish, prepare_second_pass
from ase_deeprelax.predict.forward import StructureOutput
from ase_deeprelax.predict.prepare import Prepared, copy_of, prepare

if TYPE_CHECKING:
    from ase_deeprelax.geometry.free_strain import RelaxCell
    from ase_deeprelax.predict.predictor import Predictor
    from ase_deeprelax.result import Relaxation


class Window:
    """Some structures, prepared together; an error with one does not reach the others.

    Parameters
    ----------
    predictor : Predictor
    structures : list
        Structures, or anything else, which then is an error.
    relax_cell : bool, str, array or None
        See `find_freedom`.
    bar : tqdm or None
        Updated for each structure that is done.

    Attributes
    ----------
    errors : dict of int to DeepRelaxError
        Of the structures without a prediction, by their index; filled by `results`.
    """

    def __init__(
        self,
        predictor: Predictor,
        structures: list[Any],
        relax_cell: RelaxCell | None,
        bar: Any,
    ):
        self.predictor, self.structures, self.bar = predictor, structures, bar
        self.settings, self.relax_cell = predictor.settings, relax_cell
        self.errors: dict[int, DeepRelaxError] = {}
        self._done: dict[int, Relaxation] = {}
        self._prepared: dict[int, Prepared] = {}

    def results(self) -> list[Relaxation]:
        """The result of each structure, in their order; of those in `errors`, the input."""
        for index, structure in enumerate(self.structures):
            with self._alone(index):
                self._prepared[index] = prepare(structure, self.settings, self.relax_cell)
        first: dict[int, StructureOutput] = {}
        again: dict[int, Prepared] = {}
        for index, output in self.predictor.outputs(self._prepared):
            prepared, second = self._prepared[index], None
            with self._alone(index):
                if isinstance(output, PredictionError):
                    raise output
                if self.predictor.two_pass:
                    second = prepare_second_pass(prepared, output)
                if second is None:
                    self._finish(index, output)
            if second is not None:
                first[index], again[index] = output, second
        for index, output in self.predictor.outputs(again):
            second = again.pop(index)
            usable = isinstance(output, StructureOutput)
            with self._alone(index):
                self._finish(index, first.pop(index), (second, output) if usable else None)
        return [self._done[index] for index in range(len(self.structures))]

    def _finish(self, index: int, *outputs: Any) -> None:
        self._done[index] = finish(self._prepared[index], *outputs)
        self._close(index)

    def _close(self, index: int) -> None:
        # The graph is of no more use, and takes most of the memory.
        self._prepared.pop(index, None)
        if self.bar is not None:
            self.bar.update(1)

    @contextmanager
    def _alone(self, index: int) -> Generator[None]:
        """Keep an error with one structure, and go on."""
        try:
            yield
        except DeepRelaxError as error:
            self._fail(index, error)
        except Exception as error:  # noqa: BLE001 - constraints and subclasses raise anything
            named = StructureError(f'{type(error).__name__}: {error}')
            named.__cause__ = error
            self._fail(index, named)

    def _fail(self, index: int, error: DeepRelaxError) -> None:
        prepared, source = self._prepared.get(index), None
        if prepared is not None:
            initial, source = prepared.initial, prepared.source
        else:
            try:
                initial = copy_of(self.structures[index])
            except Exception:  # noqa: BLE001 - it is no structure at all
                initial = Atoms()
        self.errors[index] = error
        self._done[index] = failed(initial, error, self.settings, prepared, source)
        self._close(index)

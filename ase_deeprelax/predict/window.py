"""Some structures on their way through a prediction, each on its own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ase import Atoms

from ase_deeprelax.errors import DeepRelaxError, PredictionError, StructureError
from ase_deeprelax.predict.finish import failed, finish, move_of, prepare_again
from ase_deeprelax.predict.forward import StructureOutput
from ase_deeprelax.predict.passes import Passes
from ase_deeprelax.predict.prepare import Prepared, copy_of, prepare, source_of

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
        self._passes: dict[int, Passes] = {}

    def results(self) -> list[Relaxation]:
        """The result of each structure, in their order; of those in `errors`, the input."""
        for index, structure in enumerate(self.structures):
            with self._alone(index):
                self._prepared[index] = prepare(structure, self.settings, self.relax_cell)
        waiting = dict(self._prepared)
        while waiting:
            following: dict[int, Prepared] = {}
            for index, output in self.predictor.outputs(waiting):
                with self._alone(index):
                    again = self._take(index, waiting.pop(index), output)
                    if again is None:
                        self._finish(index)
                    else:
                        following[index] = again
            waiting = following
        return [self._done[index] for index in range(len(self.structures))]

    def _take(
        self, index: int, asked: Prepared, output: StructureOutput | PredictionError
    ) -> Prepared | None:
        """Take in what a pass has found; the structure of the next one, or None."""
        passes = self._passes.get(index)
        if passes is None:
            if isinstance(output, PredictionError):
                raise output
            passes = self._passes[index] = Passes(output)
        elif isinstance(output, PredictionError) or not output.finite:
            return None
        passes.add(move_of(asked, output))
        if len(passes.moves) >= self.predictor.max_passes or not passes.next_weight:
            return None
        try:
            return prepare_again(self._prepared[index], passes.moves[-1])
        except DeepRelaxError:  # the predictions before it hold, or are refused at the end
            return None

    def _finish(self, index: int) -> None:
        passes = self._passes.pop(index)
        self._done[index] = finish(self._prepared[index], passes.output, passes.moves)
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
        structure, prepared = self.structures[index], self._prepared.get(index)
        try:
            initial, source = copy_of(structure), source_of(structure)
        except Exception:  # noqa: BLE001 - it is no structure at all
            initial, source = Atoms(), None
        self.errors[index] = error
        self._done[index] = failed(initial, error, self.settings, prepared, source)
        self._close(index)

"""The options of an optimizer; the model is loaded when it is first needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any

from ase_deeprelax.geometry.free_strain import RelaxCell
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.models.calibration import Calibration
from ase_deeprelax.models.folders import available_models
from ase_deeprelax.optimize.stage import Stage
from ase_deeprelax.predict import Predictor


@dataclass(frozen=True, eq=False)
class Options:
    """The arguments of `DeepRelaxOptimizer` that are not ASE's, checked.

    Parameters
    ----------
    model : str, path or RelaxationModel
    symmetry, device, dtype : str
        As `Predictor` takes them.
    relax_cell : bool, str, array or None
        What of the cell of bare Atoms may change; None: the user did not say.
    stages : list of Stage
        Empty: an ordinary relaxation, or the prediction alone.
    optimizer : callable
        Of stages that have none.
    energy_gate : float or None, eV/atom
        How much a prediction may raise the energy.
    ordinary : Stage
        Of an ordinary relaxation, with the calculator that the atoms have.
    judge : Stage or None
        With the potential that verifies a prediction which is not refined.
    """

    model: Any
    symmetry: str
    device: str
    dtype: str
    relax_cell: RelaxCell | None
    stages: list[Stage]
    optimizer: Callable
    energy_gate: float | None
    ordinary: Stage
    judge: Stage | None

    def __post_init__(self) -> None:
        gate = self.energy_gate
        if gate is not None and not (isinstance(gate, Real) and gate >= -math.inf):
            raise ValueError(
                f'energy_gate is {gate!r}; it must be an energy in eV/atom, or None'
            )

    @cached_property
    def predictor(self) -> Predictor:
        """The model, ready to predict."""
        return Predictor(
            self.model, symmetry=self.symmetry, device=self.device, dtype=self.dtype
        )

    @property
    def calibration(self) -> Calibration | None:
        """What is known of the model's errors, beside those of potentials too."""
        return self.predictor.model.calibration

    @property
    def model_name(self) -> str:
        """For the header of a trajectory."""
        if isinstance(self.model, RelaxationModel):
            return self.model.name or type(self.model).__name__
        return str(self.model)

    def __getstate__(self) -> dict[str, Any]:
        # A shipped model is copied as its name, without its weights.
        model = self.model
        if isinstance(model, RelaxationModel):
            shipped = available_models().get(model.name, {})
            if shipped.get('sha256') == model.sha256:
                model = model.name
        return vars(replace(self, model=model))

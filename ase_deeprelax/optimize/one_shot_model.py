"""The model of an optimizer: what it predicts, how far to trust it beside potentials."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.filters import Filter

from ase_deeprelax.geometry.free_strain import RelaxCell
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.models.store import available_models
from ase_deeprelax.optimize.guide import GuidedCalculator, strength_for
from ase_deeprelax.optimize.one_shot import ProposedMove, propose_move
from ase_deeprelax.optimize.stage import Stage
from ase_deeprelax.optimize.verify import Verification, verify
from ase_deeprelax.predict import Predictor
from ase_deeprelax.result import Relaxation


@dataclass(frozen=True)
class OneShotModel:
    """A model, loaded when it is first needed.

    Parameters
    ----------
    model : str, path or RelaxationModel
    symmetry, device, dtype : str
        As `Predictor` takes them.
    judge : str, ase Calculator or callable, optional
        The potential that verifies predictions; default none.
    """

    model: Any
    symmetry: str
    device: str
    dtype: str
    judge: Any = None

    @cached_property
    def predictor(self) -> Predictor:
        """The predictor."""
        return Predictor(
            self.model, symmetry=self.symmetry, device=self.device, dtype=self.dtype
        )

    def propose(self, target: Atoms | Filter, relax_cell: RelaxCell | None) -> ProposedMove:
        """See `propose_move`."""
        return propose_move(target, relax_cell, self.predictor)

    def guided(
        self,
        calculator: Calculator,
        name: str,
        relaxation: Relaxation,
        strength: bool | float,
    ) -> GuidedCalculator:
        """A potential with the pull of a prediction.

        Parameters
        ----------
        calculator : ase Calculator
        name : str
            Of the potential, for the calibration of the model.
        relaxation : Relaxation
        strength : float or True
            eV/A; True: as calibrated.
        """
        if strength is True:
            calibration = self.predictor.model.calibration
            strength = strength_for(name.lower(), calibration)
        return GuidedCalculator(calculator, relaxation, strength)

    def verify(self, atoms: Atoms, relax_cell: RelaxCell | None) -> Verification | None:
        """What one call of the judge says of a prediction; None without a judge."""
        if self.judge is None:
            return None
        stage = Stage(self.judge)
        calibration = self.predictor.model.calibration
        calculator = stage.build_calculator()
        return verify(atoms, calculator, stage.name, calibration, relax_cell)

    @property
    def name(self) -> str:
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

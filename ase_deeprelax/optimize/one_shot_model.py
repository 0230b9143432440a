"""The model of an optimizer, loaded when it is first needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.models.calibration import Calibration
from ase_deeprelax.models.store import available_models
from ase_deeprelax.predict import Predictor


@dataclass(frozen=True)
class OneShotModel:
    """A model and how it is asked, without the weights until a prediction is needed.

    Parameters
    ----------
    model : str, path or RelaxationModel
    symmetry, device, dtype : str
        As `Predictor` takes them.
    """

    model: Any
    symmetry: str
    device: str
    dtype: str

    @cached_property
    def predictor(self) -> Predictor:
        """The predictor."""
        return Predictor(
            self.model, symmetry=self.symmetry, device=self.device, dtype=self.dtype
        )

    @property
    def calibration(self) -> Calibration | None:
        """What is known of the model's errors beside those of potentials."""
        return self.predictor.model.calibration

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

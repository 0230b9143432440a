"""The card of a model that was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ase_deeprelax.data.pairs import spread
from ase_deeprelax.predict.structure_checks import volume_ratio
from ase_deeprelax.train.config import TrainConfig
from ase_deeprelax.train.datamodule import PairData
from ase_deeprelax.train.module import RelaxationModule


def describe_training(
    config: TrainConfig,
    data: PairData,
    module: RelaxationModule,
    *,
    steps: int,
    errors: Mapping[str, float],
) -> dict[str, Any]:
    """What there is to know about a trained model, as `save_model` takes it.

    Parameters
    ----------
    config : TrainConfig
    data : PairData
        What it was trained on.
    module : RelaxationModule
        How long the training took, and with what weights it began.
    steps : int
    errors : dict of str to float
        On the pairs for validation; empty without any.
    """
    sizes = [len(pair) for pair in data.train]
    some = [*spread(data.train, 5000), *spread(data.relaxed, 5000)]
    ratios = np.array([volume_ratio(pair.unrelaxed, pair.layer) for pair in some])
    ranges = {'n_atoms': [min(sizes), max(sizes)]}
    if np.isfinite(ratios).any():  # else all hold elements without a usual volume
        ranges['volume_ratio'] = np.nanquantile(ratios, [0.001, 0.999]).round(2).tolist()
    settings = config.model_dump(mode='json', exclude={'data', 'output', 'name'})
    return {
        'name': config.name,
        'licence': config.licence,
        'elements': data.elements,
        'learned': _learned(config, data),
        # Only who has learned from relaxed inputs has something to say of its own answers.
        'second_look': bool(data.relaxed),
        'range': ranges,
        'training': {
            'sources': [
                {'file': file, 'licence': licence}
                for file, licence in dict.fromkeys(
                    (source.path.name, source.licence)
                    for source in (*config.data.pairs, *config.data.relaxed_structures)
                )
            ],
            'pairs': len(data.train),
            'relaxed_structures': len(data.relaxed),
            **({'start': module.start} if module.start else {}),
            'steps': steps,
            'minutes': round(module.elapsed / 60, 1),
            'settings': settings,
        },
        'metrics': {'validation': errors},
    }


def _learned(config: TrainConfig, data: PairData) -> list[str]:
    """What may be asked of the model, in the words of `predict.prepare`."""
    samples, held = [*data.train, *data.relaxed], config.data.hold.probability > 0
    found = {
        'bulk': any(all(pair.pbc) for pair in samples),
        'layer': any(not all(pair.pbc) for pair in samples),
        'fixed cell': held or any(pair.fixed_cell for pair in samples),
        'partly fixed cell': held,
        'fixed atoms': held or any(pair.fixed is not None for pair in samples),
    }
    return [what for what, there in found.items() if there]

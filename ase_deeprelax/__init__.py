"""One-shot relaxation of crystals inside ASE, with an uncertainty.

>>> import ase_deeprelax
>>> sorted(set(dir(ase_deeprelax)) & {'relax', 'DeepRelaxOptimizer'})
['DeepRelaxOptimizer', 'relax']

Importing this package adds ``Atoms.optimizer`` (see `accessor`) and loads neither torch
nor a model; that happens on first use of a name below.
"""

from importlib import import_module
from typing import Any

from ase_deeprelax import errors
from ase_deeprelax.optimize import accessor

__version__ = '0.2.0'

# Where each public name lives.
_HOMES = {
    'DeepRelaxOptimizer': 'optimize.optimizer',
    'EDGCalculator': 'predict.edg_calculator',
    'ElasticBFGS': 'optimize.elastic_bfgs',
    'Predictor': 'predict',
    'Relaxation': 'result',
    'Stage': 'optimize.stage',
    'available_models': 'models.folders',
    'load_model': 'models.store',
    'relax': 'predict',
    'screen': 'screening',
}

__all__ = [
    'DeepRelaxOptimizer',
    'EDGCalculator',
    'ElasticBFGS',
    'Predictor',
    'Relaxation',
    'Stage',
    '__version__',
    'available_models',
    'errors',
    'load_model',
    'relax',
    'screen',
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


accessor.install()

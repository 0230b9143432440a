"""One-shot relaxation of crystals inside ASE, with an uncertainty.

>>> import ase_deeprelax
>>> sorted(set(dir(ase_deeprelax)) & {'relax', 'DeepRelaxOptimizer'})
['DeepRelaxOptimizer', 'relax']

Importing this package adds ``Atoms.optimizer`` (see `accessor`) and loads neither torch
nor a model; that happens on first use of a name below.
"""

from importlib import import_module

from ase_deeprelax import accessor, errors
from ase_deeprelax._version import __version__

# Where each public name lives.
_HOMES = {
    'DeepRelaxOptimizer': 'optimizer',
    'EDGCalculator': 'calculator',
    'ElasticBFGS': 'refine.elastic',
    'Predictor': 'predict',
    'Relaxation': 'result',
    'Stage': 'refine.stage',
    'available_models': 'weights.store',
    'load_model': 'weights.store',
    'relax': 'predict',
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
]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


accessor.install()

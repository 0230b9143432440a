"""Objects that people meet in a Python session show themselves in one line."""

import copy
import json
import pickle

import pytest
from ase.build import bulk, mx2
from ase.calculators.emt import EMT

from ase_deeprelax import (
    DeepRelaxOptimizer,
    EDGCalculator,
    Predictor,
    Stage,
    available_models,
    load_model,
    relax,
)
from ase_deeprelax.compare.evaluate import evaluate, evaluate_all
from ase_deeprelax.compare.savings import compare
from ase_deeprelax.data.convert import to_graph
from ase_deeprelax.data.pair import make_pair
from ase_deeprelax.geometry.degrees_of_freedom import find_freedom


def things():
    """Each public object that was made as people make it."""
    model = load_model('ensemble')
    atoms = bulk('NaCl', 'rocksalt', a=5.4)
    result = relax(atoms, model=model)
    pair = make_pair('NaCl', atoms, result.atoms)
    graph, _ = to_graph(atoms, model.spec)
    alloy = bulk('Cu', cubic=True)
    alloy.calc = EMT()
    optimizer = DeepRelaxOptimizer(alloy, model=model, logfile=None)
    unbound = DeepRelaxOptimizer(refine=[Stage(EMT(), optimizer='FIRE', fmax=0.01)])
    optimizer.run()
    freedom = find_freedom(mx2('MoS2', vacuum=8), True)
    yield from (model, model.card, model.calibration, model.calibration.environments)
    yield from (Predictor(model), result, relax([bulk('Og', 'fcc', a=4.0)])[0])
    yield from (EDGCalculator(), EDGCalculator(result), pair, graph, model(graph))
    yield from (optimizer, unbound, *optimizer.stages, freedom, freedom.layer)
    yield from (available_models(), evaluate([pair], model))
    yield evaluate_all([pair], {'mine': model})
    yield compare([bulk('Cu', a=3.9)], [EMT()], model=model)


@pytest.fixture(scope='module')
def made():
    return list(things())


def test_repr_is_one_line(made):
    for thing in made:
        line = repr(thing)
        assert '\n' not in line
        assert 10 < len(line) < 200, line
        assert ' object at 0x' not in line


def test_layers_of_a_network_can_be_seen(made):
    assert str(made[0].members[0]).count('\n') > 20


def test_results_in_one_line_are_ordinary_dictionaries(made):
    for thing in made:
        if isinstance(thing, dict):
            for copied in (copy.deepcopy(thing), pickle.loads(pickle.dumps(thing))):
                assert copied == thing == dict(thing)
                assert repr(copied) == repr(thing)
            assert json.loads(json.dumps(thing)).keys() == thing.keys()

"""Machine code of networks: its answers, and what stops it from being used."""

import copy
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase.build import bulk, mx2
from ase.constraints import FixAtoms

from ase_deeprelax import Predictor
from ase_deeprelax.data.batching import collate
from ase_deeprelax.data.convert import to_graph
from ase_deeprelax.errors import DeepRelaxWarning, ModelError
from ase_deeprelax.models import compiled, create_model
from ase_deeprelax.models.store import load_model, load_shared, save_model
from ase_deeprelax.testing import awaken, generic_crystals, symmetric_crystals

pytestmark = pytest.mark.skipif(
    shutil.which('g++') is None, reason='needs the C++ compiler g++'
)


@pytest.fixture(scope='module', params=['paegnn', 'e3relax-h2'])
def folder(request, tmp_path_factory):
    """A model of each form; its machine code is in ``cache`` beside it."""
    place = tmp_path_factory.mktemp('compiled')
    torch.manual_seed(0)
    model = awaken(create_model(request.param, hidden=16, layers=1))
    save_model(model, place / 'model', {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(place / 'cache'))
        file = compiled.compile_network(load_shared(place / 'model', 'cpu', torch.float32))
    assert list((place / 'cache').rglob('*.*')) == [file]  # nothing else is left there
    return place / 'model'


@pytest.fixture
def own(folder, tmp_path, monkeypatch):
    """The model with a cache that a test may spoil: its folder, and the file."""
    shutil.copytree(folder.parent / 'cache', tmp_path / 'cache')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    [file] = (tmp_path / 'cache').rglob('*.pt2')
    return folder, file


def structures():
    """Of all kinds and sizes, the first of one atom, the last with too many edges."""
    sheet = mx2('MoS2', vacuum=8.0) * (2, 1, 1)
    held = bulk('NaCl', 'rocksalt', a=5.9, cubic=True)
    held.set_constraint(FixAtoms([0, 3]))
    large = bulk('MgO', 'rocksalt', a=4.3, cubic=True) * (5, 5, 5)
    made = [*generic_crystals()[:6], *symmetric_crystals(6), sheet, held, large]
    for seed, atoms in enumerate(made):
        atoms.rattle(0.04, seed=seed)
    return [bulk('Cu'), *made]


def answers(folder, atoms, **options):
    predictor = Predictor(folder, device='cpu', **options)
    return [result.atoms for result in predictor.relax(atoms)]


def far(some, others):
    """The largest distance between atoms, or difference of lattice vectors, A."""
    return max(
        max(
            np.abs(one.positions - other.positions).max(),
            np.abs(one.cell.array - other.cell.array).max(),
        )
        for one, other in zip(some, others, strict=True)
    )


def test_answers_are_those_of_the_network(own, tmp_path, monkeypatch):
    folder, _ = own
    atoms = structures()
    one_by_one = [answers(folder, [one])[0] for one in atoms]
    together = answers(folder, atoms)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'empty'))
    expected = answers(folder, atoms)
    assert far(expected, atoms) > 0.01  # the network says something
    assert far(together, expected) < 1e-4
    assert far(one_by_one, expected) < 1e-4


def test_batches_go_through_machine_code_where_it_can_take_them(own):
    network = compiled.with_machine_code(load_shared(own[0], 'cpu', torch.float32))
    assert isinstance(network, compiled.CompiledNetwork)
    sizes, code = [], network.code

    def counted(inputs):
        sizes.append(len(inputs[0]))
        return code(inputs)

    network.code = counted
    graphs = [to_graph(one, network.spec)[0] for one in structures()]
    single, *others, large = graphs
    others = [graph for graph in others if graph.num_nodes > 1]
    for batch in ([single], [large], others[:1], others, [single, *others]):
        with torch.inference_mode():
            output = network(collate(batch))
        assert len(output.deformation) == len(batch)
    counts = [graph.num_nodes for graph in others]
    assert sizes == [counts[0], sum(counts), 1 + sum(counts)]


def test_predictors_with_machine_code_are_copied_and_pickled(own):
    predictor, atoms = Predictor(own[0], device='cpu'), structures()[:4]
    expected = [result.atoms for result in predictor.relax(atoms)]
    for other in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
        assert far([result.atoms for result in other.relax(atoms)], expected) < 1e-5


@pytest.mark.parametrize('spoil', ['truncate', 'flip', 'empty'])
def test_a_damaged_file_is_told_and_not_used(own, spoil, tmp_path, monkeypatch):
    folder, file = own
    data = bytearray(file.read_bytes())
    if spoil == 'flip':
        data[len(data) // 2] ^= 1
    file.write_bytes({'truncate': data[: len(data) // 2], 'empty': b''}.get(spoil, data))
    atoms = structures()[:4]
    with pytest.warns(DeepRelaxWarning, match='give "deeprelax compile" again'):
        found = answers(folder, atoms)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'empty'))
    assert far(found, answers(folder, atoms)) == 0


def test_code_belongs_to_one_model_and_machine(own, tmp_path, monkeypatch):
    folder, file = own
    model = load_model(folder)
    assert compiled.code_file(model) == file
    next(model.parameters()).data += 1e-3
    save_model(model, tmp_path / 'changed', {})
    assert compiled.code_file(load_model(tmp_path / 'changed')) != file
    assert compiled.code_file(load_model(folder, dtype=torch.float64)) is None
    monkeypatch.setattr(torch, '__version__', '2.0.0')
    compiled._surroundings.cache_clear()
    try:
        assert compiled.code_file(load_model(folder)) != file
    finally:
        compiled._surroundings.cache_clear()


def test_models_that_cannot_be_compiled_are_refused(tmp_path):
    model = create_model('paegnn', hidden=16, layers=1, max_neighbors=12)
    save_model(model, tmp_path / 'nearest', {})
    with pytest.raises(ModelError, match='only networks of this package'):
        compiled.compile_network(load_model(tmp_path / 'nearest'))


def deeprelax(*words, **environment):
    """Standard output, standard error, and exit code of a command."""
    done = subprocess.run(
        [sys.executable, '-m', 'ase_deeprelax', *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    return done.stdout, done.stderr, done.returncode


def test_without_a_compiler_nothing_changes(tiny_model, tmp_path):
    cache = tmp_path / 'cache'
    _, error, code = deeprelax(
        'compile',
        '--model',
        tiny_model,
        XDG_CACHE_HOME=str(cache),
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / 'torch'),
        CXX='/bin/false',
    )
    assert code == 1
    assert 'is there a C++ compiler, such as g++?' in error
    assert 'Traceback' not in error
    assert not list(cache.rglob('*.*'))


def test_the_command_removes_what_it_made(own, tmp_path):
    out, _, code = deeprelax('compile', '--remove', XDG_CACHE_HOME=str(tmp_path / 'cache'))
    assert (code, own[1].exists()) == (0, False)
    assert 'is removed' in out

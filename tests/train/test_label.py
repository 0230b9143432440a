import gzip
import json

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from ase_deeprelax.data.pairs import read_pairs
from ase_deeprelax.errors import PairFileError
from ase_deeprelax.potentials.batched import batch_potential
from ase_deeprelax.train.datamodule import composition, read_seeds
from ase_deeprelax.train.inputs import Recipe, Structures, Substitutions, substitute
from ase_deeprelax.train.label import label

EMT_ELEMENTS = frozenset({13, 28, 29, 46, 47, 78, 79})
FCC = {'Al': 4.05, 'Ni': 3.52, 'Cu': 3.61, 'Pd': 3.89, 'Ag': 4.09, 'Pt': 3.92, 'Au': 4.08}


@pytest.fixture
def seeds(tmp_path):
    """Elements and ordered alloys of EMT's metals."""
    crystals = [bulk(symbol, a=a) for symbol, a in FCC.items()]
    for first, second in (('Cu', 'Au'), ('Ni', 'Al'), ('Pd', 'Ag')):
        alloy = bulk(first, a=(FCC[first] + FCC[second]) / 2, cubic=True)
        alloy.symbols[0] = second
        crystals.append(alloy)
    path = tmp_path / 'seeds.jsonl.gz'
    with gzip.open(path, 'wt') as file:
        for k, atoms in enumerate(crystals):
            record = {'id': f's{k}', 'formula': str(atoms.symbols)}
            record['numbers'] = atoms.numbers.tolist()
            record['cell'] = atoms.cell.tolist()
            record['frac'] = atoms.get_scaled_positions().tolist()
            file.write(json.dumps(record) + '\n')
    return read_seeds(path, (), 20)


@pytest.fixture
def series(seeds):
    return Substitutions(seeds, EMT_ELEMENTS, seed=3)


def run(out, series, count=14, **changes):
    settings = {'start': None, 'count': count, 'fmax': 0.02} | changes
    return label(out, series, batch_potential(EMT()), **settings)


def test_pairs_end_at_the_minimum_of_the_potential(tmp_path, series):
    out = tmp_path / 'pairs.jsonl'
    counts = run(out, series)
    pairs = read_pairs(out)
    assert counts['pairs'] == len(pairs) > 3
    assert counts['pairs'] + counts['failed'] == 14
    for pair in pairs:
        relaxed = pair.relaxed
        relaxed.calc = EMT()
        assert np.abs(relaxed.get_forces()).max() < 0.02
        stress = np.abs(relaxed.get_stress()).max() * relaxed.get_volume() / len(relaxed)
        assert stress < 0.03


def test_interrupted_run_goes_on_and_ends_alike(tmp_path, series):
    whole, parts = tmp_path / 'whole.jsonl', tmp_path / 'parts.jsonl'
    counts = run(whole, series, batch_atoms=1)
    run(parts, series, count=5, batch_atoms=1)
    # As a killed process leaves it: the last line is cut off.
    parts.write_text(parts.read_text()[:-40])
    assert run(parts, series, batch_atoms=1) == counts
    lines = [
        sorted(path.read_text().splitlines(), key=lambda line: json.loads(line)['k'])
        for path in (whole, parts)
    ]
    assert lines[0] == lines[1]
    assert run(whole, series) == counts  # nothing is left to do


def test_prediction_is_only_where_the_relaxation_starts(tmp_path, series, tiny_model):
    direct, predicted = tmp_path / 'direct.jsonl', tmp_path / 'predicted.jsonl'
    run(direct, series, fmax=0.005, steps=200)
    run(predicted, series, fmax=0.005, steps=200, start=tiny_model)
    one, two = ({p.id: p for p in read_pairs(path)} for path in (direct, predicted))
    assert len(one) > 3
    assert set(one) == set(two)
    for id, pair in one.items():
        assert np.allclose(pair.cell0, two[id].cell0)
        assert np.linalg.det(pair.cell1) == pytest.approx(
            np.linalg.det(two[id].cell1), rel=5e-3
        )


def test_nothing_known_or_excluded_is_made(seeds):
    excluded = frozenset({composition([29, 29, 29, 47]), composition([28, 28, 28, 13])})
    series = Substitutions(seeds, EMT_ELEMENTS, excluded=excluded)
    known = {composition(seed.numbers) for seed in seeds}
    made = [series[k] for k in range(300)]
    compositions = {composition(atoms.numbers) for _, atoms, _ in made if atoms}
    assert len(compositions) > 10
    assert not compositions & (known | excluded)
    assert {z for c in compositions for z, _ in c} <= EMT_ELEMENTS
    assert all(problem for _, atoms, problem in made if atoms is None)


def test_input_depends_on_its_number_only(seeds, series):
    again = Substitutions(seeds, EMT_ELEMENTS, seed=3)
    backwards = [again[k] for k in reversed(range(30))][::-1]
    for k, (parent, atoms, problem) in enumerate(backwards):
        assert (parent, atoms, problem) == series[k]
    other = Substitutions(seeds, EMT_ELEMENTS, seed=4)
    assert [other[k][1] for k in range(30)] != [series[k][1] for k in range(30)]


def test_partial_substitution_doubles_the_cell():
    rng = np.random.default_rng(0)
    recipe = Recipe(partial=1)
    parent = bulk('NaCl', 'rocksalt', a=5.6)
    child = substitute(parent, range(1, 84), rng, recipe)
    assert len(child) == 4
    assert len(np.unique(child.numbers)) == 3
    assert child.get_volume() == pytest.approx(2 * parent.get_volume())
    assert sorted(parent.numbers) == [11, 17]  # untouched


def test_given_structures(tmp_path, seeds):
    given = Structures(
        seeds, EMT_ELEMENTS - {13}, 'given', excluded=frozenset({composition([29])})
    )
    out = tmp_path / 'given.jsonl'
    counts = run(out, given, count=None)
    assert counts == {'pairs': len(seeds) - 3, 'failed': 3}
    problems = {
        json.loads(line)['problem']
        for line in out.with_suffix('.failed.jsonl').read_text().splitlines()
    }
    assert problems == {'composition excluded', 'element that the potential does not know'}


def test_lost_relaxations_are_kept_with_their_reason(tmp_path, series):
    out = tmp_path / 'few.jsonl'
    counts = run(out, series, steps=1)
    failed = out.with_suffix('.failed.jsonl').read_text().splitlines()
    assert counts['failed'] == len(failed)
    assert any('not converged in 1 steps' in line for line in failed)


def test_foreign_file_is_not_appended_to(tmp_path, series):
    out = tmp_path / 'mine.jsonl'
    out.write_text('{"numbers": []}\n')
    with pytest.raises(PairFileError, match=r'mine\.jsonl: not written by label'):
        run(out, series)

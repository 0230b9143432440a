"""``deeprelax label``, with a real potential."""

import _thread
import gzip
import json
import signal
import threading
import zipfile
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk, mx2
from ase.io import write

from ase_deeprelax.data.formula import composition
from ase_deeprelax.data.pairs import make_pair, read_pairs, write_pairs

pytestmark = pytest.mark.usefixtures('one_thread')

TENSORNET = (
    Path(__file__).parents[2] / '../shared/potentials/TensorNet-MatPES-PBE-v2025.1-PES'
)
needs_potential = pytest.mark.skipif(
    not TENSORNET.exists(), reason='../shared/potentials is not there'
)
COUNT = 12


@pytest.fixture(scope='module')
def seeds(tmp_path_factory):
    file = tmp_path_factory.mktemp('seeds') / 'seeds.jsonl.gz'
    sizes = {'NaCl': 5.69, 'KBr': 6.7, 'MgO': 4.25, 'LiF': 4.07, 'CaO': 4.84, 'AgCl': 5.6}
    with gzip.open(file, 'wt') as lines:
        for formula, a in sizes.items():
            atoms = bulk(formula, 'rocksalt', a=a)
            record = {'id': formula, 'formula': formula, 'src': 'rocksalt'}
            record['numbers'] = atoms.numbers.tolist()
            record['cell'] = atoms.cell.tolist()
            record['frac'] = atoms.get_scaled_positions().tolist()
            lines.write(json.dumps(record) + '\n')
    return file


@pytest.fixture(scope='module')
def label(run, seeds):
    """The command with a real potential, one structure at a time so that runs are equal."""
    pytest.importorskip('matgl')

    def label(out, *words, source=('--relaxed', seeds)):
        settings = ['--potential', f'tensornet:{TENSORNET.resolve()}', '--device', 'cpu']
        settings += ['--count', COUNT, '--start', 'none', '--fmax', 0.1]
        settings += ['--batch-atoms', 1, '--steps', 60]
        return run('label', out, *source, *settings, *words)

    return label


@pytest.fixture(scope='module')
def whole(label, tmp_path_factory):
    """The records of one run without interruption."""
    out = tmp_path_factory.mktemp('whole') / 'pairs.jsonl'
    result = label(out)
    assert result.exit_code == 0, result.output
    made, lost = records(out), records(out.with_suffix('.failed.jsonl'))
    assert len(made) + len(lost) == COUNT
    assert f'{len(made)} pairs in {out}, {len(lost)} inputs failed' in result.stdout
    assert f'0 of {COUNT} inputs taken' in result.stderr
    assert len(read_pairs(out)) == len(made) > 4
    return made


def records(file):
    return sorted(map(json.loads, file.read_text().splitlines()), key=lambda r: r['k'])


@needs_potential
def test_guided(label, whole, tmp_path):
    """Nearer to the prediction than the potential's own minimum, with fewer calls."""
    out = tmp_path / 'pairs.jsonl'
    refused = label(out, '--guided')
    assert refused.exit_code == 2
    assert '--guided needs predictions: --start cannot be none' in refused.output
    assert not out.exists()
    result = label(out, '--guided', '--start', 'default')
    assert result.exit_code == 0, result.output
    alone = {record['k']: record for record in whole}
    both = [(one, alone[one['k']]) for one in records(out) if one['k'] in alone]
    assert len(both) > 4
    assert {one['guided'].split()[0] for one, _ in both} == {'ensemble'}
    assert {other['guided'] for _, other in both} == {''}
    assert sum(one['steps'] for one, _ in both) < sum(other['steps'] for _, other in both)


def interrupt_after(out, n_lines, over):
    """Ctrl-C once the file has so many lines."""
    while not over.wait(0.01):
        if out.exists() and out.read_bytes().count(b'\n') >= n_lines:
            _thread.interrupt_main()
            return


@needs_potential
def test_interrupted_run_goes_on_and_ends_alike(label, whole, tmp_path):
    out, over = tmp_path / 'parts.jsonl', threading.Event()
    # Programs that other tests use may have left a handler of their own.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    watch = threading.Thread(target=interrupt_after, args=(out, 2, over))
    watch.start()
    try:
        result = label(out)
    finally:
        over.set()
        watch.join()
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert 'the same command goes on' in result.stderr
    assert 'Traceback' not in result.output
    assert 2 <= len(records(out)) < len(whole)
    assert label(out).exit_code == 0
    assert records(out) == whole


@needs_potential
def test_excluded_formulas_are_not_made_and_the_others_are(label, whole, tmp_path):
    gone, files = whole[::2], [tmp_path / name for name in 'ab']
    # The same compositions, written otherwise.
    formulas = [str(Atoms(2 * record['numbers'][::-1]).symbols) for record in gone]
    files[0].write_text(f'{formulas[0]}\nMgO\n')
    files[1].write_text('\n'.join(formulas[1:]))
    out = tmp_path / 'pairs.jsonl'
    result = label(out, '--exclude', files[0], '--exclude', files[1])
    assert result.exit_code == 0, result.output
    excluded = {composition(record['numbers']) for record in gone}
    made = records(out)
    assert not excluded & {composition(record['numbers']) for record in made}
    assert made == [r for r in whole if composition(r['numbers']) not in excluded]
    lost = records(out.with_suffix('.failed.jsonl'))
    assert {r['k'] for r in lost if 'excluded' in r['problem']} >= {r['k'] for r in gone}


@needs_potential
def test_given_structures_are_relaxed_as_they_are(label, seeds, tmp_path):
    out = tmp_path / 'given.jsonl'
    result = label(out, source=('--given', seeds))
    assert result.exit_code == 0, result.output
    assert [pair.id for pair in read_pairs(out)] == [
        f'{formula}-seeds-{k}'
        for k, formula in enumerate(('NaCl', 'KBr', 'MgO', 'LiF', 'CaO', 'AgCl'))
    ]


@needs_potential
@pytest.mark.parametrize('form', ['extxyz', 'zip'])
def test_given_structures_come_from_all_files_that_relax_takes(label, tmp_path, form):
    crystals = [bulk('NaCl', 'rocksalt', a=5.4), bulk('MgO', 'rocksalt', a=4.4)]
    given = tmp_path / f'mine.{form}'
    if form == 'zip':
        with zipfile.ZipFile(given, 'w') as archive:
            for atoms in crystals:
                name = f'{atoms.get_chemical_formula()}.cif'
                write(tmp_path / name, atoms)
                archive.write(tmp_path / name, name)
    else:
        write(given, crystals)
    out = tmp_path / 'pairs.jsonl'
    result = label(out, source=('--given', given))
    assert result.exit_code == 0, result.output
    pairs = read_pairs(out)
    assert [pair.formula for pair in pairs] == ['NaCl', 'MgO']
    ids = ['@0', '@1'] if form == 'extxyz' else ['@ClNa.cif', '@MgO.cif']
    for k, pair in enumerate(pairs):
        assert pair.id == f'mine{ids[k]}-mine.{form}-{k}'
        assert pair.unrelaxed.cell.volume == pytest.approx(crystals[k].cell.volume)


@pytest.mark.parametrize('form', ['folder', 'lines'])
def test_of_given_pairs_the_unrelaxed_structures_are_taken(tmp_path, form):
    from ase_deeprelax.cli.label import _structures

    halves = bulk('NaCl', 'rocksalt', a=5.4), bulk('NaCl', 'rocksalt', a=5.7)
    given = tmp_path / ('mine' if form == 'folder' else 'mine.jsonl.gz')
    if form == 'folder':
        given.mkdir()
        for role, atoms in zip(('unrelaxed', 'relaxed'), halves, strict=True):
            write(given / f'{role}.extxyz', atoms)
    else:
        write_pairs(given, [make_pair('0', *halves)])
    series = _structures(given, frozenset({11, 17}), {})
    assert (series.name, len(series)) == ('mine', 1)
    id, atoms, problem = series[0]
    assert (id, problem) == ('0', '')
    assert atoms.cell.volume == pytest.approx(halves[0].cell.volume)


@needs_potential
def test_given_file_that_cannot_be_read_is_named(label, tmp_path):
    (tmp_path / 'broken.cif').write_text('data_\n_cell_length_a x\n')
    result = label(tmp_path / 'pairs.jsonl', source=('--given', tmp_path / 'broken.cif'))
    assert result.exit_code == 1
    assert 'broken.cif' in result.output
    assert not (tmp_path / 'pairs.jsonl').exists()


@pytest.fixture(scope='module')
def layers(tmp_path_factory):
    file, atoms = tmp_path_factory.mktemp('layers') / 'layers.jsonl.gz', mx2(vacuum=9)
    record = {'id': 'MoS2', 'formula': 'MoS2', 'src': 'mine', 'pbc': atoms.pbc.tolist()}
    record |= {'numbers': atoms.numbers.tolist(), 'cell': atoms.cell.tolist()}
    other = {'id': 'NbSe2', 'formula': 'NbSe2', 'src': 'other', 'numbers': [41, 34, 34]}
    frac = {'frac': atoms.get_scaled_positions().tolist()}
    with gzip.open(file, 'wt') as lines:
        lines.write(json.dumps(record | frac) + '\n' + json.dumps(record | frac | other))
    return file


@needs_potential
@pytest.mark.parametrize(
    'kind', ['fixed-cell', 'monolayer', 'slab', 'defect', 'layer-defect', 'alloy']
)
def test_each_kind_is_made_and_relaxed_as_it_says(label, seeds, layers, tmp_path, kind):
    out = tmp_path / 'pairs.jsonl'
    in_plane = kind in ('monolayer', 'layer-defect')
    source = ('--relaxed', layers if in_plane else seeds)
    # The last of repeated options counts.
    words = ('--kind', kind, '--count', 3, '--steps', 5, '--fmax', 0.4)
    result = label(out, *words, source=source)
    assert result.exit_code == 0, result.output
    made, lost = records(out), records(out.with_suffix('.failed.jsonl'))
    assert sorted(r['k'] for r in made + lost) == list(range(3))
    assert all(r['series'].startswith(f'{kind}-0-') for r in made + lost)
    for record in made:
        assert record['kind'] == kind
        assert record.get('fixed_cell', False) == (not in_plane and kind != 'alloy')
        if in_plane:
            assert record['cell1'][2] == record['cell0'][2]
            assert record['cell1'][0] != record['cell0'][0]
            assert record['pbc'] == [True, True, False]


@needs_potential
def test_seeds_of_one_collection(label, layers, tmp_path):
    out = tmp_path / 'pairs.jsonl'
    words = ('--kind', 'monolayer', '--source', 'mine', '--count', 3, '--steps', 1)
    result = label(out, *words, source=('--relaxed', layers))
    assert result.exit_code == 0, result.output
    assert len(records(out.with_suffix('.failed.jsonl'))) + len(records(out)) == 3
    result = label(out, *words[:3], 'nobody', '--count', 3, source=('--relaxed', layers))
    assert result.exit_code == 1
    assert "nothing of src 'nobody'; there are: 'mine', 'other'" in result.stderr


@pytest.mark.parametrize(
    ('potential', 'known'),
    [
        ('chgnet', True),
        ('chgnet:r2scan', False),
        ('tensornet', False),
        ('m3gnet:/somewhere/M3GNet-MP-2021.2.8-PES', True),
        ('m3gnet', False),
        ('sevennet:7net-l3i5', True),
        ('mace:/weights/mace-matpes-pbe-omat-ft.model', False),
        ('gpaw', False),
    ],
)
def test_hubbard_u_goes_by_what_the_potential_was_trained_on(potential, known):
    from ase_deeprelax.cli.label import _knows_hubbard

    assert _knows_hubbard(potential) == known


@pytest.mark.parametrize(
    ('words', 'code', 'said'),
    [
        ([], 2, 'either --relaxed or --given'),
        (['--relaxed', 'SEEDS', '--given', 'SEEDS'], 2, 'either --relaxed or --given'),
        (['--relaxed', 'SEEDS'], 2, '--count is missing'),
        (['--relaxed', 'nowhere.gz'], 2, 'nowhere.gz'),
        (['--relaxed', 'SEEDS', '--kind', 'wire'], 2, "'wire' is not one of"),
        (['--given', 'SEEDS', '--potential', 'megnet'], 1, 'megnet'),
        (['--given', 'SEEDS', '--exclude', 'SEEDS'], 1, 'not a list of formulas'),
        (['--given', 'CUT'], 1, 'cut.jsonl.gz: damaged after line 0'),
    ],
)
def test_what_cannot_work_is_named(run, seeds, tmp_path, words, code, said):
    pytest.importorskip('chgnet')
    out = tmp_path / 'pairs.jsonl'
    cut = tmp_path / 'cut.jsonl.gz'
    cut.write_bytes(seeds.read_bytes()[:60])
    files = {'SEEDS': seeds, 'CUT': cut}
    words = [str(files.get(word, word)) for word in words]
    result = run('label', out, '--potential', 'chgnet', '--device', 'cpu', *words)
    assert result.exit_code == code
    assert said in ' '.join(result.stderr.split())
    assert not out.exists()


def test_pairs_go_to_json_lines_only(run, seeds, tmp_path):
    out = tmp_path / 'pairs.jsonl.gz'
    result = run('label', out, '--relaxed', seeds, '--count', 1, '--potential', 'chgnet')
    assert result.exit_code == 2
    assert 'must end in .jsonl' in ' '.join(result.stderr.split())

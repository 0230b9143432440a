"""``deeprelax relax --html``: one page of the answers."""

import hashlib
import json
import re
from html import unescape

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write

from ase_deeprelax import __version__, keys
from ase_deeprelax.report.relax_page import Answer, write_relax_page

pytest.importorskip('matplotlib', reason='matplotlib is not installed')


@pytest.fixture
def files(tmp_path):
    """Three salts, two atoms on one site, and a file that cannot be read."""
    salts = [bulk(name, 'rocksalt', a=5.3) for name in ('NaCl', 'KBr', 'MgO')]
    for seed, atoms in enumerate(salts):
        atoms.rattle(0.05, seed=seed)
    clash = Atoms('NaCl', cell=[5, 5, 5], positions=[[1, 1, 1], [1, 1, 1]], pbc=True)
    write(tmp_path / 'many.extxyz', [*salts, clash])
    (tmp_path / 'broken.cif').write_text('data_x\n_cell_length_a nonsense\n')
    return [tmp_path / 'many.extxyz', tmp_path / 'broken.cif']


def scenes_of(html):
    [script] = re.findall(r'id="scenes">(.*?)</script>', html)
    return {scene['name']: scene for scene in json.loads(script)}


def test_the_page_shows_what_was_written_and_what_failed(run, files, tiny_model, tmp_path):
    out, page = tmp_path / 'out.extxyz', tmp_path / 'new/page.html'
    words = ['--out', out, '--html', page, '--model', tiny_model]
    result = run('relax', *files, *words)
    assert result.exit_code == 1  # for what failed
    assert f'wrote {page}' in result.stderr
    html = page.read_text()
    scenes, written = scenes_of(html), read(out, ':')
    assert list(scenes) == [f'many.extxyz@{k}' for k in range(3)]
    for scene, atoms in zip(scenes.values(), written, strict=True):
        assert scene['notes']['sigma / Å'] == f'{atoms.info[keys.SIGMA]:.3f}'
        assert scene['sigma'] == pytest.approx(atoms.arrays[keys.SIGMA], abs=1e-5)
        assert f'{atoms.info[keys.DMAX]:.3f}' in html
    text = unescape(html)
    for line in result.stderr.splitlines():
        kind, _, problem = line.partition('failed: ')
        assert kind or problem in text
    # first what came out, then where it comes from, then the rest
    top = text[: text.index('<main>')]
    assert '3 structures relaxed, 1 refused' in top
    assert f'predicted with ase_deeprelax {__version__}' in top
    assert written[0].info[keys.SHA256][:12] in top
    assert f'Command: deeprelax relax {files[0]}' in top
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()[:12]
    assert f'many.extxyz, SHA-256 {digest}' in top


def test_a_page_of_refined_structures_has_energies_and_stages(run, tmp_path, tiny_model):
    pytest.importorskip('chgnet', reason="pip install 'ase-deeprelax[chgnet]'")
    start = bulk('MgO', 'rocksalt', a=4.3)
    start.rattle(0.1, seed=0)
    write(tmp_path / 'MgO.extxyz', start)
    words = ['--refine', 'chgnet', '--html', tmp_path / 'p.html', '--model', tiny_model]
    words += ['--device', 'cpu', '--out', tmp_path / 'o']
    result = run('relax', tmp_path / 'MgO.extxyz', *words)
    assert result.exit_code == 0, result.output
    html = (tmp_path / 'p.html').read_text()
    end = read(tmp_path / 'o/MgO.extxyz')
    assert f'<td>{end.get_potential_energy():.4f}</td>' in html
    places = (atoms.get_scaled_positions(wrap=False) for atoms in (end, start))
    moved = np.subtract(*places) @ start.cell.array
    assert f'<td>{np.linalg.norm(moved, axis=1).max():.3f}</td>' in html
    assert re.search(r'>prediction .*chgnet \d+<', unescape(html))
    assert 'did not converge' not in html
    # numbers of the prediction alone say so
    [notes] = [scene['notes'] for scene in scenes_of(html).values()]
    assert 'sigma of prediction / Å' in notes
    assert 'sigma of prediction<span' in html


def test_the_headline_counts_what_did_not_converge(tmp_path):
    salt = bulk('MgO', 'rocksalt', a=4.3)
    answers = {
        status: Answer(
            {'ok': True, 'stages': [{'status': 'converged'}, {'status': status}]},
            salt,
            salt,
        )
        for status in ('converged', 'skipped', 'not converged', 'failed')
    }
    html = write_relax_page(tmp_path / 'page.html', answers, failed=1).read_text()
    assert '4 structures relaxed, 1 refused. 2 did not converge.' in html


def test_a_page_without_an_answer_says_why(run, files, tiny_model, tmp_path):
    page = tmp_path / 'page.html'
    words = ['--html', page, '--model', tiny_model, '--out', tmp_path / 'o']
    assert run('relax', files[1], *words).exit_code == 1
    html = page.read_text()
    assert 'broken.cif' in html
    assert 'canvas' not in html.partition('</style>')[2]


def test_a_molecule_without_a_cell_has_a_row_and_is_not_drawn(tmp_path):
    row = {'formula': 'H2O', 'n_atoms': 3, 'ok': True, 'dmax': 0.1, 'volume_ratio': None}
    answers = {'water': Answer(row, molecule('H2O'), molecule('H2O'))}
    html = write_relax_page(tmp_path / 'page.html', answers).read_text()
    assert '<td>0.100</td>' in html
    assert 'id="scenes"' not in html
    assert 'Model' not in html  # none answered


def test_a_page_is_not_written_to_standard_output(run, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run('relax', files[0], '--html', '-', '--out', 'out')
    assert result.exit_code == 2
    assert 'a page is written to a file' in result.stderr
    assert not (tmp_path / '-').exists()
    assert not (tmp_path / 'out').exists()


def test_a_page_that_cannot_be_written_is_told_before_the_work(
    run, files, tiny_model, tmp_path
):
    page, out = files[0] / 'page.html', tmp_path / 'out'
    result = run('relax', files[0], '--html', page, '--model', tiny_model, '--out', out)
    assert result.exit_code == 1
    assert str(files[0]) in result.stderr
    assert not out.exists()

import base64
import copy
import csv
import io
import itertools
import json
import os
import re
import shutil
from html import escape, unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_deeprelax.compare.comparison_tables import comparison_text
from ase_deeprelax.compare.evaluate import cuts, evaluate
from ase_deeprelax.compare.savings import compare
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.data.pairs import make_pair
from ase_deeprelax.errors import ConfigError, DeepRelaxWarning
from ase_deeprelax.models.store import load_model
from ase_deeprelax.predict import relax
from ase_deeprelax.report import accuracy, comparison, viewer_data
from ase_deeprelax.report import relaxations as report_relaxations
from ase_deeprelax.report.headlines import of_comparison, of_evaluation
from ase_deeprelax.report.html import embedded, write_page, write_report
from ase_deeprelax.report.html_blocks import Section

NASTY = '</script><b>x</b> & "quotes" $\\alpha$'
CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'google-chrome', 'chrome'))), None
)
DRIVER = shutil.which('chromedriver')
FLAGS = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    # Nothing on the page may need it: names of hosts lead nowhere.
    '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost',
    '--window-size=1200,900',
)


def crystals():
    rocksalt = bulk('MgO', 'rocksalt', a=4.3, cubic=True)
    rocksalt.rattle(0.1, seed=0)
    perovskite = Atoms(
        'SrTiO3',
        scaled_positions=[
            (0, 0, 0),
            (0.5, 0.5, 0.5),
            (0.5, 0.5, 0),
            (0.5, 0, 0.5),
            (0, 0.5, 0.5),
        ],
        cell=3 * [3.9],
        pbc=True,
    )
    perovskite.rattle(0.05, seed=1)
    overlapping = Atoms('H2', positions=[(0, 0, 0), (0, 0, 0.01)], cell=3 * [4], pbc=True)
    slab = fcc111('Cu', (2, 2, 3), vacuum=8)
    slab.set_constraint(FixAtoms(mask=slab.get_tags() == 3))
    many = bulk('Cu', cubic=True) * (5, 5, 2)
    many.rattle(0.05, seed=2)
    return {
        'MgO': rocksalt,
        NASTY: perovskite,
        'refused': overlapping,
        'one atom': bulk('Cu'),
        'many': many,
        'slab': slab,
    }


@pytest.fixture(scope='module')
def relaxations(tiny_model):
    atoms = crystals()
    with pytest.warns(DeepRelaxWarning, match='200 atoms'):
        results = relax(list(atoms.values()), model=tiny_model, symmetry='free')
    return dict(zip(atoms, results, strict=True))


@pytest.fixture(scope='module')
def page(relaxations, tmp_path_factory):
    return write_report(
        tmp_path_factory.mktemp('page') / 'new/report.html', relaxations=relaxations
    )


class Reader(HTMLParser):
    """Elements of a page in order, and the text of each kind of them."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.text = [], [], {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)
        self.text.setdefault(tag, []).append('')

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1]][-1] += data


def scenes_of(html):
    [script] = re.findall(
        r'<script type="application/json" id="scenes">(.*?)</script>', html
    )
    return json.loads(script)


json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=40)
@given(json_data)
def test_no_text_ends_the_script_it_is_embedded_in(data):
    text = embedded(data)
    assert json.loads(text) == data
    assert not set('<>&') & set(text)


def test_names_are_text_wherever_they_stand(page):
    html = page.read_text()
    read = Reader(html)
    assert '<b>' not in html
    assert [tag for tag, _ in read.elements].count('script') == 3
    assert NASTY in [scene['name'] for scene in scenes_of(html)]
    assert NASTY in read.text['option']
    assert NASTY in read.text['button']


def test_nothing_is_loaded_from_elsewhere(page):
    elements = Reader(page.read_text()).elements
    policy = next(a['content'] for tag, a in elements if a.get('http-equiv'))
    assert policy.startswith("default-src 'none'")
    assert 'http' not in policy
    assert not any({'src', 'action', 'data'} & attrs.keys() for _, attrs in elements)
    assert {tag for tag, _ in elements}.isdisjoint({'link', 'iframe', 'base', 'img'})
    assert all(a['href'].startswith('#') for _, a in elements if 'href' in a)


def test_a_screen_reader_and_a_keyboard_reach_all_of_it(full_page, evaluated):
    for path, _ in (full_page, evaluated):
        read = Reader(path.read_text())
        assert all(text.strip() for text in read.text['th'])
        by_class = [(a.get('class', ''), a) for tag, a in read.elements if tag == 'div']
        moved = [a for name, a in by_class if name.startswith(('scroll', 'pan'))]
        assert moved
        assert all(a['tabindex'] == '0' and a['aria-label'] for a in moved)


def test_what_was_refused_is_in_the_table_with_its_reason(page, relaxations):
    html = page.read_text()
    assert 'refused' not in [scene['name'] for scene in scenes_of(html)]
    rows = re.findall(r'<tr>(.*?)</tr>', html, re.DOTALL)
    [row] = [row for row in rows if '>refused</td>' in row]
    assert relaxations['refused'].problem[:20] in row


def test_the_headline_and_where_it_comes_from_stand_first(page, full_page, evaluated):
    html = page.read_text()
    assert html.index('5 structures relaxed, 1 refused') < html.index('<main>')
    assert 'SHA-256' in html
    assert re.search(r'Written by ase_deeprelax \S+ on \d{4}-\d\d-\d\d; Python', html)
    path, found = full_page
    [row] = found['summary']
    share = 100 * row['both']['median_calls_ratio']
    line = f'{share:.0f} % of the calls with the prediction'
    assert f'emt with {row["optimizer"]}: {line}' in path.read_text()
    path, found = evaluated
    cut = cuts(found['all'], 'model')['lattice_mae']['median']
    assert f'{cut:z.0f} % of the error of the lattice' in path.read_text()


def test_a_comparison_shows_what_is_fixed_and_which_weights_answered(tmp_path, tiny_model):
    pytest.importorskip('matplotlib', reason='matplotlib is not installed')
    slab = fcc111('Cu', (1, 1, 4), vacuum=8)
    slab.set_constraint(FixAtoms([0, 1]))
    found = compare({'slab': slab}, EMT(), model=tiny_model, steps=2)
    html = write_report(tmp_path / 'page.html', comparison=found).read_text()
    [scene] = scenes_of(html)
    assert scene['fixed'] == [True, True, False, False]
    assert scene['notes']['atoms'] == '4, 2 of them fixed'
    assert [one['pbc'] for one in scene['files']] == 2 * [slab.pbc.tolist()]
    assert f'SHA-256 {load_model(tiny_model).sha256[:12]}' in html


def test_a_path_is_no_comparison(tmp_path):
    with pytest.raises(TypeError, match=r"str 'found\.json'; give the dictionary"):
        write_report(tmp_path / 'page.html', comparison='found.json')


def test_results_in_the_place_of_others_are_named(
    tmp_path, full_page, evaluated, relaxations
):
    path, (_, compared), (_, errors) = tmp_path / 'page.html', full_page, evaluated
    with pytest.raises(TypeError, match=r"comparison has no 'runs'; give what compare\(\)"):
        write_report(path, errors)
    with pytest.raises(TypeError, match=r"evaluation has no 'all'; give what evaluate\(\)"):
        write_report(path, evaluation=compared)
    with pytest.raises(TypeError, match=r'of type list; give relaxations as write_report'):
        write_report(path, list(relaxations.values()))
    assert not path.exists()


def test_the_headline_counts_what_did_not_converge(full_page):
    _, found = full_page
    [row] = found['summary']
    n = row['both']['n']
    some = {**found, 'summary': [{**row, 'n': n + 3}]}
    [line] = of_comparison(some)
    assert line.endswith(f'of {n} structures that converged from both starts; 3 did not.')
    none = {**found, 'summary': [{**row, 'both': row['both'] | {'n': 0}}]}
    assert of_comparison(none) == [
        'emt with FIRE: no structure converged from both starts.'
    ]


def test_the_headline_of_a_model_that_gains_nothing_has_no_minus_zero(evaluated):
    worse = copy.deepcopy(evaluated[1])
    for name in ('coord_mae', 'lattice_mae'):
        dummy = worse['all']['dummy'][name]
        worse['all']['model'][name] = {key: 1.003 * x for key, x in dummy.items()}
    [line] = of_evaluation(worse)
    assert 'takes away 0 % of the error of the positions and 0 % of' in line


def test_all_refused_leaves_no_viewer(tmp_path, relaxations):
    path = write_report(tmp_path / 'r.html', relaxations=[relaxations['refused']])
    assert 'canvas' not in [tag for tag, _ in Reader(path.read_text()).elements]
    assert 'H, 0' in path.read_text()


def test_of_many_relaxations_the_least_certain_ones_are_shown(
    tmp_path, relaxations, monkeypatch
):
    monkeypatch.setattr(report_relaxations, 'MOST_ROWS', 2)
    html = write_report(tmp_path / 'r.html', relaxations=relaxations).read_text()
    good = {name: one for name, one in relaxations.items() if one.ok}
    shown = sorted(good, key=lambda name: -good[name].sigma)[:2]
    assert [scene['name'] for scene in scenes_of(html)] == shown
    table, failed = (table_rows(part) for part in html.split('Failures')[:2])
    assert [row[0] for row in table] == shown
    assert '2 of 6' in html
    assert '5 structures relaxed, 1 refused' in html
    assert failed[0][0].startswith(f'refused: {relaxations["refused"].problem[:20]}')


def test_what_is_drawn_is_the_relaxation(page, relaxations):
    for scene in scenes_of(page.read_text()):
        result = relaxations[scene['name']]
        np.testing.assert_allclose(scene['move'], result.displacement, atol=1e-5)
        np.testing.assert_allclose(scene['deformation'], result.deformation, atol=1e-6)
        np.testing.assert_allclose(scene['sigma'], result.sigma_atoms, atol=1e-5)
        assert scene['notes']['sigma / Å'] == f'{result.sigma:.3f}'


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='nothing to report'):
        write_report(tmp_path / 'r.html')


def test_what_is_no_relaxation_is_named(tmp_path, relaxations):
    given = {'MgO': relaxations['MgO'], 'Cu': bulk('Cu')}
    with pytest.raises(TypeError, match=r"'Cu' is of type Atoms; give what relax\(\)"):
        write_report(tmp_path / 'r.html', relaxations=given)
    with pytest.raises(TypeError, match=r'relaxations: 0 is of type Atoms'):
        write_report(tmp_path / 'r.html', relaxations=[bulk('Cu')])


def test_one_relaxation_needs_no_list(tmp_path, relaxations):
    path = write_report(tmp_path / 'r.html', relaxations=relaxations['MgO'])
    assert [scene['name'] for scene in scenes_of(path.read_text())] == ['MgO, 0']


def test_names_of_files_need_not_be_utf8(tmp_path, relaxations):
    name = os.fsdecode(b'caf\xe9.cif')
    path = tmp_path / 'r.html'
    path.symlink_to(tmp_path / 'real.html')
    write_report(path, relaxations={name: relaxations['MgO']}, provenance=[name])
    html = path.read_text()
    assert html.count(r'caf\udce9.cif') >= 4  # list, table, provenance, data
    assert path.is_symlink()


def test_a_page_that_cannot_be_written_leaves_the_former_one(
    tmp_path, relaxations, monkeypatch
):
    path = write_report(tmp_path / 'r.html', relaxations=relaxations)
    former = path.read_text()

    def full(_):
        raise OSError('no space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='no space'):
        write_report(path, relaxations=relaxations['MgO'])
    assert path.read_text() == former
    assert list(tmp_path.iterdir()) == [path]


def table_rows(html):
    """The texts of the cells of each row of each table."""
    cell = re.compile('<td[^>]*>(.*?)</td>', re.DOTALL)
    rows = [cell.findall(row) for row in re.findall('<tr>(.*?)</tr>', html, re.DOTALL)]
    return [[unescape(re.sub('<[^>]*>', '', text)) for text in row] for row in rows if row]


@pytest.fixture(scope='module')
def evaluated(tiny_model, tmp_path_factory):
    """A page with enough structures for a table that sorts, and what it was made from."""
    pytest.importorskip('matplotlib', reason='matplotlib is not installed')
    relaxed = bulk('MgO', 'rocksalt', a=4.25)
    pairs = [
        make_pair(f'p{k}', bulk('MgO', 'rocksalt', a=4.1 + 0.017 * k), relaxed, ok=k > 0)
        for k in range(14)
    ]
    found = evaluate(pairs, tiny_model, device='cpu')
    path = write_report(tmp_path_factory.mktemp('pairs') / 'r.html', evaluation=found)
    return path, found


def test_an_evaluation_is_a_table_of_all_methods(evaluated):
    path, found = evaluated
    html = path.read_text()
    cells = {cell for row in table_rows(html) for cell in row}
    for part in ('all', 'ok'):
        for method, figures in found[part].items():
            below = cuts(found[part], method) if method != 'dummy' else {}
            for value in figures.values():
                if isinstance(value, dict):
                    assert f'{value["mean"]:.4f} / {value["median"]:.4f}' in cells
                else:
                    assert f'{value:.4f}' in cells
            for cut in filter(None, below.values()):  # None: the input is right
                assert f'{cut["mean"]:z.1f} / {cut["median"]:z.1f}' in cells
    captions = Reader(html).text['caption']
    assert captions[0].startswith('All 14 pairs: mean / median of errors (Å, Å², Å³)')
    assert captions[1].startswith('13 pairs marked ok: mean / median of errors (Å,')
    # distributions, lattice parameters, calibration, risk and coverage
    assert [tag for tag, _ in Reader(html).elements].count('figure') == 4
    # figures come before the long table of structures, which has a heading of its own
    assert html.index('<figure') < html.index('worst coordinates first</caption>')


def test_where_all_cells_are_fixed_no_figure_shows_cells(tmp_path, tiny_model):
    pytest.importorskip('matplotlib', reason='matplotlib is not installed')
    slab, end = (fcc111('Cu', (1, 1, 4), vacuum=8) for _ in range(2))
    slab.rattle(0.05, seed=0)
    for atoms in (slab, end):
        atoms.set_constraint(FixAtoms([0]))
    pair = make_pair('slab', slab, end, fixed_cell=True)
    evaluation = evaluate(pair, tiny_model, device='cpu')
    found = compare({'slab': slab}, EMT(), model=tiny_model, steps=2)
    for result in ({'evaluation': evaluation}, {'comparison': found}):
        html = write_report(tmp_path / 'r.html', **result).read_text()
        assert '<figure' in html
        assert 'Lattice parameters' not in html


def test_structures_in_the_viewer_are_not_taken_for_all(evaluated, relaxations, tmp_path):
    shown = {'MgO': relaxations['MgO']}
    path = write_report(tmp_path / 'r.html', evaluation=evaluated[1], relaxations=shown)
    captions = Reader(path.read_text()).text['caption']
    assert captions[0] == 'Some of the pairs'
    assert 'All relaxations' not in captions


def test_each_structure_is_a_row_the_worst_first(evaluated, monkeypatch, tmp_path):
    path, found = evaluated
    worst = sorted(
        found['structures'], key=lambda row: -row['errors']['model']['coord_mae']
    )
    rows = [row for row in table_rows(path.read_text()) if row[0].startswith('p')]
    assert [row[0] for row in rows] == [one['id'] for one in worst]
    for row, one in zip(rows, worst, strict=True):
        assert row[1:5] == ['MgO', 'bulk', '2', f'{one["sigma"]["model"]:.3f}']
        assert f'{one["errors"]["model"]["volume_mae"]:.2f}' in row
        assert row[-1] == ('no' if one['id'] == 'p0' else 'yes')
    monkeypatch.setattr(accuracy, 'MOST_ROWS', 5)
    html = write_report(tmp_path / 'r.html', evaluation=found).read_text()
    assert sum(row[0].startswith('p') for row in table_rows(html)) == 5
    assert 'worst coordinates first; 5 of 14' in html


@pytest.fixture(scope='module')
def full_page(tmp_path_factory):
    """With all that a report can hold."""
    for package in ('matplotlib', 'phonopy'):
        pytest.importorskip(package, reason=f'{package} is not installed')
    from ase_deeprelax.compare.phonons import compare_phonons

    def nearer(structures):
        return [bulk(str(atoms.symbols), 'fcc', a=3.62) for atoms in structures]

    copper = {'Cu </script>': bulk('Cu', a=3.8), 'Al': bulk('Al', a=4.2)}
    found = compare(copper, {'emt': EMT()}, model=nearer)
    one = {**found, 'structures': found['structures'][:1]}
    found['phonons'] = compare_phonons(one, {'emt': EMT()}, min_length=4.0)
    return write_report(tmp_path_factory.mktemp('full') / 'r.html', found), found


def test_a_comparison_brings_tables_figures_and_the_viewer(full_page):
    path, found = full_page
    html = path.read_text()
    names = [scene['name'] for scene in scenes_of(html)]
    assert names == ['Cu, Cu </script>', 'Al']
    both = found['summary'][0]['both']
    assert f'{100 * both["median_calls_ratio"]:.0f} %' in html
    for id in found['summary'][0]['both']['higher_structures']:
        assert re.search(rf'ended higher for .*: .*{re.escape(escape(id))}', html)
    tags = [tag for tag, _ in Reader(html).elements]
    # calls, energies, convergence, lattices; bands and thermal properties
    assert tags.count('svg') == 6
    assert tags.count('script') == 3


def test_of_many_structures_the_bad_and_the_least_certain_ones_are_shown(
    full_page, tmp_path, monkeypatch
):
    _, found = full_page
    many = {**found, 'structures': [], 'predictions': [], 'runs': []}
    del many['phonons']
    for k in range(9):  # Al again and again: 5 did not converge, 8 is the least certain
        many['structures'].append({**found['structures'][1], 'id': f'Al{k}', 'sigma': k})
        many['predictions'].append({**found['predictions'][1], 'structure': f'Al{k}'})
        for run in found['runs']:
            if run['structure'] == 'Al':
                ends = run | {'structure': f'Al{k}', 'converged': k != 5}
                many['runs'].append(ends)
    summary = {**found['summary'][0]}
    summary['both'] = summary['both'] | {'higher_structures': ['Al2']}
    many['summary'] = [summary]
    monkeypatch.setattr(comparison, 'MOST_STRUCTURES', 3)
    html = write_report(tmp_path / 'r.html', many).read_text()
    shown = ['Al, Al2', 'Al, Al5', 'Al, Al8']
    assert [scene['name'] for scene in scenes_of(html)] == shown
    names = [row[0] for row in table_rows(html) if row[0].startswith('Al, ')]
    assert names == [name for name in shown for _ in (0, 1)] + shown
    assert 'show 3 of 9 structures' in html


def test_a_report_says_all_that_the_text_says(full_page):
    path, found = full_page
    rows = table_rows(path.read_text())
    cells = {cell for row in rows for cell in row}
    for line in comparison_text(found).splitlines():
        calculator, *values = re.split(' {2,}', line)
        if calculator == 'emt':
            assert {value for value in values if value != '-'} <= cells
    [summary] = found['summary']
    alone = summary['alone']
    [cost, end, *_] = [row for row in rows if row[2] == 'prediction alone']
    assert cost[5] == str(alone['failed'])
    assert cost[-1].startswith(f'{alone["seconds"]["median"]:.2f} (')
    for row, energies in (
        (end, alone['energy_difference']),
        (rows[rows.index(end) + 1], summary['both']['energy_difference']),
    ):
        low, middle, high = (1000 * energies[key] for key in ('q25', 'median', 'q75'))
        assert row[4] == f'{middle:z.1f} ({low:z.1f} to {high:z.1f})'


def test_results_of_the_version_before_are_drawn_and_later_ones_refused(
    full_page, evaluated, tmp_path
):
    path, found = full_page
    _, evaluation = evaluated
    before = {key: value for key, value in found.items() if key != 'version'}
    # Read from a file, as they usually are.
    again = write_report(tmp_path / 'r.html', json.loads(json.dumps(before)))
    assert table_rows(again.read_text()) == table_rows(path.read_text())
    for later in (
        {'comparison': {**found, 'version': 99}},
        {'evaluation': {**evaluation, 'version': 99}},
    ):
        with pytest.raises(ConfigError, match='version 99'):
            write_report(tmp_path / 'later.html', **later)
    assert not (tmp_path / 'later.html').exists()


def test_a_column_stands_where_there_is_something_in_it(full_page, tmp_path):
    path, found = full_page
    head = 'RMSD to reference'
    assert head not in path.read_text()
    known = copy.deepcopy(found)
    known['predictions'][0]['rmsd_to_reference'] = 0.123
    html = write_report(tmp_path / 'r.html', known).read_text()
    assert Reader(html).text['th'].count(head) == 1
    assert '<td>0.123</td>' in html


# --- in a real browser


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    webdriver = pytest.importorskip(
        'selenium.webdriver', reason='selenium is not installed'
    )
    if CHROMIUM is None or DRIVER is None:
        pytest.skip('chromium and chromedriver are not installed (apt: chromium-driver)')
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f'--user-data-dir={tmp_path_factory.mktemp("profile")}'):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def viewer(browser, page):
    browser.get(page.as_uri())
    return Viewer(browser)


class Viewer:
    """The page, as hands and eyes use it."""

    def __init__(self, browser):
        from selenium.webdriver.common.action_chains import ActionChains

        self.browser = browser
        self.hands = ActionChains(browser, duration=20)
        self.canvas = self.find('view')
        browser.execute_script('arguments[0].scrollIntoView()', self.canvas)
        self.settle()

    def find(self, id):
        return self.browser.find_element('id', id)

    def settle(self):
        """Wait until the canvas is painted."""
        self.browser.execute_async_script(
            'const done = arguments[0];'
            'requestAnimationFrame(() => requestAnimationFrame(done));'
        )

    def choose(self, list_id, text):
        from selenium.webdriver.support.select import Select

        Select(self.find(list_id)).select_by_visible_text(text)
        self.settle()

    def slide(self, id, value):
        self.browser.execute_script(
            'arguments[0].value = arguments[1];'
            'arguments[0].dispatchEvent(new Event("input"));',
            self.find(id),
            value,
        )
        self.settle()

    def point(self, x, y):
        """Move the mouse to a place on the canvas, in pixels from its corner."""
        size = self.canvas.size
        dx, dy = x - size['width'] / 2, y - size['height'] / 2
        self.hands.move_to_element_with_offset(self.canvas, round(dx), round(dy)).perform()
        self.settle()

    def drag(self, dx, dy):
        self.hands.move_to_element(self.canvas).click_and_hold()
        for _ in range(5):
            self.hands.move_by_offset(dx // 5, dy // 5)
        self.hands.release().perform()
        self.settle()

    def sites(self, atom):
        """Where the sites of an atom are painted, (n, 2)."""
        sites = self.browser.execute_script(f'return sitesOnScreen({atom})')
        return np.array([(site['x'], site['y']) for site in sites])

    def all_sites(self, n_atoms):
        return np.vstack([self.sites(atom) for atom in range(n_atoms)])

    def front(self, n_atoms):
        """An atom that nothing hides, and where it is painted."""
        sites = self.browser.execute_script(
            f'return Array.from({{length: {n_atoms}}}, (_, k) => sitesOnScreen(k)).flat()'
        )
        site = max(sites, key=lambda site: site['z'])
        return site['atom'], site['x'], site['y']

    def picture(self):
        url = self.browser.execute_script('return arguments[0].toDataURL()', self.canvas)
        return base64.b64decode(url.partition(',')[2])


@pytest.mark.parametrize('name', ['MgO', NASTY, 'one atom', 'many'])
def test_a_value_read_off_the_page_is_that_of_the_relaxation(viewer, relaxations, name):
    result = relaxations[name]
    viewer.choose('structure', name)
    assert viewer.find('name').text == name
    atom, x, y = viewer.front(len(result.atoms))
    viewer.point(x, y)
    moved = np.linalg.norm(result.displacement[atom])
    tip = viewer.find('tip')
    assert tip.is_displayed()
    assert tip.text == (
        f'{result.atoms.symbols[atom]}, atom {atom}: moved {moved:.3f} Å, '
        f'sigma {result.sigma_atoms[atom]:.3f} Å'
    )
    assert viewer.find('readout').text == tip.text


def test_a_drag_turns_the_crystal_without_changing_it(viewer):
    viewer.choose('structure', 'MgO')
    before, picture = viewer.all_sites(8), viewer.picture()
    viewer.drag(120, 0)
    after = viewer.all_sites(8)
    # about the upright axis: up and down stays, but for the perspective; left and right not
    assert np.abs(after - before)[:, 0].max() > 30
    assert np.abs(after - before)[:, 1].max() < np.abs(after - before)[:, 0].max() / 2
    assert viewer.picture() != picture
    viewer.drag(-120, 0)
    back = viewer.all_sites(8)
    np.testing.assert_allclose(back, before, atol=0.5)


def test_the_front_follows_the_hand(viewer):
    viewer.choose('structure', 'MgO')
    atom, x, y = viewer.front(8)
    nearest = np.abs(viewer.sites(atom) - (x, y)).sum(axis=1).argmin()
    viewer.drag(30, 20)
    dx, dy = viewer.sites(atom)[nearest] - (x, y)
    assert dx > 5
    assert dy > 5


def test_the_wheel_zooms(viewer):
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    before = np.ptp(viewer.all_sites(8), axis=0)
    viewer.hands.scroll_from_origin(
        ScrollOrigin.from_element(viewer.canvas), 0, -300
    ).perform()
    viewer.settle()
    ratio = np.ptp(viewer.all_sites(8), axis=0) / before
    np.testing.assert_allclose(ratio, np.exp(0.5), rtol=1e-3)


def test_the_keyboard_turns_and_zooms(viewer):
    from selenium.webdriver.common.keys import Keys

    before = viewer.all_sites(8)
    viewer.canvas.send_keys(Keys.ARROW_LEFT)
    viewer.settle()
    turned = viewer.all_sites(8)
    viewer.canvas.send_keys('+')
    viewer.settle()
    assert np.abs(turned - before).max() > 10
    assert np.ptp(viewer.all_sites(8)) > 1.1 * np.ptp(turned)


def test_the_slider_leads_from_the_input_to_the_answer(viewer, relaxations):
    """Down the third vector, distances on the screen are those in the crystal."""
    result = relaxations['MgO']
    viewer.choose('structure', 'MgO')
    viewer.browser.find_element('css selector', '[data-along=c]').click()
    viewer.settle()
    for value, atoms in ((0, result.initial), (1, result.atoms)):
        viewer.slide('time', value)
        sites = viewer.browser.execute_script('return sitesOnScreen(3)')
        seen = np.array([[site[k] for k in 'xyz'] for site in sites])
        # undo the perspective: pixels over pixels per A
        flat = (
            seen[:, :2]
            - np.array([viewer.canvas.size['width'], viewer.canvas.size['height']]) / 2
        )
        flat /= np.array([site['scale'] for site in sites])[:, None]
        frac = np.linalg.solve(atoms.cell.array.T, atoms.positions[3])
        places = (frac % 1 - 0.5) @ atoms.cell.array
        down = result.initial.cell.array[2] / np.linalg.norm(result.initial.cell.array[2])
        flat_length = np.linalg.norm(places - (places @ down) * down)
        assert np.abs(np.linalg.norm(flat, axis=1) - flat_length).min() < 0.02


def test_exaggeration_moves_atoms_further_and_the_slider_back(viewer):
    viewer.choose('structure', 'MgO')
    once = viewer.sites(0)
    viewer.slide('factor', 20)
    assert viewer.find('times').text == '\N{MULTIPLICATION SIGN} 20'
    assert np.abs(viewer.sites(0) - once).max() > 5
    viewer.slide('time', 0)
    start = viewer.sites(0)
    viewer.slide('factor', 1)
    np.testing.assert_allclose(viewer.sites(0), start)


def test_the_picture_is_painted_when_a_hidden_page_is_seen_at_last(browser, page, tmp_path):
    frame = f'<iframe src="{page.as_uri()}" width="1000" height="800" hidden></iframe>'
    (tmp_path / 'outer.html').write_text(frame)
    browser.get_log('browser')
    browser.get((tmp_path / 'outer.html').as_uri())
    frame = browser.find_element('tag name', 'iframe')
    browser.execute_script('arguments[0].hidden = false', frame)
    browser.switch_to.frame(frame)
    try:
        viewer = Viewer(browser)
        viewer.settle()
        sites, size = viewer.all_sites(8), viewer.canvas.size
        assert (sites > 0).all()
        assert (sites < [size['width'], size['height']]).all()
        assert np.ptp(sites, axis=0).max() > 0.5 * min(size.values())
    finally:
        browser.switch_to.default_content()
    assert browser.get_log('browser') == []


def test_what_is_exaggerated_stays_before_the_eye(browser, tmp_path):
    cell = Atoms('H6', cell=3 * [3.0], pbc=True)
    after = cell.copy()
    after.positions += 2 * np.vstack([np.eye(3), -np.eye(3)])
    page = write_page(
        tmp_path / 'r.html', 'far', [], [viewer_data.scene('far', cell, after)], []
    )
    browser.get_log('browser')
    browser.get(page.as_uri())
    viewer = Viewer(browser)
    viewer.slide('factor', 20)
    for atom in range(6):
        for site in browser.execute_script(f'return sitesOnScreen({atom})'):
            assert site['r'] > 0
    assert browser.get_log('browser') == []


def test_lines_show_what_colours_show(viewer, relaxations):
    """The displacement without the strain: none where only the cell changes."""
    result = relaxations['one atom']
    assert abs(result.volume_ratio - 1) > 1e-3
    viewer.choose('structure', 'one atom')
    viewer.slide('time', 0)
    before = viewer.sites(0)
    viewer.slide('time', 1)
    assert np.abs(viewer.sites(0) - before).max() > 0.5
    for site in viewer.browser.execute_script('return sitesOnScreen(0)'):
        assert np.hypot(site['x'] - site['from']['x'], site['y'] - site['from']['y']) < 1e-6
    viewer.choose('structure', 'MgO')
    viewer.browser.find_element('css selector', '[data-along=c]').click()
    viewer.settle()
    moved = relaxations['MgO'].displacement @ relaxations['MgO'].deformation
    for atom in range(8):
        for site in viewer.browser.execute_script(f'return sitesOnScreen({atom})'):
            line = [site[k] - site['from'][k] for k in 'xy']
            # Down the third vector, the line is as long as the displacement across it; a
            # little perspective remains.
            length = np.hypot(*line) / site['scale']
            assert length == pytest.approx(np.hypot(*moved[atom, :2]), abs=0.05)


def test_the_colour_bar_has_the_ends_of_what_it_shows(viewer, relaxations):
    result = relaxations['MgO']
    viewer.choose('structure', 'MgO')
    by_displacement = viewer.picture()
    assert viewer.find('low').text == '0.000 Å'
    assert viewer.find('high').text == f'{result.dmax:.3f} Å'
    viewer.choose('colour', 'uncertainty (sigma)')
    low, high = min(result.sigma_atoms), max(result.sigma_atoms)
    assert viewer.find('low').text == f'{low:.3f} Å'
    assert viewer.find('high').text == f'{max(high, low + 1e-3):.3f} Å'
    assert viewer.picture() != by_displacement
    viewer.choose('colour', 'element')
    assert not viewer.find('bar').is_displayed()
    assert viewer.find('elements').text.split() == ['O', 'Mg']


def test_noise_has_no_colours(browser, relaxations, tmp_path):
    same = relaxations['MgO']
    sigma = np.linspace(0.01, 0.010002, 8)
    drawn = viewer_data.scene('MgO', same.initial, same.atoms, sigma)
    browser.get(write_page(tmp_path / 'r.html', 'noise', [], [drawn], []).as_uri())
    viewer = Viewer(browser)
    viewer.choose('colour', 'uncertainty (sigma)')
    colours = [browser.execute_script(f'return sitesOnScreen({k})[0].rgb') for k in (0, 7)]
    np.testing.assert_allclose(*colours, atol=2)
    assert viewer.find('high').text == '0.011 Å'


def test_fixed_atoms_are_marked_and_explained(viewer, relaxations):
    viewer.choose('structure', 'MgO')
    assert not viewer.find('fixed').is_displayed()
    viewer.choose('structure', 'slab')
    assert viewer.find('fixed').text == 'fixed atoms'
    held = relaxations['slab'].initial.constraints[0].index
    for atom in range(12):
        sites = viewer.browser.execute_script(f'return sitesOnScreen({atom})')
        assert all(site['fixed'] == (atom in held) for site in sites)
    lowest = max(viewer.sites(held[0]), key=lambda site: site[1])
    viewer.point(*lowest)
    assert viewer.find('tip').text.split(': ')[1].startswith('moved 0.000 Å, fixed')


def test_a_layer_is_drawn_as_wide_as_it_is(viewer, relaxations):
    """Seen from the side, it fills the canvas; with its vacuum it would be a stripe."""
    viewer.choose('structure', 'slab')
    viewer.browser.find_element('css selector', '[data-along=a]').click()
    viewer.settle()
    sites = viewer.all_sites(12)
    thickness = np.ptp(relaxations['slab'].atoms.positions[:, 2])
    [site, *_] = viewer.browser.execute_script('return sitesOnScreen(0)')
    assert np.ptp(sites[:, 1]) == pytest.approx(thickness * site['scale'], rel=0.3)
    size = viewer.canvas.size
    used = max(np.ptp(sites[:, 0]) / size['width'], np.ptp(sites[:, 1]) / size['height'])
    assert used > 0.5


def test_the_table_of_atoms_and_the_links_into_the_viewer(viewer, relaxations):
    [button] = [
        button
        for button in viewer.browser.find_elements('css selector', '[data-scene]')
        if button.text == NASTY
    ]
    button.click()
    viewer.settle()
    assert viewer.find('name').text == NASTY
    rows = viewer.find('atoms').get_property('textContent')
    for moved in np.linalg.norm(relaxations[NASTY].displacement, axis=1):
        assert f'{moved:.3f} Å' in rows


def test_a_click_on_a_head_sorts_the_rows(browser, evaluated):
    path, found = evaluated
    browser.get(path.as_uri())

    def seen():
        return browser.execute_script(
            'return [...document.querySelectorAll("[data-sorts] tbody tr")]'
            '.map((row) => [...row.cells].map((cell) => cell.textContent))'
        )

    before = seen()
    heads = browser.find_elements('css selector', '[data-sorts] th')
    for name, convert in (('volume_mae', float), ('structure', str)):
        [place] = [k for k, head in enumerate(heads) if head.text.startswith(name)]
        for reverse in (True, False):
            heads[place].find_element('tag name', 'button').click()
            keys = [convert(row[place]) for row in seen()]
            assert keys == sorted(keys, reverse=reverse)
        assert heads[place].get_attribute('aria-sort') == 'ascending'
    # rows stay together, and one head alone says what the order is
    assert sorted(seen()) == sorted(before)
    assert len(browser.find_elements('css selector', '[aria-sort]')) == 1
    assert len(before) == found['n']


def test_numbers_with_thousands_are_sorted_as_numbers(browser, tmp_path):
    rows = [[f'reason {n}', f'{n:,}'] for n in (9, 1200, 15, 999, 34567, *range(10))]
    table = Table(['reason', 'structures'], rows, (0,), 'Quarantine')
    page = write_page(tmp_path / 'r.html', 'r', [], [], [Section('Left out', [], [table])])
    browser.get(page.as_uri())
    browser.find_elements('css selector', '[data-sorts] th button')[1].click()
    shown = browser.execute_script(
        'return [...document.querySelectorAll("[data-sorts] tbody tr")]'
        '.map((row) => row.cells[1].textContent)'
    )
    assert shown[:5] == ['34,567', '1,200', '999', '15', '9']


SAVED = (
    'window.saved = []; URL.createObjectURL = (blob) => { saved.push(blob); return "#"; };'
)
LAST = 'const done = arguments[0]; saved.at(-1).text().then(done);'


def test_tables_and_structures_are_saved_as_they_are_shown(viewer, relaxations):
    viewer.browser.execute_script(SAVED)
    for name, form in itertools.product(('MgO', 'slab'), ('extxyz', 'cif')):
        viewer.choose('structure', name)
        viewer.browser.execute_script(f'document.querySelector("#save-{form}").click()')
        text = viewer.browser.execute_async_script(LAST)
        frames = read(io.StringIO(text), ':', format=form)
        expected = relaxations[name].initial, relaxations[name].atoms
        for frame, atoms in zip(frames, expected, strict=True):
            cells = frame.cell.cellpar(), atoms.cell.cellpar()
            np.testing.assert_allclose(*cells, atol=1e-4)
            np.testing.assert_array_equal(frame.numbers, atoms.numbers)
            # A CIF knows no other.
            whole = [True] * 3 if form == 'cif' else atoms.pbc.tolist()
            assert frame.pbc.tolist() == whole
            same = frame, Atoms(atoms, pbc=whole)
            distances = (x.get_all_distances(mic=True) for x in same)
            np.testing.assert_allclose(*distances, atol=1e-3)
    viewer.browser.execute_script(
        '[...document.querySelectorAll("button.csv")].at(-1).click()'
    )
    rows = list(csv.reader(viewer.browser.execute_async_script(LAST).splitlines()))
    assert rows[0][0] == 'structure'
    assert [row[0] for row in rows[1:]] == list(relaxations)


def test_long_lists_can_be_searched(browser, tmp_path, relaxations):
    many = {f'crystal {k}': relaxations['MgO'] for k in range(20)}
    path = write_report(tmp_path / 'r.html', relaxations=many)
    browser.get(path.as_uri())
    browser.find_element('id', 'find').send_keys('CRYSTAL 17')
    assert browser.find_element('id', 'name').text == 'crystal 17'
    shown = browser.execute_script(
        'return [...document.querySelector("#structure").options]'
        '.filter((option) => !option.hidden).length'
    )
    assert shown == 1


def test_on_paper_spheres_are_round_and_tables_whole(browser, evaluated, page):
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'media': 'print'})
    try:
        browser.get(page.as_uri())
        drawn = browser.execute_script(
            'const c = document.querySelector("#view"), r = c.getBoundingClientRect();'
            'return [c.width / c.height, r.width / r.height]'
        )
        assert drawn[0] == pytest.approx(drawn[1], rel=0.02)
        browser.get(evaluated[0].as_uri())
        hidden = browser.execute_script(
            'return [...document.querySelectorAll(".scroll")]'
            '.filter((box) => box.scrollHeight > box.clientHeight + 1).length'
        )
        assert hidden == 0
        heads = browser.find_elements('css selector', '[data-sorts] th')
        assert all(head.text.strip() for head in heads)
        # Chromium leaves out of the heads on further pages whatever is a button.
        button = heads[0].find_element('tag name', 'button')
        assert button.value_of_css_property('display') == 'contents'
        assert not browser.find_element('css selector', 'button.csv').is_displayed()
    finally:
        browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'media': ''})


def test_long_names_leave_the_numbers_beside_them_in_sight(browser, relaxations, tmp_path):
    name = f'{"long_" * 20}.cif'
    named = {name: relaxations['MgO'], 'refused': relaxations['refused']}
    path = write_report(tmp_path / 'r.html', relaxations=named)
    wide = 'return document.querySelector(".name").getBoundingClientRect().width'
    try:
        for width, most in ((1200, 360), (390, 195)):
            at_width(browser, width)
            browser.get(path.as_uri())
            assert browser.execute_script(wide) <= most
        # No finger moves what is on paper; for A4, browsers lay a page out as wide as this.
        browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'media': 'print'})
        at_width(browser, 950)
        browser.get(path.as_uri())
        assert browser.execute_script(
            'return [...document.querySelectorAll(".scroll table")]'
            '.every((table) => table.offsetWidth <= table.parentElement.clientWidth)'
        )
    finally:
        browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'media': ''})
        browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def at_width(browser, width):
    metrics = {'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': False}
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)


@pytest.fixture
def touch(browser, page):
    """Fingers on the canvas of a touch screen, through the browser's own events."""
    browser.execute_cdp_cmd('Emulation.setTouchEmulationEnabled', {'enabled': True})
    browser.get(page.as_uri())
    viewer = Viewer(browser)
    viewer.choose('structure', 'MgO')
    place = viewer.canvas.rect
    top = browser.execute_script('return scrollY')

    def touch(*steps):
        """Fingers put down, moved and lifted; each step holds places on the canvas."""
        for number, fingers in enumerate([*steps, []]):
            kind = 'touchStart' if not number else 'touchMove' if fingers else 'touchEnd'
            points = [
                {'x': place['x'] + x, 'y': place['y'] - top + y, 'id': k}
                for k, (x, y) in enumerate(fingers)
            ]
            event = {'type': kind, 'touchPoints': points}
            browser.execute_cdp_cmd('Input.dispatchTouchEvent', event)
        viewer.settle()
        return browser.execute_script('return scrollY') - top

    yield viewer, touch
    browser.execute_cdp_cmd('Emulation.setTouchEmulationEnabled', {'enabled': False})


def test_two_fingers_zoom_and_turn_and_the_page_stays(touch):
    viewer, fingers = touch
    before = viewer.all_sites(8)
    spread = [[(300 - d, 200), (400 + d, 200)] for d in (0, 10, 25)]
    assert fingers(*spread) == 0
    after = viewer.all_sites(8)
    assert np.ptp(after, axis=0) == pytest.approx(1.5 * np.ptp(before, axis=0), rel=0.05)
    assert fingers(*[[(300, 200 + d), (400, 200 + d)] for d in (0, 20, 60)]) == 0
    turned = viewer.all_sites(8)
    assert np.abs(turned - after)[:, 1].max() > 10


def test_one_finger_turns_sideways_and_scrolls_the_page_upwards(touch):
    viewer, fingers = touch
    before = viewer.all_sites(8)
    assert fingers(*[[(300 + d, 200)] for d in (0, 30, 60, 90)]) == 0
    assert np.abs(viewer.all_sites(8) - before)[:, 0].max() > 20
    assert fingers(*[[(300, 300 - d)] for d in (0, 30, 60, 90, 120)]) > 0


def test_a_tap_on_an_atom_says_what_happened_to_it(touch, relaxations):
    viewer, fingers = touch
    atom, x, y = viewer.front(8)
    fingers([(x, y)])
    moved = np.linalg.norm(relaxations['MgO'].displacement[atom])
    assert viewer.find('tip').is_displayed()
    assert f'atom {atom}: moved {moved:.3f}' in viewer.find('readout').text


def test_a_crystal_fits_the_canvas_again_when_its_size_changes(viewer):
    viewer.choose('structure', 'many')
    sizes = []
    for width in (1200, 380, 1200):
        metrics = {'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': False}
        viewer.browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
        viewer.settle()
        viewer.settle()
        size, sites = viewer.canvas.size, viewer.all_sites(200)
        sizes.append(size['width'])
        assert sites.min() > 0
        assert (sites.max(axis=0) < [size['width'], size['height']]).all()
    viewer.browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
    assert sizes[1] < sizes[0] / 2 == sizes[2] / 2


@pytest.mark.parametrize('width', [360, 1200])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_pages_fit_and_are_readable(browser, full_page, width, scheme):
    path, _ = full_page
    metrics = {'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': width < 500}
    media = {'features': [{'name': 'prefers-color-scheme', 'value': scheme}]}
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', media)
    browser.get_log('browser')
    browser.get(path.as_uri())
    wide, seen, ink, back, figure = browser.execute_script(
        'const style = getComputedStyle(document.body);'
        'const text = document.querySelector("figure svg text");'
        'return [document.scrollingElement.scrollWidth, innerWidth, style.color,'
        ' style.backgroundColor, getComputedStyle(text).fill]'
    )
    assert wide <= seen
    # Panels side by side keep a size that can be read; they are moved under the finger.
    drawn = browser.execute_script(
        'return [...document.querySelectorAll("figure:not(.half) svg")]'
        '.map((svg) => svg.getBoundingClientRect().width)'
    )
    assert min(drawn) > 650
    ink, back, figure = (
        np.array(re.findall(r'\d+', c)[:3], int) for c in (ink, back, figure)
    )
    assert (ink.mean() > back.mean()) == (scheme == 'dark')
    assert abs(ink - back).mean() > 150
    np.testing.assert_array_equal(figure, ink)
    # no network was used, and nothing went wrong
    assert (
        browser.execute_script('return performance.getEntriesByType("resource").length')
        == 0
    )
    assert browser.get_log('browser') == []
    browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})

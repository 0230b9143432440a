"""README and pages: their code runs, commands exist, names and numbers are true."""

import importlib
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ase_deeprelax import keys
from ase_deeprelax.cli import app
from ase_deeprelax.result import Relaxation

ROOT = Path(__file__).parents[1]
PAGES = {
    page.stem: page.read_text(encoding='utf-8')
    for page in (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')))
}
README = PAGES['README']


def load(name):
    """A script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f'benchmarks/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


render = load('render')
RESULTS = sorted(file.stem for file in render.RESULTS.glob('*.json'))
# Names of the tables on each page.
SHOWN = {page: [m[1] for m in render.MARKS.finditer(text)] for page, text in PAGES.items()}


def blocks(page, language):
    pattern = rf'^```{language}\n(.*?)^```$'
    return re.findall(pattern, PAGES[page], flags=re.MULTILINE | re.DOTALL)


def commands(page):
    """The words of each line in a shell block."""
    lines = '\n'.join(blocks(page, 'bash')).replace('\\\n', ' ').splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def having(language):
    return [page for page in PAGES if blocks(page, language)]


# The page on other packages imports them all.
SLOW = {'neighbours': pytest.mark.slow}
WITH_CODE = [pytest.param(page, marks=SLOW.get(page, ())) for page in having('python')]


# Blocks of packages that the tests do not install.
OPTIONAL = ('atomate2', 'janus_core', 'torch_sim')


@pytest.mark.slow
@pytest.mark.parametrize('package', OPTIONAL)
def test_code_with_optional_packages_runs(package, tmp_path, monkeypatch):
    [block] = [text for text in blocks('neighbours', 'py') if f'{package}' in text]
    pytest.importorskip(package, reason=f'{package} is not installed')
    monkeypatch.chdir(tmp_path)
    first = (
        'from ase.build import bulk\n'
        'from ase.calculators.emt import EMT\n'
        'from ase_deeprelax import DeepRelaxOptimizer, relax\n'
    )
    exec(compile(first + block, package, 'exec'), {})


def test_every_block_is_run():
    for page, text in PAGES.items():
        kinds = set(re.findall(r'^```(\S+)$', text, flags=re.MULTILINE))
        assert kinds <= {'python', 'py', 'bash', 'sh', 'text', 'yaml'}, page
        assert page == 'neighbours' or 'py' not in kinds
    assert len(blocks('neighbours', 'py')) == len(OPTIONAL)


@pytest.mark.parametrize('page', WITH_CODE)
def test_code_runs_as_written(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for number, block in enumerate(blocks(page, 'python')):
        exec(compile(block, f'{page}, block {number}', 'exec'), namespace)
    printed = capsys.readouterr().out
    assert 'nan' not in printed
    assert 'False' not in printed
    if page == 'relax':
        assert 'prediction' in Path('relax.log').read_text()


def test_configuration_is_one(tmp_path):
    load_config = pytest.importorskip('ase_deeprelax.train.config').load_config
    (block,) = blocks('training', 'yaml')
    file = tmp_path / 'config.yaml'
    file.write_text(block)
    overrides = [
        words[words.index('--set') + 1]
        for words in commands('training')
        if '--set' in words
    ]
    assert overrides
    config = load_config(file, overrides)
    assert config.data.pairs[0].path == tmp_path / 'pairs.jsonl.gz'


def test_settings_of_a_training_have_the_defaults_of_the_page():
    config = pytest.importorskip('ase_deeprelax.train.config')
    table = PAGES['training'].split('| setting | default |')[1].split('\n\n')[0]
    rows = re.findall(r'^\| `([\w.]+)` \| (\S+) \|', table, flags=re.MULTILINE)
    assert len(rows) == table.count('\n| `')
    for name, shown in rows:
        *parents, last = name.split('.')
        section = config.TrainConfig
        for parent in parents:
            section = section.model_fields[parent].annotation
        default = section.model_fields[last].default or 0
        assert default == (0 if shown == 'none' else float(shown)), name


@pytest.mark.parametrize('page', having('bash'))
def test_commands_exist_with_their_options(page):
    for program, *words in commands(page):
        if program == 'deeprelax':
            shown = CliRunner().invoke(app, [words[0], '--help'])
            assert shown.exit_code == 0, shown.output
            text = shown.output
        elif program == 'python':
            text = (ROOT / words[0]).read_text()
        else:
            assert program in {'make', 'pip'}
            continue
        for option in (word for word in words if word.startswith('--')):
            assert option in text, f'{program} {words[0]} has no {option}'


def test_pages_show_the_commands():
    used = {words[1] for page in PAGES for words in commands(page) if 'deeprelax' in words}
    assert used >= {'relax', 'compare', 'label', 'train', 'evaluate', 'doctor'}


@pytest.mark.parametrize('page', PAGES)
def test_make_targets_and_extras_exist(page):
    makefile = (ROOT / 'Makefile').read_text()
    project = (ROOT / 'pyproject.toml').read_text()
    for target in re.findall(r'(?:`|^)make ([a-z]+)', PAGES[page], flags=re.MULTILINE):
        assert f'\n{target}:' in makefile
    for extra in re.findall(r'\.\[([a-z]+)\]', PAGES[page]):
        assert f'\n{extra} = ' in project


def test_extras_are_listed():
    project = (ROOT / 'pyproject.toml').read_text()
    extras = project.split('[project.optional-dependencies]')[1].split('\n[')[0]
    names = set(re.findall(r'^([a-z]+) = ', extras, flags=re.MULTILINE))
    rows = [line for line in PAGES['install'].splitlines() if line.startswith('| `')]
    listed = {name for row in rows for name in re.findall(r'`(\w+)`', row.split('|')[1])}
    assert listed == names - {'docs', 'test', 'tutorials'}


def test_names_written_into_atoms_are_listed():
    upper = {k: v for k, v in vars(keys).items() if k.isupper() and k != 'PREFIX'}
    names = {v for v in upper.values() if isinstance(v, str)}
    lines = PAGES['relax'].splitlines()
    rows = [line for line in lines if line.startswith('| `deeprelax_')]
    listed = {name for row in rows for name in re.findall(r'`(deeprelax_\w+)`', row)}
    assert listed == names


def test_fields_of_a_relaxation_are_listed():
    fields = set(Relaxation.__dataclass_fields__)
    fields |= {name for name in vars(Relaxation) if not name.startswith('_')}
    section = PAGES['relax'].split('## What a relaxation holds\n')[1].split('\n## ')[0]
    rows = [line for line in section.splitlines() if line.startswith('| `')]
    listed = {name for row in rows for name in re.findall(r'`(\w+)`', row.split('|')[1])}
    assert listed == fields


def test_figures_are_listed():
    drawn = set()
    for file in (ROOT / 'ase_deeprelax/report').glob('plot*.py'):
        module = importlib.import_module(f'ase_deeprelax.report.{file.stem}')
        drawn |= {
            (file.stem, name)
            for name, function in vars(module).items()
            if getattr(function, '__module__', '') == module.__name__
            and inspect.signature(function).return_annotation == 'Figure'
            and not name.startswith('_')
        }
    assert set(re.findall(r'`(plot\w*)\.(\w+)`', PAGES['api'])) == drawn


@pytest.mark.parametrize('page', PAGES)
def test_tables_are_those_of_the_results(page):
    assert render.rendered(PAGES[page]) == PAGES[page], 'run benchmarks/render.py'


@pytest.mark.parametrize('name', RESULTS)
def test_every_result_is_shown_with_its_command(name):
    result = render.load(name)
    assert all(result[key] for key in ('commands', 'commit', 'date', 'machine', 'weights'))
    assert all(len(file['sha256']) == 64 for file in result['data'])
    assert any(part.get('rows') for part in result['parts'])
    pages = [page for page, names in SHOWN.items() if name in names]
    assert pages, f'no page shows benchmarks/results/{name}.json'
    for page in pages:
        for command in result['commands']:
            assert shlex.split(command) in commands(page)


@pytest.mark.parametrize('name', RESULTS)
def test_tables_are_read_back_as_they_were_printed(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    parts = render.load(name)['parts']
    assert load('measure').parse('\n\n'.join(map(render.markdown, parts))) == parts


def test_readme_can_be_read_in_a_minute():
    assert len(README.splitlines()) <= 200
    assert len(README.encode()) <= 12_000
    (rows,) = [view.rows for view in render.VIEWS.values()]
    assert len(rows) <= 6
    (figure,) = re.findall(r'!\[[^]]*\]\(([^)]+)\)', README)
    assert (ROOT / figure).stat().st_size < 100_000


@pytest.mark.parametrize('name', ['figure', 'speed'])
def test_figures_show_the_numbers_of_the_results(name):
    text = (ROOT / f'docs/{name}.svg').read_text(encoding='utf-8')
    (said,) = re.findall(r'drawn from ([^;]*); SHA-256', text)
    script = {'figure': 'figure.py', 'speed': 'speed_figure.py'}[name]
    assert render.drawn_from(*said.split(', ')) in text, f'run benchmarks/{script}'


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r'\]\(([^)#]+)', README):
        assert target.startswith('https://') or (ROOT / target).exists(), target


@pytest.mark.parametrize('page', PAGES)
def test_names_no_path_of_a_machine(page):
    assert not re.search(r'(^|[\s`(])/(home|root|tmp|work)/', PAGES[page])

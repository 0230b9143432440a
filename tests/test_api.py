"""Names of the Python API say what they take, with units, and have an example that runs."""

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import ase_deeprelax

griffe = pytest.importorskip('griffe', reason="pip install -e '.[docs]'")
ROOT = Path(__file__).parents[1]
NAMES = re.findall(r'^::: (\S+)', (ROOT / 'docs/api.md').read_text(), flags=re.MULTILINE)
# Without a unit: ratios and places.
PLAIN = {'deformation', 'scale', 'novelty', 'fingerprint', 'guided', 'relax_cell', 'dtype'}
UNIT = re.compile(r'\b(A|A\^3|eV|eV/A|eV/A\^2|eV/atom|s|K|int)\b')
NUMBERS = re.compile(r'\bfloat\b|array|Tensor')


def load(name):
    """What a dotted name stands for."""
    try:
        return importlib.import_module(name)
    except ImportError:
        module, _, last = name.rpartition('.')
        return getattr(importlib.import_module(module), last)


def sections(thing):
    """Parts of a docstring by kind."""
    text = griffe.Docstring(inspect.getdoc(thing) or '')
    options = {'warn_unknown_params': False, 'warn_missing_types': False}
    parsed = text.parse(griffe.Parser.numpy, **options)
    return {section.kind.value: section.value for section in parsed}


def used_on_pages():
    """Names that code of the pages and of the tutorials uses, which tests run."""
    code = [path.read_text() for path in (ROOT / 'tutorials').glob('[0-9]*.py')]
    for page in (ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')):
        code += re.findall(r'(?ms)^```python\n(.*?)^```$', page.read_text())
    names = set()
    for node in (node for text in code for node in ast.walk(ast.parse(text))):
        names |= {getattr(node, 'id', None), getattr(node, 'attr', None)}
    return names


USED = used_on_pages()


def test_public_names_are_on_the_page():
    shown = {name.rpartition('.')[2] for name in NAMES}
    assert set(ase_deeprelax.__all__) - {'__version__'} <= shown


@pytest.mark.parametrize('name', NAMES)
def test_numbers_have_units_or_shapes(name):
    found = sections(load(name))
    assert found['text']
    for kind in ('parameters', 'attributes'):
        for value in found.get(kind, ()):
            said = str(value.annotation)
            if NUMBERS.search(said) and value.name not in PLAIN:
                assert UNIT.search(said), f'{name}, {value.name}: {said}'


@pytest.mark.parametrize('name', NAMES)
def test_parameters_are_described(name):
    thing = load(name)
    if not callable(thing) or not inspect.isroutine(thing):
        return
    asked = [
        key
        for key, one in inspect.signature(thing).parameters.items()
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    described = {value.name for value in sections(thing).get('parameters', ())}
    assert set(asked) <= described


@pytest.mark.parametrize('name', [name for name in NAMES if not name.endswith('errors')])
def test_an_example_runs(name):
    """In the docstring, where the suite runs it, or on a page or in a tutorial."""
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(load(name)) or '')
    runs = [one for one in examples if not one.options.get(doctest.SKIP)]
    assert runs or name.rpartition('.')[2] in USED

"""The architecture page says what is there."""

import re
from pathlib import Path

import ase_deeprelax

PACKAGE = Path(ase_deeprelax.__file__).parent
PAGE = (Path(__file__).parents[1] / 'docs/architecture.md').read_text()


def test_layout_shows_every_room():
    picture = re.search(r'```text\n(.*?)```', PAGE, flags=re.DOTALL)[1]
    drawn = set(
        re.findall(r'(?:^  |\s{2})([a-z_]+(?:\.py|/))', picture, flags=re.MULTILINE)
    )
    rooms = {path.name for path in PACKAGE.glob('*.py') if not path.name.startswith('_')}
    rooms |= {f'{path.parent.name}/' for path in PACKAGE.glob('*/__init__.py')}
    assert drawn == rooms


def test_every_file_that_is_named_is_there():
    files = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob('*.py')}
    names = {file.rpartition('/')[2] for file in files}
    for name in set(re.findall(r'[a-z_/0-9]+\.py', PAGE)):
        assert name in (files if '/' in name else names), name


def test_every_class_and_function_that_is_named_is_there():
    sources = '\n'.join(path.read_text() for path in PACKAGE.rglob('*.py'))
    for name in set(re.findall(r'`([A-Z][A-Za-z]+)`', PAGE)):
        assert f'class {name}' in sources, name

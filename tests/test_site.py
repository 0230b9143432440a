"""The documentation site builds without a warning, and holds every page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mkdocs', reason="needs mkdocs: pip install -e '.[docs]'")
ROOT = Path(__file__).parents[1]


def test_site_builds_without_warnings(tmp_path):
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', tmp_path]
    environment = os.environ | {'NO_MKDOCS_2_WARNING': '1'}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 'WARNING' not in done.stderr
    for page in (ROOT / 'docs').glob('*.md'):
        assert (tmp_path / f'{page.stem}.html').exists(), page.name
    for notebook in (ROOT / 'tutorials').glob('[0-9]*.ipynb'):
        page = (tmp_path / 'notebooks' / f'{notebook.stem}.html').read_text()
        drawn = notebook.read_text().count('"image/png"')
        assert page.count('jp-RenderedImage jp-OutputArea-output') == drawn, notebook.name
    # Behind a firewall the pages are whole: no part comes from another server, from where
    # the theme would load mermaid. On a disk links lead to pages, not to folders.
    loaded = re.compile(r'<(?:script|link rel="stylesheet"|img|iframe)[^>]*="?https?:')
    for page in tmp_path.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        assert not loaded.search(text), page
        assert '<pre class="mermaid">' not in text, page
        for link in re.findall(r'<a[^>]* href="([^"#?:]+)["#]', text):
            assert page.name == '404.html' or (page.parent / link).is_file(), (page, link)
    reference = (tmp_path / 'api.html').read_text()
    for name in ('DeepRelaxOptimizer', 'Relaxation', 'relaxed structure', 'Examples'):
        assert name in reference

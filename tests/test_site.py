"""The documentation site builds without a warning, and holds every page."""

import os
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
        folder = tmp_path if page.stem == 'index' else tmp_path / page.stem
        assert (folder / 'index.html').exists(), page.name
    for notebook in (ROOT / 'tutorials').glob('[0-9]*.ipynb'):
        page = (tmp_path / 'notebooks' / notebook.stem / 'index.html').read_text()
        drawn = notebook.read_text().count('"image/png"')
        assert page.count('jp-RenderedImage jp-OutputArea-output') == drawn, notebook.name
    reference = (tmp_path / 'api/index.html').read_text()
    for name in ('DeepRelaxOptimizer', 'Relaxation', 'relaxed structure', 'Examples'):
        assert name in reference

"""What the whole test folder shares."""

import pytest

ELEMENTS = list(range(1, 95))
# Marks of ASE's own tests, which run here with our class.
MARKS = ('optimize: tests of optimizers', 'slow: test takes longer than a few seconds')


def pytest_configure(config):
    for mark in MARKS:
        config.addinivalue_line('markers', mark)


@pytest.fixture(scope='session')
def tiny_model(tmp_path_factory):
    """Folder of a small real network, untrained, whose read-outs say something."""
    from ase_deeprelax.models import create_model
    from ase_deeprelax.testing import awaken
    from ase_deeprelax.weights.store import save_model

    folder = tmp_path_factory.mktemp('models') / 'tiny'
    model = awaken(create_model('paegnn', hidden=16, layers=2))
    # Waves of a random network nearly cancel: bring displacements to 0.01-0.1 A.
    model.displacement.gates[-1].weight.data *= 10
    save_model(model, folder, {'elements': ELEMENTS})
    return folder

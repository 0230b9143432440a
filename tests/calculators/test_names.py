"""Names of weights are names: a file of that name in the working folder is never loaded."""

import pickle
from pathlib import Path

import pytest
from ase.build import bulk

from ase_deeprelax.calculators.registry import POTENTIALS, get_calculator
from ase_deeprelax.errors import ModelError
from ase_deeprelax.optimize.stage import Stage


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self):
        return Path.write_text, (Path('exploded'), 'yes')


@pytest.mark.parametrize('name', [n for n, e in POTENTIALS.items() if e.reads_paths])
def test_a_file_with_the_name_of_weights_is_refused(name, tmp_path, monkeypatch):
    entry = POTENTIALS[name]
    pytest.importorskip(entry.package, exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    for weights in (entry.weights, 'mine'):
        Path(weights).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ModelError, match='is a name of weights, but a file'):
            get_calculator(name if weights == entry.weights else f'{name}:{weights}')
    assert not Path('exploded').exists()


def test_chgnet_reads_no_file_for_a_name(tmp_path, monkeypatch):
    pytest.importorskip('chgnet', exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    for weights in ('0.3.0', 'r2scan'):
        Path(weights).write_bytes(pickle.dumps(Bomb()))
    atoms = bulk('NaCl', 'rocksalt', a=5.6)
    atoms.calc = get_calculator('chgnet')
    assert atoms.get_potential_energy() < -6
    # Its errors are not those of the usual weights.
    assert get_calculator('chgnet:r2scan').name == Stage('chgnet:r2scan').name
    assert get_calculator('chgnet:r2scan').name == 'chgnet:r2scan'
    assert get_calculator('chgnet:0.3.0').name == 'chgnet'
    assert not Path('exploded').exists()

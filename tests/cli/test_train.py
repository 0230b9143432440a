import numpy as np
import pytest
import torch

from ase_deeprelax.models import store


@pytest.mark.filterwarnings('ignore:.*outside the training range')
def test_a_trained_model_can_be_used(run, pairs_file, tmp_path):
    config = tmp_path / 'config.yaml'
    config.write_text(f"""
name: small
output: {tmp_path / 'runs'}
model: {{architecture: paegnn, hidden: 16, layers: 1}}
data: {{pairs: [{{path: {pairs_file}}}], workers: 0}}
optimize: {{max_steps: 100, threads: 1}}
""")
    result = run('train', config, '--set', 'optimize.max_steps=2')
    assert result.exit_code == 0, result.output
    folder = tmp_path / 'runs' / 'small' / 'model'
    assert str(folder) in result.stdout
    assert store.load_model(folder).card.training['steps'] == 2
    assert np.float64(1e-310) / 2 > 0, 'training leaves subnormal numbers switched off'
    result = run('evaluate', pairs_file, '--model', folder)
    assert result.exit_code == 0, result.output


def test_train_names_the_setting_that_is_wrong(run, tmp_path):
    config = tmp_path / 'config.yaml'
    config.write_text('name: x\nmodel: {}\ndata: {pairs: []}\nwheels: 4\n')
    result = run('train', config)
    assert result.exit_code == 1
    assert 'wheels' in result.stderr


def small_run(file, pairs_file, layers):
    """A run of one step that changes next to nothing."""
    file.write_text(f"""
name: small
output: {file.parent / 'runs'}
model: {{architecture: paegnn, hidden: 16, layers: {layers}}}
data: {{pairs: [{{path: {pairs_file}}}], workers: 0}}
optimize: {{max_steps: 1, threads: 1, learning_rate: 1.0e-9}}
""")
    return file


def test_training_starts_from_a_model(run, pairs_file, tmp_path, tiny_model):
    config = small_run(tmp_path / 'config.yaml', pairs_file, layers=2)
    result = run('train', config, '--from', tiny_model)
    assert result.exit_code == 0, result.output
    before = store.load_model(tiny_model)
    after = store.load_model(tmp_path / 'runs' / 'small' / 'model')
    for a, b in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_training_from_a_model_of_another_form_names_both(
    run, pairs_file, tmp_path, tiny_model
):
    config = small_run(tmp_path / 'config.yaml', pairs_file, layers=1)
    result = run('train', config, '--from', tiny_model)
    assert result.exit_code == 1
    assert str(tiny_model) in result.stderr
    assert "'layers': 2" in result.stderr
    assert "'layers': 1" in result.stderr

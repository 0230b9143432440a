"""Training runs on small files that the tests make."""

import csv
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import write

from ase_deeprelax.data.batching import collate, split
from ase_deeprelax.data.convert import to_graph
from ase_deeprelax.data.formula import composition
from ase_deeprelax.data.graph import GraphSpec
from ase_deeprelax.data.pair import make_pair
from ase_deeprelax.data.pairs import write_pairs
from ase_deeprelax.errors import ConfigError, DeepRelaxError, ModelError, PairFileError
from ase_deeprelax.files import lock_or_refuse
from ase_deeprelax.models import ARCHITECTURES, create_model
from ase_deeprelax.models.store import load_model
from ase_deeprelax.train.config import load_config
from ase_deeprelax.train.datamodule import (
    PairData,
    SizeBatches,
    TrainingBatches,
)
from ase_deeprelax.train.module import RelaxationModule, structure_errors
from ase_deeprelax.train.run import LOCK, train


def rocksalts(n, seed=0):
    """Rocksalt crystals 5 % off their lattice constant with one atom pushed."""
    rng = np.random.default_rng(seed)
    pairs = []
    for k in range(n):
        metal = rng.choice(['Na', 'K', 'Li'])
        a = {'Na': 5.6, 'K': 6.2, 'Li': 5.1}[metal]
        relaxed = bulk(f'{metal}Cl', 'rocksalt', a)
        unrelaxed = relaxed.copy()
        unrelaxed.set_cell(relaxed.cell.array * rng.uniform(0.95, 1.05), scale_atoms=True)
        unrelaxed.rattle(0.05, rng=rng)
        split = 'val' if k % 4 == 3 else 'train'
        pairs.append(make_pair(f'p{k}', unrelaxed, relaxed, split=split))
    return pairs


@pytest.fixture
def config(tmp_path):
    write_pairs(tmp_path / 'pairs.jsonl.gz', rocksalts(40))
    (tmp_path / 'run.yaml').write_text(
        f"""
        name: tiny
        output: {tmp_path / 'runs'}
        model: {{architecture: paegnn, hidden: 16, layers: 2}}
        data:
          pairs: [{{path: pairs.jsonl.gz, licence: none}}]
          batch_atoms: 16
          workers: 0
        optimize: {{max_steps: 60, warmup_steps: 5, val_every_steps: 20, ema: 0.9,
                    learning_rate: 5.0e-3, threads: 1}}
        """
    )
    return tmp_path / 'run.yaml'


def select(folder):
    """The validation errors that a run wrote, by step."""
    log = max(folder.glob('csv/version_*/metrics.csv'))
    rows = [r for r in csv.DictReader(log.read_text().splitlines()) if r.get('val/select')]
    return [float(row['val/select']) for row in rows]


def test_training_learns_and_the_model_loads(config, tmp_path):
    folder = train(config, overrides=['optimize.max_steps=160'], progress=False)
    errors = select(tmp_path / 'runs/tiny')
    assert len(errors) > 8  # eight on the way, and the choice of the weights at the end
    data = PairData(load_config(config), GraphSpec())
    data.setup()
    untrained = create_model('paegnn', hidden=16, layers=2)
    dummy = [
        structure_errors(graph, untrained(graph))['select'].item()
        for graph in (
            data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()
        )
    ]
    assert errors[-1] < 0.6 * np.mean(dummy)
    model = load_model(folder)
    assert set(model.card.elements) == {3, 11, 17, 19}
    assert model.card.training['steps'] == 160
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_interrupted_run_goes_on_where_it_stopped(config, tmp_path):
    def weights(name, *overrides, **kwargs):
        overrides = [f'name={name}', 'optimize.schedule=plateau', *overrides]
        model = load_model(train(config, overrides=overrides, progress=False, **kwargs))
        return torch.cat([p.flatten() for p in model.parameters()]), model.card

    whole, _ = weights('whole')
    first, card = weights('parts', 'optimize.max_steps=20')
    assert card.training['steps'] == 20
    checkpoint = tmp_path / 'runs/parts/last.ckpt'
    resumed, card = weights('parts', resume=checkpoint)
    assert card.training['steps'] == 60
    assert torch.equal(resumed, whole)
    assert not torch.equal(resumed, first)


# Settings with which the first of two validations, before the kill, is the better one.
FAST = ['seed=2', 'optimize.learning_rate=5.0e-2', 'optimize.warmup_steps=0']
FAST += ['optimize.max_steps=40', 'optimize.ema=0']


@pytest.mark.parametrize('overrides', [[], FAST])
def test_killed_training_goes_on_to_the_same_weights(config, tmp_path, overrides):
    """SIGKILL in the middle of an epoch, after the last checkpoint."""
    script = f"""
import os, signal
from ase_deeprelax.train import run
from ase_deeprelax.train.module import RelaxationModule

class Killed(RelaxationModule):
    def on_train_batch_start(self, *args):
        super().on_train_batch_start(*args)
        if self.global_step == 27:
            os.kill(os.getpid(), signal.SIGKILL)

run.RelaxationModule = Killed
run.train({str(config)!r}, overrides={overrides!r}, progress=False)
"""
    killed = subprocess.run(
        [sys.executable, '-c', script], check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    checkpoint = tmp_path / 'runs/tiny/last.ckpt'
    assert torch.load(checkpoint, weights_only=True)['global_step'] == 20
    resumed = train(config, overrides=overrides, resume=checkpoint, progress=False)
    whole = train(config, overrides=['name=whole', *overrides], progress=False)
    assert same_weights(resumed, whole)
    errors = select(whole.parent)
    assert (errors[0] == min(errors)) == bool(overrides)


def test_the_rate_falls_where_errors_do_not(config, tmp_path):
    """In epochs that are shorter than the time between validations, and after a stop."""
    overrides = ['optimize.schedule=plateau', 'optimize.learning_rate=1.0e-7']
    overrides += ['optimize.val_every_steps=10']
    checkpoint = tmp_path / 'runs/tiny/last.ckpt'

    def rate():
        content = torch.load(checkpoint, weights_only=True)
        return content['optimizer_states'][0]['param_groups'][0]['lr']

    first = [*overrides, 'optimize.max_steps=40']
    train(config, overrides=first, progress=False)
    assert rate() == 1e-7
    rest = [*overrides, 'optimize.max_steps=70']
    train(config, overrides=rest, resume=checkpoint, progress=False)
    assert rate() == pytest.approx(0.8e-7)


def test_a_signal_brings_no_validation_of_its_own(config, tmp_path, monkeypatch):
    """It would count for early stopping and for the best weights."""
    take = RelaxationModule.on_train_batch_start

    def terminated(self, batch, batch_idx):
        take(self, batch, batch_idx)
        if self.global_step == 33:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RelaxationModule, 'on_train_batch_start', terminated)
    with pytest.raises(SystemExit):
        train(config, progress=False)
    assert len(select(tmp_path / 'runs/tiny')) == 1  # at step 20


def test_a_training_that_was_killed_after_its_last_step_ends_with_the_averages(
    config, tmp_path
):
    """The checkpoint of the last step is there, and the model is not."""
    whole = ['optimize.max_steps=20', 'optimize.ema=0.99', 'data.pairs.0.val_limit=0']
    folder = train(config, overrides=whole, progress=False)
    expected = load_model(folder)
    shutil.rmtree(folder)
    checkpoint = folder.parent / 'last.ckpt'
    folder = train(config, overrides=whole, resume=checkpoint, progress=False)
    resumed = load_model(folder)
    assert all(map(torch.equal, resumed.parameters(), expected.parameters()))
    present = torch.load(checkpoint, weights_only=True)['current_model_state']
    assert not torch.equal(resumed.embedding.weight, present['model.embedding.weight'])


def test_the_errors_on_the_card_are_those_of_the_weights_that_were_chosen(
    config, tmp_path, caplog
):
    """The last weights are made worse than the best ones."""
    first = ['optimize.max_steps=40', 'optimize.schedule=plateau', 'optimize.ema=0']
    folder = train(config, overrides=first, progress=False)
    lowest = min(select(folder.parent))
    checkpoint, best = (folder.parent / f'{name}.ckpt' for name in ('last', 'best'))
    content = torch.load(checkpoint, weights_only=True)
    for state in (content['state_dict'], content['current_model_state']):
        for name in state:
            state[name] = state[name] * 3
    torch.save(content, checkpoint)

    def error():
        again = train(config, overrides=first, resume=checkpoint, progress=False)
        return load_model(again).card.metrics['validation']['select']

    assert error() == pytest.approx(lowest, rel=0.01)
    best.unlink()
    assert error() > 2 * lowest
    assert 'best.ckpt is gone: the last weights count' in caplog.text


def same_weights(*folders):
    one, two = (load_model(folder).parameters() for folder in folders)
    return all(map(torch.equal, one, two))


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_from_which_training_goes_on(
    config, tmp_path, monkeypatch, number
):
    """Queues send SIGTERM, and terminals Ctrl-C, to the processes that load data too."""
    take, seen = RelaxationModule.on_train_batch_start, []

    def terminated(self, batch, batch_idx):
        seen.append(batch.pos)
        take(self, batch, batch_idx)
        if self.global_step == 33 and len(seen) == 34:
            for child in multiprocessing.active_children():
                os.kill(child.pid, number)
            signal.raise_signal(number)

    monkeypatch.setattr(RelaxationModule, 'on_train_batch_start', terminated)
    overrides = ['data.workers=1', 'data.pairs.0.copies=1.5', 'optimize.max_steps=50']
    former = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught:
        train(config, overrides=overrides, progress=False)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is former
    checkpoint = tmp_path / 'runs/tiny/last.ckpt'
    assert torch.load(checkpoint, weights_only=True)['global_step'] == 34
    resumed = train(config, overrides=overrides, resume=checkpoint, progress=False)
    parts = list(seen)
    whole = train(config, overrides=['name=whole', *overrides], progress=False)
    assert len(seen) == 2 * len(parts) == 100
    assert all(map(torch.equal, parts, seen[50:]))
    assert same_weights(resumed, whole)


@pytest.mark.parametrize('muon', ['null', '2.0e-3'])
@pytest.mark.parametrize('factor', [1e9, math.nan])
def test_no_step_is_taken_along_a_gradient_that_exploded(config, monkeypatch, factor, muon):
    def explode(self):
        for parameter in self.parameters():
            parameter.grad *= factor

    monkeypatch.setattr(RelaxationModule, 'on_after_backward', explode)
    overrides = ['optimize.max_steps=20', f'optimize.muon_rate={muon}']
    model = load_model(train(config, overrides=overrides, progress=False))
    graph, _ = to_graph(bulk('NaCl', 'rocksalt', a=5.6), model.spec)
    assert not model(collate([graph])).displacement.any()  # as at the beginning


class NotANumber(type(create_model('paegnn', hidden=16, layers=2))):
    def forward(self, graph):
        said = super().forward(graph)
        said.displacement = said.displacement * math.nan
        return said


def test_a_training_that_takes_no_more_steps_ends(config, monkeypatch, recwarn):
    monkeypatch.setitem(ARCHITECTURES, 'nan', NotANumber)
    overrides = ['model={architecture: nan, hidden: 16, layers: 1}', 'name=nan']
    with pytest.raises(
        DeepRelaxError, match=r'100 steps .* the loss is not finite: .*0\.005'
    ):
        train(config, overrides=[*overrides, 'optimize.max_steps=150'], progress=False)
    assert not [one for one in recwarn if 'training_step' in str(one.message)]

    def explode(self):
        for parameter in self.parameters():
            parameter.grad *= math.nan if self.global_step < 110 else 1.0

    monkeypatch.setattr(RelaxationModule, 'on_after_backward', explode)
    with pytest.raises(DeepRelaxError, match=r'100 steps .* the gradient is nan: '):
        train(config, overrides=['optimize.max_steps=150'], progress=False)


def test_a_training_with_some_bad_steps_goes_on(config, monkeypatch):
    def explode(self):
        for parameter in self.parameters():
            parameter.grad *= math.nan if self.global_step % 60 else 1.0

    monkeypatch.setattr(RelaxationModule, 'on_after_backward', explode)
    model = load_model(train(config, overrides=['optimize.max_steps=121'], progress=False))
    assert model.card.training['steps'] == 121


def test_a_network_without_weights_is_not_trained(config, tmp_path, monkeypatch):
    def fixed(**hyperparameters):
        return create_model('paegnn', **hyperparameters).requires_grad_(False)

    monkeypatch.setitem(ARCHITECTURES, 'fixed', fixed)
    with pytest.raises(ConfigError, match=r"run\.yaml: 'fixed' has no weights"):
        train(config, overrides=['model.architecture=fixed'], progress=False)
    assert not (tmp_path / 'runs').exists()


class WithTables(type(create_model('paegnn', hidden=16, layers=2))):
    """A network that carries what is not trained: numbers and truth values."""

    def __init__(self, **hyperparameters):
        super().__init__(**hyperparameters)
        self.register_buffer('groups', torch.arange(120))
        self.register_buffer('metals', torch.arange(120) > 2)
        self.register_buffer('steps', torch.zeros(1))

    def forward(self, graph):
        if self.training:
            self.steps += 1
        return super().forward(graph)


def test_buffers_of_a_network_of_ones_own_are_kept_and_not_averaged(config, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, 'tables', WithTables)
    overrides = ['model.architecture=tables', 'optimize.max_steps=9']
    model = load_model(train(config, overrides=overrides, progress=False))
    assert torch.equal(model.groups, torch.arange(120))
    assert torch.equal(model.metals, torch.arange(120) > 2)
    assert model.steps == 9


def test_an_output_of_another_form_is_named_in_a_training(config, monkeypatch):
    class Cut(type(create_model('paegnn', hidden=16, layers=2))):
        def forward(self, graph):
            said = super().forward(graph)
            said.displacement = said.displacement[:-1]
            return said

    monkeypatch.setitem(ARCHITECTURES, 'cut', Cut)
    with pytest.raises(ModelError, match=r'the model Cut returned displacement of shape'):
        train(config, overrides=['model.architecture=cut'], progress=False)


def test_a_training_that_fails_does_not_wait_for_those_who_load_data(config, monkeypatch):
    def fail(self, batch, batch_idx):
        raise RuntimeError('the disk is full')

    monkeypatch.setattr(RelaxationModule, 'on_train_batch_start', fail)
    begun = time.perf_counter()
    with pytest.raises(RuntimeError, match='the disk is full'):
        train(config, overrides=['data.workers=2'], progress=False)
    for child in multiprocessing.active_children():
        child.join()
    assert time.perf_counter() - begun < 30


def test_a_failed_training_ends_no_processes_of_its_caller(config, monkeypatch):
    def fail(self, batch, batch_idx):
        raise RuntimeError('the disk is full')

    monkeypatch.setattr(RelaxationModule, 'on_train_batch_start', fail)
    mine = multiprocessing.get_context('spawn').Process(target=time.sleep, args=(60,))
    mine.start()
    try:
        with pytest.raises(RuntimeError, match='the disk is full'):
            train(config, overrides=['data.workers=1'], progress=False)
        assert mine.is_alive()
    finally:
        mine.kill()


def test_no_step_is_taken_along_a_finite_gradient_of_an_infinite_loss(config, caplog):
    settings = load_config(config, ['loss.scales=false'])
    module = RelaxationModule(create_model('paegnn', hidden=16, layers=2), settings)
    module.log = module.log_dict = lambda *args, **kwargs: None
    data = PairData(settings, module.model.spec)
    data.setup()
    graph = data.on_after_batch_transfer(data.train_set[0, 0, np.arange(4)], 0)
    loss = module.training_step(graph, 0)
    assert torch.isfinite(loss)
    graph.deformation_target[0] *= 1e20
    assert module.training_step(graph, 0) is None
    assert 'the loss is not finite; skipped' in caplog.text


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        (['model={hidden: 16}'], 'model.architecture: Field required'),
        (['model.architecture=paegn'], 'unknown architecture'),
        (['model.layers=0'], 'layers is 0; it must be above 0'),
        (['model.cutoff=-5.0'], r'cutoff is -5\.0; it must be'),
        (['data.pairs.0.path=nowhere.jsonl'], 'there is no such file'),
    ],
)
def test_a_training_that_cannot_begin_leaves_nothing_on_disk(
    config, tmp_path, overrides, message
):
    with pytest.raises(DeepRelaxError, match=message):
        train(config, overrides=overrides, progress=False)
    assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('muon', ['null', '2.0e-3'])
def test_amsgrad_is_that_of_adamw_with_and_without_muon(config, muon):
    overrides = ['optimize.amsgrad=true', f'optimize.muon_rate={muon}']
    model = create_model('paegnn', hidden=16, layers=2)
    module = RelaxationModule(model, load_config(config, overrides))
    *_, adamw = module.configure_optimizers().param_groups
    assert adamw['amsgrad']


def test_own_answers_need_a_graph_of_all_neighbours(config):
    overrides = ['data.recycle=0.5', 'model.max_neighbors=12']
    with pytest.raises(ConfigError, match=r'data\.recycle is 0\.5.*set it to 0'):
        train(config, overrides=overrides, progress=False)


def test_epochs_end_where_those_of_an_uninterrupted_training_do():
    sizes = np.random.default_rng(0).integers(1, 12, 30)

    def draw(rng):
        return np.repeat(np.arange(30), np.floor(1.5 + rng.random(30)).astype(int))

    samplers = [SizeBatches(sizes, 16, 0, draw, epoch) for epoch in range(8)]
    assert len({len(sampler.batches(k)) for k, sampler in enumerate(samplers)}) > 1
    assert len({len(sampler) for sampler in samplers}) == 1


def test_no_training_is_replaced_in_silence(config):
    short = ['optimize.max_steps=2', 'optimize.val_every_steps=2']
    folder = train(config, overrides=short, progress=False)
    before = (folder / 'model.safetensors').read_bytes()
    with pytest.raises(ConfigError, match=r'holds a training already.*--resume'):
        train(config, overrides=short, progress=False)
    assert (folder / 'model.safetensors').read_bytes() == before
    (folder.parent / 'last.ckpt').unlink()
    with pytest.raises(ConfigError, match=r'holds a finished training.*--from'):
        train(config, overrides=short, progress=False)
    with pytest.raises(ConfigError, match=r'last\.ckpt: there is no such file.*--from'):
        train(config, overrides=short, resume=folder.parent / 'last.ckpt')


def test_two_trainings_of_one_name_at_once_are_refused(config, tmp_path):
    output = tmp_path / 'runs/tiny'
    output.mkdir(parents=True)
    with (output / LOCK).open('a') as lock:
        lock_or_refuse(lock, output)
        with pytest.raises(ConfigError, match='another process is writing to it'):
            train(config, overrides=['optimize.max_steps=2'], progress=False)
    assert not (output / 'model' / 'config.json').exists()
    assert load_model(train(config, overrides=['optimize.max_steps=2'], progress=False))


def test_a_training_goes_on_beside_another_one_but_not_in_its_place(config):
    short = ['optimize.max_steps=2', 'optimize.val_every_steps=1']
    first = train(config, overrides=[*short, 'name=first'], progress=False)
    second = train(config, overrides=[*short, 'seed=1', 'name=second'], progress=False)
    before = (second / 'model.safetensors').read_bytes()
    checkpoint = first.parent / 'last.ckpt'
    longer = ['optimize.max_steps=3', 'optimize.val_every_steps=1']
    with pytest.raises(ConfigError, match='second holds a training already'):
        train(config, overrides=[*longer, 'name=second'], resume=checkpoint, progress=False)
    assert (second / 'model.safetensors').read_bytes() == before
    third = train(
        config, overrides=[*longer, 'name=third'], resume=checkpoint, progress=False
    )
    assert load_model(third).card.training['steps'] == 3


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('model.hidden=8', r"model \{.*'hidden': 16.*, not \{.*'hidden': 8"),
        ('optimize.learning_rate=1e-4', r'learning_rate 0\.005, not 0\.0001'),
        ('optimize.muon_rate=1e-3', r'muon_rate None, not 0\.001'),
        ('optimize.schedule=plateau', 'schedule cosine, not plateau'),
    ],
)
def test_a_training_does_not_go_on_with_other_settings(config, tmp_path, override, message):
    short = ['optimize.max_steps=1', 'optimize.val_every_steps=1']
    train(config, overrides=short, progress=False)
    checkpoint = tmp_path / 'runs/tiny/last.ckpt'
    with pytest.raises(ConfigError, match=message):
        train(config, overrides=[override], resume=checkpoint, progress=False)
    with pytest.raises(ConfigError, match=r'last\.ckpt.*not both'):
        train(config, resume=checkpoint, start='deeprelax', progress=False)


def test_a_training_does_not_go_on_with_other_data(config, tmp_path):
    short = ['optimize.max_steps=1', 'optimize.val_every_steps=1']
    model = train(config, overrides=short, progress=False)
    checkpoint, longer = model.parent / 'last.ckpt', ['optimize.max_steps=2', short[1]]
    before = (model / 'config.json').read_bytes()
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'pairs.jsonl.gz').rename(tmp_path / 'elsewhere/mine.jsonl.gz')
    moved = ['data.pairs.0.path=elsewhere/mine.jsonl.gz', *longer]
    fewer = [*moved, 'data.pairs.0.val_limit=3']
    with pytest.raises(ConfigError, match=r'10 to validate on .* now .* 3 to validate on'):
        train(config, overrides=fewer, resume=checkpoint, progress=False)
    write_pairs(tmp_path / 'pairs.jsonl.gz', rocksalts(40, seed=1))
    with pytest.raises(ConfigError, match=r'last\.ckpt is of .* other data: .* now others'):
        train(config, overrides=longer, resume=checkpoint, progress=False)
    assert (model / 'config.json').read_bytes() == before
    train(config, overrides=moved, resume=checkpoint, progress=False)
    assert load_model(model).card.training['steps'] == 2


def test_a_checkpoint_is_no_start_but_the_model_that_it_becomes_is(config):
    """The message says how to get it, and that works."""
    every = ['optimize.val_every_steps=1', 'optimize.max_steps=2']
    folder = train(config, overrides=every, progress=False)
    shutil.rmtree(folder)
    checkpoint = folder.parent / 'last.ckpt'
    again = ['name=again', *every]
    with pytest.raises(ConfigError, match=r'--resume .* optimize\.max_steps=1 ends it'):
        train(config, overrides=again, start=checkpoint, progress=False)
    ended = [every[0], 'optimize.max_steps=1']
    folder = train(config, overrides=ended, resume=checkpoint, progress=False)
    assert load_model(folder).card.training['steps'] == 2
    assert train(config, overrides=again, start=folder, progress=False)


def test_an_ensemble_is_no_start_but_its_members_are(config):
    with pytest.raises(ConfigError, match=r"'default' is an ensemble.*: deeprelax, "):
        train(config, start='default', progress=False)


def test_a_log_file_gets_a_line_per_validation_and_no_idle_remarks(config, capfd):
    short = ['optimize.max_steps=4', 'optimize.val_every_steps=2']
    train(config, overrides=short)
    said = capfd.readouterr()
    first, second = said.err.splitlines()
    assert first.startswith('step 2, 0.0 min: error of coordinates 0.')
    assert second.startswith('step 4, ')
    assert not said.out


class Bomb:
    def __reduce__(self):
        return Path.write_text, (Path('exploded'), 'yes')


def test_pairs_without_a_part_for_validation(config, tmp_path, caplog):
    pairs = [replace(pair, split='train') for pair in rocksalts(8)]
    write_pairs(tmp_path / 'pairs.jsonl.gz', pairs)
    folder = train(config, overrides=['optimize.max_steps=3'], progress=False)
    assert load_model(folder).card.training['pairs'] == 8
    assert "no pair has the split 'val'" in caplog.text


def test_code_in_a_checkpoint_is_not_run(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in ({'state_dict': Bomb()}, {'state_dict': {}}, 3):
        torch.save(content, 'hostile.ckpt')
        with pytest.raises(ConfigError, match=r'hostile\.ckpt is no checkpoint'):
            train(config, resume='hostile.ckpt', progress=False)
    Path('text.ckpt').write_text('hello')
    with pytest.raises(ConfigError, match=r'text\.ckpt is no checkpoint'):
        train(config, resume='text.ckpt', progress=False)
    assert not Path('exploded').exists()
    assert not (tmp_path / 'runs').exists()


def test_transfer_learning_starts_from_the_given_weights(config):
    folder = train(config, progress=False)
    again = train(
        config,
        overrides=['name=again', 'optimize.max_steps=1', 'optimize.learning_rate=1.0e-7'],
        start=folder,
        progress=False,
    )
    before, after = load_model(folder), load_model(again)
    for a, b in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert 'start' not in before.card.training
    assert after.card.training['start']['sha256'] == before.sha256


def test_the_card_of_a_resumed_training_says_what_it_started_from(config):
    steps = 'optimize.val_every_steps=1'
    first = train(config, overrides=['optimize.max_steps=1'], progress=False)
    again = ['name=again', steps, 'optimize.max_steps=1']
    folder = train(config, overrides=again, start=first, progress=False)
    longer = ['name=again', steps, 'optimize.max_steps=2']
    checkpoint = folder.parent / 'last.ckpt'
    training = load_model(
        train(config, overrides=longer, resume=checkpoint, progress=False)
    ).card.training
    assert (training['steps'], training['start']['name']) == (2, 'tiny')


def test_trains_from_the_published_folder_layout(config, tmp_path):
    folder = tmp_path / 'own'
    (folder / 'CIF').mkdir(parents=True)
    for part in ('train', 'val'):
        with (folder / f'{part}.csv').open('w') as file:
            file.write('atoms_id\n')
            for pair in rocksalts(12, seed=1):
                if pair.split == part:
                    file.write(f'{pair.id}\n')
                    write(folder / f'CIF/{pair.id}_unrelaxed.cif', pair.unrelaxed)
                    write(folder / f'CIF/{pair.id}_relaxed.cif', pair.relaxed)
    overrides = [
        f'data.pairs=[{{path: {folder}}}]',
        'optimize.max_steps=4',
        'optimize.val_every_steps=2',
    ]
    assert load_model(train(config, overrides=overrides, progress=False))
    assert select(tmp_path / 'runs/tiny')


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('optimize.learning_rate=-1', 'optimize.learning_rate'),
        ('optimise.max_steps=3', "no setting 'optimise' here, only .*, optimize, "),
        (
            'data.pairs.0.pth=a',
            r"data\.pairs\.0: there is no setting 'pth' here, only path, ",
        ),
        ('data.workers=-1', r'data\.workers'),
        ('optimize.threads=-3', r'optimize\.threads'),
        ('optimize.val_every_steps=0', r'optimize\.val_every_steps'),
        ('optimize.clip=.nan', r'optimize\.clip'),
        ('model.hidden=16.5', r'model\.hidden: .*integer \(got 16\.5\)'),
        ('model.layers=true', r'model\.layers: .*integer \(got True\)'),
        ('model.cutoff=wide', r"model\.cutoff: .*number \(got 'wide'\)"),
        ('data.pairs.0.src=[]', r'data\.pairs\.0\.src: '),
        ('seed=-1', 'seed: Input should be greater than or equal to 0'),
        ('seed=4294967296', 'seed: Input should be less than 4294967296'),
        ('data.denoise.volume=[0.2, -0.1]', r'data\.denoise\.volume: the lower limit'),
        ('data.denoise.volume=[-1, 0.2]', r'data\.denoise\.volume'),
        ('name=""', 'name'),
        ('data.pairs=[]', 'data.pairs'),
        ('optimize.precision=fp8', 'optimize.precision'),
        ('name', 'key=value'),
        ('optimize.max_steps=null', 'max_minutes'),
    ],
)
def test_wrong_settings_are_named(config, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(config, [override])


@pytest.mark.parametrize('text', ['64', "'64'"])
def test_a_precision_may_be_written_as_a_number(config, text):
    assert load_config(config, [f'optimize.precision={text}']).optimize.precision == '64'


def test_unreadable_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r'absent\.yaml'):
        load_config(tmp_path / 'absent.yaml')
    (tmp_path / 'list.yaml').write_text('- 1')
    with pytest.raises(ConfigError, match='no settings'):
        load_config(tmp_path / 'list.yaml')


def test_a_setting_that_is_there_twice_is_named(config):
    text = config.read_text()
    config.write_text(text.replace('name: tiny', 'name: tiny\n        name: other'))
    with pytest.raises(ConfigError, match=r"'name' is there twice(.|\n)*line 3"):
        load_config(config)


@pytest.mark.parametrize('size', ['cutoff=16.0', 'layers=65', 'hidden=4096'])
def test_no_network_is_trained_that_could_not_be_loaded_again(config, tmp_path, size):
    name = size.partition('=')[0]
    with pytest.raises(ModelError, match=rf'run\.yaml, model: {name} is'):
        train(config, overrides=[f'model.{size}'], progress=False)
    assert not (tmp_path / 'runs').exists()


LAUGHS = '\n'.join(
    ['a0: &a0 [x, x, x, x, x, x, x, x, x]']
    + [f'a{k}: &a{k} [{", ".join([f"*a{k - 1}"] * 9)}]' for k in range(1, 12)]
)


@pytest.mark.parametrize(
    'text',
    [
        LAUGHS,
        'a: &a [*a]',
        '[' * 5000 + ']' * 5000,
        'a: [' + 'x, ' * 20_000 + ']',
        'a: [' + 'x, ' * 300_000 + ']',
        'seed: ' + '9' * 10_000,
        '\n'.join(f'k{k}: 1' for k in range(6000)),
    ],
)
def test_hostile_configurations_are_refused_at_once(tmp_path, text):
    path = tmp_path / 'bomb.yaml'
    path.write_text(text)
    begun = time.process_time()
    with pytest.raises(ConfigError, match=r'bomb\.yaml') as caught:
        load_config(path)
    assert time.process_time() - begun < 5
    assert len(str(caught.value)) < 5000


def test_every_sample_is_in_exactly_one_batch():
    sizes = np.random.default_rng(0).integers(1, 40, 500)
    batches = SizeBatches(sizes, 100, seed=0)
    first, second = list(batches), list(batches)
    for epoch, keys in enumerate((first, second)):
        assert {key[0] for key in keys} == {epoch}
        assert [key[1] for key in keys] == list(range(len(keys)))
        assert sorted(np.concatenate([key[2] for key in keys])) == list(range(500))
    assert not np.array_equal(first[0][2], second[0][2])
    for _, _, index in first:
        assert sizes[index].sum() <= 100 or len(index) == 1


def test_samples_are_reproducible_and_differ_by_epoch(config):
    data = PairData(load_config(config), GraphSpec())
    data.setup()
    keys = [(0, 0, [3, 1]), (0, 0, [3, 1]), (1, 0, [3, 1]), (0, 1, [3, 1])]
    a, b, c, d = (data.train_set[key].pos for key in keys)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(a, d)


def test_the_samples_are_not_made_again_for_the_last_validations(config, monkeypatch):
    """Of many pairs this takes minutes."""
    made, make = [], TrainingBatches.__init__

    def count(self, pairs, *args, **kwargs):
        made.append(len(pairs))
        make(self, pairs, *args, **kwargs)

    monkeypatch.setattr(TrainingBatches, '__init__', count)
    train(config, overrides=['optimize.max_steps=2'], progress=False)
    assert made == [30, 10]


def test_canonical_frame_keeps_targets_and_input_together():
    """In whichever frame: input plus target is the relaxed crystal."""
    pairs = rocksalts(6)
    spec = GraphSpec(canonical=True)
    graphs = TrainingBatches(pairs, [], spec, dtype=torch.float64)[0, 0, np.arange(6)]
    for pair, graph in zip(pairs, split(graphs), strict=True):
        assert graph.num_edges > 10
        deformation = graph.deformation_target[0]
        atoms = Atoms(
            graph.z.numpy(),
            positions=((graph.pos + graph.displacement_target) @ deformation).numpy(),
            cell=(graph.cell[0] @ deformation).numpy(),
            pbc=True,
        )
        expected = np.sort(pair.relaxed.get_all_distances(mic=True).ravel())
        np.testing.assert_allclose(
            np.sort(atoms.get_all_distances(mic=True).ravel()), expected, atol=1e-8
        )


def test_collections_are_chosen_and_one_that_is_not_there_is_named(config, tmp_path):
    pairs = [replace(p, src=('one', 'two')[k % 2]) for k, p in enumerate(rocksalts(12))]
    write_pairs(tmp_path / 'pairs.jsonl.gz', pairs)
    # The other source has pairs enough; a misspelt collection must not pass for it.
    both = 'data.pairs=[{path: pairs.jsonl.gz}, {path: pairs.jsonl.gz, src: [SRC]}]'
    spec = GraphSpec()
    found = PairData(load_config(config, [both.replace('SRC', 'one')]), spec)
    assert [p.src for p in found.train].count('one') == 2 * 6
    with pytest.raises(PairFileError, match="src 'oen'; there are: 'one', 'two'"):
        PairData(load_config(config, [both.replace('SRC', 'oen')]), spec)
    relaxed = 'data.relaxed_structures=[{path: pairs.jsonl.gz, src: [oen]}]'
    with pytest.raises(PairFileError, match="src 'oen'; there are: 'one', 'two'"):
        PairData(load_config(config, [relaxed]), spec)


def test_relaxed_structures_of_pairs_that_validate_or_test_are_left_out(config, tmp_path):
    pairs = rocksalts(12)
    pairs[0] = replace(pairs[0], split='test')
    write_pairs(tmp_path / 'pairs.jsonl.gz', pairs)
    overrides = ['data.relaxed_structures=[{path: pairs.jsonl.gz}]']
    data = PairData(load_config(config, overrides), GraphSpec())
    assert [p.id for p in data.relaxed] == [p.id for p in pairs if p.split == 'train']
    for pair in data.relaxed:
        deformation, displacement = pair.targets()
        np.testing.assert_allclose(deformation, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(displacement, 0, atol=1e-12)


def test_pairs_of_every_kind_of_file_give_relaxed_structures(config, tmp_path):
    frames = []
    for k, pair in enumerate(rocksalts(8)):
        for role in ('unrelaxed', 'relaxed'):
            atoms = getattr(pair, role)
            atoms.info.update(pair_id=f'p{k}', role=role, split=pair.split, src='mine')
            frames.append(atoms)
    write(tmp_path / 'pairs.extxyz', frames)
    file = '[{path: pairs.extxyz, src: [mine]}]'
    overrides = [f'data.pairs={file}', f'data.relaxed_structures={file}']
    data = PairData(load_config(config, overrides), GraphSpec())
    assert (len(data.train), len(data.val), len(data.relaxed)) == (6, 2, 6)


def test_pairs_that_are_left_out_are_named_with_the_reason(config, tmp_path, caplog):
    pairs = rocksalts(8)
    flat = pairs[0].cell0 * [[1e-2], [1], [1]]
    pairs[0] = replace(pairs[0], cell0=flat, cell1=flat)
    write_pairs(tmp_path / 'pairs.jsonl.gz', pairs)
    assert len(PairData(load_config(config), GraphSpec()).train) == 5
    assert '1 pair is left out' in caplog.text
    assert 'the first is id p0: ' in caplog.text


def test_cells_that_were_fixed_and_count_as_free_are_told(config, tmp_path, caplog):
    free = rocksalts(30)
    held = [replace(pair, cell1=pair.cell0) for pair in free[:4]]

    def read(*equal):
        write_pairs(tmp_path / 'pairs.jsonl.gz', [*equal, *free[len(equal) :]])
        PairData(load_config(config), GraphSpec())

    read(*(replace(pair, fixed_cell=True) for pair in held))
    read(*held[:3])  # a tenth may be relaxed already
    assert 'both cells are equal' not in caplog.text
    read(*held)
    assert 'in 4 of 30 pairs both cells are equal' in caplog.text
    assert 'the first is id p0' in caplog.text


def test_a_file_of_which_no_relaxed_structure_is_used_is_named(config, caplog):
    overrides = [
        'data.relaxed_structures=[{path: pairs.jsonl.gz}]',
        'data.denoise.max_atoms=1',
    ]
    assert not PairData(load_config(config, overrides), GraphSpec()).relaxed
    assert 'pairs.jsonl.gz: no relaxed structure of it is used' in caplog.text


def test_what_is_fixed_in_a_pair_is_fixed_in_its_relaxed_structure(config, tmp_path):
    """A relaxed structure in a fixed cell is no minimum over all cells."""
    fixed = np.array([True, False])
    pairs = [replace(p, fixed_cell=True, fixed=fixed) for p in rocksalts(8)]
    pairs = [replace(p, cell1=p.cell0, frac1=p.frac0) for p in pairs]
    write_pairs(tmp_path / 'pairs.jsonl.gz', pairs)
    overrides = ['data.relaxed_structures=[{path: pairs.jsonl.gz}]']
    data = PairData(load_config(config, overrides), GraphSpec())
    data.setup()
    n = len(data.train)
    batch = data.train_set[0, 0, np.arange(n, n + len(data.relaxed))]
    assert not batch.free_strain.any()
    assert batch.fixed.tolist() == fixed.tolist() * len(data.relaxed)
    cells = torch.tensor(np.array([p.cell1 for p in data.relaxed]), dtype=torch.float32)
    torch.testing.assert_close(torch.linalg.det(batch.cell), torch.linalg.det(cells))


def test_held_out_compositions_are_left_out(config, tmp_path):
    (tmp_path / 'exclude.txt').write_text('ClK\n')
    overrides = ['data.exclude_formulas=exclude.txt']
    data = PairData(load_config(config, overrides), GraphSpec())
    assert {composition(p.numbers) for p in data.train} == {
        ((3, 1), (17, 1)),
        ((11, 1), (17, 1)),
    }


def test_one_entry_of_a_list_can_be_overridden(config, tmp_path):
    overrides = ['data.pairs.0.path=other.jsonl', 'data.pairs.0.ok_only=false']
    (source,) = load_config(config, overrides).data.pairs
    assert (source.path, source.licence) == (tmp_path / 'other.jsonl', 'none')
    assert not source.ok_only


@pytest.mark.parametrize(
    'override', ['data.pairs.1.path=x', 'data.pairs.path=x', 'name.first=x', 'seed={']
)
def test_override_that_fits_nowhere_is_named(config, override):
    with pytest.raises(ConfigError, match=override.partition('=')[0]):
        load_config(config, [override])


def test_shipped_settings_by_name_with_paths_from_the_working_directory():
    config = load_config('papers/deeprelax-xmno', ['data.pairs.0.path=cifs_xmno'])
    assert (config.name, str(config.data.pairs[0].path)) == ('deeprelax-xmno', 'cifs_xmno')
    with pytest.raises(ConfigError, match='absent'):
        load_config('papers/absent')


def test_batches_of_so_many_crystals():
    sizes = np.random.default_rng(0).integers(1, 40, 100)
    batches = SizeBatches(sizes, 100, seed=0, crystals=32)
    assert sorted(len(index) for _, _, index in batches) == [4, 32, 32, 32]


@pytest.mark.parametrize('name', ['relaxed_structures', 'seeds'])
def test_files_of_relaxed_structures_have_a_former_name(config, name):
    overrides = [f'data.{name}=[{{path: known.jsonl.gz, licence: none}}]']
    (source,) = load_config(config, overrides).data.relaxed_structures
    assert source.path.name == 'known.jsonl.gz'

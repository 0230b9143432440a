"""Screens whose GPUs are many, lost, or short of memory, told as torch tells it."""

import sys
from multiprocessing import get_context

import pytest

from ase_deeprelax import screen
from ase_deeprelax.errors import ConfigError, DeviceError
from ase_deeprelax.models import create_model
from ase_deeprelax.models.store import save_model
from ase_deeprelax.screening.store import Store
from ase_deeprelax.screening.work import LOST_DEVICE, Setup, Task, work, work_or_exit
from tests.screening.screens import assert_same, environment, rows

# A worker meets what torch raises after a failed assertion on a GPU, once, in the first
# batch after a file was put there.
LOST_GPU = """
import os
from ase_deeprelax.predict import batches
real = batches.run_model
def run_model(model, graph):
    try:
        os.remove({file!r})
    except FileNotFoundError:
        return real(model, graph)
    raise RuntimeError('CUDA error: device-side assert triggered')
batches.run_model = run_model
"""
# A machine with two GPUs, as torch tells it; the one that a worker takes is written down.
# The network runs on the CPU, where there is no GPU.
TWO_GPUS = """
import os, torch
torch.cuda.device_count = lambda: 2
def set_device(index):
    with open({file!r}, 'a') as file:
        print(index, file=file)
torch.cuda.set_device = set_device
"""


def losing_workers(code_of_workers, tmp_path):
    """The file that makes a worker lose its GPU, and a folder with the code for that."""
    file = tmp_path / 'lose'
    return file, code_of_workers(LOST_GPU.format(file=str(file)))


def test_pack_of_a_worker_that_loses_its_gpu_goes_to_another(
    code_of_workers, command, packs_there, source, tmp_path, undisturbed
):
    out = tmp_path / 'out'
    lose, code = losing_workers(code_of_workers, tmp_path)
    process = command(source, out, '--workers', 2, folders=[code])
    packs_there(process, out, 2)
    lose.touch()
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert not lose.exists()
    assert 'was lost (CUDA error: device-side assert triggered)' in errors
    assert '240 of 240' in output
    assert_same(out, undisturbed)


def test_worker_that_loses_its_gpu_ends_with_a_code(
    code_of_workers, source, tmp_path, undisturbed, tiny_model, monkeypatch
):
    lose, code = losing_workers(code_of_workers, tmp_path)
    monkeypatch.setenv('PYTHONPATH', environment(code)['PYTHONPATH'])
    lose.touch()
    store = Store(tmp_path / 'undisturbed')
    for pack in store.done():
        store.path(pack).unlink()
    task = task_of(source, store, tmp_path, Setup(tiny_model))
    worker = get_context('spawn').Process(target=work_or_exit, args=(task,))
    worker.start()
    worker.join(200)
    assert worker.exitcode == LOST_DEVICE
    assert not store.done()


def task_of(source, store, tmp_path, setup):
    """Two packs of a screen."""
    stamp = store.manifest()['stamp']
    where = str(source), str(store.out)
    return Task(*where, (0, 1), stamp, str(tmp_path / 'stop'), setup)


def test_without_workers_finished_packs_are_kept(command, source, tmp_path, undisturbed):
    out = tmp_path / 'out'
    lost = (
        'from ase_deeprelax.predict import batches\n'
        'calls, real = [0], batches.run_model\n'
        'def run_model(model, graph):\n'
        '    calls[0] += 1\n'
        '    if calls[0] > 5:\n'
        '        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")\n'
        '    return real(model, graph)\n'
        'batches.run_model = run_model\n'
    )
    process = command(source, out, before=lost)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert 'ECC error' in errors
    assert 'the same command again: finished packs are kept' in errors.replace('\n', ' ')
    assert 'Traceback' not in errors
    assert 0 < len(Store(out).done()) < 20
    assert command(source, out).wait() == 0
    assert_same(out, undisturbed)


@pytest.mark.parametrize(
    ('device', 'workers', 'taken'),
    [('auto', 3, [0, 0, 1]), ('cpu', 2, [])],
)
def test_workers_take_the_gpus_of_a_machine_in_turn(
    code_of_workers, command, source, tmp_path, undisturbed, device, workers, taken
):
    file = tmp_path / 'taken'
    code = code_of_workers(TWO_GPUS.format(file=str(file)))
    out = tmp_path / 'out'
    options = ['--workers', workers, '--device', device]
    process = command(source, out, *options, folders=[code])
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    found = file.read_text().split() if file.exists() else []
    assert sorted(map(int, found)) == taken
    assert_same(out, undisturbed)


def test_the_device_is_that_of_the_workers(source, tmp_path, tiny_model):
    """A process that only gives out work needs no GPU; a worker without one says so."""
    out = tmp_path / 'out'
    with pytest.raises(DeviceError, match="'cuda:9' is not there"):
        screen(source, out, model=tiny_model, pack=50, device='cuda:9', workers=2)
    assert (out / 'manifest.json').exists()  # this process was content
    assert screen(source, out, model=tiny_model, pack=50, workers=2).n_done == 240


def test_a_worker_with_another_model_is_told(source, tmp_path, undisturbed, tiny_model):
    other = tmp_path / 'other'
    save_model(create_model('paegnn', hidden=16, layers=1), other, {'elements': [8]})
    store = Store(tmp_path / 'undisturbed')
    for pack in store.done():
        store.path(pack).unlink()
    with pytest.raises(ConfigError, match='and a worker has'):
        work(task_of(source, store, tmp_path, Setup(other)))
    assert not store.done()
    assert work(task_of(source, store, tmp_path, Setup(tiny_model))) == 2


# While the network runs the process may take 4 MB more: the allocator itself refuses what
# does not fit.
LITTLE_MEMORY = """
import resource, sys
from ase_deeprelax.predict import batches
real = batches.run_model
def run_model(model, graph):
    with open('/proc/self/statm') as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    former = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + (4 << 20), former[1]))
    try:
        return real(model, graph)
    except RuntimeError as error:
        print('refused:', error, file=sys.stderr)
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_AS, former)
batches.run_model = run_model
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc/self/statm')
def test_batches_that_do_not_fit_into_memory_are_halved(
    command, source, tmp_path, monkeypatch
):
    # Otherwise memory that was freed before is taken again, beside the limit.
    monkeypatch.setenv('MALLOC_MMAP_THRESHOLD_', '65536')
    model = tmp_path / 'model'
    network = create_model('paegnn', hidden=64, layers=2)
    save_model(network, model, {'elements': list(range(1, 95))})
    whole, out = tmp_path / 'whole', tmp_path / 'out'
    screen(source, whole, model=model, pack=120)
    process = command(source, out, '--model', model, pack=120, before=LITTLE_MEMORY)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert 'refused: ' in errors
    assert "can't allocate memory" in errors
    assert '240 of 240 structures done, 0 of them quarantined' in output
    assert_same(out, rows(whole))

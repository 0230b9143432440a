"""A screen on Parsl: `python parsl_screen.py SOURCE OUT`.

Here two workers on this machine. On a cluster give HighThroughputExecutor a provider
(SlurmProvider, PBSProProvider, LSFProvider) and, with GPUs, available_accelerators; the
rest stays as it is. All workers must see SOURCE and OUT.
"""

import sys

from parsl.concurrent import ParslPoolExecutor
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from ase_deeprelax import screen


def config():
    """Two workers on this machine; a task whose worker was lost is tried three times."""
    workers = HighThroughputExecutor(
        label='workers',
        address='127.0.0.1',
        max_workers_per_node=2,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    return Config(executors=[workers], retries=2)


def main(source, out):
    """Run or continue the screen, and print what became of it."""
    with ParslPoolExecutor(config()) as executor:
        print(screen(source, out, executor=executor, progress=True))


if __name__ == '__main__':
    main(*sys.argv[1:])

"""A screen on the workers of Dask: `python dask_screen.py SOURCE OUT [SCHEDULER]`.

Without the address of a scheduler it makes two workers on this machine. For a cluster start
`dask scheduler` on one node and `dask worker ADDRESS --nthreads 1` on the others, or use a
class of dask-jobqueue in place of LocalCluster. All workers must see SOURCE and OUT.

Dask gives the work of a lost worker to another one. A worker that has one GPU of several is
made with CUDA_VISIBLE_DEVICES, or by dask-cuda.
"""

import sys

from dask.distributed import Client, LocalCluster

from ase_deeprelax import screen


def main(source, out, scheduler=None):
    """Run or continue the screen, and print what became of it."""
    address = scheduler or LocalCluster(n_workers=2, threads_per_worker=1)
    with Client(address) as client, client.get_executor() as executor:
        print(screen(source, out, executor=executor, progress=True))


if __name__ == '__main__':
    main(*sys.argv[1:])

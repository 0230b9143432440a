"""CPU time on one thread, in which other programs of the machine do not count.

What is compared is measured in turns, and the medians of the turns are compared: a slow
minute of the machine then slows all of them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import process_time
from typing import Any

import numpy as np

from ase_deeprelax.predict import forward, prepare


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its CPU time in s."""
    start = process_time()
    answer = call()
    return answer, process_time() - start


def medians(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median CPU time of each call, s; every repeat makes all calls once."""
    seconds = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(timed(call)[1])
    return {name: float(np.median(values)) for name, values in seconds.items()}


@contextmanager
def cpu_timings() -> Iterator[None]:
    """Within it, `Predictor.timings` is CPU time, not wall time."""
    clocks = [module.perf_counter for module in (forward, prepare)]
    forward.perf_counter = prepare.perf_counter = process_time
    try:
        yield
    finally:
        forward.perf_counter, prepare.perf_counter = clocks

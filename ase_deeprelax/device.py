"""The choice of the device that computes: the CPU or a GPU."""

from __future__ import annotations

import torch

from ase_deeprelax.errors import DeviceError

TESTED = ('cpu', 'cuda')


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of that name, after a check that it can be used.

    Parameters
    ----------
    device : str or torch.device
        'auto' (a GPU where there is one), 'cpu', 'cuda' or 'cuda:N'.

    Raises
    ------
    DeviceError
        There is no such device, it is of a kind that is not tested, or CUDA was in use when
        this process was forked.

    Examples
    --------
    >>> resolve_device('cpu')
    device(type='cpu')
    """
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(
            f"device is {device!r}; it must be 'auto', 'cpu', 'cuda' or 'cuda:N'"
        ) from error
    name = str(resolved)
    if resolved.type not in TESTED:
        raise DeviceError(
            f"device {name!r}: only 'cpu' and 'cuda' are tested; use one of them"
        )
    count = torch.cuda.device_count() if resolved.type == 'cuda' else 1
    if (resolved.index or 0) >= count:
        raise DeviceError(
            f'device {name!r} is not there: torch {torch.__version__} sees {count} CUDA '
            "devices; use device='cpu' or 'auto', or install a CUDA build of torch"
        )
    if resolved.type == 'cuda' and torch.cuda._is_in_bad_fork():  # noqa: SLF001
        raise DeviceError(
            f'device {name!r}: this process was forked from one that had used CUDA, and '
            'CUDA does not survive that; start workers with '
            "multiprocessing.get_context('spawn'), or use device='cpu'"
        )
    return resolved

"""Network and solver on structures in batches of similar size that fit into the memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from ase_deeprelax.data.batching import collate, group_by_size, halve
from ase_deeprelax.errors import PredictionError
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.predict.forward import StructureOutput, run_model
from ase_deeprelax.predict.prepare import Prepared

# Edges per batch: on a CPU enough for operations of some size (for a crystal of 7.3 atoms
# the network takes 1.3 to 1.4 ms with 5,000 to 60,000, and 1.7 ms with 2,000; on two
# threads it wants 10,000, its machine code 2,000 to 5,000), on a GPU what keeps it busy.
BATCH_EDGES = {'cpu': 10_000, 'machine code': 4_000, 'cuda': 1_000_000}

# Parts of the messages that say that the memory ran out, of errors without an own class.
OUT_OF_MEMORY = (
    'out of memory',
    "can't allocate memory",
    'Failed to allocate',
    'bad_alloc',
    'ALLOC_FAILED',  # as the libraries of CUDA say it
)


def run_batches(
    model: RelaxationModel,
    prepared: Mapping[int, Prepared],
    device: torch.device,
    batch_edges: int,
) -> Iterator[tuple[int, StructureOutput | PredictionError]]:
    """Run network and solver on structures; a batch that does not fit is halved.

    Parameters
    ----------
    model : RelaxationModel
        In eval mode, on ``device``.
    prepared : mapping of int to Prepared
    device : torch.device
    batch_edges : int
        Edges that go through the network at once, see `BATCH_EDGES`.

    Yields
    ------
    index : int
        Its key in ``prepared``.
    output : StructureOutput or PredictionError
        The error where it does not fit into memory, not even alone.
    """
    keys = list(prepared)
    if not keys:
        return
    graphs = [prepared[key].graph for key in keys]
    batches = group_by_size(
        [graph.num_nodes for graph in graphs],
        [graph.num_edges for graph in graphs],
        batch_edges,
    )
    del graphs
    batches.reverse()
    while batches:
        indices = batches.pop()
        members = [keys[index] for index in indices]
        outputs = _run(model, [prepared[key] for key in members], device)
        if outputs is not None:
            yield from zip(members, outputs, strict=True)
        elif len(indices) > 1:
            batches.extend(reversed(halve(indices)))
        else:
            yield members[0], _too_large(prepared[members[0]], device)


def _run(
    model: RelaxationModel, batch: list[Prepared], device: torch.device
) -> list[StructureOutput] | None:
    """Outputs for one batch, or None where it does not fit into memory."""
    try:
        graph = collate([prepared.graph for prepared in batch]).to(device)
        # Autocast around the caller's code would let the network compute with 16 bits.
        with torch.autocast(device.type, enabled=False):
            outputs, seconds = run_model(model, graph)
    except (RuntimeError, MemoryError) as error:
        if not _is_shortage(error):
            raise
    else:
        for prepared in batch:
            for part, spent in seconds.items():
                prepared.timings[part] += spent / len(batch)
        return outputs
    # In the handler of the error, its traceback would still hold the tensors.
    if device.type == 'cuda':
        torch.cuda.empty_cache()
    return None


def _too_large(prepared: Prepared, device: torch.device) -> PredictionError:
    return PredictionError(
        f'{prepared.graph.num_nodes} atoms with {prepared.graph.num_edges} edges do not '
        f"fit into the memory of device '{device}'; use device='cpu', a smaller cell or a "
        'smaller model'
    )


def _is_shortage(error: BaseException) -> bool:
    """Whether an error of `run_model` says that the batch does not fit into memory."""
    text = str(error)
    return isinstance(error, MemoryError) or any(part in text for part in OUT_OF_MEMORY)

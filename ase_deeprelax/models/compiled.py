"""Networks as machine code for the processor of this machine.

On a small crystal, torch takes longer to start an operation than to do it; machine code
does many operations in one call. `compile_network` has torch compile the network of a
model, once (it takes minutes, and a C++ compiler), into a file of the user's cache folder,
where `with_machine_code` finds it.

A file serves one model, release of torch, kind of processor and version of the networks
here: with any other it is not found, and the network runs as before.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from torch import nn

from ase_deeprelax.data.batching import collate
from ase_deeprelax.data.convert import to_graph
from ase_deeprelax.data.graph import CrystalGraph
from ase_deeprelax.errors import ModelError, warn
from ase_deeprelax.models.base import (
    GraphNetwork,
    ModelOutput,
    RelaxationModel,
    takes_topology,
)
from ase_deeprelax.models.topology import Topology, topology

# The tensors that go in, in this order.
GRAPH = ('z', 'pos', 'cell', 'edge_index', 'offset', 'fixed', 'free_strain', 'batch', 'ptr')
TOPOLOGY = tuple(field.name for field in fields(Topology))
# The tensors that come out.
OUTPUT = ('deformation', 'displacement', 'distance', 'log_b', 'features')
# How far the answers may be from those of the network, A and as strain: rounding errors of
# single precision are below 1e-5.
TOLERANCE = 1e-4
# Batches with more edges, which are large cells, go through the network as before: it is as
# fast there, and takes its sums in blocks, with less memory.
MOST_EDGES = 50_000
HERE = __name__.rpartition('.')[0] + '.'


class Exported(nn.Module):
    """A network as a function of tensors."""

    def __init__(self, network: GraphNetwork):
        super().__init__()
        self.network = network

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tensors `OUTPUT` from the tensors `GRAPH` and `TOPOLOGY`."""
        count = len(GRAPH)
        given = dict(zip(GRAPH, tensors[:count], strict=True))
        intra = torch.zeros_like(given['offset'][:, 0], dtype=torch.bool)
        graph = CrystalGraph(intra=intra, **given)
        output = self.network.predict(graph, Topology(*tensors[count:]))
        return tuple(getattr(output, name) for name in OUTPUT)


def _inputs(graph: CrystalGraph, found: Topology) -> list[torch.Tensor]:
    return [
        *(getattr(graph, name) for name in GRAPH),
        *(getattr(found, name) for name in TOPOLOGY),
    ]


class CompiledNetwork(GraphNetwork):
    """A network whose batches go through machine code where it can take them.

    Machine code is made for sizes of two and more: one atom alone goes through the network
    as before, and so does a large cell (`MOST_EDGES`).

    Parameters
    ----------
    network : GraphNetwork
    code : callable
        From the list of tensors `GRAPH` and `TOPOLOGY` to the list of tensors `OUTPUT`.
    """

    def __init__(self, network: GraphNetwork, code: Callable[[list[torch.Tensor]], Any]):
        super().__init__()
        self.spec, self.network, self.code = network.spec, network, code

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or what another process gets, looks for the machine code again."""
        return with_machine_code, (self.network,)

    def predict(self, graph: CrystalGraph, topology: Topology) -> ModelOutput:
        """Predict for a batch of graphs, see `ModelOutput`."""
        smallest = min(*topology.neighbors.shape, len(topology.bonds))
        if smallest < 2 or graph.num_edges > MOST_EDGES:
            return self.network.predict(graph, topology)
        outputs = self.code(_inputs(_two_at_least(graph), topology))
        given = dict(zip(OUTPUT, outputs, strict=True))
        given['deformation'] = given['deformation'][: graph.n_graphs]
        return ModelOutput(bond_index=topology.bonds, **given)


def _two_at_least(graph: CrystalGraph) -> CrystalGraph:
    """The batch, with an empty graph at its end where it is of one alone."""
    tensors = graph.tensors()
    tensors['batch'], tensors['ptr'] = graph.graph_of_atom, graph.starts
    if graph.n_graphs == 1:
        for name in ('cell', 'free_strain'):
            tensors[name] = tensors[name].expand(2, -1, -1).contiguous()
        tensors['ptr'] = torch.cat([tensors['ptr'], tensors['ptr'][-1:]])
    return CrystalGraph(**tensors)


def with_machine_code(model: RelaxationModel) -> RelaxationModel:
    """The network with its machine code, or the model itself where there is none.

    Parameters
    ----------
    model : RelaxationModel
        As `load_shared` gives it: its weights are those of its hash.
    """
    # Most users have no such folder, and the name of the file takes time. Unlike
    # Path.is_dir this raises no error where a folder above cannot be read.
    if not os.path.isdir(code_folder()):  # noqa: PTH112
        return model
    path = code_file(model)
    if not isinstance(model, GraphNetwork) or path is None:
        return model
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        return model
    try:
        return CompiledNetwork(model, _load(path, stamp))
    except (RuntimeError, OSError, zipfile.BadZipFile, AttributeError) as error:
        warn(
            f'the machine code of model {model.name!r} in {path} cannot be used, and the '
            f'network runs without it ({error}); give "deeprelax compile" again'
        )
        return model


@lru_cache(maxsize=8)
def _load(path: Path, _stamp: int) -> Callable[[list[torch.Tensor]], Any]:
    """Load a file of machine code, once; a file that was made again is read again."""
    with zipfile.ZipFile(path) as file:
        if damaged := file.testzip():
            raise zipfile.BadZipFile(f'{damaged} is damaged')
    # torch._inductor.aoti_load_package does the same after seconds of imports.
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), 'model', False, 1, -1)  # noqa: SLF001
    return loader.run


def compile_network(model: RelaxationModel) -> Path:
    """Compile the network of a model for this machine, and check its answers.

    Parameters
    ----------
    model : RelaxationModel
        On the CPU, in single precision, as `load_shared` gives it.

    Returns
    -------
    Path
        The file, in `code_folder`.

    Raises
    ------
    ModelError
        The model is of another kind, torch could not compile it (there may be no C++
        compiler), or the answers of the machine code are others.
    """
    path = code_file(model)
    if not isinstance(model, GraphNetwork) or path is None:
        raise ModelError(
            f'model {model.name!r} cannot be compiled: only networks of this package with '
            'all neighbours within a radius can, and ensembles of them'
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # else each small operation would start threads
        try:
            _compile(model, made)
            compiled = CompiledNetwork(model, _load(made, 0))
        except Exception as error:
            first_line = str(error).partition('\n')[0]
            raise ModelError(
                f'torch {torch.__version__} could not compile model {model.name!r}, or not '
                'load its machine code; is there a C++ compiler, such as g++? It says: '
                f'{first_line}'
            ) from error
        finally:
            torch.set_num_threads(threads)
        _check(model, compiled)
        made.replace(path)
    return path


def _compile(network: GraphNetwork, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    torch._logging.set_logs(inductor=logging.ERROR)  # noqa: SLF001
    dim = torch.export.Dim
    atoms, edges, bonds = dim('atoms', min=2), dim('edges', min=2), dim('bonds', min=2)
    graphs, width = dim('graphs', min=2), dim('width', min=2)
    sizes: dict[str, dict[int, Any]] = {name: {0: atoms} for name in GRAPH}
    sizes |= {'cell': {0: graphs}, 'free_strain': {0: graphs}, 'ptr': {0: graphs + 1}}
    sizes |= {'edge_index': {1: edges}, 'offset': {0: edges}, 'bonds': {0: bonds}}
    sizes |= {name: {0: edges} for name in ('reverse', 'slots')}
    sizes |= {'neighbors': {0: atoms, 1: width}}
    graph = _crystals(network)
    inputs = tuple(_inputs(graph, topology(graph)))
    shapes = tuple(sizes[name] for name in (*GRAPH, *TOPOLOGY))
    # With gradients on, sums over neighbours are not cut into blocks for the cache.
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # of torch, about itself
        program = torch.export.export(Exported(network), inputs, dynamic_shapes=(shapes,))
        aoti_compile_and_package(program, package_path=str(path))


def _check(network: GraphNetwork, compiled: CompiledNetwork) -> None:
    """Refuse machine code whose answers are not those of the network."""
    for batch in (_crystals(network), _crystals(network, 1), _crystals(network, 7)):
        with torch.inference_mode():
            one, other = network(batch), compiled(batch)
        for name in OUTPUT:
            error = (getattr(one, name) - getattr(other, name)).abs().max()
            if not error < TOLERANCE * max(1.0, float(getattr(one, name).abs().max())):
                raise ModelError(
                    f'the machine code of model {network.name!r} gives another {name}, by '
                    f'{float(error):.1e}; it is not used. Another release of torch or of '
                    'the C++ compiler may do better'
                )


def _crystals(network: GraphNetwork, count: int = 3) -> CrystalGraph:
    """A batch of crystals of different sizes."""
    from ase.build import bulk

    given = [
        bulk('NaCl', 'rocksalt', a=5.9, cubic=True),
        bulk('ZnO', 'wurtzite', a=3.3, c=5.1),
        bulk('CsCl', 'cesiumchloride', a=4.2) * (2, 1, 1),
    ]
    return collate([_graph(given[k % 3].copy(), network, k) for k in range(count)])


def _graph(atoms: Atoms, network: GraphNetwork, seed: int) -> CrystalGraph:
    atoms.rattle(0.05, seed=seed)
    return to_graph(atoms, network.spec)[0]


def code_file(model: RelaxationModel) -> Path | None:
    """The file for the machine code of a model, whether or not it has been made.

    None if the model can have none: machine code is for the CPU and single precision.
    """
    networks = [model, *getattr(model, 'members', ())]
    # The key below depends on the source code of the networks of this folder only.
    if not all(takes_topology(n) and type(n).__module__.startswith(HERE) for n in networks):
        return None
    parameter = next(model.parameters())
    known = parameter.device.type == 'cpu' and parameter.dtype == torch.float32
    if not known or not model.spec.is_radius or not model.sha256:
        return None
    key = hashlib.sha256('\n'.join([model.sha256, *_surroundings()]).encode()).hexdigest()
    return code_folder() / f'{model.sha256[:12]}-{key[:20]}.pt2'


def code_folder() -> Path:
    """``ase_deeprelax`` in the user's cache folder."""
    # Path.home would raise an error where a user has no home.
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')  # noqa: PTH111
    return Path(cache) / 'ase_deeprelax'


@lru_cache(maxsize=1)
def _surroundings() -> list[str]:
    """All beside the model that machine code depends on.

    The nodes of a cluster share the cache folder, and code for one kind of processor may
    crash on another.
    """
    named = {}
    facts = Path('/proc/cpuinfo')  # Linux names what the processor can do only there
    if facts.exists():
        with facts.open(encoding='utf-8') as file:  # of the first core
            parts = [line.partition(':') for line in takewhile(str.strip, file)]
        named = {key.strip(): value.rstrip() for key, _, value in parts}
    processor = [named.get(key, '') for key in ('model name', 'flags', 'Features')]
    sources = sorted(Path(__file__).parent.glob('*.py'))
    code = hashlib.sha256(b''.join(path.read_bytes() for path in sources)).hexdigest()
    system = [platform.system(), *platform.libc_ver(), platform.machine()]
    return [torch.__version__, *system, platform.processor(), *processor, code]

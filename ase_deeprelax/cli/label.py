"""``deeprelax label``: pairs from a potential."""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ase_deeprelax.cli.app import DeviceOption, check_outputs, resumable
from ase_deeprelax.errors import PairFileError, StructureError

if TYPE_CHECKING:
    from ase_deeprelax.data.formula import Composition
    from ase_deeprelax.train.inputs import Series, Structures

# Larger relaxed structures are not read.
PARENT_ATOMS = 20
# Potentials whose usual weights were trained on energies with a Hubbard U.
WITH_HUBBARD = frozenset({'chgnet', 'mace', 'orb', 'sevennet'})


def label(
    out: Annotated[
        Path, typer.Argument(metavar='OUT', help='.jsonl file of pairs; is added to.')
    ],
    *,
    potential: Annotated[
        str, typer.Option(help='NAME or NAME:WEIGHTS: tensornet, chgnet, sevennet, ...')
    ],
    kind: Annotated[
        Literal[
            'bulk',
            'fixed-cell',
            'monolayer',
            'slab',
            'defect',
            'layer-defect',
            'alloy',
            'prototype',
        ],
        typer.Option(
            help='Structures to make. bulk: elements exchanged, atoms and cell relax. '
            'fixed-cell: elements exchanged, only the atoms relax. monolayer: elements '
            'exchanged, atoms and cell relax in the plane. slab: surfaces of crystals and '
            'of random alloys, most with an adsorbate and a fixed lower half, in a fixed '
            'cell. defect: point defects in supercells, in a fixed cell. layer-defect: '
            'point defects in monolayers, atoms and cell relax in the plane. alloy: '
            'supercells whose sites of one element are shared or partly empty. prototype: '
            'textbook structures of elements and simple compounds, made from nothing.'
        ),
    ] = 'bulk',
    relaxed: Annotated[
        list[Path] | None,
        typer.Option(
            '--relaxed',
            '--seeds',  # its former name
            exists=True,
            dir_okay=False,
            help='Relaxed structures (.jsonl.gz) to make inputs from; repeatable.',
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Use only structures of this collection (their 'src'); repeatable."
        ),
    ] = None,
    given: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help='Instead of --relaxed: unrelaxed structures, to relax as they are: pairs '
            '(.jsonl, .jsonl.gz, a folder), or any file, folder or archive that relax '
            'takes.',
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help='How many inputs; needed with --relaxed.'),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help='Of the random numbers that make inputs.')
    ] = 0,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True, dir_okay=False, help='File of formulas not to make; repeatable.'
        ),
    ] = None,
    hubbard: Annotated[
        bool | None,
        typer.Option(
            help='Make oxides and fluorides that the Materials Project computes with a '
            'Hubbard U. Default: only with potentials that were trained on such energies.'
        ),
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            help="Model at whose predictions relaxations start, or 'none'. A model that "
            'was not trained on the kind is not used.'
        ),
    ] = 'default',
    guided: Annotated[
        bool,
        typer.Option(
            '--guided',
            help='Relax under the potential and the prediction of --start together. The '
            'result is mostly nearer to DFT than that of the potential alone.',
        ),
    ] = False,
    fmax: Annotated[float, typer.Option(min=0, help='eV/A, on atoms and cell.')] = 0.05,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help='Limit for each relaxation; default 45 for bulk, 120 for others.'
        ),
    ] = None,
    batch_atoms: Annotated[
        int, typer.Option(min=1, help='Atoms that go through the potential together.')
    ] = 160,
    compile_model: Annotated[
        bool, typer.Option('--compile', help='Compile a potential of matgl first.')
    ] = False,
    device: DeviceOption = 'auto',
) -> None:
    """Make training pairs: relax new structures with a potential.

    If it is interrupted, the same command goes on where it stopped. Inputs that failed are
    listed with the reason in OUT with the suffix .failed.jsonl.
    """
    if out.suffix != '.jsonl':
        raise typer.BadParameter(f'OUT is {out}; it must end in .jsonl')
    if kind != 'prototype' and bool(relaxed) == bool(given):
        raise typer.BadParameter('give either --relaxed or --given')
    if not given and count is None:
        raise typer.BadParameter('--count is missing: there is no end of inputs')
    if guided and start == 'none':
        raise typer.BadParameter('--guided needs predictions: --start cannot be none')
    check_outputs(out, inputs=[*(relaxed or ()), *([given] if given else [])])
    from ase_deeprelax.calculators.batched import batch_potential
    from ase_deeprelax.calculators.registry import get_calculator
    from ase_deeprelax.train.label import label as run

    calculator = get_calculator(potential, device=device)
    # A potential that does not say what it knows refuses nothing.
    elements = frozenset(calculator.elements or range(1, 119))
    if hubbard is None:
        hubbard = _knows_hubbard(potential)
    settings = {'excluded': _compositions(exclude or ()), 'hubbard': hubbard}
    if given:
        series = _structures(given, elements, {'kind': kind, **settings})
    else:
        settings['seed'] = seed
        series = _made_from(relaxed or (), source, kind, elements, settings)
    with resumable(), _log_on_stderr():
        counts = run(
            out,
            series,
            batch_potential(calculator, compile_model=compile_model),
            count=count,
            start=None if start == 'none' else start,
            guided=guided,
            fmax=fmax,
            steps=steps,
            batch_atoms=batch_atoms,
            name=potential,
        )
    pairs, failed = counts['pairs'], counts['failed']
    typer.echo(f'{series.name}: {pairs} pairs in {out}, {failed} inputs failed')


def _structures(
    file: Path, elements: frozenset[int], settings: dict[str, Any]
) -> Structures:
    """The series of given structures, of any size; of pairs, the unrelaxed ones."""
    from ase_deeprelax.cli.frames import read_frames
    from ase_deeprelax.data.pairs import holds_pairs, read_pairs
    from ase_deeprelax.data.relaxed_structures import holds_relaxed, read_relaxed
    from ase_deeprelax.data.structure_files import find_files
    from ase_deeprelax.train.inputs import Given, Structures

    if holds_pairs(file):
        structures: Any = read_pairs(file)
    elif holds_relaxed(file):
        structures = read_relaxed(file, (), math.inf)
    else:
        frames, problems = read_frames(find_files([file]))
        if problems:
            raise StructureError(problems[0])
        structures = [
            Given(f'{source.path.stem}{frame}', atoms) for source, frame, atoms in frames
        ]
    name = file.name.removesuffix('.gz').removesuffix('.jsonl')
    return Structures(structures, elements, name, **settings)


def _made_from(
    files: Sequence[Path],
    sources: list[str] | None,
    kind: str,
    elements: frozenset[int],
    settings: dict[str, Any],
) -> Series:
    """The series of structures of a kind that are made from relaxed ones."""
    from ase_deeprelax.data.collections import of_collections
    from ase_deeprelax.data.relaxed_structures import read_relaxed
    from ase_deeprelax.train.inputs import KINDS, SERIES, Prototypes

    parents = [parent for file in files for parent in read_relaxed(file, (), PARENT_ATOMS)]
    if files:
        parents = of_collections(parents, sources, ', '.join(map(str, files)))
    series = SERIES[kind](parents, elements, **settings)
    if not series.parents and kind != Prototypes.kind:
        of = f' of the collection {" or ".join(sources)}' if sources else ''
        what = 'structure'
        if KINDS[kind].relax_cell == 'in-plane':
            what = 'layer (with pbc false along one vector)'
        raise PairFileError(
            f'{", ".join(map(str, files))}: no {what}{of} with at most {PARENT_ATOMS} '
            'atoms, and of elements that the potential knows, to make inputs of the kind '
            f'{kind} from; give other relaxed structures'
        )
    return series


def _knows_hubbard(potential: str) -> bool:
    """Whether the energies that a potential was trained on had a Hubbard U.

    Its name says so: the Materials Project's trajectories, and what was made to go with
    them, have a U; MatPES and r2SCAN have none.
    """
    name, _, weights = potential.lower().partition(':')
    if 'matpes' in weights or 'r2scan' in weights:
        return False
    return name in WITH_HUBBARD or 'm3gnet-mp' in weights


def _compositions(files: Iterable[Path]) -> frozenset[Composition]:
    """The compositions that files of formulas name."""
    from ase_deeprelax.data.formula import read_compositions

    return frozenset().union(*map(read_compositions, files))


@contextmanager
def _log_on_stderr() -> Generator[None]:
    """How far the work is, with the time."""
    log, handler = logging.getLogger('ase_deeprelax'), logging.StreamHandler()
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)

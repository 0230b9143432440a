"""``deeprelax select``: the structures whose DFT relaxation teaches a model most."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from ase_deeprelax.cli.app import (
    DeviceOption,
    ModelOption,
    shows_progress,
    tell_problems,
)
from ase_deeprelax.data.formula import chemical_formula

# A folder for each structure, in the form that DFT codes and ASE read.
POSCAR = 'POSCAR'


def select(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar='FILES', help='Structures, as `deeprelax relax` takes them.'
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help='New or empty folder for the chosen structures, 001-NAME/POSCAR.'
        ),
    ] = Path('selected'),
    *,
    number: Annotated[
        int, typer.Option('--count', min=1, help='How many structures.')
    ] = 50,
    model: ModelOption = 'default',
    predicted: Annotated[
        bool,
        typer.Option(
            '--predicted', help='Write the predicted structures instead of the inputs.'
        ),
    ] = False,
    device: DeviceOption = 'auto',
) -> None:
    """Choose structures from which a model would learn most.

    They are uncertain and differ from each other. Relaxed with DFT, they make pairs for
    `deeprelax train --from`, and for `deeprelax calibrate`, which fits the errors of such
    structures. The table gives the most valuable one first.
    """
    from ase_deeprelax.cli.frames import read_frames
    from ase_deeprelax.compare.tables import Table
    from ase_deeprelax.data.structure_files import find_files
    from ase_deeprelax.data.structure_writing import write_structures
    from ase_deeprelax.files import check_writable, plain_name
    from ase_deeprelax.predict import Predictor
    from ase_deeprelax.predict.select import select as choose

    if out.is_dir() and any(out.iterdir()):
        raise typer.BadParameter(
            f'--out {out} is not empty, and a selection must not mix with other files; '
            'choose another folder, or empty this one'
        )
    check_writable(out / POSCAR)
    frames, problems = read_frames(find_files(files), progress=shows_progress())
    if not frames:
        tell_problems(problems)
    predictor = Predictor(model, device=device)
    with warnings.catch_warnings():
        # The table tells it for each structure.
        warnings.filterwarnings('ignore', '.*outside the training range')
        results = predictor.relax(
            [atoms for *_, atoms in frames], progress=shows_progress(), on_bad='keep'
        )
    chosen = choose(results, number)
    rows = []
    for rank, k in enumerate(chosen, start=1):
        source, frame, _ = frames[k]
        target = out / plain_name(f'{rank:03d}-{source.path.stem}{frame}') / POSCAR
        atoms = results[k].atoms if predicted else results[k].initial
        problems += [f'{target}: {x}' for x in write_structures(target, [atoms], 'vasp')]
        rows.append(
            [
                target.parent.name,
                chemical_formula(atoms),
                str(len(atoms)),
                f'{results[k].error:.3f}',
                results[k].ood,
            ]
        )
    heads = ['structure', 'formula', 'atoms', 'expected error/A', 'out of distribution']
    typer.echo(Table(heads, rows, text_columns=(0, 1, 4)).as_text())
    problems += [
        f'{frames[k][0].path}{frames[k][1]}: {one.problem}'
        for k, one in enumerate(results)
        if not one.ok
    ]
    tell_problems(problems)

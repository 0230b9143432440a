"""``deeprelax evaluate``: models and potentials on pairs with known answers."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_deeprelax.cli.app import (
    DeviceOption,
    SplitOption,
    check_outputs,
    need_pages,
    provenance,
    shows_progress,
    tell_written,
    write_json,
)

if TYPE_CHECKING:
    from ase_deeprelax.data.pair import Pair

# So many structures with the largest errors can be turned by hand in a report.
WORST = 12


def evaluate(
    ctx: typer.Context,
    pairs: Annotated[
        Path,
        typer.Argument(metavar='PAIRS', help='Pairs of unrelaxed and relaxed structures.'),
    ],
    *,
    models: Annotated[
        list[str] | None,
        typer.Option(
            '--model',
            help='Name of a shipped model, or a folder; repeatable. Without any, and '
            'without a potential, the default one.',
        ),
    ] = None,
    potentials: Annotated[
        list[str] | None,
        typer.Option(
            '--potential',
            help='Relax iteratively too, with NAME or NAME:WEIGHTS (chgnet, tensornet, '
            '...): FIRE with the cell to 0.05 eV/A in at most 200 steps; repeatable.',
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option('--json', help='Write the numbers there too.')
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option(
            '--html', help='Write a report: tables, figures, the worst structures.'
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option('--markdown', help='Print the tables as markdown.')
    ] = False,
    split: SplitOption = None,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            '--src', help='Only pairs of this collection (their field src); repeatable.'
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help='Only this many pairs, spread over the file.')
    ] = None,
    device: DeviceOption = 'auto',
) -> None:
    """Measure models on PAIRS with known answers, side by side.

    What a pair says of its structure holds for the models too: layers stay layers, and
    fixed atoms and fixed cells do not change. Where the pairs are of several kinds, each
    kind has its own table.

    Beside them stand two answers that cost nothing: the input as it is (dummy), and scaled
    isotropically to the volume that its elements have on average (scaled_dummy).
    """
    from ase_deeprelax.compare.evaluate import evaluate_all
    from ase_deeprelax.compare.evaluation_tables import evaluation_text
    from ase_deeprelax.data.collections import of_collections
    from ase_deeprelax.data.pairs import read_pairs, spread

    need_pages(html_file)
    if not models and not potentials:
        models = ['default']
    check_outputs(json_file, html_file, inputs=[pairs])
    rivals = _rivals(models or (), potentials or (), device)
    in_split = f', split {split}' if split else ''
    chosen = of_collections(read_pairs(pairs, split), sources, f'{pairs}{in_split}')
    chosen = spread(chosen, limit)
    result = evaluate_all(chosen, rivals, progress=shows_progress())
    typer.echo(evaluation_text(result, markdown=markdown))
    write_json(json_file, result, indent=2)
    if html_file is not None:
        from ase_deeprelax.report.html import write_report

        worst = _worst(chosen, rivals, result)
        made = provenance(ctx, pairs)
        write_report(html_file, evaluation=result, relaxations=worst, provenance=made)
        tell_written(html_file)


def _rivals(
    models: Iterable[str], potentials: Iterable[str], device: str
) -> dict[str, Any]:
    """What is compared, by names that tell it apart."""
    from ase_deeprelax.compare.iterative import Iterative
    from ase_deeprelax.predict import Predictor

    made = []
    for model in models:
        predictor = Predictor(model, device=device)
        made.append((predictor.name, model, predictor))
    for potential in potentials:
        iterative = Iterative(potential, device=device, progress=shows_progress())
        made.append((iterative.__name__, potential, iterative))
    names = [name for name, *_ in made]
    # Models trained under one name, or weights of one potential, go by what was asked for.
    rivals = {name if names.count(name) == 1 else text: rival for name, text, rival in made}
    if len(rivals) < len(made):
        raise typer.BadParameter('the same model or potential is given twice')
    return rivals


def _worst(pairs: Sequence['Pair'], rivals: dict[str, Any], result: Any) -> dict[str, Any]:
    """Relaxations by the first rival where its coordinates are farthest off, by name."""
    from ase_deeprelax.compare.comparison_tables import structure_title
    from ase_deeprelax.compare.predictor_adapter import PredictorAdapter, predict_pairs

    name, rival = next(iter(rivals.items()))
    rows = result['structures']
    errors = [row['errors'][name]['coord_mae'] for row in rows]
    order = sorted(range(len(pairs)), key=errors.__getitem__, reverse=True)[:WORST]
    relaxed = predict_pairs(PredictorAdapter(rival), [pairs[k] for k in order])
    return {
        f'{structure_title(rows[k])}, off by {errors[k]:.3f} Å': relaxation
        for k, relaxation in zip(order, relaxed, strict=True)
    }

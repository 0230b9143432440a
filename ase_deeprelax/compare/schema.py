"""Schema of the results of `compare`: dictionaries ready for JSON.

Lengths are in A, energies in eV per atom, forces in eV/A, volumes in A^3 per cell and times
in s of wall time, where nothing else is written. A lattice is ``[a, b, c, alpha, beta,
gamma]`` in A and degrees. A number that does not exist, or is not finite, is None. In a
comparison, calculators are known by the keys of ``settings['calculators']``, optimizers by
the names of their classes, and structures by their ``id``.

`Comparison` is the whole result; the other classes are parts of it. `evaluation_schema` has
those of `evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

from ase_deeprelax.errors import ConfigError

# Version of this format.
VERSION = 2

Start = Literal['unrelaxed', 'prediction']
STARTS: tuple[Start, Start] = ('unrelaxed', 'prediction')
Lattice = list[float | None]
Matrix = list[list[float]]


def check_version(result: Mapping[str, Any]) -> None:
    """Refuse a result that a later version of the package wrote.

    Results without a version were written before there was one. They have all fields that
    are read today, and are accepted.

    Raises
    ------
    ConfigError
        The format is newer than this package.
    TypeError
        It is no dictionary.

    Examples
    --------
    >>> check_version({'version': VERSION})
    """
    if not isinstance(result, Mapping):
        raise TypeError(
            f'results are given as {type(result).__name__} {result!r}; give the '
            'dictionary, which json.load reads from a file'
        )
    version = result.get('version', 1)
    if version not in range(1, VERSION + 1):
        raise ConfigError(
            f'these results are of version {version!r}; this package reads versions 1 to '
            f'{VERSION}: install a newer ase-deeprelax, or compute the results again'
        )


class Quartiles(TypedDict):
    """Distribution over structures; failed and unconverged runs never count."""

    n: int  # number of values; the others are None where there is none
    q25: float | None
    median: float | None
    q75: float | None


class Geometry(TypedDict):
    """A cell and its atoms."""

    volume: float | None  # A^3
    lattice: Lattice | None
    cell: Matrix | None  # (3, 3), A
    positions: Matrix | None  # (n_atoms, 3), A


class End(Geometry):
    """The structure after a prediction or a relaxation, and how good it is."""

    # In (volume per atom)^(1/3), as matbench-discovery counts: 1.0 where nothing matches;
    # None without a reference.
    rmsd_to_reference: float | None
    # Whether the number equals the input's; None where that is no crystal.
    spacegroup_kept: bool | None


class ReferenceRow(Geometry):
    """The reference of a structure."""

    spacegroup: int  # international number, 0 for what is no crystal


class StructureRow(Geometry):
    """One input."""

    id: str
    formula: str
    n_atoms: int
    spacegroup: int  # international number, 0 for what is no crystal
    # 'bulk', 'layer' or 'other', with ', cell fixed' where it is; '' for a structure that
    # no calculator can relax.
    kind: str
    numbers: list[int]  # atomic numbers
    # Older results lack the next four.
    pbc: NotRequired[list[bool]]
    fixed: NotRequired[list[int]]  # indices of atoms that do not move at all
    magmoms: NotRequired[list[Any] | None]  # initial ones where they were set, mu_B
    masses: NotRequired[list[float] | None]  # where they were set, u
    reference: ReferenceRow | None
    sigma: float | None  # uncertainty of its prediction, A


class PredictionRow(End):
    """The one-shot prediction alone, one per structure."""

    structure: str
    ok: bool  # False: there is none, and numbers are None
    problem: str  # why there is none, or ''
    ood: str  # in which respect the input is out of distribution, or ''
    seconds: float | None
    sigma: float | None  # uncertainty, A
    sigma_atoms: list[float] | None  # uncertainty of each atom, A
    dmax: float | None  # largest displacement, A
    energy_per_atom: dict[str, float]  # by calculator, eV per atom
    fmax: dict[str, float]  # by calculator: largest force on an atom or the cell, eV/A


class RunRow(End):
    """One relaxation.

    After a failure the numbers of the end are None; ``steps``, ``calls``, ``seconds`` and
    ``curve`` are those until it failed.
    """

    structure: str
    calculator: str
    optimizer: str
    start: Start
    ok: bool  # False: it failed
    converged: bool
    reason: str  # why it failed or did not converge, or ''
    steps: int  # steps of the optimizer
    calls: int  # evaluations of the calculator
    seconds: float | None  # with the prediction's, where it started from that
    energy_per_atom: float | None  # eV per atom
    fmax: float | None  # largest force on an atom or the cell, eV/A
    curve: list[list[float]]  # [energy_per_atom, fmax] of each call


class BatchRow(TypedDict):
    """Many structures relaxed per forward pass: the fair comparison of times."""

    calculator: str
    optimizer: str
    start: Start
    n: int  # structures that both starts could be run for
    structures: list[str]  # their ids
    batch_atoms: int  # most atoms per forward pass
    problem: str  # why it failed as a whole, and the next fields are None; or ''
    converged: int | None
    calls: Quartiles | None  # over the converged
    # All of them together, with the prediction of all at once where they started from it,
    # over n.
    seconds_per_structure: float | None
    one_pass: bool | None  # False: this potential evaluates structures one by one


class StartSummary(TypedDict):
    """All runs from one start; costs and distances are those of converged runs."""

    failed: int
    unconverged: int
    converged: int  # these three add up to the number of structures
    converged_share: float | None
    steps: Quartiles
    calls: Quartiles
    seconds: Quartiles
    spacegroup_kept: float | None  # share of the converged crystals
    rmsd_to_reference: Quartiles


class PredictionSummary(TypedDict):
    """All predictions, without a relaxation."""

    failed: int
    seconds: Quartiles
    spacegroup_kept: float | None  # share of the crystals that did not fail
    rmsd_to_reference: Quartiles
    # eV per atom above the relaxation from the unrelaxed structure, where that converged.
    energy_difference: Quartiles


class BothSummary(TypedDict):
    """Structures that converged from both starts."""

    n: int
    steps_saved: Quartiles  # unrelaxed minus prediction, as the next two
    calls_saved: Quartiles
    seconds_saved: Quartiles
    calls_ratio: Quartiles  # prediction over unrelaxed, for each structure
    median_calls_ratio: float | None  # the median calls of the one over those of the other
    energy_difference: Quartiles  # prediction minus unrelaxed, eV per atom
    equal: float | None  # shares of final energies: from the prediction equal to,
    lower: float | None  # lower than,
    higher: float | None  # or higher than from the unrelaxed structure
    lower_structures: list[str]
    higher_structures: list[str]
    uphill: float | None  # share of predictions above the energy of their input


class SummaryRow(TypedDict):
    """One calculator with one optimizer."""

    calculator: str
    optimizer: str
    n: int  # structures
    unrelaxed: StartSummary
    prediction: StartSummary
    alone: PredictionSummary
    both: BothSummary
    only_unrelaxed: list[str]  # structures that converged from this start alone
    only_prediction: list[str]


class ModeCount(TypedDict):
    """Imaginary ones among some vibrational modes."""

    n: int
    lowest: float | None  # THz, negative where imaginary; None without a mode


class GammaModes(ModeCount):
    """Modes at Gamma without the three translations."""

    frequencies: list[float]  # THz


class ImaginaryModes(ModeCount):
    """Modes at the wave vectors that fit into the supercell, without the translations.

    Force constants are exact there.
    """

    threshold: float  # frequencies below minus this are imaginary, THz
    n_modes: int
    gamma: GammaModes


class Bands(TypedDict):
    """Frequencies along a path of wave vectors, that of the unrelaxed cell."""

    path: str  # such as 'GXWKGLUWLK,UX', of a layer in the plane: 'GMKG'
    x: list[float]  # place of each wave vector on the axis
    ticks: list[float]
    labels: list[str]  # one for each tick
    breaks: list[int]  # index of the first point after each comma in the path
    frequencies: Matrix  # (points, bands), THz


class DensityOfStates(TypedDict):
    """Density of states of phonons; it integrates to 3."""

    frequencies: list[float]  # THz
    density: list[float]  # states per THz and atom


class Thermal(TypedDict):
    """Harmonic thermal properties."""

    temperatures: list[float]  # K
    free_energy: list[float]  # eV per atom
    entropy: list[float]  # J/(K mol of atoms)
    heat_capacity: list[float]  # J/(K mol of atoms)
    left_out: float  # share of modes on the mesh that are imaginary or zero


class Phonons(TypedDict, total=False):
    """Phonons of one structure by finite displacements."""

    fmax: float  # largest force on an atom of the structure, eV/A
    supercell: list[list[int]]  # (3, 3) rows, times the cell
    n_supercell: int  # atoms of the supercell
    shortest: float  # its shortest lattice vector, of a layer in the plane, A
    capped: bool  # whether the cap on atoms made it shorter than min_length
    displacements: int  # displaced supercells
    imaginary: ImaginaryModes
    bands: Bands
    dos: DensityOfStates
    thermal: Thermal
    seconds: float


class PhononRow(Phonons):
    """Phonons after one way of relaxing; without the fields of `Phonons` if they failed."""

    structure: str
    calculator: str
    # The prediction alone ('predicted'), relaxed from it ('refined'), or relaxed from the
    # unrelaxed structure ('iterative').
    kind: str
    optimizer: str | None  # None for 'predicted'
    ok: bool
    problem: str  # why there are no phonons, or ''


class RunSettings(TypedDict):
    """Settings that all runs of a comparison share."""

    model: str  # name of what predicts
    sha256: str  # its hash, '' for a function
    model_options: dict[str, Any]  # those of the Predictor; {} for a function
    version: str  # of the package
    fmax: float  # eV/A
    steps: int  # the most that a run may take
    relax_cell: Any  # what of the cells relaxes; None: all, of layers their plane


class Settings(RunSettings):
    """How a comparison was made."""

    calculators: dict[str, str]  # what each was made from, by name
    optimizers: list[str]
    energy_tolerance: float  # final energies closer than this are equal, eV per atom
    has_reference: bool  # whether structures have one
    device: str
    threads: int
    ase: str  # version of ASE


class Comparison(TypedDict):
    """The result of `savings.compare`."""

    version: int  # of this format, see `check_version`
    settings: Settings
    structures: list[StructureRow]
    predictions: list[PredictionRow]
    runs: list[RunRow]
    batched: list[BatchRow]  # empty unless ``batched`` was chosen
    summary: list[SummaryRow]  # one for each calculator and optimizer
    phonons: NotRequired[list[PhononRow]]  # once `phonons.compare_phonons` was called

"""The settings of a training run: one YAML file, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Required

import yaml
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from ase_deeprelax.errors import ConfigError

# What files written before call `Data.relaxed_structures`.
FORMER = 'seeds'


class Section(BaseModel):
    """Settings that are checked, and unknown ones refused."""

    model_config = ConfigDict(extra='forbid', frozen=True, allow_inf_nan=False)

    @model_validator(mode='before')
    @classmethod
    def _name_unknown(cls, settings: Any) -> Any:
        """Say which settings there are, where one is given that is not."""
        for name in settings if isinstance(settings, dict) else ():
            if name not in cls.model_fields and name != FORMER:
                known = ', '.join(cls.model_fields)
                raise ValueError(f'there is no setting {name!r} here, only {known}')
        return settings


def _ascending(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    if low > high:
        raise ValueError(f'the lower limit comes first, not {low:g}')
    return limits


# A lower and an upper limit.
Limits = Annotated[tuple[float, float], AfterValidator(_ascending)]
# The smallest and the largest change of a volume, as a share of it.
Share = Annotated[float, Field(gt=-1)]
VolumeLimits = Annotated[tuple[Share, Share], AfterValidator(_ascending)]
# In YAML, 64 is a number and bf16 a word.
Word = BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)
# Names of collections: the field ``src`` of pairs and relaxed structures.
Collections = Annotated[
    list[str] | None, Field(min_length=1, description='collections to use; default all')
]


class Augment(Section):
    """Random changes of the *inputs*; targets stay what DFT says."""

    noise: float = Field(0.03, ge=0, description='A; largest rms of Gaussian displacements')
    noise_probability: float = Field(0.5, ge=0, le=1)
    strain: float = Field(0.03, ge=0, description='rms of the isotropic log strain')
    shear: float = Field(0.01, ge=0, description='rms of the other components')
    strain_probability: float = Field(0.3, ge=0, le=1)


class Source(Section):
    """One set of pairs."""

    path: Path
    licence: str = ''
    ok_only: bool = True
    limit: int | None = Field(None, ge=0, description='train on this many of its pairs')
    val_limit: int | None = Field(None, ge=0, description='validate on this many')
    src: Collections = None
    copies: float = Field(1, gt=0, description='how often each pair comes in an epoch')


class RelaxedStructures(Section):
    """One set of relaxed structures to make denoising pairs from.

    Of a file of pairs, the relaxed ones are taken that neither validate nor test.
    """

    path: Path
    licence: str = ''
    src: Collections = None


class Denoise(Section):
    """Pairs made on the fly from relaxed structures: strained and displaced inputs."""

    share: float = Field(0.15, gt=0, lt=1, description='share of all training samples')
    max_atoms: int = Field(40, ge=1)
    volume: VolumeLimits = (-0.15, 0.20)
    shear: float = Field(0.02, ge=0)
    displacement: Limits = Field((0.02, 0.2), description='A, rms')
    simple_weight: float = Field(
        1, gt=0, description='how often a simple binary compound is drawn, others: 1'
    )
    element_weight: float = Field(1, gt=0, description='how often an element is drawn')
    simple_volume: VolumeLimits = Field(
        (-0.32, 0.40), description='changes of their volumes; lengths by 12 %'
    )
    symmetric: float = Field(
        0.5, ge=0, le=1, description='share of them that keeps its symmetry'
    )


class Hold(Section):
    """Pairs of which a part may not move: see `augment.hold`."""

    probability: float = Field(0.0, ge=0, le=1, description='share of all samples')
    fix_probability: float = Field(
        0.4, ge=0, le=1, description='share with fixed atoms, where the cell is fixed'
    )


class Data(Section):
    """What is trained on, and in what batches."""

    pairs: list[Source] = Field(min_length=1)
    relaxed_structures: list[RelaxedStructures] = Field(
        [], validation_alias=AliasChoices('relaxed_structures', FORMER)
    )
    denoise: Denoise = Denoise()
    exclude_formulas: Path | None = None
    augment: Augment = Augment()
    hold: Hold = Hold()
    recycle: float = Field(
        0.0, ge=0, lt=1, description='share of batches whose inputs are own answers'
    )
    batch_atoms: int = Field(400, ge=1, description='atoms per batch')
    batch_crystals: int | None = Field(
        None, ge=1, description='crystals per batch in place of atoms, as in the papers'
    )
    workers: int = Field(1, ge=0, description='processes; 0: the training loads itself')


class Loss(Section):
    """Weights of the terms of eqs. 11-15."""

    distance: float = Field(0.05, ge=0)
    cross_distance: float = Field(0.05, ge=0)
    lattice: float = Field(1.0, ge=0)
    volume: float = Field(1.0, ge=0)
    displacement: float = Field(1.0, ge=0)
    scales: bool = Field(
        True, description='Laplace likelihood of distances; else their absolute error'
    )


class Optimize(Section):
    """How the weights are found. Defaults other than the paper's say so."""

    learning_rate: float = Field(1e-3, gt=0)
    muon_rate: float | None = Field(
        None, gt=0, description='learning rate of Muon for weight matrices; else AdamW'
    )
    weight_decay: float = Field(0.01, ge=0)
    amsgrad: bool = False
    schedule: Literal['plateau', 'cosine'] = 'cosine'
    warmup_steps: int = Field(500, ge=0)
    max_minutes: float | None = Field(None, gt=0)
    max_steps: int | None = Field(None, gt=0)
    clip: float = Field(10.0, gt=0, description='largest norm of the gradient')
    ema: float = Field(0.999, ge=0, lt=1)
    ema_ramp: int = Field(
        10, ge=1, description='after n steps at most (1 + n) / (ema_ramp + n) is kept'
    )
    precision: Annotated[Literal['32', '64', 'bf16'], Word] = '32'
    compile: bool = False
    threads: int | None = Field(None, ge=1)
    val_every_steps: int = Field(1000, ge=1)
    early_stop: int | None = Field(None, ge=1, description='validations without a gain')


@with_config(ConfigDict(extra='allow', strict=True, allow_inf_nan=False))
class Network(TypedDict, total=False):
    """The architecture and its hyperparameters; those named here are numbers in all."""

    architecture: Required[str]
    hidden: int
    layers: int
    num_rbf: int
    cutoff: float


class TrainConfig(Section):
    """Everything `deeprelax train` needs.

    Relative paths start at the YAML file, but ``output`` at the working directory.
    """

    name: str = Field(min_length=1)
    licence: str = Field('', description='of the weights')
    model: Network
    data: Data
    loss: Loss = Loss()
    optimize: Optimize = Optimize()
    seed: int = Field(0, ge=0, lt=1 << 32, description='as NumPy takes them')
    output: Path = Path('runs')


# Settings that are shipped: `papers/deeprelax-mp` and the like.
SHIPPED = Path(__file__).parent / 'configs'
# Larger files are no configurations; aliases of aliases make small ones large.
MOST_TEXT, MOST_ENTRIES = 1 << 16, 10_000
MOST_ERRORS = 10  # the message shows so many


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """Read and check a YAML file.

    Parameters
    ----------
    path : path of the YAML file
        Or the name of one in `SHIPPED`, like ``papers/deeprelax-mp``, whose paths then
        start at the working directory.
    overrides : iterable of str
        ``'optimize.max_steps=100'``, ``'data.pairs.0.path=mine'`` and the like, applied on
        top; values are YAML.

    Returns
    -------
    TrainConfig

    Raises
    ------
    ConfigError
        With the key that is wrong and why.
    """
    path = Path(path)
    base = path.parent
    shipped = SHIPPED / f'{path}.yaml'
    if not path.exists() and shipped.exists():
        path, base = shipped, Path()
    raw = _read_yaml(path)
    if not isinstance(raw, dict):
        raise ConfigError(f'{path}: holds no settings; docs/training.md has an example')
    for override in overrides:
        _override(raw, override)
    try:
        config = TrainConfig.model_validate(raw)
    except ValidationError as error:
        lines = [_line(problem) for problem in error.errors()[:MOST_ERRORS]]
        raise ConfigError(f'{path}:\n' + '\n'.join(lines)) from error
    if config.optimize.max_minutes is None and config.optimize.max_steps is None:
        raise ConfigError(f'{path}: set optimize.max_minutes or optimize.max_steps')
    return _resolve(config, base)


def _line(problem: Any) -> str:
    """What pydantic found wrong, with the name of the setting."""
    name = '.'.join(map(str, problem['loc']))
    if 'error' in problem.get('ctx', {}):  # our own words
        return f'  {name + ": " if name else ""}{problem["ctx"]["error"]}'
    return f'  {name}: {problem["msg"]} (got {problem["input"]!r:.200})'


def _read_yaml(path: Path) -> Any:
    """What a file holds, if that is not more than a configuration can be."""
    if not path.is_file():
        raise ConfigError(f'{path}: there is no such file')
    try:
        with path.open(encoding='utf-8') as file:
            text = file.read(MOST_TEXT + 1)
        raw = _load_yaml(text) if len(text) <= MOST_TEXT else None
    # ValueError: no UTF-8, or a number of thousands of digits.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f'{path}: cannot be read as YAML: {error}') from error
    if len(text) > MOST_TEXT:
        raise ConfigError(f'{path}: has more than {MOST_TEXT:,} characters')
    if _n_entries(raw, {}) > MOST_ENTRIES:
        raise ConfigError(f'{path}: has more than {MOST_ENTRIES:,} entries')
    return raw


class _EachOnce(yaml.SafeLoader):
    """A safe loader that refuses a key that is there twice; YAML's takes the last one."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node: Any = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.MarkedYAMLError(
                    problem=f'{name!r} is there twice', problem_mark=key.start_mark
                )
            seen.add(name)
        return node


def _load_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_EachOnce)  # noqa: S506 - it is a safe one


def _n_entries(data: Any, known: dict[int, int]) -> int:
    """How many entries a configuration has, those behind its aliases counted each time."""
    if not isinstance(data, (dict, list)):
        return 1
    if id(data) not in known:
        known[id(data)] = MOST_ENTRIES + 1  # an alias of itself has no end
        parts = data.values() if isinstance(data, dict) else data
        known[id(data)] = 1 + sum(_n_entries(part, known) for part in parts)
    return known[id(data)]


def _override(raw: dict[str, Any], override: str) -> None:
    """Set one value in place; numbers in a key count the entries of a list."""
    key, equals, value = override.partition('=')
    if not equals:
        raise ConfigError(f'override {override!r} must read key=value')
    *parents, last = key.split('.')
    section: Any = raw
    try:
        for parent in parents:
            if isinstance(section, list):
                section = section[int(parent)]
            else:
                section = section.setdefault(parent, {})
        section[int(last) if isinstance(section, list) else last] = yaml.safe_load(value)
    except (AttributeError, IndexError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f'override {override!r} cannot be applied: {error}') from error


def _resolve(config: TrainConfig, base: Path) -> TrainConfig:
    """The same settings with input paths taken relative to the YAML file."""
    data = config.data
    pairs = [s.model_copy(update={'path': base / s.path}) for s in data.pairs]
    relaxed = [
        s.model_copy(update={'path': base / s.path}) for s in data.relaxed_structures
    ]
    update = {'pairs': pairs, 'relaxed_structures': relaxed}
    if data.exclude_formulas:
        update['exclude_formulas'] = base / data.exclude_formulas
    return config.model_copy(update={'data': data.model_copy(update=update)})

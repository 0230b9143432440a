"""Training samples: pairs and denoising pairs, augmented, as batches of graphs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from ase import Atoms
from torch.utils.data import DataLoader, Dataset, Sampler

from ase_deeprelax.data.batching import collate, runs, split
from ase_deeprelax.data.collections import of_collections
from ase_deeprelax.data.convert import to_graph
from ase_deeprelax.data.formula import Composition, composition, read_compositions
from ase_deeprelax.data.graph import CrystalGraph, GraphSpec
from ase_deeprelax.data.one_line import count
from ase_deeprelax.data.pair import Pair
from ase_deeprelax.data.pairs import TRAINED_ON, read_pairs, spread
from ase_deeprelax.data.radius_edges import with_radius_edges
from ase_deeprelax.data.relaxed_structures import holds_relaxed, read_relaxed
from ase_deeprelax.errors import ConfigError, StructureError
from ase_deeprelax.geometry.motion import Motion
from ase_deeprelax.geometry.vacuum import find_layer
from ase_deeprelax.predict.structure_checks import check_cell
from ase_deeprelax.train.augment import changed, draw_weight, is_simple
from ase_deeprelax.train.samples import Samples, fit_thickness, to_samples
from ase_deeprelax.train.stop_signals import outlive_signals

if TYPE_CHECKING:
    from ase_deeprelax.train.config import Data, TrainConfig

log = logging.getLogger(__name__)

# Cells that differ by less than this are the same but for rounding, A.
SAME_CELL = 1e-6
# If a larger share of the cells in a file did not change, they were most likely fixed.
FIXED_SHARE = 0.1


class TrainingBatches(Dataset[CrystalGraph]):
    """Batches of pairs as graphs with targets.

    A key is ``(epoch, number, indices)``: the samples of a batch, and what decides all that
    is random in it. Where the graph is one of all neighbours within a radius, it comes
    without edges: `PairData` finds them on the device of the training.

    Parameters
    ----------
    pairs : list of Pair
    relaxed : list of Pair
        Relaxed structures (0 equals 1) to make denoising pairs from; indices beyond the
        pairs are theirs.
    spec : GraphSpec
    data : train.config.Data, optional
        Settings of augmentation; without, samples are the pairs as they are.
    seed : int
    dtype : torch.dtype
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        relaxed: Sequence[Pair],
        spec: GraphSpec,
        *,
        data: Data | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        both = [*pairs, *relaxed]
        self.samples = to_samples(both, spec, [is_simple(pair) for pair in both])
        self.n_pairs, self.spec = len(pairs), spec
        self.data, self.seed, self.dtype = data, seed, dtype

    def __len__(self) -> int:
        return len(self.samples)

    def sizes(self) -> np.ndarray:
        """(n_samples,) atoms in each."""
        return self.samples.graph.starts.diff().numpy()

    def __getitem__(self, index: tuple[int, int, np.ndarray]) -> CrystalGraph:
        epoch, number, drawn = index
        which = torch.from_numpy(np.asarray(drawn, dtype=np.int64))
        given = samples = self.samples.draw(which)
        if self.data is not None:
            seed = np.random.SeedSequence((self.seed, epoch, number)).generate_state(1)
            generator = torch.Generator().manual_seed(int(seed[0]))
            samples = changed(given, which >= self.n_pairs, self.data, generator)
        if self.spec.is_radius:
            return fit_thickness(samples).to_dtype(self.dtype)
        # Where all of a batch were strained too far, it is of the pairs as they are.
        return collate(self._graphs(samples) or self._graphs(given))

    def _graphs(self, samples: Samples) -> list[CrystalGraph]:
        """Samples as the spec wants them, without those that were strained too far."""
        graphs, normals = split(fit_thickness(samples)), samples.normal.numpy()
        made = []
        for graph, normal in zip(graphs, normals, strict=True):
            with suppress(StructureError):
                made.append(self._with_edges(graph, normal))
        return made

    def _with_edges(self, graph: CrystalGraph, normal: np.ndarray) -> CrystalGraph:
        """One graph with its edges, perhaps in another frame."""
        cell = graph.cell[0].numpy()
        # In the boxes of `to_samples` the vacuum vector of a layer is along its normal.
        across = np.abs(cell @ normal) > 0.999 * np.linalg.norm(cell, axis=1)
        positions = graph.pos.numpy()
        atoms = Atoms(graph.z.numpy(), positions=positions, cell=cell, pbc=~across)
        made, frame = to_graph(
            atoms,
            self.spec,
            self.dtype,
            motion=Motion(graph.fixed.numpy(), graph.free_strain[0].numpy()),
            layer=find_layer(atoms) if across.any() else None,
        )
        deformation, displacement = (target.numpy() for target in graph.targets())
        deformation, displacement = frame.from_user(deformation[0], displacement)
        made.deformation_target = torch.from_numpy(deformation).to(self.dtype)[None]
        made.displacement_target = torch.from_numpy(displacement).to(self.dtype)
        return made


def _relaxed(path: Path, excluded: set[Composition], max_atoms: int) -> list[Pair]:
    """Relaxed structures as pairs of themselves.

    Of pairs, those that validate or test are left out, and what is fixed stays fixed: with
    a fixed cell, the relaxed structure is no minimum over all cells.
    """
    if holds_relaxed(path):
        return read_relaxed(path, excluded, max_atoms)
    return [
        replace(pair, cell0=pair.cell1, frac0=pair.frac1, scale=1.0)
        for pair in read_pairs(path, TRAINED_ON, ok_only=True)
        if len(pair) <= max_atoms and composition(pair.numbers) not in excluded
    ]


def _summary(*parts: Sequence[Pair]) -> dict[str, Any]:
    """How many pairs train and validate, how many relaxed structures, and their hash.

    The hash is of the elements in their order: those are the same wherever files are read.
    """
    digest = hashlib.sha256()
    for part in parts:
        for pair in part:
            digest.update(np.append(pair.numbers, 0).astype('<i8').tobytes())
        digest.update(b'next')
    counts = dict(zip(('train', 'val', 'relaxed'), map(len, parts), strict=True))
    return {**counts, 'sha256': digest.hexdigest()}


def _relaxable(pairs: Sequence[Pair], path: Path) -> list[Pair]:
    """The pairs without those that `relax` would refuse."""
    kept, reasons = [], []
    for pair in pairs:
        try:
            _ = pair.layer  # neither a crystal nor one layer
            check_cell(pair.unrelaxed)
            check_cell(pair.relaxed)
        except StructureError as error:
            reasons.append(f'id {pair.id}: {error}')
            log.info('%s, %s', path, reasons[-1])
        else:
            kept.append(pair)
    if reasons:
        log.warning(
            '%s: %s left out that relax would refuse; the first is %s',
            path,
            f'{count(len(reasons), "pair")} {"is" if len(reasons) == 1 else "are"}',
            reasons[0],
        )
    return kept


def _warn_of_equal_cells(pairs: Sequence[Pair], path: Path) -> None:
    """Warn if many cells did not change, although the file does not say they were fixed."""
    same = [
        pair
        for pair in pairs
        if not pair.fixed_cell and np.abs(pair.cell1 - pair.cell0).max() < SAME_CELL
    ]
    if len(same) > FIXED_SHARE * len(pairs):
        log.warning(
            '%s: in %s of %s both cells are equal, so that a model learns that cells do '
            'not relax; the first is id %s. If the cell was fixed, say so: '
            'make_pair(..., fixed_cell=True), or fixed_cell in the file',
            path,
            f'{len(same):,}',
            count(len(pairs), 'pair'),
            same[0].id,
        )


class SizeBatches(Sampler[tuple[int, int, np.ndarray]]):
    """Batches of similar sizes under a budget of atoms, in a new order each epoch.

    Neighbour sums are padded to the most neighbours in a batch, so that mixing two and
    thirty atoms would waste most of the work. With ``crystals``, that many make a batch,
    whatever their sizes. The first ``skip`` batches of the first epoch are left out: a
    resumed training has seen them.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        batch_atoms: int,
        seed: int,
        draw: Callable[[np.random.Generator], np.ndarray] | None = None,
        epoch: int = 0,
        *,
        skip: int = 0,
        crystals: int | None = None,
    ):
        self.sizes, self.batch_atoms, self.seed = sizes, batch_atoms, seed
        self.crystals, self.skip = crystals, skip
        self.draw = draw or (lambda rng: rng.permutation(len(sizes)))
        self.epoch = epoch
        # Lightning reads the length once and ends longer epochs there: a resumed training
        # must cut them where the uninterrupted one does.
        self._length = len(self.batches(0))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int, np.ndarray]]:
        # A generator, because a loader with worker processes makes two iterators and takes
        # batches from the second one only: an epoch counts when its first batch is taken.
        (epoch, skip), self.epoch, self.skip = (self.epoch, self.skip), self.epoch + 1, 0
        for number, batch in enumerate(self.batches(epoch)[skip:], skip):
            yield epoch, number, batch

    def batches(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng((self.seed, epoch))
        index = self.draw(rng)
        order = index[np.lexsort((rng.random(len(index)), self.sizes[index]))]
        if self.crystals:
            parts = runs(order, np.ones_like(self.sizes), self.crystals)
        else:
            parts = runs(order, self.sizes, self.batch_atoms)
        return [parts[k] for k in rng.permutation(len(parts))]


class PairData(lightning.LightningDataModule):
    """The pairs of a configuration, split as their files say, and relaxed structures."""

    trainer: Any

    def __init__(self, config: TrainConfig, spec: GraphSpec):
        super().__init__()
        self.config, self.spec = config, spec
        data = config.data
        excluded: set[Composition] = set()
        if data.exclude_formulas:
            excluded = read_compositions(data.exclude_formulas)
        self.train: list[Pair] = []
        self.val: list[Pair] = []
        copies: list[float] = []
        for source in data.pairs:
            # Not the tests, whose answers need not be there.
            wanted = (*TRAINED_ON, 'val')
            pairs = read_pairs(source.path, wanted, ok_only=source.ok_only)
            pairs = of_collections(pairs, source.src, source.path)
            pairs = _relaxable(pairs, source.path)
            _warn_of_equal_cells(pairs, source.path)
            train = [p for p in pairs if p.split != 'val']
            train = [p for p in train if composition(p.numbers) not in excluded]
            train = spread(train, source.limit)
            self.train += train
            copies += [source.copies] * len(train)
            self.val += spread([p for p in pairs if p.split == 'val'], source.val_limit)
        self.copies = np.array(copies)
        self.relaxed: list[Pair] = []
        for source in data.relaxed_structures:
            relaxed = _relaxed(source.path, excluded, data.denoise.max_atoms)
            relaxed = of_collections(relaxed, source.src, source.path)
            relaxed = _relaxable(relaxed, source.path)
            if not relaxed:
                log.warning(
                    '%s: no relaxed structure of it is used; data.denoise.max_atoms is %d, '
                    'and data.exclude_formulas may name them all',
                    source.path,
                    data.denoise.max_atoms,
                )
            self.relaxed += relaxed
        if not self.train:
            raise ConfigError('no training pair is left after splits and exclusions')
        self.summary = _summary(self.train, self.val, self.relaxed)

    def state_dict(self) -> dict[str, Any]:
        """The summary of the data that checkpoints keep; Lightning calls it."""
        return self.summary

    @property
    def elements(self) -> list[int]:
        """Sorted atomic numbers seen in training."""
        return sorted(
            {int(z) for pair in [*self.train, *self.relaxed] for z in pair.numbers}
        )

    def setup(self, stage: str | None = None) -> None:
        """Make the two sets; Lightning calls it, also before validations after training."""
        if stage == 'validate':
            return
        config, data = self.config, self.config.data
        dtype = torch.float64 if config.optimize.precision == '64' else torch.float32
        self.train_set = TrainingBatches(
            self.train, self.relaxed, self.spec, data=data, seed=config.seed, dtype=dtype
        )
        if self.val:
            self.val_set = TrainingBatches(self.val, [], self.spec, dtype=dtype)

    def train_dataloader(self) -> DataLoader:
        n, m = len(self.train), len(self.relaxed)
        denoise = self.config.data.denoise
        share = denoise.share if m else 0
        drawn = round(self.copies.sum() * share / (1 - share))
        chances = np.array([draw_weight(pair, denoise) for pair in self.relaxed])
        chances = chances / chances.sum() if m else chances

        def draw(rng: np.random.Generator) -> np.ndarray:
            # A source with 1.5 copies gives each pair once or twice.
            times = np.floor(self.copies + rng.random(n)).astype(int)
            extra = n + rng.choice(m, drawn, p=chances) if m else []
            return np.append(np.repeat(np.arange(n), times), extra).astype(int)

        sampler = SizeBatches(
            self.train_set.sizes(),
            self.config.data.batch_atoms,
            self.config.seed,
            draw,
            self.trainer.current_epoch,  # where a resumed run goes on
            skip=self.trainer.fit_loop.epoch_loop.batch_progress.current.processed,
            crystals=self.config.data.batch_crystals,
        )
        return self._loader(self.train_set, sampler)

    def val_dataloader(self) -> DataLoader:
        data = self.config.data
        sampler = SizeBatches(
            self.val_set.sizes(), data.batch_atoms, 0, crystals=data.batch_crystals
        )
        return self._loader(self.val_set, sampler)

    def on_after_batch_transfer(
        self,
        batch: CrystalGraph,
        dataloader_idx: int,  # noqa: ARG002 - Lightning's signature
    ) -> CrystalGraph:
        """Edges, found on the device of the training, where the batch has none yet."""
        return with_radius_edges(batch, self.spec.cutoff) if self.spec.is_radius else batch

    def _loader(self, dataset: TrainingBatches, sampler: SizeBatches) -> DataLoader:
        workers = self.config.data.workers
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=outlive_signals,
        )

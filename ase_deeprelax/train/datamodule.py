"""Training samples: pairs and denoising pairs, augmented, as batches of graphs."""

import gzip
import json

import lightning
import numpy as np
import torch
from ase import Atoms
from scipy.linalg import expm
from torch.utils.data import DataLoader, Dataset, Sampler
from torch_geometric.data import Batch

from ase_deeprelax.data.convert import to_graph
from ase_deeprelax.data.pack import runs
from ase_deeprelax.data.pair import Pair, polar
from ase_deeprelax.data.pairs import read_pairs, spread
from ase_deeprelax.errors import ConfigError, PairFileError


class PairGraphs(Dataset):
    """Pairs as graphs with targets; a key is ``(epoch, index)`` and seeds what is random.

    Parameters
    ----------
    pairs : list of Pair
    seeds : list of Pair
        Relaxed structures (0 equals 1) to make denoising pairs from; indices beyond the
        pairs are theirs.
    spec : GraphSpec
    data : train.config.Data, optional
        Settings of augmentation; without, samples are the pairs as they are.
    seed : int
    dtype : torch.dtype
    """

    def __init__(self, pairs, seeds, spec, *, data=None, seed=0, dtype=torch.float32):
        self.pairs, self.seeds, self.spec = pairs, seeds, spec
        self.data, self.seed, self.dtype = data, seed, dtype

    def __len__(self):
        return len(self.pairs) + len(self.seeds)

    def sizes(self):
        """(n_samples,) atoms in each."""
        return np.array([len(pair.numbers) for pair in [*self.pairs, *self.seeds]])

    def __getitem__(self, key):
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        if index < len(self.pairs):
            pair = self.pairs[index]
            if self.data is not None:
                pair = augment(pair, self.data.augment, rng)
        else:
            pair = disturb(self.seeds[index - len(self.pairs)], self.data.denoise, rng)
        graph, frame = to_graph(pair.unrelaxed, self.spec, self.dtype)
        deformation, displacement = frame.from_user(*pair.targets())
        graph.deformation_target = torch.from_numpy(deformation).to(self.dtype).unsqueeze(0)
        graph.displacement_target = torch.from_numpy(displacement).to(self.dtype)
        return graph


def augment(pair, settings, rng):
    """The pair with its input displaced and strained at random, its target unchanged."""
    cell0, frac0 = pair.cell0, pair.frac0
    if pair.scale != 1 and rng.random() < 0.5:
        cell0 = cell0 * pair.scale
    if rng.random() < settings.strain_probability:
        strain = settings.shear * symmetric_noise(rng)
        cell0 = cell0 @ expm(strain + np.eye(3) * rng.normal(0, settings.strain))
    if rng.random() < settings.noise_probability:
        noise = rng.normal(0, rng.uniform(0, settings.noise), frac0.shape)
        frac0 = frac0 + np.linalg.solve(cell0.T, noise.T).T
    return repaired(pair, cell0, frac0)


def disturb(pair, settings, rng):
    """A denoising pair: a relaxed structure strained and displaced at random."""
    low, high = np.log1p(settings.volume)
    strain = settings.shear * symmetric_noise(rng) + np.eye(3) * rng.uniform(low, high) / 3
    cell0 = pair.cell1 @ expm(strain)
    noise = rng.normal(0, rng.uniform(*settings.displacement), pair.frac1.shape)
    return repaired(pair, cell0, pair.frac1 + np.linalg.solve(cell0.T, noise.T).T)


def symmetric_noise(rng):
    """(3, 3) symmetric normal numbers."""
    noise = rng.normal(size=(3, 3))
    return (noise + noise.T) / 2


def repaired(pair, cell0, frac0):
    """A pair with another input: the target turned so that the change is a pure stretch."""
    stretch, _ = polar(np.linalg.solve(cell0, pair.cell1))
    return Pair(
        pair.id,
        pair.numbers,
        cell0,
        frac0,
        cell0 @ stretch,
        pair.frac1,
        formula=pair.formula,
    )


class SizeBatches(Sampler):
    """Batches of similar sizes under a budget of atoms, in a new order each epoch.

    Neighbour sums are padded to the most neighbours in a batch, so that mixing two and
    thirty atoms would waste most of the work. With ``crystals``, that many make a batch,
    whatever their sizes.
    """

    def __init__(self, sizes, batch_atoms, seed, draw=None, epoch=0, *, crystals=None):
        self.sizes, self.batch_atoms, self.seed = sizes, batch_atoms, seed
        self.crystals = crystals
        self.draw = draw or (lambda rng: rng.permutation(len(sizes)))
        self.epoch = epoch
        self._length = len(self.batches(epoch))

    def __len__(self):
        return self._length

    def __iter__(self):
        epoch, self.epoch = self.epoch, self.epoch + 1
        return iter([[(epoch, int(k)) for k in batch] for batch in self.batches(epoch)])

    def batches(self, epoch):
        rng = np.random.default_rng((self.seed, epoch))
        index = self.draw(rng)
        order = index[np.lexsort((rng.random(len(index)), self.sizes[index]))]
        if self.crystals:
            parts = runs(order, np.ones_like(self.sizes), self.crystals)
        else:
            parts = runs(order, self.sizes, self.batch_atoms)
        return [parts[k] for k in rng.permutation(len(parts))]


class PairData(lightning.LightningDataModule):
    """The pairs of a configuration, split as their files say, and its seeds."""

    def __init__(self, config, spec):
        super().__init__()
        self.config, self.spec = config, spec
        data = config.data
        excluded = set()
        if data.exclude_formulas:
            excluded = read_compositions(data.exclude_formulas)
        self.train, self.val = [], []
        for source in data.pairs:
            # Not the tests, whose answers need not be there.
            wanted = ('train', 'val', '')
            pairs = read_pairs(source.path, wanted, ok_only=source.ok_only)
            train = [p for p in pairs if p.split != 'val']
            train = [p for p in train if composition(p.numbers) not in excluded]
            self.train += spread(train, source.limit)
            self.val += spread([p for p in pairs if p.split == 'val'], source.val_limit)
        self.seeds = []
        for source in data.seeds:
            self.seeds += read_seeds(source.path, excluded, data.denoise.max_atoms)
        if not self.train:
            raise ConfigError('no training pair is left after splits and exclusions')

    @property
    def elements(self):
        """Sorted atomic numbers seen in training."""
        return sorted({int(z) for pair in [*self.train, *self.seeds] for z in pair.numbers})

    def setup(self, stage=None):  # noqa: ARG002 - Lightning's signature
        """Make the two sets; Lightning calls it."""
        config, data = self.config, self.config.data
        dtype = torch.float64 if config.optimize.precision == '64' else torch.float32
        self.train_set = PairGraphs(
            self.train, self.seeds, self.spec, data=data, seed=config.seed, dtype=dtype
        )
        self.val_set = PairGraphs(self.val, [], self.spec, dtype=dtype)

    def train_dataloader(self):
        n, m = len(self.train), len(self.seeds)
        share = self.config.data.denoise.share if m else 0
        drawn = round(n * share / (1 - share))

        def draw(rng):
            extra = n + rng.choice(m, drawn, replace=drawn > m) if m else []
            return np.append(np.arange(n), extra).astype(int)

        sampler = SizeBatches(
            self.train_set.sizes(),
            self.config.data.batch_atoms,
            self.config.seed,
            draw,
            self.trainer.current_epoch,  # where a resumed run goes on
            crystals=self.config.data.batch_crystals,
        )
        return self._loader(self.train_set, sampler)

    def val_dataloader(self):
        data = self.config.data
        sampler = SizeBatches(
            self.val_set.sizes(), data.batch_atoms, 0, crystals=data.batch_crystals
        )
        return self._loader(self.val_set, sampler)

    def _loader(self, dataset, sampler):
        workers = self.config.data.workers
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=Batch.from_data_list,
            num_workers=workers,
            persistent_workers=workers > 0,
        )


def composition(numbers):
    """What a reduced formula says, however it is written: ((Z, count), ...)."""
    elements, counts = np.unique(numbers, return_counts=True)
    return tuple(
        zip(elements.tolist(), (counts // np.gcd.reduce(counts)).tolist(), strict=True)
    )


def read_compositions(path):
    """The compositions of a file of formulas."""
    return {composition(Atoms(formula).numbers) for formula in path.read_text().split()}


def read_seeds(path, excluded, max_atoms):
    """Relaxed structures of a ``.jsonl.gz`` file as pairs of themselves.

    Records hold ``id, formula, numbers, cell, frac``; those with ``fmax`` are frames off
    equilibrium and are left out, as are excluded compositions and larger cells.
    """
    seeds = []
    try:
        with gzip.open(path, 'rt') as lines:
            for line in lines:
                r = json.loads(line)
                if r.get('fmax') is not None or len(r['numbers']) > max_atoms:
                    continue
                numbers = np.array(r['numbers'])
                if composition(numbers) in excluded:
                    continue
                cell, frac = np.array(r['cell'], float), np.array(r['frac'], float)
                seeds.append(
                    Pair(r['id'], numbers, cell, frac, cell, frac, formula=r['formula'])
                )
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise PairFileError(f'{path}: cannot be read as seeds: {error!r}') from error
    return seeds

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A model of your own
#
# A model is a PyTorch module that takes a batch of graphs and returns a strain,
# displacements and bond distances. Everything else is the same for all models: neighbours,
# batches, symmetry, fixed cells, the solver, the checks and the optimizer. This notebook
# writes a small network in 60 lines, tests it with the conformance suite, shows a fault
# that the suite finds, and trains the network.

# %%
import logging
import shutil
import tempfile
import time
import unittest
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from torch import nn

from ase_deeprelax import relax, testing
from ase_deeprelax.compare.evaluate import evaluate_all
from ase_deeprelax.data.graph import GraphSpec
from ase_deeprelax.data.pairs import make_pair, read_pairs, write_pairs
from ase_deeprelax.errors import DeepRelaxWarning
from ase_deeprelax.models import ARCHITECTURES
from ase_deeprelax.models.base import LOG_B_RANGE, ModelOutput, RelaxationModel
from ase_deeprelax.models.heads import (
    free_displacement,
    free_strain,
    predicted_distances,
    stretch,
)
from ase_deeprelax.models.layers import (
    RadialBasis,
    mean_over_atoms,
    mlp,
    spherical,
    zero_last,
)
from ase_deeprelax.models.topology import undirected
from ase_deeprelax.train.run import train

folder = Path(tempfile.mkdtemp())
warnings.filterwarnings('ignore', module='lightning')
warnings.filterwarnings('ignore', category=DeepRelaxWarning)
logging.getLogger('lightning.pytorch').setLevel(logging.WARNING)
logging.getLogger('ase_deeprelax').setLevel(logging.ERROR)
torch.set_num_threads(1)

# %% [markdown]
# ## The network
#
# Each bond sees its length and the two elements. From these an `mlp` makes numbers that no
# rotation changes. Multiplied by the direction of the bond and summed over the bonds of an
# atom, one number gives a displacement; by the five products of the direction with itself,
# a strain. So the answer turns with the crystal, whatever the weights are. Sums over the
# atoms of a crystal are means, so that a supercell has the strain of its cell.
#
# `free_strain` and `free_displacement` take away what is fixed. `zero_last` begins with
# zeros, which mean "already relaxed".


# %%
class Bonds(RelaxationModel):
    """One round of messages, and read-outs along bonds."""

    def __init__(self, *, hidden: int = 32, cutoff: float = 4.5):
        super().__init__()
        self.spec = GraphSpec(cutoff=cutoff)
        self.radial = RadialBasis(12, cutoff)
        self.elements = nn.Embedding(119, hidden)
        self.message = mlp(12 + 2 * hidden, hidden, hidden)
        self.readout = zero_last(mlp(12 + 2 * hidden, hidden, 3))
        self.distance = zero_last(mlp(12 + 2 * hidden, hidden, 2))

    def per_atom(self, values, graph):
        """Sums over the bonds of each atom, of which there are about twenty."""
        total = values.new_zeros(graph.num_nodes, values.shape[1])
        return total.index_add(0, graph.edge_index[1], values) / 20

    def forward(self, graph):
        vectors = graph.edge_vectors()
        lengths = vectors.norm(dim=1, keepdim=True)
        basis, unit = self.radial(lengths.squeeze(1)), vectors / lengths
        j, i = graph.edge_index
        s = self.elements(graph.z)
        edges = torch.cat([basis, s[i], s[j]], dim=1)
        near = basis.sum(dim=1, keepdim=True)  # falls to zero at the cutoff
        s = s + self.per_atom(near * self.message(edges), graph)

        edges = torch.cat([basis, s[i], s[j]], dim=1)
        push, volume, shape = (near * self.readout(edges)).split(1, dim=1)
        displacement = free_displacement(self.per_atom(push * unit, graph), graph)
        strain = torch.cat([volume, shape * spherical(unit, 2)[2]], dim=1)
        strain = mean_over_atoms(self.per_atom(strain, graph), graph)
        deformation = stretch(free_strain(strain, graph))

        bonds = undirected(graph).nonzero().squeeze(1)
        both = s[i[bonds]] + s[j[bonds]], s[i[bonds]] * s[j[bonds]]
        change, log_b = self.distance(torch.cat([basis[bonds], *both], dim=1)).T
        moved = predicted_distances(graph, vectors, deformation, displacement)
        return ModelOutput(
            deformation=deformation,
            displacement=displacement,
            bond_index=bonds,
            distance=moved[bonds] * torch.exp(0.1 * torch.tanh(change)),
            log_b=(log_b - 3).clamp(*LOG_B_RANGE),
        )


torch.manual_seed(0)
model = Bonds()
print(sum(parameter.numel() for parameter in model.parameters()), 'weights')
salt = bulk('NaCl', 'rocksalt', a=5.6)
print('volume ratio, untrained:', relax(salt, model=model).volume_ratio)

# %% [markdown]
# ## The conformance suite
#
# `testing.CHECKS` are tests that every model has to pass: the answer must turn with the
# crystal, must not depend on the order of atoms, and so on. `awaken` gives random values to
# the last layers, which begin with zeros: a model that moves nothing would pass all of
# these tests.


# %%
def conforms(model):
    """Run all checks; print those that fail or do not apply."""
    passed = 0
    for check in testing.CHECKS:
        try:
            check(model, 'float64')
            passed += 1
        except (AssertionError, unittest.SkipTest) as error:
            print(f'{check.__name__}: {str(error)[:70]}')
    print(f'{passed} of {len(testing.CHECKS)} checks passed')


conforms(testing.awaken(model, scale=0.25))

# %% [markdown]
# A fault that is easily made: sums over atoms in the place of means. The strain of a
# supercell is then that of its cell, times the number of cells. A validation set of unit
# cells does not show this, but the check of supercells does:


# %%
class Sums(Bonds):
    """The strain is a sum over the atoms of a crystal."""

    def forward(self, graph):
        output = super().forward(graph)
        sizes = torch.bincount(graph.graph_of_atom, minlength=graph.n_graphs)
        both = zip(output.deformation, sizes.tolist(), strict=True)
        powers = [torch.linalg.matrix_power(one, n) for one, n in both]
        output.deformation = torch.stack(powers)
        return output


try:
    testing.ignores_supercell(testing.awaken(Sums(), scale=0.01), 'float64')
except AssertionError as error:
    print(error)

# %% [markdown]
# ## Training
#
# Once its name is in `ARCHITECTURES`, the network can be trained and loaded like any other.
# The pairs are like those of tutorial 4, but fewer: alloys of two metals, relaxed by EMT.


# %%
def pair(k, rng):
    host, guest = rng.choice(['Ni', 'Cu', 'Pd', 'Pt', 'Ag', 'Au'], 2, replace=False)
    before = bulk(host, cubic=True)
    before.symbols[rng.choice(4, rng.integers(1, 4), replace=False)] = guest
    before.rattle(0.05, rng=rng)
    after = before.copy()
    after.calc = EMT()
    BFGS(FrechetCellFilter(after), logfile=None).run(fmax=0.05, steps=200)
    split = ('train', 'train', 'train', 'val', 'test')[k % 5]
    return make_pair(f'alloy-{k}', before, after, split=split)


rng = np.random.default_rng(0)
write_pairs(folder / 'pairs.jsonl.gz', [pair(k, rng) for k in range(100)])

ARCHITECTURES['bonds'] = Bonds
(folder / 'config.yaml').write_text(f"""
name: bonds
output: {folder / 'runs'}
model: {{architecture: bonds, hidden: 32}}
data:
  pairs:
    - {{path: pairs.jsonl.gz, licence: mine}}
  batch_atoms: 64
  workers: 0
optimize:
  learning_rate: 5.0e-3
  max_steps: 200
  warmup_steps: 20
  val_every_steps: 30
  ema: 0.97
  threads: 1
""")
mine = train(folder / 'config.yaml', progress=False)
print(sorted(path.name for path in mine.iterdir()))

# %% [markdown]
# ## Beside the others

# %%
test = read_pairs(folder / 'pairs.jsonl.gz', 'test')
found = evaluate_all(test, {'bonds': mine, 'deeprelax': 'deeprelax'}, workers=1)['all']
names = ('dummy', 'scaled_dummy', 'bonds', 'deeprelax')
errors = [found[name]['lattice_mae']['mean'] for name in names]

_, axis = plt.subplots(figsize=(4.5, 2.2), layout='constrained')
bars = axis.barh(names, errors, color=['0.7', '0.5', 'C1', 'C0'])
axis.bar_label(bars, fmt='%.3f', padding=3)
axis.invert_yaxis()
axis.set(xlabel='mean error of the lattice / Å', xlim=(0, 1.2 * max(errors)))
plt.show()
learned = errors[2] < 0.5 * errors[0]
print('the small network takes more than half of the error away:', learned)

# %% [markdown]
# The small network has learned one potential for six metals, from sixty pairs, and knows
# nothing else. The shipped model has seen many kinds of DFT relaxations, but none with this
# potential. To make a network better than this one, let it pass messages more than once,
# and give atoms vectors as well as numbers: `ase_deeprelax/models/paegnn.py` is the next
# step.
#
# ## How fast

# %% tags=["measured"]
crystals = [bulk(name, cubic=True) for name in ('Cu', 'Ni', 'Ag', 'Au')] * 25
for name, model in {'bonds': mine, 'deeprelax': 'deeprelax'}.items():
    relax(crystals[:4], model=model)
    start = time.perf_counter()
    relax(crystals, model=model)
    took = (time.perf_counter() - start) / len(crystals)
    print(f'{name:<10} {1000 * took:.1f} ms for each of {len(crystals)} structures')

# %%
shutil.rmtree(folder)  # a model of your own you would keep

"""PaiNN (Schuett, Unke, Gastegger, ICML 2021), a baseline of the DeepRelax paper.

PaEGNN is PaiNN with unit cell offsets added to the edge features, so that PaiNN is PaEGNN
with scalars and vectors only and without the offsets: its message and update blocks are
`blocks.Message` and `blocks.Update` of degree 1. As in the Open Catalyst code, on which
DeepRelax builds, they differ from PaiNN as first published in that

* scalars go through a LayerNorm before each block, and constants scale the sums;
* radial functions are Gaussians times a polynomial envelope, not sines times a cosine.

The filters have no bias, so that a message vanishes where its envelope does. The read-outs
are those of PaEGNN: strain from products of two vectors, displacements from vectors,
distances for the uncertainty. At a centrosymmetric site all vectors vanish, so that the
shape of a crystal with such sites only cannot change, but its volume can.
"""

from ase_deeprelax.models.paegnn import PaEGNN


class PaiNN(PaEGNN):
    """Polarizable atom interaction network with read-outs for a relaxation.

    Parameters
    ----------
    hidden : int
        Width F of the features, default 128.
    layers : int
        Message and update blocks, default 4.
    num_rbf : int
        Gaussians per edge, default 8.
    cutoff : float, A
        Radius of the graph, default 5.

    Examples
    --------
    >>> PaiNN(hidden=16, layers=2).spec.cutoff
    5.0
    """

    def __init__(
        self,
        *,
        hidden: int = 128,
        layers: int = 4,
        num_rbf: int = 8,
        cutoff: float = 5.0,
    ):
        super().__init__(
            hidden=hidden, layers=layers, num_rbf=num_rbf, cutoff=cutoff, degree=1
        )

"""Published weights of E3Relax-H2: the names of their parameters, and ours."""

from __future__ import annotations

import re
from typing import Any

# Published parameter names, as regular expressions, and ours.
PUBLISHED_NAMES = (
    (r'atom_emb\.embeddings', 'embedding'),
    (r'lattice_scalar_emb', 'axis_embedding'),
    (r'lattice_feat_mlps\.(\d+)', r'layers.\1.features'),
    (r'lattice_blocks\.(\d+)', r'layers.\1.lattice'),
    (r'message_passing_layers\.(\d+)', r'layers.\1.messages'),
    (r'message_update_layers\.(\d+)', r'layers.\1.update'),
    (r'structure_update_layers\.(\d+)', r'layers.\1'),
    ('x_proj', 'atoms'),
    ('edge_proj', 'radial'),
    ('inv_norm', 'norm'),
    ('edge_inv_proj', 'gate'),
    ('vec_proj', 'vectors'),
    ('xvec_proj', 'mlp'),
    ('pos_mlp', 'move'),
    ('delta_scale', 'move_scale'),
    ('axis_blocks', 'axes'),
    ('axis_mix_scalar', 'mix_scalars'),
    ('axis_mix_vector', 'mix_vectors'),
    ('axis_atom_message_proj', 'atoms'),
    ('axis_edge_rbf_proj', 'radial'),
    ('axis_to_atom_scalar_mlp', 'give_scalars'),
    ('axis_to_atom_vector_mlp', 'give_vectors'),
    ('atoms_to_axis_scalar_mlp', 'take_scalars'),
    ('atoms_to_axis_vector_mlp', 'take_vectors'),
    ('axis_state_vector_proj', 'update.vectors'),
    ('axis_state_scalar_mlp', 'update.mlp'),
    ('axis_lattice_delta_mlp', 'change'),
)


def convert_checkpoint(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Published names of parameters to those of `ReferenceE3RelaxH2`.

    Parameters
    ----------
    state_dict : dict of str to tensor
        The entry ``'ema'`` (the averaged weights that the published test script uses) or
        ``'model'`` of a published checkpoint.

    Returns
    -------
    dict of str to tensor
        The same tensors, for ``load_state_dict``; without the centres of the radial
        basis, which are no parameters. Names that are not published ones stay as they
        are, so that loading reports them.

    Examples
    --------
    >>> list(convert_checkpoint({'lattice_blocks.0.axis_mix_vector.weight': 1}))
    ['layers.0.lattice.mix_vectors.weight']

    A published checkpoint as a model folder, which every command then takes:

    >>> import torch
    >>> from ase_deeprelax.models import create_model
    >>> from ase_deeprelax.models.store import save_model
    >>> weights = torch.load('model.pt', weights_only=True)['ema']  # doctest: +SKIP
    >>> model = create_model('e3relax-h2', reference=True)  # doctest: +SKIP
    >>> model.load_state_dict(convert_checkpoint(weights))  # doctest: +SKIP
    >>> save_model(model, 'e3relax-h2-mp', {'elements': [8, 22]})  # doctest: +SKIP
    """
    return {
        _our_name(name): tensor
        for name, tensor in state_dict.items()
        if not name.startswith('radial_basis.')
    }


def _our_name(name: str) -> str:
    for published, ours in PUBLISHED_NAMES:
        # whole parts between dots only
        name = re.sub(rf'(?<![^.]){published}(?![^.])', ours, name)
    return name

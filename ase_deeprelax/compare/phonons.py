"""Phonons by finite displacements, of the same crystal relaxed in several ways.

`compare_phonons` gives a list, ready for JSON, that ``compare``'s result holds under
``phonons``: one entry per structure, calculator and ``kind``:

``structure, calculator``
    As in `savings`.
``kind``
    'predicted' (the one-shot answer alone), 'refined' (and then relaxed with the
    calculator), 'iterative' (relaxed with it from the unrelaxed structure).
``optimizer``
    Which one relaxed it, None for 'predicted'.
``ok, problem``
    Whether there are phonons, or why not; the keys below are then missing.
``fmax, supercell, n_supercell, shortest, capped, displacements, seconds``
    Largest force on an atom of the structure, eV/A; the supercell as (3, 3) integers, rows
    times the cell; its atoms; its shortest lattice vector, A; whether the cap on atoms
    made it shorter than asked for; how many displaced supercells; wall time, s.
``imaginary``
    {``threshold`` (THz, below minus which a frequency counts), ``n_modes, n, lowest``
    (modes, imaginary ones and lowest frequency at the wave vectors that fit into the
    supercell, where force constants are exact; imaginary frequencies are negative), ``gamma``
    {``n, lowest, frequencies``} (at Gamma, without the three translations)}
``bands``
    {``path`` (such as 'GXWKGLUWLK,UX'), ``x`` [n], ``ticks`` [x], ``labels`` [text],
    ``breaks`` [index of the first point after each comma in the path], ``frequencies``
    [n][bands] in THz}. Wave vectors, and so ``x``, are the same for all kinds of one
    structure.
``dos``
    {``frequencies`` THz, ``density`` states per THz and atom}; it integrates to 3.
``thermal``
    {``temperatures`` K, ``free_energy`` eV per atom, ``entropy`` and ``heat_capacity``
    J/(K mol of atoms), ``left_out`` (share of modes on the mesh that are imaginary or zero
    and so not counted)}.
"""

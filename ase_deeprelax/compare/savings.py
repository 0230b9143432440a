"""What a prediction saves an iterative relaxation: every path side by side.

`compare` returns one dictionary, ready for JSON. Lengths are in A, energies in eV per atom,
volumes in A^3 per cell, times in s of wall time; ``lattice`` is ``[a, b, c, alpha, beta,
gamma]`` in A and degrees; a number that does not exist is None. *Calculators* are known by
the names that are keys of ``settings['calculators']``, *optimizers* by class names,
structures by ``id``.

``settings``
    ``model, sha256, version`` (of the prediction), ``fmax`` (eV/A), ``steps`` (the most that
    a run may take), ``calculators`` {name: what was asked for}, ``optimizers`` [name],
    ``energy_tolerance`` (eV per atom), ``device, threads``, ``has_reference`` (whether
    structures have one).
``structures``
    [{``id, formula, n_atoms, spacegroup, volume, lattice, numbers, cell, positions`` (of the
    input), ``sigma`` (of its prediction), ``reference``: None or {``spacegroup, volume,
    lattice, cell, positions``}}]
``predictions``
    The one-shot answer alone, one per structure: [{``structure, ok, problem, ood, seconds,
    sigma, sigma_atoms`` [n_atoms], ``dmax, spacegroup_kept, rmsd_to_reference, volume,
    lattice, cell, positions, energy_per_atom`` {calculator: eV}, ``fmax`` {calculator:
    eV/A}}]. Where ``ok`` is False, ``problem`` says why and numbers are None.
``runs``
    [{``structure, calculator, optimizer, start`` ('unrelaxed' or 'prediction'), ``ok``
    (False: failed), ``converged, reason`` (why it failed or did not converge, or ''),
    ``steps, calls`` (evaluations of the calculator), ``seconds`` (with the prediction's,
    where it started from that), ``energy_per_atom, fmax`` (eV/A, the largest force on an
    atom or on the cell), ``rmsd_to_reference`` (in (volume per atom)^(1/3), as
    matbench-discovery counts: 1.0 where nothing matches), ``spacegroup_kept`` (number equals
    the input's), ``volume, lattice, cell, positions, curve`` [[energy_per_atom, fmax], one
    per call]}]. After a failure the numbers of the end are None, ``steps, calls, seconds,
    curve`` say how far it came.
``batched``
    Many structures per forward pass with FIRE, the fair rival for time: [{``calculator,
    optimizer`` ('FIRE'), ``start, n`` (structures that both starts could be run for),
    ``converged`` (how many), ``seconds_per_structure`` (with the prediction's, all at once,
    where they started from it), ``calls`` {spread}, ``batch_atoms, structures`` [id]}];
    empty where it was not asked for.
``summary``
    One per calculator and optimizer: [{``calculator, optimizer, n`` (structures),
    ``unrelaxed`` and ``prediction``: {``failed, unconverged, converged`` (numbers that add
    up to n), ``converged_share, steps, calls, seconds`` {spread, over converged runs},
    ``spacegroup_kept`` (share of converged), ``rmsd_to_reference`` {spread}}, ``both``:
    {``n`` (converged from both starts), ``steps_saved, calls_saved, seconds_saved,
    calls_ratio`` {spread over structures: difference, prediction over unrelaxed},
    ``median_calls_ratio`` (median calls from the prediction over median calls from the
    unrelaxed structure, both over these structures), ``energy_difference`` {spread, eV per
    atom, prediction minus unrelaxed}, ``equal, lower, higher`` (shares),
    ``higher_structures`` [id], ``lower_structures`` [id], ``uphill`` (share of predictions
    above their input's energy)}, ``only_unrelaxed, only_prediction`` ([id] converged from
    one start alone)}]. A *spread* is {``n, q25, median, q75``}; failed and unconverged runs
    never enter one.
``phonons``
    Not there before `phonons.compare_phonons` was asked for it; see there.
"""

// Structures, {symbols, cell, positions, pbc}, as text for other programs.
'use strict';
function sixDigits(v) { return v.map((x) => x.toFixed(6)).join(' '); }
function asCif({ symbols, cell, positions }, title) {
  const [a, b, c] = cell;
  const angle = (u, v) => Math.acos(dot(u, v) / norm(u) / norm(v)) * 180 / Math.PI;
  // A position is a sum of cell vectors; the dual ones give its parts.
  const dual = [cross(b, c), cross(c, a), cross(a, b)], volume = dot(a, dual[0]);
  const parts = (x) => dual.map((d) => dot(x, d) / volume);
  const sizes = { length_a: norm(a), length_b: norm(b), length_c: norm(c),
    angle_alpha: angle(b, c), angle_beta: angle(a, c), angle_gamma: angle(a, b) };
  return [
    `data_${title}`,
    ...Object.entries(sizes).map(([key, x]) => `_cell_${key} ${x.toFixed(6)}`),
    "_space_group_name_H-M_alt 'P 1'", '_space_group_IT_number 1',
    'loop_', '_space_group_symop_operation_xyz', "'x, y, z'", 'loop_',
    ...['label', 'type_symbol', 'fract_x', 'fract_y', 'fract_z'].map((key) => `_atom_site_${key}`),
    ...symbols.map((symbol, k) => `${symbol}${k} ${symbol} ${sixDigits(parts(positions[k]))}`),
  ].join('\n');
}
function asExtxyz({ symbols, cell, positions, pbc = [true, true, true] }) {
  const lattice = cell.map(sixDigits).join(' ');
  const rows = symbols.map((symbol, k) => `${symbol} ${sixDigits(positions[k])}`);
  const head = `Lattice="${lattice}" Properties=species:S:1:pos:R:3 pbc="${pbc.map((p) => (p ? 'T' : 'F')).join(' ')}"`;
  return [rows.length, head, ...rows].join('\n');
}

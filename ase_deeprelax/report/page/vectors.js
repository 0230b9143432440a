// Vectors and 3 x 3 matrices as lists. Vectors are rows, as in Python: v @ M is times(v, M).
'use strict';
function times(v, M) {
  return [0, 1, 2].map((k) => v[0] * M[0][k] + v[1] * M[1][k] + v[2] * M[2][k]);
}
function multiply(A, B) { return A.map((row) => times(row, B)); }
function plus(a, b, s = 1) { return a.map((x, k) => x + s * b[k]); }
function norm(v) { return Math.hypot(...v); }
function cross(a, b) {
  return [0, 1, 2].map((k) => a[(k + 1) % 3] * b[(k + 2) % 3] - a[(k + 2) % 3] * b[(k + 1) % 3]);
}
function turn(axis, angle) { // about x (0), y (1) or z (2) of the screen
  const c = Math.cos(angle), s = Math.sin(angle), M = [[0, 0, 0], [0, 0, 0], [0, 0, 0]];
  const i = (axis + 1) % 3, j = (axis + 2) % 3;
  M[axis][axis] = 1; M[i][i] = c; M[j][j] = c; M[i][j] = s; M[j][i] = -s;
  return M;
}
function dot(a, b) { return a.reduce((sum, x, k) => sum + x * b[k], 0); }
function distance(v, from, way) { // from a point to a stretch of a line
  const along = plus(v, from, -1), share = dot(along, way) / dot(way, way);
  return norm(plus(along, way, -Math.min(Math.max(share, 0), 1)));
}

// Colours as three numbers, and the strokes of a picture: lines, spheres, labels.
'use strict';
// viridis: equal steps look equal, also to the colour-blind and in grey
const VIRIDIS = ['#440154', '#472d7b', '#3b528b', '#2c728e', '#21918c', '#28ae80',
  '#5ec962', '#addc30', '#fde725'].map(fromHex);
function fromHex(hex) {
  return [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
}
function mix(a, b, share) { return a.map((x, k) => x + share * (b[k] - x)); }
function css(rgb, alpha = 1) { return `rgb(${rgb.map(Math.round).join(' ')} / ${alpha})`; }
function viridis(share) {
  const x = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const k = Math.min(Math.floor(x), VIRIDIS.length - 2);
  return mix(VIRIDIS[k], VIRIDIS[k + 1], x - k);
}
function isLight(rgb) { return 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2] > 120; }

function paintLine(pen, a, b, rgb, width) {
  pen.beginPath();
  pen.moveTo(a.x, a.y);
  pen.lineTo(b.x, b.y);
  pen.lineWidth = width;
  pen.strokeStyle = css(rgb);
  pen.stroke();
}
function hatch(pen, at, r, rgb) { // lines across the circle that is the path now
  pen.save();
  pen.clip();
  for (let x = -2 * r; x < 2 * r; x += Math.max(0.4 * r, 4)) {
    const from = { x: at.x + x - r, y: at.y + r }, to = { x: at.x + x + r, y: at.y - r };
    paintLine(pen, from, to, rgb, Math.max(0.09 * r, 1));
  }
  pen.restore();
}
function paintSphere(pen, at, r, rgb, ink, fixed) {
  const glow = pen.createRadialGradient(at.x - r / 3, at.y - r / 3, r / 12, at.x, at.y, r);
  glow.addColorStop(0, css(mix(rgb, [255, 255, 255], 0.55)));
  glow.addColorStop(0.45, css(rgb));
  glow.addColorStop(1, css(mix(rgb, [0, 0, 0], 0.35)));
  pen.beginPath();
  pen.arc(at.x, at.y, r, 0, 2 * Math.PI);
  pen.fillStyle = glow;
  pen.fill();
  if (fixed) hatch(pen, at, r, mix(rgb, ink, 0.75));
  pen.beginPath();
  pen.arc(at.x, at.y, r, 0, 2 * Math.PI);
  pen.lineWidth = fixed ? Math.max(0.12 * r, 2) : 1;
  pen.strokeStyle = css(mix(rgb, ink, fixed ? 0.85 : 0.5));
  pen.stroke();
}
function paintLabel(pen, at, r, rgb, label) { // with a rim that keeps lines behind it away
  if (r < 5) return;
  const size = Math.min(Math.max(r * 0.9, 9), 18);
  pen.font = `600 ${size}px system-ui, sans-serif`;
  pen.lineWidth = size / 4;
  pen.lineJoin = 'round';
  pen.strokeStyle = css(rgb);
  pen.strokeText(label, at.x, at.y + 1);
  pen.fillStyle = isLight(rgb) ? '#111' : '#fff';
  pen.fillText(label, at.x, at.y + 1);
}
function paintRing(pen, at, r, rgb) {
  pen.beginPath();
  pen.arc(at.x, at.y, r, 0, 2 * Math.PI);
  pen.lineWidth = 2.5;
  pen.strokeStyle = css(rgb);
  pen.stroke();
}
function paintDot(pen, at, r, rgb) {
  pen.beginPath();
  pen.arc(at.x, at.y, r, 0, 2 * Math.PI);
  pen.fillStyle = css(rgb);
  pen.fill();
}

// Crystals and layers before and after on a 2D canvas, and the hands that turn them.
// z points from the screen to the eye.
'use strict';
(() => {
  const $ = (id) => document.getElementById(id);
  const scenes = JSON.parse($('scenes').textContent);
  const canvas = $('view'), pen = canvas.getContext('2d');
  const tip = $('tip'), readout = $('readout');
  const START = multiply(turn(2, -0.4), turn(0, -1.25)); // c nearly upright
  const CORNERS = [0, 1, 2, 3, 4, 5, 6, 7].map((k) => [k & 1, (k >> 1) & 1, k >> 2]);
  const EDGES = [[0, 1], [0, 2], [0, 4], [1, 3], [1, 5], [2, 3], [2, 6], [3, 7], [4, 5],
    [4, 6], [5, 7], [6, 7]];
  const EYE = 6; // distance of the eye in radii of the scene: little perspective
  const PIECES = 60; // an edge is cut, so that each piece finds its place in depth

  let scene, theme, rotation = START, radius = 1, drawn = [], hovered = null, waiting = 0;
  let width = 0, height = 0; // of the canvas; zero as long as nobody sees the page
  let fitted = 1, zoom = 1; // the scale at which all of it is seen, and what hands make of it

  // --- from the crystal to the screen
  function cellAt(t) { // rows: the three vectors, on the way from before (0) to after (1)
    const S = scene.deformation.map((row, i) => row.map((x, k) => (1 - t) * (i === k) + t * x));
    return { S, cell: multiply(scene.cell, S) };
  }
  function centre(cell) { return times([0.5, 0.5, 0.5], cell); }
  function sitesAt(t, factor = 1) { // seen from the middle of the cell
    const { S, cell } = cellAt(t), middle = centre(cell);
    return scene.sites.map(([atom, ...turns]) => {
      const moved = plus(scene.positions[atom], scene.move[atom], t * factor);
      return plus(times(plus(moved, times(turns, scene.cell)), S), middle, -1);
    });
  }
  function inPlane(corner) { // a layer has the cell of its middle plane
    return corner.map((x, k) => (scene.periodic[k] ? x : 0.5));
  }
  function edges() { // without those along the vacuum of a layer, each of the others once
    const drawn = (k, a, b) => scene.periodic[k] || (CORNERS[a][k] === 0 && CORNERS[b][k] === 0);
    return EDGES.filter(([a, b]) => [0, 1, 2].every((k) => drawn(k, a, b)));
  }
  function cornersAt(t) {
    const { cell } = cellAt(t), middle = centre(cell);
    return CORNERS.map((corner) => plus(times(inPlane(corner), cell), middle, -1));
  }
  function project(v) {
    const [x, y, z] = times(v, rotation);
    const far = Math.max(EYE - z / radius, 1); // what is exaggerated never gets behind the eye
    const scale = 0.5 * Math.min(width, height) / radius * fitted * zoom * EYE / far;
    return { x: width / 2 + scale * x, y: height / 2 - scale * y, z, scale };
  }

  // --- colours
  function values() {
    const by = $('colour').value;
    return by === 'displacement' ? scene.distance : by === 'sigma' ? scene.sigma : null;
  }
  function range(list) {
    const known = list.filter((x) => x !== null); // and no colours for noise
    if ($('colour').value === 'displacement') return [0, Math.max(...known, 0.01)];
    const low = Math.min(...known);
    return [low, Math.max(...known, low + 1e-3)];
  }
  function colours() { // of all atoms
    const list = values();
    if (!list) return scene.numbers.map((z) => scene.elements[z].color);
    const [low, high] = range(list);
    return list.map((x) => (x === null ? [128, 128, 128] : viridis((x - low) / (high - low))));
  }
  function hazy(rgb, z) { // what is far fades into the background
    return mix(theme.back, rgb, 0.55 + 0.45 * Math.min(Math.max((z / radius + 1) / 1.6, 0), 1));
  }

  // --- painting, from back to front
  function outline(t, rgb, width, dashed, parts) {
    const corners = cornersAt(t);
    for (const [a, b] of edges()) {
      const way = plus(corners[b], corners[a], -1);
      const near = drawn.filter((at) => distance(at.v, corners[a], way) < at.size);
      for (let k = 0; k < PIECES; k++) {
        if (dashed && k % 4 > 1) continue;
        const ends = [k, k + 1].map((n) => plus(corners[a], way, n / PIECES));
        if (near.some((at) => norm(plus(ends[0], at.v, -1)) < at.size)) continue; // within a sphere
        const [from, to] = ends.map(project);
        const z = (from.z + to.z) / 2 + 0.02 * radius; // before a bond along the edge
        parts.push({ z, paint: () => paintLine(pen, from, to, hazy(rgb, from.z), width) });
      }
    }
  }
  function draw() {
    waiting = 0;
    if (!width || !height) return;
    const ratio = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.textAlign = 'center';
    pen.textBaseline = 'middle';
    pen.lineCap = 'round';
    const t = +$('time').value, factor = +$('factor').value;
    // Without its displacement, an atom moves with the cell; colours and lines leave that out.
    const start = sitesAt(t, 0).map(project), rgb = colours();
    drawn = sitesAt(t, factor).map((v, k) => {
      const at = project(v), atom = scene.sites[k][0];
      const element = scene.elements[scene.numbers[atom]];
      return { ...at, v, atom, from: start[k], size: element.radius, r: element.radius * at.scale,
        symbol: element.symbol, rgb: rgb[atom], fixed: isFixed(atom) };
    });
    const parts = [];
    outline(0, theme.before, 1.5, true, parts);
    outline(1, theme.after, 1.8, false, parts);
    drawn.forEach((at) => {
      const rgb = hazy(at.rgb, at.z), { from } = at;
      const moved = Math.hypot(at.x - from.x, at.y - from.y) >= 3;
      parts.push({ z: at.z, paint: () => {
        paintSphere(pen, at, at.r, rgb, theme.ink, at.fixed);
        if (moved) { // over the sphere, which would hide it
          paintLine(pen, from, at, theme.ink, 1.5);
          paintDot(pen, from, 2.5, theme.ink);
        }
        paintLabel(pen, at, at.r, rgb, at.symbol);
      } });
    });
    for (const [a, b] of scene.bonds) {
      const ends = [drawn[a], drawn[b]], way = plus(ends[1].v, ends[0].v, -1), length = norm(way);
      ends.forEach((end, k) => { // half a bond, from the surface of its sphere
        const first = 0.9 * end.size / length, rgb = mix(end.rgb, theme.ink, 0.2);
        const stops = [0, 1, 2, 3, 4].map((n) => (
          project(plus(end.v, way, (k ? -1 : 1) * (first + (0.5 - first) * n / 4)))));
        stops.slice(1).forEach((to, n) => {
          const from = stops[n], z = (from.z + to.z) / 2;
          parts.push({ z, paint: () => paintLine(pen, from, to, hazy(rgb, z), 0.13 * from.scale) });
        });
      });
    }
    parts.sort((a, b) => a.z - b.z).forEach((part) => part.paint());
    if (hovered !== null) paintRing(pen, drawn[hovered], drawn[hovered].r + 3, theme.ink);
  }
  function redraw() { waiting ||= requestAnimationFrame(draw); }

  // --- words
  function text(value) { return value === null || value === undefined ? '–' : `${value.toFixed(3)} Å`; }
  function isFixed(atom) { return Boolean(scene.fixed && scene.fixed[atom]); }
  function movedBy(atom) { return `${text(scene.distance[atom])}${isFixed(atom) ? ', fixed' : ''}`; }
  function about(atom) {
    const { symbol } = scene.elements[scene.numbers[atom]];
    const sigma = scene.sigma ? `, sigma ${text(scene.sigma[atom])}` : '';
    return `${symbol}, atom ${atom}: moved ${movedBy(atom)}${sigma}`;
  }
  function fill(parent, items) { // [tag, text]
    parent.replaceChildren(...items.map(([tag, words]) => {
      const node = document.createElement(tag);
      node.textContent = words;
      return node;
    }));
  }
  function legend() {
    const list = values();
    $('bar').hidden = !list;
    $('elements').hidden = Boolean(list);
    if (list) {
      const [low, high] = range(list);
      $('low').textContent = text(low);
      $('high').textContent = text(high);
      $('what').textContent = $('colour').selectedOptions[0].textContent;
      $('ramp').style.background = `linear-gradient(to right, ${VIRIDIS.map((c) => css(c)).join(', ')})`;
      return;
    }
    fill($('elements'), Object.values(scene.elements).map((e) => ['li', e.symbol]));
    Object.values(scene.elements).forEach((e, k) => {
      $('elements').children[k].style.setProperty('--chip', css(e.color));
    });
  }
  function choose(index) {
    scene = scenes[index];
    $('structure').value = index;
    hovered = null;
    tip.hidden = true;
    radius = Math.max(...[0, 1].flatMap((t) => [...cornersAt(t), ...sitesAt(t)].map(norm))) + 0.6;
    const sigma = [...$('colour').options].find((o) => o.value === 'sigma');
    sigma.disabled = !scene.sigma;
    if (!scene.sigma && $('colour').value === 'sigma') $('colour').value = 'displacement';
    $('name').textContent = scene.name;
    $('fixed').hidden = !scene.fixed;
    const whole = (title) => title.replace(' / ', '\u00a0/\u00a0'); // a unit stays with its name
    fill($('facts'), Object.entries(scene.notes).flatMap(([k, v]) => [['dt', whole(k)], ['dd', v]]));
    $('atoms').replaceChildren(...scene.numbers.map((z, atom) => {
      const row = document.createElement('tr');
      const cells = [atom, scene.elements[z].symbol, movedBy(atom),
        text(scene.sigma && scene.sigma[atom])];
      fill(row, cells.map((cell) => ['td', cell]));
      return row;
    }));
    readout.textContent = 'Point at an atom to read how far it moved.';
    canvas.setAttribute('aria-label', `${scene.name}, ${scene.numbers.length} atoms, before and `
      + 'after. Turn with the arrow keys, zoom with plus and minus; the numbers of all atoms '
      + 'are in the table below.');
    legend();
    look(null);
  }

  // --- hands
  function hover(x, y) {
    hovered = null;
    drawn.forEach((at, k) => {
      const hit = Math.hypot(at.x - x, at.y - y) < Math.max(at.r, 6);
      if (hit && (hovered === null || at.z > drawn[hovered].z)) hovered = k;
    });
    tip.hidden = hovered === null;
    if (hovered !== null) {
      readout.textContent = tip.textContent = about(drawn[hovered].atom);
      tip.style.left = `${Math.max(0, Math.min(x + 14, width - tip.offsetWidth))}px`;
      tip.style.top = `${y + 18}px`;
    }
    redraw();
  }
  function spin(dx, dy) {
    rotation = multiply(rotation, multiply(turn(1, dx), turn(0, dy)));
    redraw();
  }
  function enlarge(factor) {
    zoom = Math.min(Math.max(zoom * factor, 0.2), 20);
    redraw();
  }
  function look(axis) { // down one cell vector, another one upwards; or from the start
    rotation = START;
    if (axis !== null) {
      const unit = (v) => v.map((x) => x / norm(v));
      const toEye = unit(scene.cell[axis]), right = unit(cross(scene.cell[(axis + 2) % 3], toEye));
      const up = cross(toEye, right);
      rotation = [0, 1, 2].map((k) => [right[k], up[k], toEye[k]]);
    }
    zoom = 1;
    fit();
  }
  function fit() { // as large as the canvas allows
    width = canvas.clientWidth;
    height = canvas.clientHeight;
    redraw();
    if (!width || !height) return;
    const sizes = scene.sites.map(([atom]) => scene.elements[scene.numbers[atom]].radius);
    const seen = [0, 1].flatMap((t) => [...sitesAt(t), ...cornersAt(t)].map((corner, k) => {
      const at = project(corner), r = at.scale * (sizes[k] ?? 0);
      return [Math.abs(at.x - width / 2) + r, Math.abs(at.y - height / 2) + r];
    }));
    const [wide, high] = [0, 1].map((k) => Math.max(...seen.map((at) => at[k])));
    fitted *= 0.94 * zoom * Math.min(width / 2 / wide, height / 2 / high);
  }
  const fingers = new Map(); // where the pointers that are down are
  function span() { // how far the first two are apart
    const [a, b = a] = [...fingers.values()];
    return Math.hypot(a[0] - b[0], a[1] - b[1]);
  }
  let moved = false; // since the first finger came down
  canvas.addEventListener('pointerdown', (event) => {
    canvas.setPointerCapture(event.pointerId);
    if (!fingers.size) moved = false;
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  canvas.addEventListener('pointerup', (event) => {
    if (!moved) hover(event.offsetX, event.offsetY); // a tap
    fingers.delete(event.pointerId);
  });
  canvas.addEventListener('pointercancel', (event) => fingers.delete(event.pointerId));
  canvas.addEventListener('pointermove', (event) => {
    const from = fingers.get(event.pointerId), to = [event.clientX, event.clientY];
    if (!from) {
      hover(event.offsetX, event.offsetY);
      return;
    }
    const [dx, dy] = [to[0] - from[0], to[1] - from[1]], before = span();
    if (!moved && fingers.size === 1 && Math.hypot(dx, dy) < 4) return; // no hand is still
    moved = true;
    tip.hidden = true;
    hovered = null;
    fingers.set(event.pointerId, to);
    if (fingers.size > 1) enlarge(span() / Math.max(before, 1));
    spin(dx * 0.01 / fingers.size, dy * 0.01 / fingers.size); // as their middle moves
  });
  canvas.addEventListener('pointerleave', (event) => {
    if (event.pointerType === 'touch') return; // a finger that is lifted; what it tapped stays
    hovered = null;
    tip.hidden = true;
    redraw();
  });
  canvas.addEventListener('wheel', (event) => {
    event.preventDefault();
    enlarge(Math.exp(-event.deltaY / 600));
  }, { passive: false });
  canvas.addEventListener('dblclick', () => look(null));
  canvas.addEventListener('keydown', (event) => {
    const keys = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
    if (keys[event.key]) spin(...keys[event.key]);
    else if (event.key === '+' || event.key === '-') enlarge(event.key === '+' ? 1.15 : 1 / 1.15);
    else return;
    event.preventDefault();
  });
  $('structure').addEventListener('change', (event) => choose(+event.target.value));
  $('colour').addEventListener('change', () => { legend(); redraw(); });
  for (const id of ['time', 'factor']) $(id).addEventListener('input', redraw);
  $('factor').addEventListener('input', () => { $('times').textContent = `× ${$('factor').value}`; });
  document.querySelectorAll('[data-along]').forEach((button) => {
    const axis = { a: 0, b: 1, c: 2 }[button.dataset.along] ?? null;
    button.addEventListener('click', () => look(axis));
  });
  document.querySelectorAll('[data-scene]').forEach((button) => {
    button.addEventListener('click', () => { choose(+button.dataset.scene); canvas.scrollIntoView({ block: 'center' }); });
  });
  // --- files
  function fileName(suffix) { return `${scene.name.replace(/[^\w.-]+/g, '_')}.${suffix}`; }
  $('save-picture').addEventListener('click', () => {
    canvas.toBlob((blob) => saveAs(fileName('png'), blob));
  });
  function structures() { // before and after
    const symbols = scene.numbers.map((z) => scene.elements[z].symbol);
    return [0, 1].map((t) => {
      if (scene.files) return { symbols, ...scene.files[t] };
      const { S, cell } = cellAt(t);
      const positions = scene.positions.map((x, k) => times(plus(x, scene.move[k], t), S));
      return { symbols, cell, positions };
    });
  }
  const WRITERS = {
    cif: () => structures().map((one, t) => asCif(one, ['before', 'after'][t])),
    extxyz: () => structures().map(asExtxyz),
  };
  for (const [suffix, write] of Object.entries(WRITERS)) {
    $(`save-${suffix}`).addEventListener('click', () => {
      saveAs(fileName(suffix), new Blob([`${write().join('\n')}\n`], { type: 'text/plain' }));
    });
  }
  $('find')?.addEventListener('input', (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    const options = [...$('structure').options];
    options.forEach((option) => {
      option.hidden = !words.every((word) => option.textContent.toLowerCase().includes(word));
    });
    const first = options.find((option) => !option.hidden);
    if (first && $('structure').selectedOptions[0].hidden) choose(+first.value);
  });
  function repaint() {
    const style = getComputedStyle(document.documentElement);
    theme = Object.fromEntries(['ink', 'back', 'before', 'after']
      .map((name) => [name, fromHex(style.getPropertyValue(`--${name}`).trim())]));
    if (scene) redraw();
  }
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', repaint);
  repaint();
  choose(0);
  new ResizeObserver(fit).observe(canvas); // when seen at last, on paper, or on a telephone that is turned
  // For scripts: where on the canvas the sites of an atom are, as drawn last.
  window.sitesOnScreen = (atom) => drawn.filter((at) => at.atom === atom);
})();

// Long tables are sorted by a click on a head: the largest first, then the smallest.
'use strict';
document.querySelectorAll('[data-sorts]').forEach((table) => {
  const heads = [...table.tHead.rows[0].cells], [body] = table.tBodies;
  heads.forEach((head, k) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    const value = (row) => { // a number, or where there is none text
      const text = row.cells[k].textContent, x = parseFloat(text.replaceAll(',', '')); // 1,234
      return head.className || Number.isNaN(x) ? text : x;
    };
    button.addEventListener('click', () => {
      const way = head.ariaSort === 'descending' ? 1 : -1;
      heads.forEach((other) => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', way > 0 ? 'ascending' : 'descending');
      const sorted = [...body.rows].map((row) => [value(row), row]).sort(([a], [b]) => (
        (typeof a === 'string') - (typeof b === 'string') || way * ((a > b) - (a < b))));
      body.append(...sorted.map(([, row]) => row));
    });
  });
});
// Each table can be saved for other programs.
window.saveAs = (name, blob) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
};
document.querySelectorAll('.scroll').forEach((box) => {
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'csv';
  button.textContent = 'save table (CSV)';
  button.addEventListener('click', () => {
    const quoted = (cell) => `"${cell.textContent.trim().replaceAll('"', '""')}"`;
    const lines = [...box.querySelectorAll('tr')].map((row) => [...row.cells].map(quoted).join(','));
    const name = box.getAttribute('aria-label').split(/[:;]/)[0].replace(/[^\w]+/g, '_').slice(0, 40);
    saveAs(`${name}.csv`, new Blob([`${lines.join('\n')}\n`], { type: 'text/csv' }));
  });
  box.after(button);
});

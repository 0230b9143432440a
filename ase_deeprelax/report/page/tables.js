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
      const text = row.cells[k].textContent, x = parseFloat(text);
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

// What the theme leaves out for those who use a keyboard or a screen reader. The theme makes
// parts of the page late, so this runs after each of its changes.
'use strict';
function complete() {
  document.querySelector('.md-search')?.setAttribute('aria-label', 'Search');
  // What can be wider than the screen is scrolled with the arrow keys.
  const wide = '.md-typeset pre > code, .md-typeset__scrollwrap, .md-typeset p:has(> img), '
    + '.highlight-ipynb, .highlight > pre, .jp-OutputArea-output';
  document.querySelectorAll(wide).forEach((part) => {
    if (part.tabIndex !== 0) part.tabIndex = 0;
  });
  document.querySelectorAll('.md-code__nav:not([aria-label])').forEach((buttons, k) => {
    buttons.setAttribute('aria-label', `Code ${k + 1}: ${buttons.parentElement.id}`);
  });
  document.querySelectorAll('.jp-RenderedImage img[alt^="No description"]').forEach((image) => {
    image.alt = 'Figure that the cell above draws';
  });
  document.querySelectorAll('.md-typeset table:not([class]) td').forEach((cell) => {
    cell.classList.add(cell.textContent.length < 28 ? 'short' : cell.textContent.length > 60 ? 'long' : 'middle');
  });
  // A cell without text is no head of a column.
  document.querySelectorAll('.md-typeset th:empty').forEach((cell) => {
    cell.replaceWith(document.createElement('td'));
  });
}
document.addEventListener('DOMContentLoaded', () => {
  complete();
  new MutationObserver(complete).observe(document.body, { childList: true, subtree: true });
});

import { h, icon, setText } from './dom.js';

const STORED = 'fixnado-theme';
const THEMES = [
  { name: 'auto', label: 'Theme: as the system', glyph: 'auto' },
  { name: 'light', label: 'Theme: light', glyph: 'sun' },
  { name: 'dark', label: 'Theme: dark', glyph: 'moon' },
];

/** A button that goes through system, light and dark, and remembers. */
export function themeToggle() {
  const label = h('span', { class: 'visually-hidden' });
  const button = h('button', { type: 'button', class: 'button small quiet round', 'data-testid': 'theme-toggle', onclick: next });
  let index = Math.max(0, THEMES.findIndex(({ name }) => name === remembered()));

  function next() {
    index = (index + 1) % THEMES.length;
    try {
      localStorage.setItem(STORED, THEMES[index].name);
    } catch {
      // Private windows may refuse; then the choice lasts as long as the page.
    }
    apply();
  }

  function apply() {
    const theme = THEMES[index];
    document.documentElement.dataset.theme = theme.name;
    setText(label, theme.label);
    button.title = theme.label;
    button.replaceChildren(icon(theme.glyph), label);
  }

  apply();
  return button;
}

function remembered() {
  try {
    return localStorage.getItem(STORED);
  } catch {
    return null;
  }
}

/** Builds elements. Text goes in as text nodes only, so nothing that came over the wire is ever parsed as markup. */

/** @typedef {Node | string | number | null | undefined | false} Child */

const SVG = 'http://www.w3.org/2000/svg';

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, any>} [attributes] `onclick` and the like are listeners, `class` and `data-…` are attributes; a
 *   value of null or false leaves the attribute out.
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/**
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...Child} children
 * @returns {SVGElement}
 */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Lets only what is different be touched, so that screen readers are not told the same thing twice. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** @param {Element} element @param {boolean} shown */
export function show(element, shown) {
  element.toggleAttribute('hidden', !shown);
}

/** @type {Record<string, string>} */
const PATHS = {
  customer: 'M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8Zm-7 8a7 7 0 0 1 14 0',
  provider: 'M14.5 6.5a4 4 0 0 0 5 5L12 19a2.8 2.8 0 0 1-4-4l7.5-7.5M5 5l4.5 4.5',
  admin: 'M4 19V9m5.3 10V5m5.4 14v-7M20 19V8',
  chat: 'M5 5.5h14v10H11l-4 3.5v-3.5H5Z',
  cut: 'M4 12h4l2-5 3 10 2-5h5',
  sun: 'M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8Zm0-5v1.5M12 19.5V21M3 12h1.5M19.5 12H21M5.6 5.6l1.1 1.1M17.3 17.3l1.1 1.1M18.4 5.6l-1.1 1.1M6.7 17.3l-1.1 1.1',
  moon: 'M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10Z',
  auto: 'M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16Zm0 0v16',
  close: 'M6.5 6.5l11 11m0-11l-11 11',
  send: 'M4.5 12h14m-5.5-6 6 6-6 6',
  plus: 'M12 5v14M5 12h14',
  back: 'M14 6l-6 6 6 6',
  on: 'M10 6l6 6-6 6',
  wide: 'M14 5h5v5M10 19H5v-5M19 5l-6 6M5 19l6-6',
  narrow: 'M19 10h-5V5M5 14h5v5M14 10l5-5M10 14l-5 5',
  clock: 'M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16Zm0 3.5V12l3 2',
  warning: 'M12 4.5 3.5 19h17ZM12 10v4m0 2.4v.1',
  late: 'M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16Zm0 3.5v5m0 3v.1',
  repeat: 'M5 11a5 5 0 0 1 5-5h8l-3-3m4 10a5 5 0 0 1-5 5H6l3 3',
  car: 'M5 16v-3l2-5.5h10L19 13v3M4 16h16M7.5 16v2M16.5 16v2',
};

/**
 * A line icon, hidden from assistive technology: the text beside it says the same.
 *
 * @param {string} name One of the names above.
 */
export function icon(name) {
  return svg('svg', { class: 'icon', viewBox: '0 0 24 24', 'aria-hidden': 'true' }, svg('path', { d: PATHS[name] }));
}

/** Runs once the current handler has changed what it wants; several requests in a frame are one. */
export function once(action) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    // Not an animation frame: hidden tabs get none, and their panes must keep up as well.
    queueMicrotask(() => {
      asked = false;
      action();
    });
  };
}

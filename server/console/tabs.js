import { h, icon } from './dom.js';

/**
 * Tabs for narrow screens, after the ARIA authoring practices: arrows move, the panel is labelled. Wide screens show all
 * panes at once and hide the tabs (style.css).
 *
 * @param {HTMLElement} list
 * @param {{ element: HTMLElement, role: string, title: string }[]} panes
 */
export function mountTabs(list, panes) {
  const tabs = panes.map((pane, index) =>
    h(
      'button',
      {
        type: 'button',
        role: 'tab',
        id: `tab-${pane.role}`,
        'aria-controls': pane.element.id,
        'data-testid': `tab-${pane.role}`,
        onclick: () => select(index),
        onkeydown: (event) => move(event, index),
      },
      icon(pane.role),
      h('span', {}, pane.title),
    ),
  );

  function select(chosen, focus = false) {
    panes.forEach((pane, index) => {
      pane.element.classList.toggle('chosen', index === chosen);
      tabs[index].setAttribute('aria-selected', String(index === chosen));
      tabs[index].tabIndex = index === chosen ? 0 : -1;
    });
    if (focus) tabs[chosen].focus();
  }

  function move(event, index) {
    const steps = { ArrowRight: 1, ArrowLeft: -1 };
    const targets = { Home: 0, End: tabs.length - 1 };
    const step = steps[event.key];
    const target = step ? (index + step + tabs.length) % tabs.length : targets[event.key];
    if (target === undefined) return;
    event.preventDefault();
    select(target, true);
  }

  list.append(...tabs);
  select(0);
}

import { h, setText, show } from './dom.js';
import { dayAndTime, plural, problem } from './words.js';

/** Of `calendar.import`: characters of a text, and what a message may carry once it is written as JSON. */
const MOST_CHARACTERS = 60_000;
const MOST_BYTES = 64_000;
/** An address that was just added is read by a worker within moments, and nobody is told when it brings nothing. */
const LOOK_AGAIN_MS = 3_000;
const MOST_LOOKS = 10;

/** Why an address was not read. @type {Record<string, string>} */
const PROBLEMS = {
  not_https: 'it leads to an address that is not https.',
  private_address: 'it is not on the public internet.',
  not_reachable: 'nothing answers there.',
  no_answer_in_time: 'it did not answer in time.',
  too_many_redirects: 'it leads from one address to the next.',
  too_large: 'there is too much of it.',
  unreadable_calendar: 'what is there is no calendar.',
  status_401: 'it wants a sign-in. Use its private address.',
  status_403: 'it wants a sign-in. Use its private address.',
  status_404: 'there is nothing at that address.',
};

/**
 * Busy times that a provider brings along from calendars elsewhere: files and addresses, and what was read of each.
 *
 * @param {object} options
 * @param {import('/client/index.js').RealtimeClient} options.client
 * @param {() => void} options.onchange The busy times of the week are others now.
 */
export function calendarSources({ client, onchange }) {
  /** @type {string | null} */
  let providerId = null;
  let mayPlan = false;
  /** @type {any[]} */
  let sources = [];
  /** Which one is about to be removed. @type {string | null} */
  let asking = null;
  let asked = 0;
  let looks = 0;
  /** @type {any} */
  let looking = null;

  const title = h('summary', {}, 'Busy times from another calendar');
  const list = h('ul', { class: 'source-list', 'data-testid': 'sources' });
  const listError = h('p', { class: 'error', role: 'alert', hidden: true });
  const kind = h('div', { class: 'segments', role: 'radiogroup', 'aria-label': 'Where it is', onchange: switchKind }, choice('address', 'An address', true), choice('file', 'A file', false));
  const url = h('input', {
    type: 'text',
    id: 'source-url',
    inputmode: 'url',
    autocomplete: 'off',
    spellcheck: 'false',
    maxlength: 500,
    placeholder: 'https://…',
    'aria-describedby': 'source-url-hint',
    'data-testid': 'source-url',
    oninput: suggestName,
  });
  const urlField = h(
    'div',
    { class: 'field' },
    h('label', { for: 'source-url' }, 'Address'),
    url,
    h('p', { class: 'hint', id: 'source-url-hint' }, 'Calendar programs call it the private, secret or iCal address. It is read every hour.'),
  );
  const file = h('input', {
    type: 'file',
    id: 'source-file',
    accept: '.ics,.ical,text/calendar',
    'aria-describedby': 'source-file-hint',
    'data-testid': 'source-file',
    onchange: suggestName,
  });
  const fileField = h(
    'div',
    { class: 'field' },
    h('label', { for: 'source-file' }, 'File'),
    file,
    h('p', { class: 'hint', id: 'source-file-hint' }, 'An .ics file of up to 60 kB. It is read once: what changes in the calendar later is not seen.'),
  );
  const name = h('input', { type: 'text', id: 'source-name', autocomplete: 'off', maxlength: 100, required: true, 'data-testid': 'source-name', oninput: rename });
  /** Whether a person chose the name. */
  let named = false;
  const error = h('p', { class: 'error', role: 'alert', 'data-testid': 'source-error', hidden: true });
  const said = h('p', { class: 'hint', role: 'status', 'data-testid': 'source-said', hidden: true });
  const add = h('button', { type: 'submit', class: 'button primary', 'data-testid': 'source-add' }, 'Add calendar');
  const form = h(
    'form',
    { class: 'form source-form', 'aria-label': 'Add a calendar', novalidate: true, hidden: true, onsubmit: submit },
    kind,
    urlField,
    fileField,
    h('div', { class: 'field' }, h('label', { for: 'source-name' }, 'Name'), name),
    error,
    add,
  );
  const element = h(
    'details',
    { class: 'more', 'data-testid': 'calendar-sources', ontoggle: () => (element.open ? start() : stop()) },
    title,
    h(
      'div',
      { class: 'card' },
      h('p', { class: 'hint' }, 'While you are busy there, customers are not shown that time as free here. Nothing but the times is kept.'),
      list,
      listError,
      said,
      form,
    ),
  );

  // --- what there is

  async function load() {
    if (!providerId) return;
    const turn = ++asked;
    try {
      const answer = await client.call('calendar.list_sources', { provider_id: providerId });
      if (turn !== asked) return;
      sources = answer.sources;
      show(listError, false);
      render();
    } catch (failure) {
      if (turn !== asked || failure.type === 'stopped') return;
      setText(listError, problem(failure));
      show(listError, true);
    }
    clearTimeout(looking);
    if (element.open && looks < MOST_LOOKS && sources.some(isWaiting)) {
      looks += 1;
      looking = setTimeout(() => void load(), LOOK_AGAIN_MS);
    }
  }

  function start() {
    looks = 0;
    void load();
  }

  function stop() {
    clearTimeout(looking);
  }

  function render() {
    const unread = sources.filter((each) => each.problem).length;
    const count = sources.length ? ` (${sources.length}${unread ? `, ${unread} not read` : ''})` : '';
    setText(title, `Busy times from another calendar${count}`);
    // Whoever stands on a button keeps standing on it.
    const focused = /** @type {HTMLElement | null} */ (list.contains(document.activeElement) ? document.activeElement : null)?.dataset.of;
    list.replaceChildren(...sources.map(row));
    if (focused) /** @type {HTMLElement | null} */ (list.querySelector(`[data-of="${CSS.escape(focused)}"]`))?.focus();
    show(list, sources.length > 0);
    show(form, mayPlan);
    renderForm();
  }

  function row(source) {
    const sure = asking === source.id;
    const button = (label, tone, what, onclick) =>
      h('button', { type: 'button', class: `button small ${tone}`, 'aria-label': `${label} ${source.name}`, 'data-testid': `source-${what}`, 'data-of': `${what} ${source.id}`, onclick }, label);
    return h(
      'li',
      { class: 'source-row', 'data-testid': 'source-row' },
      h(
        'div',
        { class: 'source-what' },
        h('strong', {}, source.name),
        h('p', { class: 'hint' }, factsOf(source)),
        source.problem && h('p', { class: 'source-problem', 'data-testid': 'source-problem' }, `${source.fetched_at ? 'Not read the last time' : 'It could not be read'}: ${problemOf(source.problem)}`),
      ),
      mayPlan &&
        h(
          'div',
          { class: 'source-buttons' },
          sure ? button('Remove', 'danger', 'remove-sure', () => void remove(source)) : button('Remove', 'quiet', 'remove', () => ask(source.id)),
          sure && button('Keep', 'quiet', 'keep', () => ask(null)),
        ),
    );
  }

  /** @param {string | null} id */
  function ask(id) {
    const before = asking;
    asking = id;
    render();
    const next = id ? `remove-sure ${id}` : `remove ${before}`;
    /** @type {HTMLElement | null} */ (list.querySelector(`[data-of="${CSS.escape(next)}"]`))?.focus();
  }

  async function remove({ id, name: which }) {
    show(listError, false);
    try {
      await client.call('calendar.remove_source', { source_id: id });
      sources = sources.filter((each) => each.id !== id);
      tell(`“${which}” is removed. Its times are free again.`);
      onchange();
    } catch (failure) {
      setText(listError, problem(failure));
      show(listError, true);
    }
    asking = null;
    render();
    title.focus();
  }

  // --- adding one

  const chosen = () => /** @type {HTMLInputElement} */ (kind.querySelector(':checked')).value;

  function renderForm() {
    show(urlField, chosen() === 'address');
    show(fileField, chosen() === 'file');
    const there = sources.some((each) => each.name === name.value.trim());
    setText(add, there ? `Replace “${name.value.trim()}”` : 'Add calendar');
  }

  function switchKind() {
    show(error, false);
    renderForm();
  }

  function rename() {
    named = name.value !== '';
    renderForm();
  }

  /** The file's own name, or the host: a name that says enough for most. */
  function suggestName() {
    if (named) return;
    name.value = (chosen() === 'file' ? file.files?.[0]?.name.replace(/\.[^.]*$/, '') : URL.parse?.(address())?.hostname)?.slice(0, 100) ?? '';
    renderForm();
  }

  /** Calendar programs hand out the very same address under a scheme of their own. */
  const address = () => url.value.trim().replace(/^webcals?:/i, 'https:');

  async function submit(event) {
    event.preventDefault();
    show(error, false);
    show(said, false);
    add.disabled = true;
    try {
      const { source } = chosen() === 'file' ? await sendFile() : await sendAddress();
      const brought = source.fetched_at ? `${plural(source.times, 'busy time')} for the next half year` : 'it is being read now';
      tell(`“${source.name}” is added: ${brought}.`);
      url.value = file.value = name.value = '';
      named = false;
      looks = 0;
      await load();
      onchange();
    } catch (failure) {
      setText(error, problem(failure));
      show(error, true);
    } finally {
      add.disabled = false;
      renderForm();
    }
  }

  function sendAddress() {
    const to = address();
    if (!to) throw refusal(url, 'Paste the address of the calendar.');
    if (!/^https:\/\//i.test(to)) throw refusal(url, 'The address has to begin with https://.');
    return client.call('calendar.subscribe', { provider_id: providerId, name: wantedName(), url: to.replace(/^https/i, 'https') });
  }

  async function sendFile() {
    const [picked] = file.files ?? [];
    if (!picked) throw refusal(file, 'Choose a file.');
    const wanted = wantedName();
    const large = () => refusal(file, 'This file is larger than 60 kB. Give the address of the calendar instead, or export fewer months of it.');
    // More than any text that would do: it need not even be read.
    if (picked.size > 4 * MOST_CHARACTERS) throw large();
    // The shorter line ends mean the same, and leave more room for the calendar.
    const ics = (await picked.text()).replaceAll('\r\n', '\n');
    if (ics.length > MOST_CHARACTERS || new TextEncoder().encode(JSON.stringify(ics)).length > MOST_BYTES) throw large();
    return client.call('calendar.import', { provider_id: providerId, name: wanted, ics });
  }

  function wantedName() {
    const wanted = name.value.trim();
    if (!wanted) throw refusal(name, 'Give it a name, so that you find it again.');
    return wanted;
  }

  /** @param {HTMLElement} field Where it can be mended. @param {string} why */
  function refusal(field, why) {
    field.focus();
    return new Error(why);
  }

  function tell(text) {
    setText(said, text);
    show(said, true);
  }

  renderForm();
  return {
    element,
    reload: () => void load(),
    /** @param {string} id Of the provider. @param {boolean} plans Whether this person may change anything. */
    of(id, plans) {
      if (id !== providerId) sources = [];
      providerId = id;
      mayPlan = plans;
      render();
      void load();
    },
    dispose: stop,
  };
}

/** An address that nobody has looked at yet. */
const isWaiting = (source) => source.kind === 'address' && !source.fetched_at && !source.problem;

/** @param {any} source */
function factsOf(source) {
  const read = source.fetched_at ? `read ${dayAndTime(source.fetched_at)}` : isWaiting(source) && 'being read…';
  const kind = source.kind === 'file' ? 'File' : source.host;
  const times = source.fetched_at && plural(source.times, 'busy time');
  const skipped = source.skipped > 0 && `${plural(source.skipped, 'event')} passed over`;
  return [kind, times, skipped, read].filter(Boolean).join(' · ');
}

/** @param {string} code */
function problemOf(code) {
  const status = /^status_(\d+)$/.exec(code)?.[1];
  return PROBLEMS[code] ?? (status ? `it answers with an error (${status}).` : `${code.replaceAll('_', ' ')}.`);
}

/** @param {string} value @param {string} label @param {boolean} checked */
function choice(value, label, checked) {
  return h('label', {}, h('input', { type: 'radio', name: 'source-kind', value, checked, 'data-testid': `source-kind-${value}` }), h('span', {}, label));
}

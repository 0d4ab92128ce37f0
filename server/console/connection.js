import { duration, plural } from './words.js';
import { h, icon, setText, show } from './dom.js';

/** How long the note about what a reconnect brought back stays. */
const NOTE_MS = 12_000;

/**
 * The strip that shows one client's connection: state, latency, reconnects, and the switch that cuts its network.
 *
 * @param {import('/client/index.js').RealtimeClient} client
 */
export function connectionStrip(client) {
  const dot = h('span', { class: 'dot', 'aria-hidden': 'true' });
  const label = h('span', { class: 'conn-label' });
  const state = h('span', { class: 'conn-state', 'data-testid': 'conn-state', role: 'status' }, dot, label);
  const latency = h('span', { class: 'metric', 'data-testid': 'conn-latency', title: 'Round trip to the server' }, '– ms');
  const reconnects = h('span', { class: 'metric', 'data-testid': 'conn-reconnects' });
  const cut = h(
    'button',
    { type: 'button', class: 'button small quiet', 'data-testid': 'cut-network', 'aria-pressed': 'false', onclick: toggle },
    icon('cut'),
    h('span', {}, 'Cut network'),
  );
  const note = h('p', { class: 'note', 'data-testid': 'resume-note', role: 'status', hidden: true });
  const strip = h('div', { class: 'strip' }, state, latency, reconnects, cut);
  let retryAt = 0;
  let ticking = null;
  let noteTimer = null;

  function toggle() {
    if (client.state === 'offline') client.resume();
    else client.suspend();
  }

  function tell(text, tone, forMs = 0) {
    clearTimeout(noteTimer);
    setText(note, text);
    note.dataset.tone = tone;
    show(note, Boolean(text));
    if (forMs) noteTimer = setTimeout(() => show(note, false), forMs);
  }

  function render() {
    const { state: now } = client;
    state.dataset.state = now;
    state.dataset.transport = client.transport;
    state.title = client.transport === 'sse' ? 'This network lets no WebSocket through: events come as a stream over HTTP.' : '';
    const seconds = Math.ceil((retryAt - Date.now()) / 1000);
    const labels = {
      online: client.transport === 'sse' ? 'Live over HTTP' : 'Live',
      connecting: client.session ? 'Reconnecting' : 'Connecting',
      waiting: seconds > 0 ? `Retry in ${seconds} s` : 'Reconnecting',
      offline: 'Network cut',
      stopped: 'Stopped',
    };
    setText(label, labels[now]);
    setText(latency, now !== 'online' || client.latencyMs === null ? '– ms' : `${Math.max(1, client.latencyMs)} ms`);
    setText(reconnects, plural(client.reconnects, 'reconnect'));
    cut.setAttribute('aria-pressed', String(now === 'offline'));
    setText(cut.lastChild, now === 'offline' ? 'Restore network' : 'Cut network');
  }

  const off = [
    client.on('state', ({ state: now, retryInMs }) => {
      retryAt = Date.now() + (retryInMs ?? 0);
      clearInterval(ticking);
      if (now === 'waiting') ticking = setInterval(render, 500);
      if (now === 'offline') tell('Offline. What you do now is kept and sent once the network is back.', 'wait');
      if (now === 'waiting') tell('The connection was lost. Trying again; nothing you do is lost.', 'wait');
      render();
    }),
    client.on('latency', render),
    client.on('drain', () => tell('The server is being replaced. This pane moves over in a moment.', 'wait')),
    client.on('resumed', ({ missed, reset, awayMs }) => {
      const away = `Resumed after ${duration(awayMs)}`;
      const found = missed
        ? `${plural(missed, 'event')} missed and delivered, in order.`
        : reset.length
          ? 'too much had happened, so this is a fresh snapshot.'
          : 'nothing was missed.';
      tell(`${away}: ${found}`, 'done', NOTE_MS);
      render();
    }),
  ];
  render();

  return {
    strip,
    note,
    dispose() {
      clearInterval(ticking);
      clearTimeout(noteTimer);
      for (const stop of off) stop();
    },
  };
}

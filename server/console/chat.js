import { h, icon, setText, show } from './dom.js';
import { clock, plural, problem } from './words.js';

/** The server ends somebody's typing after six seconds of silence, so it is told again a little sooner. */
const TYPING_AGAIN_MS = 4000;
const TYPING_ENDS_MS = 6000;

/**
 * The conversation of one booking: messages in order, who is typing, and how far the others have read.
 *
 * It listens from the start, so that unread messages can be counted while it is closed.
 *
 * @param {object} options
 * @param {import('/client/index.js').RealtimeClient} options.client
 * @param {string} options.conversationId
 * @param {string} options.userId
 * @param {(unread: number) => void} options.onunread
 */
export function createChat({ client, conversationId, userId, onunread }) {
  const channel = client.channel(`conversation:${conversationId}`);
  /** @type {Map<number, any>} By offset in the conversation. */
  const messages = new Map();
  /** @type {Map<string, number>} */
  const read = new Map();
  /** @type {Map<string, { name: string, timer: any }>} */
  const typists = new Map();
  let open = false;
  let saidTypingAt = 0;
  let typingPause = null;
  let readUpTo = 0;

  const list = h('ol', { class: 'messages', role: 'log', 'aria-label': 'Messages', tabindex: 0 });
  const earlier = h('button', { type: 'button', class: 'button small quiet', hidden: true, onclick: loadEarlier }, 'Earlier messages');
  const typing = h('p', { class: 'typing', 'data-testid': 'chat-typing', role: 'status' });
  const error = h('p', { class: 'error', role: 'alert', hidden: true });
  const input = h('input', {
    type: 'text',
    'data-testid': 'chat-input',
    'aria-label': 'Message',
    placeholder: 'Write a message',
    autocomplete: 'off',
    maxlength: 2000,
    oninput: typed,
  });
  const form = h(
    'form',
    { class: 'chat-form', onsubmit: send },
    input,
    h('button', { type: 'submit', class: 'button primary small', 'data-testid': 'chat-send', 'aria-label': 'Send' }, icon('send')),
  );
  const element = h('div', { class: 'chat', 'data-testid': 'chat', hidden: true }, earlier, list, typing, error, form);

  function newest() {
    return Math.max(0, ...messages.keys());
  }

  function unread() {
    const mark = Math.max(readUpTo, read.get(userId) ?? 0);
    return [...messages.values()].filter((message) => message.offset > mark && message.sender_id !== userId).length;
  }

  function render() {
    const sorted = [...messages.values()].sort((a, b) => a.offset - b.offset);
    const seen = Math.max(0, ...[...read].filter(([id]) => id !== userId).map(([, offset]) => offset));
    const lastOwn = sorted.findLast((message) => message.sender_id === userId)?.offset;
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    const known = new Set([...list.children].map((child) => Number(/** @type {HTMLElement} */ (child).dataset.offset)));
    if (sorted.length && list.querySelector('.empty')) list.replaceChildren();
    if (!sorted.length) list.replaceChildren(h('li', { class: 'empty' }, 'No messages yet.'));
    for (const [index, message] of sorted.entries()) {
      if (!known.has(message.offset)) list.insertBefore(bubble(message), list.children[index] ?? null);
      const item = /** @type {HTMLElement} */ (list.children[index]);
      const mark = message.offset !== lastOwn ? '' : message.offset <= seen ? 'Seen' : 'Delivered';
      setText(/** @type {Element} */ (item.querySelector('.receipt')), mark);
    }
    if (atEnd) list.scrollTop = list.scrollHeight;
    onunread(open ? 0 : unread());
  }

  function bubble(message) {
    const own = message.sender_id === userId;
    return h(
      'li',
      { class: own ? 'message own' : 'message', 'data-testid': 'chat-message', 'data-offset': message.offset },
      h('p', { class: 'message-meta' }, own ? 'You' : message.sender_name, ' · ', h('time', { datetime: message.sent_at }, clock(message.sent_at))),
      h('p', { class: 'bubble' }, message.text),
      h('span', { class: 'receipt', 'data-testid': 'chat-receipt' }),
    );
  }

  function add(list_) {
    for (const message of list_) messages.set(message.offset, message);
  }

  function markRead() {
    const offset = newest();
    if (!open || document.hidden || offset <= Math.max(readUpTo, read.get(userId) ?? 0)) return;
    readUpTo = offset;
    client.call('message.read', { conversation_id: conversationId, offset }).catch(() => {
      // Not read as far as the server knows; the next message tries again.
      readUpTo = 0;
    });
  }

  function showTyping() {
    const names = [...typists.values()].map(({ name }) => name);
    setText(typing, names.length ? `${names.join(' and ')} ${names.length > 1 ? 'are' : 'is'} typing…` : '');
  }

  function stopped(id) {
    clearTimeout(typists.get(id)?.timer);
    typists.delete(id);
    showTyping();
  }

  function sayTyping(now) {
    clearTimeout(typingPause);
    if (now) typingPause = setTimeout(() => sayTyping(false), TYPING_AGAIN_MS);
    if (now ? Date.now() - saidTypingAt < TYPING_AGAIN_MS : !saidTypingAt) return;
    saidTypingAt = now ? Date.now() : 0;
    // Worth nothing later, so a failure is not worth a word.
    client.call('typing.set', { conversation_id: conversationId, typing: now }).catch(() => undefined);
  }

  function typed() {
    sayTyping(input.value.length > 0);
  }

  async function send(event) {
    event.preventDefault();
    const text = input.value.trim();
    if (!text) return;
    input.value = '';
    clearTimeout(typingPause);
    saidTypingAt = 0;
    show(error, false);
    try {
      const { message } = await client.call('message.send', { conversation_id: conversationId, text });
      add([message]);
      render();
      list.scrollTop = list.scrollHeight;
    } catch (failure) {
      if (!input.value) input.value = text;
      setText(error, problem(failure));
      show(error, true);
    }
  }

  async function loadEarlier() {
    try {
      const page = await client.call('conversation.history', {
        conversation_id: conversationId,
        before: Math.min(...messages.keys()),
      });
      add(page.messages);
      show(earlier, page.has_more);
      render();
    } catch (failure) {
      setText(error, problem(failure));
      show(error, true);
    }
  }

  const visible = () => markRead();
  document.addEventListener('visibilitychange', visible);
  const off = [
    channel.on('snapshot', ({ state }) => {
      if (!state) return;
      // What lies between an old page and a new one may be missing, so only one unbroken run is kept.
      messages.clear();
      list.replaceChildren();
      add(state.messages);
      for (const [id, offset] of Object.entries(state.read)) read.set(id, Math.max(offset, read.get(id) ?? 0));
      show(earlier, state.has_more);
      render();
      markRead();
    }),
    channel.on('message.sent', ({ data }) => {
      stopped(data.message.sender_id);
      add([data.message]);
      render();
      markRead();
    }),
    channel.on('receipt.updated', ({ data }) => {
      read.set(data.user_id, Math.max(data.read_offset, read.get(data.user_id) ?? 0));
      render();
    }),
    channel.on('typing.started', ({ data }) => {
      if (data.user_id === userId) return;
      clearTimeout(typists.get(data.user_id)?.timer);
      typists.set(data.user_id, { name: data.name, timer: setTimeout(() => stopped(data.user_id), TYPING_ENDS_MS) });
      showTyping();
    }),
    channel.on('typing.stopped', ({ data }) => stopped(data.user_id)),
    channel.on('lost', ({ error: why }) => {
      show(form, false);
      setText(error, why.type === 'not_found' ? 'You are no longer part of this conversation.' : problem(why));
      show(error, true);
    }),
  ];
  channel.subscribe().catch(() => undefined);

  return {
    element,
    get open() {
      return open;
    },
    /** @param {boolean} wanted */
    toggle(wanted) {
      open = wanted;
      show(element, open);
      render();
      if (!open) return;
      list.scrollTop = list.scrollHeight;
      input.focus({ preventScroll: true });
      markRead();
    },
    dispose() {
      document.removeEventListener('visibilitychange', visible);
      clearTimeout(typingPause);
      for (const stop of off) stop();
      channel.unsubscribe();
    },
  };
}

/** @param {number} unread */
export const unreadLabel = (unread) => (unread ? plural(unread, 'unread message') : '');

const PAGE = 100;
/** Of older ones nobody works any more. */
const MOST_PAGES = 20;

/**
 * One's bookings, newest first, over all pages of `booking.list` up to a bound.
 *
 * @param {import('/client/index.js').RealtimeClient} client
 * @returns {Promise<{ bookings: any[], since: string }>} `since`: the id of the oldest that was listed when the bound left
 *   older ones out; otherwise empty. Whatever is missing and not older does not exist, or is somebody else's.
 */
export async function listBookings(client) {
  /** @type {any[]} */
  const bookings = [];
  /** @type {string | undefined} */
  let cursor;
  for (let page = 0; page < MOST_PAGES; page += 1) {
    const answer = await client.call('booking.list', { limit: PAGE, ...(cursor && { cursor }) });
    bookings.push(...answer.bookings);
    cursor = answer.next_cursor;
    if (!cursor) break;
  }
  return { bookings, since: cursor ?? '' };
}

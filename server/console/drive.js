import { distance } from './words.js';

const METRES_PER_DEGREE = 111_320;
/** A simulated drive takes this long, however far it is: long enough to watch, short enough to wait for. */
const DRIVE_SECONDS = 12;
/** The contract takes at most one fix a second; a little more keeps clear of the edge. */
const FIX_EVERY_MS = 1200;
const START_METRES_AWAY = 1800;

/**
 * Publishes positions on a straight line to the job, as a phone on the way would.
 *
 * @param {object} options
 * @param {import('/client/index.js').RealtimeClient} options.client
 * @param {{ lat: number, lon: number } | null} options.from Last known place; without one, some way off the job.
 * @param {{ lat: number, lon: number }} options.to
 * @param {(text: string) => void} options.ontick
 * @param {() => void} options.onend
 */
export function startDrive({ client, from, to, ontick, onend }) {
  const shorter = Math.cos((to.lat * Math.PI) / 180);
  const metresTo = (point) => Math.hypot(point.lat - to.lat, (point.lon - to.lon) * shorter) * METRES_PER_DEGREE;
  const degrees = START_METRES_AWAY / METRES_PER_DEGREE;
  // Already at the door there would be nothing to see.
  const start = from && metresTo(from) > 400 ? from : { lat: to.lat - degrees * 0.6, lon: to.lon + (degrees * 0.8) / shorter };
  const heading = (Math.atan2((to.lon - start.lon) * shorter, to.lat - start.lat) * 180) / Math.PI;
  const began = Date.now();
  const timer = setInterval(step, FIX_EVERY_MS);

  function step() {
    const done = Math.min(1, (Date.now() - began) / 1000 / DRIVE_SECONDS);
    const at = { lat: start.lat + (to.lat - start.lat) * done, lon: start.lon + (to.lon - start.lon) * done };
    ontick(`Driving: ${distance(metresTo(at))} to go`);
    client
      .call('location.publish', {
        ...at,
        accuracy_m: 8,
        heading_deg: Math.round((heading + 360) % 360) % 360,
        fix_at: new Date(client.serverNow()).toISOString(),
      })
      .catch((error) => {
        // Off the job: nobody wants to know where this is any more. Lost or late fixes do not matter.
        if (error.type === 'not_on_a_job') onend();
      });
    if (done === 1) onend();
  }

  step();
  return { stop: () => clearInterval(timer) };
}

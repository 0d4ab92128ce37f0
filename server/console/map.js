import { h, setText, svg } from './dom.js';

/**
 * A map of zones, drawn as SVG: no tiles, nothing from other hosts.
 *
 * Distances within a city are small enough for an equirectangular projection with the longitude shortened by the cosine of
 * the latitude.
 *
 * @typedef {{ lat: number, lon: number }} Point
 * @typedef {object} Marker
 * @property {string} id
 * @property {'booking' | 'provider' | 'pin'} kind
 * @property {Point} at
 * @property {string} tone A colour of the palette.
 * @property {string} label
 * @property {string} [letter] Drawn inside a provider's marker.
 * @property {() => void} [onclick]
 */

const PADDING = 18;
/** A pin stands on its place and needs room above it. */
const PIN_HEIGHT = 10;
const METRES_PER_DEGREE = 111_320;
/** One press of an arrow key moves the pin by about this much. */
const NUDGE_METRES = 60;

/**
 * @param {object} options
 * @param {string} options.label For assistive technology.
 * @param {number} [options.width] In units of about one pixel.
 * @param {number} [options.height]
 * @param {string} options.testid
 * @param {(point: Point) => void} [options.onpick] Makes the map a place picker.
 */
export function createMap({ label, width = 480, height = 300, testid, onpick }) {
  const land = svg('g', { class: 'map-zones' });
  const heat = svg('g', { class: 'map-heat', 'aria-hidden': 'true' });
  const grid = svg('path', { class: 'map-grid', 'aria-hidden': 'true' });
  const route = svg('path', { class: 'map-route', 'aria-hidden': 'true' });
  const markers = svg('g', { class: 'map-markers' });
  const scale = svg('g', { class: 'map-scale', 'aria-hidden': 'true' });
  const canvas = svg(
    'svg',
    {
      class: onpick ? 'map picks' : 'map',
      viewBox: `0 0 ${width} ${height}`,
      'data-testid': testid,
      'aria-label': label,
      ...(onpick ? { tabindex: 0, role: 'application', onclick: clicked, onkeydown: pressed } : { role: 'group' }),
    },
    land,
    heat,
    grid,
    scale,
    route,
    markers,
  );
  /** @type {{ id: string, name: string, geometry: any }[]} */
  let zones = [];
  /** @type {{ cell: string, demand: number, supply: number, outline: number[][] }[]} */
  let cells = [];
  /** @type {Map<string, { marker: Marker, element: SVGElement }>} */
  const shown = new Map();
  let view = { west: 0, north: 0, perLon: 1, perLat: 1 };
  /** @type {Point | null} */
  let picked = null;
  /** @type {Point[]} */
  let way = [];

  const project = ({ lat, lon }) => ({ x: (lon - view.west) * view.perLon, y: (view.north - lat) * view.perLat });
  const unproject = ({ x, y }) => ({ lat: view.north - y / view.perLat, lon: view.west + x / view.perLon });

  /** @param {Point[]} points Brings all of them into view. */
  function frame(points) {
    if (points.length === 0) return;
    const lats = points.map((point) => point.lat);
    const lons = points.map((point) => point.lon);
    const middle = { lat: (Math.min(...lats) + Math.max(...lats)) / 2, lon: (Math.min(...lons) + Math.max(...lons)) / 2 };
    const shorter = Math.cos((middle.lat * Math.PI) / 180);
    // Two points in the same place still need a neighbourhood around them.
    const spanLat = Math.max(Math.max(...lats) - Math.min(...lats), 0.004);
    const spanLon = Math.max(Math.max(...lons) - Math.min(...lons), 0.004);
    const perLat = Math.min((height - 2 * PADDING - PIN_HEIGHT) / spanLat, (width - 2 * PADDING) / (spanLon * shorter));
    const perLon = perLat * shorter;
    const top = (height + PIN_HEIGHT) / 2 / perLat;
    view = { west: middle.lon - width / 2 / perLon, north: middle.lat + top, perLon, perLat };
    draw();
  }

  function draw() {
    land.replaceChildren(
      ...zones.flatMap((zone) => outlines(zone.geometry).map((rings) => svg('path', { class: 'zone', d: path(rings) }))),
    );
    drawHeat();
    drawScale();
    drawRoute();
    for (const { marker, element } of shown.values()) place(element, marker.at);
  }

  /** Cells where more is wanted than is there are warm, the others cool; the more, the denser. */
  function drawHeat() {
    heat.replaceChildren(
      ...cells.map(({ demand, supply, outline }) => {
        const density = 0.12 + 0.1 * Math.min(5, Math.abs(demand - supply));
        return svg('path', { d: path([outline]), 'data-tone': demand > supply ? 'bad' : 'done', 'fill-opacity': density.toFixed(2) });
      }),
    );
  }

  /** @param {number[][][]} rings */
  function path(rings) {
    const ring = (points) =>
      points.map(([lon, lat]) => project({ lat, lon })).map(({ x, y }) => `${x.toFixed(1)} ${y.toFixed(1)}`).join('L');
    return rings.map((points) => `M${ring(points)}Z`).join('');
  }

  /** A scale bar, and a net of the same mesh that gives the eye a measure anywhere. */
  function drawScale() {
    const perMetre = view.perLat / METRES_PER_DEGREE;
    const metres = [100, 200, 500, 1000, 2000, 5000].find((length) => length * perMetre > 34) ?? 10_000;
    const mesh = metres * perMetre;
    const name = metres < 1000 ? `${metres} m` : `${metres / 1000} km`;
    scale.replaceChildren(
      svg('path', { d: `M12 ${height - 11}v-4m0 4h${mesh.toFixed(1)}m0 0v-4` }),
      svg('text', { x: 18 + mesh, y: height - 8 }, name),
    );
    const lines = [];
    for (let x = 12 % mesh; x < width; x += mesh) lines.push(`M${x.toFixed(1)} 0V${height}`);
    for (let y = (height - 11) % mesh; y < height; y += mesh) lines.push(`M0 ${y.toFixed(1)}H${width}`);
    grid.setAttribute('d', lines.join(''));
  }

  function drawRoute() {
    const points = way.map(project).map(({ x, y }) => `${x.toFixed(1)} ${y.toFixed(1)}`);
    route.setAttribute('d', points.length > 1 ? `M${points.join('L')}` : '');
  }

  /** @param {SVGElement} element @param {Point} at */
  function place(element, at) {
    const { x, y } = project(at);
    // A style, not an attribute: styles can glide.
    element.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px)`;
  }

  /** @param {Marker[]} wanted All there are; others go. */
  function setMarkers(wanted) {
    const ids = new Set(wanted.map((marker) => marker.id));
    for (const [id, { element }] of shown) {
      if (ids.has(id)) continue;
      element.remove();
      shown.delete(id);
    }
    for (const marker of wanted) {
      let entry = shown.get(marker.id);
      if (!entry) {
        entry = { marker, element: markerElement(marker, () => shown.get(marker.id)?.marker.onclick?.()) };
        shown.set(marker.id, entry);
        markers.append(entry.element);
      }
      entry.marker = marker;
      entry.element.dataset.tone = marker.tone;
      entry.element.setAttribute('aria-label', marker.label);
      setText(/** @type {Element} */ (entry.element.querySelector('title')), marker.label);
      place(entry.element, marker.at);
    }
  }

  /** @param {Point} point */
  function pick(point) {
    picked = point;
    onpick?.(point);
  }

  function clicked(event) {
    const matrix = /** @type {SVGSVGElement} */ (canvas).getScreenCTM();
    if (matrix) pick(unproject(new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse())));
  }

  function pressed(event) {
    const moves = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const move = moves[event.key];
    if (!move || !picked) return;
    event.preventDefault();
    const degrees = NUDGE_METRES / METRES_PER_DEGREE;
    pick({ lat: picked.lat + move[0] * degrees, lon: picked.lon + (move[1] * degrees * view.perLat) / view.perLon });
  }

  return {
    element: canvas,
    frame,
    setMarkers,
    pick,
    /** @param {Point[]} points The way that is left, as the crow flies. */
    setRoute(points) {
      way = points;
      drawRoute();
    },
    /** @param {{ id: string, name: string, geometry: any }[]} list GeoJSON polygons and multipolygons. */
    setZones(list) {
      zones = list;
      frame(list.flatMap((zone) => outlines(zone.geometry).flat(2)).map(([lon, lat]) => ({ lat, lon })));
    },
    /** @param {typeof cells} list H3 cells with demand or supply; others go. */
    setCells(list) {
      cells = list;
      drawHeat();
    },
    /** Whether a point lies on a zone: a hint for the eye; the server decides. @param {Point} point */
    covers(point) {
      return this.zoneAt(point) !== undefined;
    },
    /** The smallest zone that a point lies on, as the server has it. @param {Point} point @returns {string | undefined} */
    zoneAt(point) {
      return zones
        .filter((zone) => outlines(zone.geometry).some((rings) => oddCrossings(rings, point)))
        .sort((one, other) => extent(one.geometry) - extent(other.geometry))[0]?.id;
    },
    /** A point near the middle that lies on a zone. @returns {Point | null} */
    somewhere() {
      for (let attempt = 0; attempt < 60; attempt += 1) {
        const spread = () => 0.5 + (Math.random() - 0.5) * 0.6;
        const point = unproject({ x: width * spread(), y: height * spread() });
        if (this.covers(point)) return point;
      }
      return null;
    },
  };
}

/**
 * @param {any} geometry GeoJSON (RFC 7946).
 * @returns {number[][][][]} Polygons as rings of [longitude, latitude].
 */
function outlines(geometry) {
  if (geometry.type === 'Polygon') return [geometry.coordinates];
  return geometry.type === 'MultiPolygon' ? geometry.coordinates : [];
}

/** The area in square degrees: enough to tell which of two zones in one place is the smaller. @param {any} geometry */
function extent(geometry) {
  const ring = (points) =>
    Math.abs(points.slice(1).reduce((sum, [x, y], index) => sum + points[index][0] * y - x * points[index][1], 0)) / 2;
  return outlines(geometry).reduce((sum, [outer, ...holes]) => sum + ring(outer) - holes.reduce((all, hole) => all + ring(hole), 0), 0);
}

/**
 * Even-odd rule over all rings, so that holes are outside.
 *
 * @param {number[][][]} rings
 * @param {Point} point
 */
function oddCrossings(rings, { lat, lon }) {
  let inside = false;
  for (const ring of rings) {
    for (let index = 0, before = ring.length - 1; index < ring.length; before = index, index += 1) {
      const [x1, y1] = ring[index];
      const [x2, y2] = ring[before];
      if (y1 > lat !== y2 > lat && lon < ((x2 - x1) * (lat - y1)) / (y2 - y1) + x1) inside = !inside;
    }
  }
  return inside;
}

/** @param {Marker} marker @param {() => void} onclick */
function markerElement(marker, onclick) {
  const button = marker.onclick && {
    role: 'button',
    tabindex: 0,
    onclick,
    onkeydown: (event) => {
      if (event.key !== 'Enter' && event.key !== ' ') return;
      event.preventDefault();
      onclick();
    },
  };
  const shapes = {
    booking: () => [svg('circle', { class: 'halo', r: 11 }), svg('circle', { r: 6 })],
    provider: () => [
      svg('rect', { class: marker.letter ? '' : 'solid', x: -9, y: -9, width: 18, height: 18, rx: 6 }),
      svg('text', { y: 4, 'text-anchor': 'middle' }, marker.letter),
    ],
    pin: () => [
      svg('ellipse', { class: 'shadow', rx: 5, ry: 2 }),
      svg('path', { d: 'M0 0C-9-11-10-14-10-19A10 10 0 1 1 10-19C10-14 9-11 0 0Z' }),
      svg('circle', { class: 'eye', cy: -19, r: 3.6 }),
    ],
  };
  return svg(
    'g',
    { class: `marker ${marker.kind}`, 'data-id': marker.id, ...(button || { role: 'img' }) },
    svg('title'),
    ...shapes[marker.kind](),
  );
}

/** @param {{ tone: string, label: string, kind?: string }[]} entries */
export function mapLegend(entries) {
  return h(
    'ul',
    { class: 'legend' },
    ...entries.map(({ tone, label, kind = 'booking' }) =>
      h('li', {}, h('span', { class: `swatch ${kind}`, 'data-tone': tone, 'aria-hidden': 'true' }), label),
    ),
  );
}

// Recorded against predicted motion over time, while a recording is replayed: one canvas for the curves, one on top
// for what moves. Pointing at a moment shows its numbers, a click keeps it, the wheel zooms.
import { ramp, shapes } from '/marks.js';

const RECORDED = 'rgb(204 115 255)', DIM = '#93a1af', EDGE = '#2b343e';
const ACTIONS = { SCALED: '#ffd933', CLIPPED: '#ff991a', REFUSED: '#ff1a26', HELD: '#f060c0' };
const WORDS = ['#24587f', '#1f6a5c'];
const LEFT = 74, RIGHT = 10, AXIS = 18, WORD = 17, MARK = 13, BUCKETS = 6;
const SETS = { position: [0, 1, 2, 6], turn: [3, 4, 5, 6] };
const NAMES = ['x', 'y', 'z', 'turn x', 'turn y', 'turn z', 'gripper'];
const UNITS = ['m', 'm', 'm', '°', '°', '°', ''];
const DIGITS = [3, 3, 3, 1, 1, 1, 2];

// Last index whose value is not above t, -1 when there is none; rows are in the order of time.
function before(rows, t, of) {
  let low = 0, high = rows.length;
  while (low < high) { const mid = (low + high) >> 1; if (of(rows[mid]) <= t) low = mid + 1; else high = mid; }
  return low - 1;
}
function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

export class Timeline {
  // onPick(shapes) gets what belongs into the 3D view.
  constructor(panel, onPick) {
    this.panel = panel;
    this.onPick = onPick;
    this.base = panel.querySelector('canvas.base');
    this.top = panel.querySelector('canvas.top');
    this.set = 'position';
    this.heard = -Infinity;
    this.clear();
    for (const button of panel.querySelectorAll('button[data-set]')) {
      button.addEventListener('click', () => {
        this.set = button.dataset.set;
        for (const b of panel.querySelectorAll('button[data-set]')) b.setAttribute('aria-pressed', String(b === button));
        this.wake(true);
      });
    }
    this.listen();
    new ResizeObserver(() => this.wake(true)).observe(panel);
  }

  clear() {
    this.recorded = null; this.chunks = []; this.sentences = []; this.verdicts = [];
    this.byId = new Map();
    this.number = 0; this.now = 0; this.pinned = null; this.hovered = null; this.span = null;
  }

  // Everything, for a browser that begins to look or a recording that begins.
  whole(message) {
    this.clear();
    this.panel.hidden = !message;
    document.body.classList.toggle('replay', Boolean(message));
    if (!message) return this.onPick([]);
    this.recorded = message.recorded;
    this.ranges = null;
    this.number = message.number;
    this.take(message);
    return this.wake(true);
  }

  // What is new; false when something before it is missing.
  news(message) {
    if (this.recorded && message.number <= this.number) return true;
    if (!this.recorded || message.number !== this.number + 1) return false;
    this.number = message.number;
    this.take(message);
    this.wake(message.chunks.length + message.sentences.length + message.verdicts.length > 0);
    return true;
  }

  take(message) {
    this.now = message.now;
    this.heard = performance.now();
    for (const [name, key] of [['chunks', 'id'], ['sentences', 'id'], ['verdicts', 'n']]) {
      for (const row of message[name]) {
        const label = `${name} ${row[key]}`, old = this.byId.get(label);
        if (old) Object.assign(old, row);
        else { this.byId.set(label, row); this[name].push(row); }
      }
      if (message[name].length) this[name].sort((a, b) => a.t - b.t);
    }
    if (message.chunks.length) this.ranges = null;
  }

  // -- where things are

  view() { return this.span || [0, Math.max(this.recorded.duration, 0.1)]; }
  x(t) { const [a, b] = this.view(); return LEFT + (this.width - LEFT - RIGHT) * (t - a) / (b - a); }
  t(x) { const [a, b] = this.view(); return a + (b - a) * (x - LEFT) / (this.width - LEFT - RIGHT); }

  lanes() {
    const words = (this.recorded.notes.length ? 2 : 1) * WORD, top = words + 4, bottom = this.height - AXIS - MARK - 3;
    const names = [...SETS[this.set], 'apart'], tall = (bottom - top) / names.length;
    return names.map((channel, k) => ({ channel, y: top + k * tall + 3, h: tall - 6 }));
  }

  range(channel) {
    this.ranges ??= {};
    if (this.ranges[channel]) return this.ranges[channel];
    let low = Infinity, high = -Infinity;
    const see = (v) => { if (v !== null && v !== undefined) { low = Math.min(low, v); high = Math.max(high, v); } };
    if (channel === 'apart') { low = 0; high = 10; for (const c of this.chunks) see(this.apart(c)); }
    else {
      for (const row of this.recorded.rows) see(row[channel]);
      for (const c of this.chunks) for (const row of c.rows) see(row[channel]);
      const least = [0.02, 0.02, 0.02, 2, 2, 2, 1][channel];
      if (!(high >= low)) { low = 0; high = least; }
      if (high - low < least) { const mid = (low + high) / 2; low = mid - least / 2; high = mid + least / 2; }
    }
    return (this.ranges[channel] = [low, high]);
  }

  // Distance at the end of a chunk [mm], as far as the recording goes.
  apart(chunk) {
    for (let k = chunk.error.length - 1; k >= 0; k--) if (chunk.error[k] !== null) return chunk.error[k];
    return null;
  }

  // -- drawing

  wake(all) {
    this.full = this.full || all;
    if (this.planned || !this.recorded) return;
    this.planned = true;
    requestAnimationFrame(() => {
      this.planned = false;
      const full = this.full;
      this.full = false;
      this.draw(full);
    });
  }

  draw(full) {
    const box = this.base.getBoundingClientRect(), ratio = Math.min(devicePixelRatio || 1, 2);
    if (!box.width || !box.height) return;
    const resized = box.width !== this.width || box.height !== this.height;
    this.width = box.width; this.height = box.height;
    for (const canvas of [this.base, this.top]) {
      const w = Math.round(box.width * ratio), h = Math.round(box.height * ratio);
      if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    }
    if (full || resized) this.drawBase(this.begin(this.base, ratio));
    this.drawTop(this.begin(this.top, ratio));
    this.readout();
  }

  begin(canvas, ratio) {
    const c = canvas.getContext('2d');
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, this.width, this.height);
    c.font = '11px system-ui, "DejaVu Sans", sans-serif';
    c.textBaseline = 'middle';
    return c;
  }

  drawBase(c) {
    const inside = () => { c.save(); c.beginPath(); c.rect(LEFT, 0, this.width - LEFT - RIGHT, this.height); c.clip(); };
    this.drawAxis(c);
    for (const lane of this.lanes()) {
      const [low, high] = this.range(lane.channel), y = (v) => lane.y + lane.h * (1 - (v - low) / (high - low || 1));
      c.fillStyle = '#141a20';
      c.fillRect(LEFT, lane.y - 2, this.width - LEFT - RIGHT, lane.h + 4);
      c.fillStyle = DIM;
      c.textAlign = 'left';
      c.fillText(lane.channel === 'apart' ? 'apart' : NAMES[lane.channel], 2, lane.y + lane.h / 2);
      c.textAlign = 'right';
      c.font = '9.5px system-ui, "DejaVu Sans", sans-serif';
      const digits = lane.channel === 'apart' ? 0 : DIGITS[lane.channel] - (lane.channel < 3 ? 1 : lane.channel < 6 ? 1 : 2);
      c.fillText(high.toFixed(digits), LEFT - 4, lane.y + 4);
      c.fillText(low.toFixed(digits) + (lane.channel === 'apart' ? ' mm' : ''), LEFT - 4, lane.y + lane.h - 3);
      c.font = '11px system-ui, "DejaVu Sans", sans-serif';
      inside();
      if (lane.channel === 'apart') this.drawApart(c, y, lane);
      else this.drawChannel(c, lane.channel, y);
      c.restore();
    }
    inside();
    this.drawWords(c);
    this.drawMarks(c);
    c.restore();
  }

  drawAxis(c) {
    const [a, b] = this.view(), rough = (b - a) / Math.max((this.width - LEFT) / 90, 1);
    const power = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    c.strokeStyle = EDGE; c.fillStyle = DIM; c.textAlign = 'center'; c.lineWidth = 1;
    for (let t = Math.ceil(a / step) * step; t <= b + 1e-9; t += step) {
      const x = Math.round(this.x(t)) + 0.5;
      c.beginPath(); c.moveTo(x, 0); c.lineTo(x, this.height - AXIS + 3); c.stroke();
      c.fillText(`${Number(t.toFixed(3))} s`, Math.min(Math.max(x, LEFT + 10), this.width - 16), this.height - AXIS / 2 + 2);
    }
  }

  drawChannel(c, channel, y) {
    const { t, rows } = this.recorded;
    c.strokeStyle = RECORDED; c.lineWidth = 2; c.beginPath();
    let pen = false;
    rows.forEach((row, k) => {
      const v = row[channel];
      if (v === null) { pen = false; return; }
      if (pen) c.lineTo(this.x(t[k]), y(v)); else c.moveTo(this.x(t[k]), y(v));
      pen = true;
    });
    c.stroke();
    // One stroke per colour: thousands of segments stay cheap.
    const [a, b] = this.view();
    const seen = this.chunks.filter((k) => k.t <= b && k.t + k.dt * k.rows.length >= a);
    c.lineWidth = 1.4;
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      c.strokeStyle = `rgb(${ramp(bucket / (BUCKETS - 1)).join(' ')} / .9)`;
      c.beginPath();
      for (const chunk of seen) {
        const last = chunk.rows.length - 1;
        for (let k = 0; k < last; k++) {
          if (Math.min(Math.floor((k / last) * BUCKETS), BUCKETS - 1) !== bucket) continue;
          const from = chunk.rows[k][channel], to = chunk.rows[k + 1][channel];
          if (from === null || to === null) continue;
          c.moveTo(this.x(chunk.t + k * chunk.dt), y(from));
          c.lineTo(this.x(chunk.t + (k + 1) * chunk.dt), y(channel === 6 ? from : to));
        }
      }
      c.stroke();
    }
  }

  drawApart(c, y, lane) {
    const points = this.chunks.map((k) => [this.x(k.t), this.apart(k)]).filter((p) => p[1] !== null);
    if (!points.length) return;
    c.beginPath();
    c.moveTo(points[0][0], lane.y + lane.h);
    for (const [x, v] of points) c.lineTo(x, y(v));
    c.lineTo(points[points.length - 1][0], lane.y + lane.h);
    c.closePath();
    c.fillStyle = 'rgb(255 64 64 / .25)'; c.fill();
    c.beginPath();
    points.forEach(([x, v], k) => (k ? c.lineTo(x, y(v)) : c.moveTo(x, y(v))));
    c.strokeStyle = '#ff6a6a'; c.lineWidth = 1.4; c.stroke();
  }

  drawWords(c) {
    const rows = [this.sentences.map((s) => [s.t, s.text])];
    if (this.recorded.notes.length) rows.unshift(this.recorded.notes);
    rows.forEach((said, line) => {
      const end = line === rows.length - 1 ? this.now : this.recorded.duration;
      said.forEach(([t, text], k) => {
        const x = this.x(t), to = this.x(k + 1 < said.length ? said[k + 1][0] : Math.max(end, t)), y = line * WORD + 1;
        c.fillStyle = rows.length > 1 && line === 0 ? ['#4b2d63', '#3c2a55'][k % 2] : WORDS[k % 2];
        c.fillRect(x, y, Math.max(to - x - 1, 1), WORD - 2);
        if (to - x < 40) return;
        c.save();
        c.beginPath(); c.rect(x, y, to - x - 4, WORD); c.clip();
        c.fillStyle = '#e9eef3'; c.textAlign = 'left';
        c.fillText(text, Math.max(x, LEFT) + 4, y + WORD / 2 - 1);
        c.restore();
      });
    });
  }

  drawMarks(c) {
    const y = this.height - AXIS - MARK;
    c.lineWidth = 1;
    const ticks = (times, color, from, to) => {
      c.strokeStyle = color; c.beginPath();
      for (const t of times) { const x = Math.round(this.x(t)) + 0.5; c.moveTo(x, from); c.lineTo(x, to); }
      c.stroke();
    };
    ticks(this.recorded.seams, RECORDED, y + MARK - 3, y + MARK);
    ticks(this.chunks.map((k) => k.t), '#6f7d8b', y + MARK - 7, y + MARK - 3);
    for (const v of this.verdicts) {
      c.fillStyle = ACTIONS[v.action] || DIM;
      c.fillRect(this.x(v.t), y - 1, Math.max(this.x(v.until) - this.x(v.t), 3), 6);
    }
    c.setLineDash([3, 3]);
    ticks(this.recorded.instructions.map((w) => w[0]), '#e9eef3', 0, y);
    c.setLineDash([]);
  }

  drawTop(c) {
    const bottom = this.height - AXIS;
    const line = (t, color, width) => {
      const x = this.x(t);
      if (x < LEFT - 1 || x > this.width - RIGHT + 1) return;
      c.strokeStyle = color; c.lineWidth = width;
      c.beginPath(); c.moveTo(x, 0); c.lineTo(x, bottom); c.stroke();
    };
    c.fillStyle = 'rgb(16 20 24 / .45)';
    const rest = Math.min(Math.max(this.x(this.now), LEFT), this.width - RIGHT);
    c.fillRect(rest, 0, this.width - RIGHT - rest, bottom);
    line(this.now, '#e9eef3', 1.5);
    const at = this.moment();
    if (this.pinned !== null) line(this.pinned, '#fbbf24', 1.5);
    if (this.hovered !== null) line(this.hovered, 'rgb(76 194 255 / .8)', 1);
    const found = this.chunkAt(at);
    if (!found) return;
    for (const lane of this.lanes()) {
      if (lane.channel === 'apart') continue;
      const [low, high] = this.range(lane.channel), y = (v) => lane.y + lane.h * (1 - (v - low) / (high - low || 1));
      found.rows.forEach((row, k) => {
        if (row[lane.channel] === null) return;
        c.fillStyle = `rgb(${ramp(k / Math.max(found.rows.length - 1, 1)).join(' ')})`;
        c.beginPath(); c.arc(this.x(found.t + k * found.dt), y(row[lane.channel]), 2.6, 0, 7); c.fill();
      });
    }
  }

  // -- numbers of a moment

  moment() { return this.hovered ?? this.pinned ?? this.now; }

  chunkAt(t) {
    const k = before(this.chunks, t + 1e-6, (c) => c.t), chunk = this.chunks[k];
    return chunk && t <= chunk.t + chunk.dt * (chunk.rows.length - 1) + 1e-6 ? chunk : null;
  }

  recordedAt(t) {
    const { t: times, rows } = this.recorded, k = before(times, t, (v) => v);
    if (k < 0 || k >= rows.length - 1) return k === rows.length - 1 && t - times[k] < 0.02 ? rows[k] : null;
    const s = (t - times[k]) / (times[k + 1] - times[k]);
    return rows[k].map((v, c) => (v === null || rows[k + 1][c] === null ? null : c === 6 ? v : v + s * (rows[k + 1][c] - v)));
  }

  predictedAt(chunk, t) {
    const at = (t - chunk.t) / chunk.dt, k = Math.min(Math.max(Math.floor(at), 0), chunk.rows.length - 2), s = at - k;
    if (k < 0) return chunk.rows[0];
    return chunk.rows[k].map((v, c) => (v === null || chunk.rows[k + 1][c] === null ? null
      : c === 6 ? v : v + s * (chunk.rows[k + 1][c] - v)));
  }

  readout() {
    const t = this.moment(), chunk = this.chunkAt(t), was = this.recordedAt(t), will = chunk ? this.predictedAt(chunk, t) : null;
    const kind = this.hovered !== null ? 'pointed at' : this.pinned !== null ? 'kept' : 'now';
    const words = (rows) => { const k = before(rows, t, (r) => r[0]); return k < 0 ? '' : rows[k][1]; };
    const show = (id, text) => { const node = this.panel.querySelector(id); if (node.textContent !== text) node.textContent = text; };
    show('.when', `${t.toFixed(2)} s`);
    show('.which', kind);
    show('.told', words(this.recorded.instructions));
    const body = this.panel.querySelector('.numbers tbody');
    while (body.rows.length < NAMES.length) {
      const row = element('tr');
      for (let k = 0; k < 4; k++) row.append(element('td'));
      body.append(row);
    }
    NAMES.forEach((name, k) => {
      const text = (v) => (v === null || v === undefined ? '–' : v.toFixed(DIGITS[k])), a = was && was[k], b = will && will[k];
      const gap = a === null || b === null ? null : b - a;
      [`${name}${UNITS[k] ? ` ${UNITS[k]}` : ''}`, text(a), text(b), gap === null || gap === undefined ? '–' : `${gap >= 0 ? '+' : ''}${gap.toFixed(DIGITS[k])}`]
        .forEach((v, c) => { if (body.rows[k].cells[c].textContent !== v) body.rows[k].cells[c].textContent = v; });
    });
    let line = 'no chunk covers this moment';
    if (chunk) {
      const end = this.apart(chunk), far = was && will && [0, 1, 2].every((k) => was[k] !== null && will[k] !== null)
        ? `${(1000 * Math.hypot(...[0, 1, 2].map((k) => was[k] - will[k]))).toFixed(0)} mm apart` : 'nothing recorded here';
      line = `${chunk.id} + ${(t - chunk.t).toFixed(2)} s: ${far}${end === null ? '' : `, ${end.toFixed(0)} mm at its end`}`;
    }
    show('.chunk', line);
    const near = (this.t(LEFT + 5) - this.t(LEFT)), hits = this.verdicts.filter((v) => v.t - near <= t && t <= v.until + near);
    show('.judged', hits.slice(0, 3).map((v) => `${v.rule} ${v.action.toLowerCase()}${v.count > 1 ? ` ×${v.count}` : ''}`
      + (v.value === null ? '' : ` ${v.subject} ${Number(v.value).toPrecision(3)} ${v.unit}${v.limit === null ? '' : ` (limit ${Number(v.limit).toPrecision(3)})`}`)).join(' · '));
    show('.says', words(this.sentences.map((s) => [s.t, s.text])));
    show('.said', this.recorded.notes.length ? words(this.recorded.notes) : '');
    this.onPick(shapes(this.recorded.rows, chunk, this.recordedAt(t), (at) => this.recordedAt(at)));
  }

  // Called while nothing arrives: says that it is old.
  look() {
    if (!this.recorded) return;
    const quiet = (performance.now() - this.heard) / 1000, node = this.panel.querySelector('.play');
    const text = quiet < 2 ? 'playing' : this.now >= this.recorded.duration - 0.5 ? 'over' : `no news for ${quiet.toFixed(0)} s`;
    if (node.textContent !== text) node.textContent = text;
    node.classList.toggle('good', quiet < 2);
  }

  // -- what is pointed at

  listen() {
    const inside = (e) => Math.min(Math.max(this.t(e.offsetX), this.view()[0]), this.view()[1]);
    let down = null;
    this.top.addEventListener('pointerdown', (e) => { down = { x: e.offsetX, view: this.view(), moved: false }; this.top.setPointerCapture(e.pointerId); });
    this.top.addEventListener('pointermove', (e) => {
      if (!this.recorded) return;
      if (down && Math.abs(e.offsetX - down.x) > 4) down.moved = true;
      if (down && down.moved && this.span) {
        const [a, b] = down.view, shift = (down.x - e.offsetX) * (b - a) / (this.width - LEFT - RIGHT);
        this.show(a + shift, b + shift);
      }
      this.hovered = inside(e);
      this.wake(false);
    });
    this.top.addEventListener('pointerup', (e) => {
      if (down && !down.moved && this.recorded) {
        const at = inside(e), near = this.pinned !== null && Math.abs(this.x(this.pinned) - e.offsetX) < 5;
        this.pinned = near ? null : at;
        this.wake(false);
      }
      down = null;
    });
    this.top.addEventListener('pointerleave', () => { this.hovered = null; this.wake(false); });
    this.top.addEventListener('wheel', (e) => {
      if (!this.recorded) return;
      e.preventDefault();
      const [a, b] = this.view(), at = inside(e), by = Math.exp(0.0015 * e.deltaY);
      this.show(at - (at - a) * by, at + (b - at) * by);
    }, { passive: false });
    this.top.addEventListener('dblclick', () => { this.span = null; this.pinned = null; this.wake(true); });
    this.top.addEventListener('keydown', (e) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
      if (!step || !this.chunks.length) return;
      e.preventDefault();
      const k = before(this.chunks, this.moment() + 1e-6, (c) => c.t) + step;
      this.hovered = null;
      this.pinned = this.chunks[Math.min(Math.max(k, 0), this.chunks.length - 1)].t;
      this.wake(false);
    });
  }

  show(a, b) {
    const all = Math.max(this.recorded.duration, 0.1), wide = Math.min(Math.max(b - a, 0.2), all);
    const from = Math.min(Math.max(a, 0), all - wide);
    this.span = wide >= all ? null : [from, from + wide];
    this.wake(true);
  }
}

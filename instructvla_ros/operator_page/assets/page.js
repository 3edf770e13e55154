// Puts what arrives on the page and sends what is pressed. Words of people and models go through textContent only.
import { Link } from '/link.js';
import { Scene } from '/scene.js';
import { Timeline } from '/timeline.js';

const $ = (id) => document.getElementById(id);
const born = new Map(); // source -> our clock [ms] at which its newest can have happened at the latest
let staleAfter = 1.0;
let controller = null;
let stopAsked = 0; // our clock [ms]; 0: nothing asked
let noteAt = 0;
let tablesAt = -Infinity; // nobody reads numbers faster
const asked = {}; // switch -> {wanted, at}
const thoughts = new Map();
const scene = new Scene($('scene'), $('labels'));
if (scene.broken) $('labels').textContent = scene.broken;
const timeline = new Timeline($('timeline'), (shapes) => scene.setReplay(shapes));

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}
function write(node, text) { if (node.textContent !== text) node.textContent = text; }
function seconds(age) { return age < 10 ? `${age.toFixed(1)} s` : age < 120 ? `${age.toFixed(0)} s` : `${(age / 60).toFixed(0)} min`; }
function ageOf(source) { return born.has(source) ? (performance.now() - born.get(source)) / 1000 : Infinity; }
function fresh(source) { return ageOf(source) < staleAfter; }
function number(v, digits = 3) { return v === null || v === undefined ? '–' : Number(v).toPrecision(digits).replace(/\.?0+$/, ''); }

// -- what arrives

function take(message, picture) {
  if (message.t === 'hello') hello(message);
  else if (message.t === 'arm') scene.setArm(message);
  else if (message.t === 'thought') thought(message, link.born(message, message.age));
  else if (message.t === 'state') state(message);
  else if (message.t === 'image') image(message, picture);
  else if (message.t === 'answer') answer(message);
  else if (message.t === 'timeline') timeline.whole(message);
  else if (message.t === 'news') { if (!timeline.news(message)) link.again(); }
  else if (message.t === 'note') note(message);
  look();
}

function hello(message) {
  staleAfter = message.stale_after;
  born.clear();
  thoughts.clear();
  $('history').replaceChildren();
  write($('robot'), message.robot);
  scene.setArm(message.arm);
  $('cameras').replaceChildren(...message.views.map((name) => {
    const panel = element('div', undefined, 'panel camera');
    panel.dataset.source = `camera ${name}`;
    panel.dataset.view = name;
    const shown = element('img');
    shown.alt = name;
    panel.append(shown, element('div', `${name}: no picture yet`, 'cap'), element('span', '', 'age'));
    return panel;
  }));
  for (const said of message.thoughts) thought(said, link.born(message, said.age));
  timeline.whole(message.timeline);
  link.ack('hello');
}

function image(message, picture) {
  const panel = [...$('cameras').children].find((p) => p.dataset.view === message.view);
  const done = () => link.ack(`image ${message.view}`);
  if (!panel) return done();
  const shown = panel.querySelector('img'), url = URL.createObjectURL(picture), old = shown.src;
  shown.onload = shown.onerror = () => {
    if (old.startsWith('blob:')) URL.revokeObjectURL(old);
    done();
  };
  shown.src = url;
  born.set(`camera ${message.view}`, link.born(message, message.age));
  write(panel.querySelector('.cap'), `${message.view} · ${message.note}`);
  return undefined;
}

function thought(said, when) {
  thoughts.delete(said.id);
  thoughts.set(said.id, { ...said, when });
  while (thoughts.size > 40) thoughts.delete(thoughts.keys().next().value);
  const plans = [...thoughts.values()].filter((t) => t.kind === 'PLAN');
  const newest = plans[plans.length - 1];
  if (newest) {
    write($('thought'), newest.text);
    $('thought').classList.toggle('draft', !newest.final);
  }
  thoughtMeta(newest);
  list();
}

function thoughtMeta(newest) {
  if (!newest) return;
  const words = newest.tokens ? `${newest.tokens} tokens · ` : '';
  const time = newest.final && newest.latency ? `${(1000 * newest.latency).toFixed(0)} ms · ` : '';
  const age = (performance.now() - newest.when) / 1000;
  write($('thought-meta'), `${words}${time}${newest.source || ''} · ${newest.final ? `${seconds(age)} ago` : 'thinking'}`);
  write($('thought-ids'), newest.caption);
}

function list() {
  const plans = [...thoughts.values()].filter((t) => t.kind === 'PLAN');
  const newest = plans[plans.length - 1];
  const older = [...thoughts.values()].filter((t) => t !== newest).reverse();
  const rows = $('history');
  while (rows.children.length > older.length) rows.lastChild.remove();
  while (rows.children.length < older.length) {
    const row = element('li');
    row.append(element('span'), element('small'));
    rows.append(row);
  }
  older.forEach((said, k) => {
    const row = rows.children[k];
    row.className = said.final ? said.kind : 'cut';
    write(row.firstChild, said.kind === 'ANSWER' ? `${said.instruction} — ${said.text}` : said.text + (said.final ? '' : ' …'));
    const cost = said.latency ? ` · ${(1000 * said.latency).toFixed(0)} ms` : '';
    write(row.lastChild, `${seconds((performance.now() - said.when) / 1000)} ago${cost} · ${said.caption}`);
  });
}

function state(message) {
  for (const source of ['controller', 'joints', 'chunk', 'thought']) {
    if (source in message.ages) born.set(source, link.born(message, message.ages[source]));
    else born.delete(source);
  }
  controller = message.controller;
  for (const [id, caption] of Object.entries(message.ties)) if (thoughts.has(id)) thoughts.get(id).caption = caption;
  scene.setState(message.links, message.shapes, message.path);
  if (performance.now() - tablesAt > 250) {
    tablesAt = performance.now();
    verdicts(message.verdicts);
    latency(message.latency, message.chunk);
  }
  goal(message.goal);
  link.ack('state');
}

function verdicts(rows) {
  const items = rows.slice(0, 12).map((v) => {
    const row = element('li', `${v.rule} ${v.action.toLowerCase()}${v.count > 1 ? ` ×${v.count}` : ''}`, v.action);
    const limit = v.limit === null ? '' : ` (limit ${number(v.limit)})`;
    const words = v.value === null ? v.text : `${v.subject} ${number(v.value)} ${v.unit}${limit}`.trim();
    row.append(element('small', `${words} · ${seconds(v.age)} ago`));
    row.title = v.text;
    return row;
  });
  if (!items.length) items.push(element('li', 'nothing was changed or refused'));
  $('verdicts').replaceChildren(...items);
}

function latency(rows, chunk) {
  const body = $('latency').tBodies[0], ms = (v) => (1000 * v).toFixed(v < 0.01 ? 1 : 0);
  body.replaceChildren(...rows.map((row) => {
    const line = element('tr');
    line.append(element('td', row.name), element('td', ms(row.last)), element('td', ms(row.p50)), element('td', ms(row.p95)));
    return line;
  }));
  const step = controller && controller.chunk ? `step ${controller.step + 1} of ${controller.chunk}` : 'no chunk plays';
  write($('chunk'), chunk ? `${chunk.policy} · ${chunk.horizon} × ${Math.round(1000 * chunk.period)} ms · ${step}` : '');
}

function goal(news) {
  const line = $('goal');
  if (!news) return;
  const share = news.progress === null ? '' : ` ${Math.round(100 * news.progress)} %`;
  line.className = news.outcome ? (news.outcome === 'SUCCEEDED' ? 'line good' : 'line error') : 'line';
  write(line, news.outcome ? `${news.outcome.toLowerCase()}: ${news.instruction} — ${news.reason}`
    : `${news.instruction}: ${news.phase.toLowerCase().replace('_', ' ')}${share}, ${seconds(news.elapsed)}`);
}

function answer(message) {
  $('answer').replaceChildren(element('b', message.question), document.createTextNode(message.text));
}

function note(message) {
  $('note').className = `line ${message.level === 'error' ? 'error' : 'good'}`;
  write($('note'), message.text);
  noteAt = performance.now();
  if (message.level === 'error') delete asked[message.about];
}

// -- how it looks; also called while nothing arrives

function look() {
  const silence = (performance.now() - link.heard) / 1000;
  const lost = !link.open || silence > staleAfter;
  document.body.classList.toggle('lost', lost);
  write($('banner'), lost ? `No connection to the robot's graph${Number.isFinite(silence) ? ` for ${seconds(silence)}` : ''}. What you see is old. `
    + 'STOP cannot reach the controller from here: use the emergency stop.' : '');
  pill($('link-pill'), lost ? 'disconnected' : 'live', lost ? 'bad' : 'good');
  for (const panel of document.querySelectorAll('[data-source]')) {
    const age = ageOf(panel.dataset.source), old = lost || age >= staleAfter;
    // A policy that rests sends no chunks: the last one is old, and is said to be.
    panel.classList.toggle('stale', old);
    const tag = panel.querySelector(':scope > .age');
    if (tag) write(tag, Number.isFinite(age) ? `${seconds(age)} old` : 'nothing yet');
  }
  pills(lost);
  switches(lost);
  stopNote(lost);
  timeline.look();
  const plans = [...thoughts.values()].filter((t) => t.kind === 'PLAN');
  thoughtMeta(plans[plans.length - 1]);
}

function pill(node, text, kind) {
  write(node, text);
  for (const name of ['good', 'warn', 'bad', 'busy']) node.classList.toggle(name, name === kind);
}

function pills(lost) {
  const kinds = { HOLDING: 'good', TRACKING: 'busy', DECELERATING: 'warn', STOPPED: 'bad', DISABLED: '' };
  const known = controller && !lost && fresh('controller');
  pill($('mode-pill'), controller ? controller.mode.toLowerCase() : 'controller silent', known ? kinds[controller.mode] : 'bad');
  pill($('dry-pill'), controller ? (controller.dry_run ? 'dry run' : 'moves the arm') : '', controller && controller.dry_run ? 'warn' : '');
  pill($('speed-pill'), controller ? `${controller.commanded_speed.toFixed(2)} rad/s` : '', '');
}

function switches(lost) {
  const known = controller && !lost && fresh('controller');
  for (const [id, name, on] of [['enable', 'enable', controller && controller.enabled], ['dry', 'dry_run', controller && controller.dry_run]]) {
    const button = $(id), wish = asked[name];
    button.setAttribute('aria-checked', String(Boolean(on)));
    button.disabled = !known;
    if (wish && (wish.wanted === on || performance.now() - wish.at > 3000)) delete asked[name];
    button.classList.toggle('asked', name in asked);
  }
  $('reset').disabled = !known || controller.mode !== 'STOPPED';
  if (performance.now() - noteAt > 15000) write($('note'), '');
}

function stopNote(lost) {
  const stopped = controller && controller.mode === 'STOPPED' && fresh('controller') && !lost;
  $('stop').classList.toggle('latched', Boolean(stopped));
  $('stop-note').classList.toggle('calm', Boolean(stopped));
  let text = '';
  if (stopped) {
    text = controller.commanded_speed > 0 ? 'stopping' : 'stopped and latched: clear it, then enable';
    stopAsked = 0;
  } else if (stopAsked) {
    const waited = performance.now() - stopAsked;
    text = lost || waited > 1000 ? 'STOP IS NOT CONFIRMED: use the emergency stop' : 'STOP sent';
  }
  write($('stop-note'), text);
}

// -- what is pressed

function stop() {
  stopAsked = performance.now();
  if (!link.say({ do: 'stop' })) link.waiting = [{ do: 'stop' }];
  look();
}
function say(wish) {
  if (!link.say(wish)) note({ level: 'error', about: wish.do, text: 'not sent: there is no connection' });
}
function flip(name) {
  const on = name === 'enable' ? controller.enabled : controller.dry_run;
  asked[name] = { wanted: !on, at: performance.now() };
  say({ do: name, on: !on });
  look();
}

// On pointerdown: a click comes only when the finger is lifted. Keyboards cause a click without one (detail 0).
$('stop').addEventListener('pointerdown', stop);
$('stop').addEventListener('click', (e) => { if (e.detail === 0) stop(); });
document.addEventListener('keydown', (e) => { if (e.key === 'Escape' && !e.repeat) stop(); });
$('tell').addEventListener('submit', (e) => {
  e.preventDefault();
  if ($('instruction').value.trim()) say({ do: 'instruction', text: $('instruction').value });
});
$('ask').addEventListener('submit', (e) => {
  e.preventDefault();
  if (!$('question').value.trim()) return;
  answer({ question: $('question').value.trim(), text: '…' });
  say({ do: 'question', text: $('question').value });
});
$('end').addEventListener('click', () => say({ do: 'cancel' }));
$('enable').addEventListener('click', () => flip('enable'));
$('dry').addEventListener('click', () => flip('dry_run'));
$('reset').addEventListener('click', () => say({ do: 'reset' }));

const link = new Link(take, look);
setInterval(look, 100);
setInterval(list, 1000);

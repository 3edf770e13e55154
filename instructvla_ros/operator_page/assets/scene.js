// The 3D view: arm, paths, bounds. Draws only when something changed.
import { box, cylinder, lookAt, multiply, perspective, pose, project, sphere, translation } from '/solids.js';

const MESH = [`
attribute vec3 point, normal; uniform mat4 view, model; uniform vec3 scale; varying vec3 n, at;
void main() {
  vec4 world = model * vec4(point * scale, 1.0);
  n = mat3(model) * (normal / max(scale, vec3(1e-6))); at = world.xyz; gl_Position = view * world;
}`, `
precision mediump float; varying vec3 n, at; uniform vec4 color; uniform vec3 eye;
void main() {
  vec3 u = normalize(n), to = normalize(eye - at), sun = normalize(vec3(0.5, -0.6, 1.0));
  float light = 0.42 + 0.16 * u.z + 0.5 * max(dot(u, sun), 0.0);
  float shine = pow(max(dot(u, normalize(sun + to)), 0.0), 40.0) * 0.22;
  float rim = pow(1.0 - max(dot(u, to), 0.0), 3.0) * 0.12;
  gl_FragColor = vec4(color.rgb * light + shine + rim, color.a);
}`];
const LINE = [`
attribute vec3 a, b; attribute vec4 tint; attribute vec3 how; uniform mat4 view; uniform vec2 size; varying vec4 c;
void main() {
  vec4 p = view * vec4(a, 1.0), q = view * vec4(b, 1.0), here = how.x < 0.5 ? p : q;
  vec2 along = q.xy / q.w * size - p.xy / p.w * size;
  along = length(along) > 1e-4 ? normalize(along) : vec2(1.0, 0.0);
  here.xy += vec2(-along.y, along.x) * how.y * how.z / size * here.w; c = tint; gl_Position = here;
}`, 'precision mediump float; varying vec4 c; void main() { gl_FragColor = c; }'];
const DOT = [`
attribute vec3 point; attribute vec4 tint; attribute float width; uniform mat4 view; uniform float zoom; varying vec4 c;
void main() { gl_Position = view * vec4(point, 1.0); gl_PointSize = max(width * zoom / gl_Position.w, 3.0); c = tint; }`, `
precision mediump float; varying vec4 c;
void main() {
  vec2 p = gl_PointCoord * 2.0 - 1.0; float r = dot(p, p); if (r > 1.0) discard;
  gl_FragColor = vec4(c.rgb * (0.65 + 0.45 * sqrt(1.0 - r)), c.a);
}`];
const START = { turn: -0.66, lift: 0.38, far: 1.85, target: [0.38, 0.0, 0.25] };
const FOV = 0.72;

// Whether a processor draws instead of a graphics card.
function software() {
  const gl = document.createElement('canvas').getContext('webgl');
  const info = gl && gl.getExtension('WEBGL_debug_renderer_info');
  const soft = Boolean(info && /swiftshader|llvmpipe|software|basic render/i.test(gl.getParameter(info.UNMASKED_RENDERER_WEBGL)));
  const end = gl && gl.getExtension('WEBGL_lose_context');
  if (end) end.loseContext();
  return soft;
}

export class Scene {
  constructor(canvas, labels) {
    this.canvas = canvas;
    this.labels = labels;
    this.eyeAt = { ...START, target: [...START.target] };
    this.arm = { solids: [], bones: [] };
    this.links = null;
    this.replay = []; this.shapes = []; this.path = [];
    this.lines = []; this.plans = []; this.dots = []; this.cubes = []; this.texts = [];
    const soft = software();
    this.pause = soft ? 200 : 0; // between two drawings [ms]: a processor that draws must not make words and buttons wait
    this.drawn = -Infinity;
    this.gl = canvas.getContext('webgl', { antialias: !soft, alpha: true, premultipliedAlpha: false });
    if (!this.gl) {
      this.broken = 'This browser shows no 3D (WebGL is off). Pictures and buttons work.';
      return;
    }
    this.programs = { mesh: this.program(...MESH), line: this.program(...LINE), dot: this.program(...DOT) };
    this.meshes = { box: this.mesh(box()), cylinder: this.mesh(cylinder()), sphere: this.mesh(sphere()) };
    this.buffer = this.gl.createBuffer();
    this.listen();
    new ResizeObserver(() => this.wake()).observe(canvas);
    canvas.addEventListener('webglcontextlost', () => location.reload());
  }

  setArm(arm) {
    this.arm = arm;
    for (const solid of arm.solids) solid.at = pose(solid.origin);
    this.wake();
  }

  setState(links, shapes, path) {
    this.links = links ? links.map(pose) : null;
    this.shapes = shapes; this.path = path;
    this.renew();
  }

  // Shapes of the timeline; they stay when the state changes.
  setReplay(shapes) {
    this.replay = shapes;
    this.renew();
  }

  // States may come faster than they are drawn: what is drawn is made when it is.
  renew() {
    this.old = true;
    this.wake();
  }

  sort() {
    const { path } = this;
    this.old = false;
    this.lines = []; this.plans = []; this.dots = []; this.cubes = []; this.texts = [];
    for (let k = 0; k + 5 < path.length; k += 3) {
      this.line(this.lines, path.slice(k, k + 3), path.slice(k + 3, k + 6), [0.91, 0.93, 0.95, 0.85], 1.3);
    }
    for (const shape of [...this.shapes, ...this.replay]) this.take(shape);
  }

  take(shape) {
    const count = shape.points.length / 3;
    const point = (k) => shape.points.slice(3 * k, 3 * k + 3);
    const tint = (k) => (shape.colors.length ? shape.colors.slice(4 * k, 4 * k + 4).map((v) => v / 255) : shape.color);
    const width = Math.min(Math.max(shape.scale[0] * 420, 1), 3);
    const rows = shape.space.startsWith('chunk') ? this.plans : this.lines;
    const step = { LINE_STRIP: 1, LINE_LIST: 2 }[shape.kind];
    for (let k = 0; step && k + 1 < count; k += step) this.line(rows, point(k), point(k + 1), tint(k), width);
    if (shape.kind === 'SPHERE_LIST') for (let k = 0; k < count; k++) this.dots.push([...point(k), ...tint(k), shape.scale[0]]);
    if (shape.kind === 'SPHERE') this.dots.push([...shape.at, ...shape.color, shape.scale[0]]);
    if (shape.kind === 'CUBE') this.cubes.push(shape);
    if (shape.kind === 'TEXT') this.texts.push(shape);
  }

  // Two triangles; the width is that of half the line in pixels.
  line(rows, a, b, tint, width) {
    for (const [end, side] of [[0, -1], [0, 1], [1, 1], [0, -1], [1, 1], [1, -1]]) {
      rows.push([...a, ...b, ...tint, end, side, width]);
    }
  }

  wake() {
    if (!this.gl || this.planned) return;
    this.planned = true;
    const rest = this.pause - (performance.now() - this.drawn);
    const plan = () => requestAnimationFrame(() => this.draw());
    if (rest > 0) setTimeout(plan, rest);
    else plan();
  }

  draw() {
    this.planned = false;
    this.drawn = performance.now();
    if (this.old) this.sort();
    const { gl, canvas } = this, ratio = Math.min(devicePixelRatio || 1, 2);
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const { turn, lift, far, target } = this.eyeAt;
    const eye = [target[0] + far * Math.cos(lift) * Math.cos(turn), target[1] + far * Math.cos(lift) * Math.sin(turn),
      target[2] + far * Math.sin(lift)];
    this.view = multiply(perspective(FOV, width / height, 0.05, 20), lookAt(eye, target, [0, 0, 1]));
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendFuncSeparate(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.drawSolids(eye);
    const rows = [...this.lines];
    for (const [from, to] of this.links ? this.arm.bones : []) {
      const origin = (k) => (this.links[k] ? Array.from(this.links[k].slice(12, 15)) : [0, 0, 0]);
      this.line(rows, origin(from), origin(to), [0.8, 0.82, 0.85, 1], 6);
    }
    this.drawLines(rows, width / ratio, height / ratio);
    gl.disable(gl.DEPTH_TEST); // the plan is seen through the arm
    this.drawLines(this.plans, width / ratio, height / ratio);
    this.drawDots(height);
    this.placeTexts();
  }

  drawSolids(eye) {
    const { gl } = this, use = this.programs.mesh, identity = translation([0, 0, 0]);
    gl.useProgram(use.program);
    gl.uniformMatrix4fv(use.at('view'), false, this.view);
    gl.uniform3fv(use.at('eye'), eye);
    const one = (name, model, scale, color) => {
      const mesh = this.meshes[name];
      gl.uniformMatrix4fv(use.at('model'), false, model);
      gl.uniform3fv(use.at('scale'), scale);
      gl.uniform4fv(use.at('color'), color);
      gl.bindBuffer(gl.ARRAY_BUFFER, mesh.data);
      this.attributes(use, [['point', 3], ['normal', 3]]);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, mesh.index);
      gl.drawElements(gl.TRIANGLES, mesh.count, gl.UNSIGNED_SHORT, 0);
    };
    for (const solid of this.links ? this.arm.solids : []) {
      const model = multiply(this.links[solid.link] || identity, solid.at), color = [...solid.color, 1];
      const [x, y, z] = solid.size;
      if (solid.kind === 'sphere') one('sphere', model, [x, x, x], color);
      else one(solid.kind === 'box' ? 'box' : 'cylinder', model, [x, y, z], color);
      if (solid.kind === 'capsule') {
        for (const end of [-z / 2, z / 2]) one('sphere', multiply(model, translation([0, 0, end])), [x, x, x], color);
      }
    }
    gl.depthMask(false);
    for (const cube of this.cubes) one('box', translation(cube.at), cube.scale, cube.color);
    gl.depthMask(true);
  }

  drawLines(rows, width, height) {
    const { gl } = this, use = this.programs.line;
    if (!rows.length) return;
    gl.useProgram(use.program);
    gl.uniformMatrix4fv(use.at('view'), false, this.view);
    gl.uniform2f(use.at('size'), width, height);
    this.fill(rows);
    this.attributes(use, [['a', 3], ['b', 3], ['tint', 4], ['how', 3]]);
    gl.drawArrays(gl.TRIANGLES, 0, rows.length);
  }

  drawDots(height) {
    const { gl } = this, use = this.programs.dot;
    if (!this.dots.length) return;
    gl.useProgram(use.program);
    gl.uniformMatrix4fv(use.at('view'), false, this.view);
    gl.uniform1f(use.at('zoom'), height / (2 * Math.tan(FOV / 2)));
    this.fill(this.dots);
    this.attributes(use, [['point', 3], ['tint', 4], ['width', 1]]);
    gl.drawArrays(gl.POINTS, 0, this.dots.length);
  }

  placeTexts() {
    while (this.labels.children.length > this.texts.length) this.labels.lastChild.remove();
    while (this.labels.children.length < this.texts.length) this.labels.append(document.createElement('div'));
    this.texts.forEach((shape, k) => {
      const [x, y, , w] = project(this.view, shape.at), div = this.labels.children[k];
      div.textContent = shape.text;
      div.style.color = `rgb(${shape.color.slice(0, 3).map((v) => Math.round(255 * v)).join(' ')} / ${shape.color[3]})`;
      div.style.display = w > 0.05 ? '' : 'none';
      div.style.left = `${50 + 50 * x / w}%`;
      div.style.top = `${50 - 50 * y / w}%`;
    });
  }

  listen() {
    const { canvas, eyeAt } = this;
    let last = null;
    canvas.addEventListener('pointerdown', (e) => { last = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); });
    canvas.addEventListener('pointerup', () => { last = null; });
    canvas.addEventListener('pointermove', (e) => {
      if (!last) return;
      const dx = e.clientX - last[0], dy = e.clientY - last[1];
      last = [e.clientX, e.clientY];
      if (e.shiftKey || e.buttons === 2) {
        const s = eyeAt.far / canvas.clientHeight, c = Math.cos(eyeAt.turn), n = Math.sin(eyeAt.turn);
        eyeAt.target[0] += s * dx * n; eyeAt.target[1] -= s * dx * c; eyeAt.target[2] += s * dy;
      } else {
        eyeAt.turn -= 0.008 * dx;
        eyeAt.lift = Math.min(Math.max(eyeAt.lift + 0.008 * dy, -0.3), 1.5);
      }
      this.wake();
    });
    canvas.addEventListener('contextmenu', (e) => e.preventDefault());
    canvas.addEventListener('wheel', (e) => {
      e.preventDefault();
      eyeAt.far = Math.min(Math.max(eyeAt.far * Math.exp(0.001 * e.deltaY), 0.3), 8);
      this.wake();
    }, { passive: false });
    canvas.addEventListener('dblclick', () => { Object.assign(eyeAt, START, { target: [...START.target] }); this.wake(); });
  }

  mesh({ points, normals, index }) {
    const { gl } = this, rows = [];
    for (let k = 0; k < points.length; k += 3) rows.push(...points.slice(k, k + 3), ...normals.slice(k, k + 3));
    const data = gl.createBuffer(), order = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, data);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(rows), gl.STATIC_DRAW);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, order);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, new Uint16Array(index), gl.STATIC_DRAW);
    return { data, index: order, count: index.length };
  }

  fill(rows) {
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.buffer);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, new Float32Array(rows.flat()), this.gl.DYNAMIC_DRAW);
  }

  attributes(use, layout) {
    const { gl } = this, stride = 4 * layout.reduce((sum, [, n]) => sum + n, 0);
    for (let k = 0; k < 4; k++) gl.disableVertexAttribArray(k);
    let offset = 0;
    for (const [name, n] of layout) {
      const at = gl.getAttribLocation(use.program, name);
      if (at >= 0) { gl.enableVertexAttribArray(at); gl.vertexAttribPointer(at, n, gl.FLOAT, false, stride, offset); }
      offset += 4 * n;
    }
  }

  program(vertex, fragment) {
    const { gl } = this, program = gl.createProgram(), places = {};
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    return { program, at: (name) => (places[name] ??= gl.getUniformLocation(program, name)) };
  }
}

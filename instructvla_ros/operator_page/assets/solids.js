// Unit shapes and the little matrix algebra of the 3D view. Matrices are column-major Float32Array(16).

export function box() {
  const points = [], normals = [], index = [];
  for (let axis = 0; axis < 3; axis++) {
    for (const side of [-1, 1]) {
      const at = points.length / 3, u = (axis + 1) % 3, v = (axis + 2) % 3;
      for (const [a, b] of [[-1, -1], [1, -1], [1, 1], [-1, 1]]) {
        const p = [0, 0, 0], n = [0, 0, 0];
        p[axis] = 0.5 * side; p[u] = 0.5 * a; p[v] = 0.5 * b; n[axis] = side;
        points.push(...p); normals.push(...n);
      }
      index.push(at, at + 1, at + 2, at, at + 2, at + 3);
    }
  }
  return { points, normals, index };
}

// Radius 1, length 1 along z.
export function cylinder(sides = 40) {
  const points = [], normals = [], index = [];
  for (let k = 0; k <= sides; k++) {
    const c = Math.cos(2 * Math.PI * k / sides), s = Math.sin(2 * Math.PI * k / sides);
    for (const z of [-0.5, 0.5]) { points.push(c, s, z); normals.push(c, s, 0); }
    if (k < sides) { const a = 2 * k; index.push(a, a + 2, a + 1, a + 1, a + 2, a + 3); }
  }
  for (const z of [-0.5, 0.5]) {
    const middle = points.length / 3;
    points.push(0, 0, z); normals.push(0, 0, Math.sign(z));
    for (let k = 0; k <= sides; k++) {
      points.push(Math.cos(2 * Math.PI * k / sides), Math.sin(2 * Math.PI * k / sides), z);
      normals.push(0, 0, Math.sign(z));
      if (k < sides) index.push(middle, middle + 1 + k, middle + 2 + k);
    }
  }
  return { points, normals, index };
}

export function sphere(rings = 16, sides = 32) {
  const points = [], normals = [], index = [];
  for (let i = 0; i <= rings; i++) {
    for (let k = 0; k <= sides; k++) {
      const t = Math.PI * i / rings, f = 2 * Math.PI * k / sides;
      const p = [Math.sin(t) * Math.cos(f), Math.sin(t) * Math.sin(f), Math.cos(t)];
      points.push(...p); normals.push(...p);
      const a = i * (sides + 1) + k;
      if (i < rings && k < sides) index.push(a, a + sides + 1, a + 1, a + 1, a + sides + 1, a + sides + 2);
    }
  }
  return { points, normals, index };
}

// From twelve numbers: three rows of a pose.
export function pose(rows) {
  const m = new Float32Array(16);
  for (let r = 0; r < 3; r++) for (let c = 0; c < 4; c++) m[4 * c + r] = rows[4 * r + c];
  m[15] = 1;
  return m;
}

export function translation([x, y, z]) {
  return new Float32Array([1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, x, y, z, 1]);
}

export function multiply(a, b) {
  const m = new Float32Array(16);
  for (let c = 0; c < 4; c++) {
    for (let r = 0; r < 4; r++) {
      let sum = 0;
      for (let k = 0; k < 4; k++) sum += a[4 * k + r] * b[4 * c + k];
      m[4 * c + r] = sum;
    }
  }
  return m;
}

export function perspective(fovy, aspect, near, far) {
  const f = 1 / Math.tan(fovy / 2), m = new Float32Array(16);
  m[0] = f / aspect; m[5] = f; m[10] = (far + near) / (near - far); m[11] = -1; m[14] = 2 * far * near / (near - far);
  return m;
}

const minus = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => { const n = Math.hypot(...a) || 1; return [a[0] / n, a[1] / n, a[2] / n]; };

export function lookAt(eye, target, up) {
  const z = unit(minus(eye, target)), x = unit(cross(up, z)), y = cross(z, x);
  return new Float32Array([x[0], y[0], z[0], 0, x[1], y[1], z[1], 0, x[2], y[2], z[2], 0,
    -dot(x, eye), -dot(y, eye), -dot(z, eye), 1]);
}

// Column of clip coordinates of a point.
export function project(m, [x, y, z]) {
  return [0, 1, 2, 3].map((r) => m[r] * x + m[4 + r] * y + m[8 + r] * z + m[12 + r]);
}

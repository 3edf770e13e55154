// What a moment of the timeline looks like in the 3D view.

const RAMP = [[38, 102, 255], [13, 204, 230], [89, 230, 89], [255, 217, 26]];

// Colour from the beginning of a chunk (0, blue) to its end (1, yellow).
export function ramp(share) {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), k = Math.min(Math.floor(at), RAMP.length - 2);
  return RAMP[k].map((v, c) => Math.round(v + (at - k) * (RAMP[k + 1][c] - v)));
}

// The recorded path, where it is (here), and what a chunk predicted beside what was recorded at the same times.
export function shapes(rows, chunk, here, recordedAt) {
  const jump = Math.max(1, Math.ceil(rows.length / 400));
  const path = rows.filter((row, k) => k % jump === 0 && row[0] !== null).flatMap((row) => row.slice(0, 3));
  const shape = (kind, space, points, color, colors, thick) => ({ kind, space, at: [0, 0, 0], scale: [thick, thick, thick],
    color, points, colors, text: '' });
  const out = [shape('LINE_STRIP', 'replay_recorded', path, [0.8, 0.45, 1, 0.55], [], 0.004)];
  if (here && here[0] !== null) out.push({ ...shape('SPHERE', 'replay_now', [], [1, 1, 1, 0.9], [], 0.02), at: here.slice(0, 3) });
  if (chunk) {
    const known = chunk.rows.map((row, k) => [row, recordedAt(chunk.t + k * chunk.dt), k]).filter(([row]) => row[0] !== null);
    const tint = (k) => [...ramp(k / Math.max(chunk.rows.length - 1, 1)), 255];
    const predicted = known.flatMap(([row]) => row.slice(0, 3)), colors = known.flatMap(([, , k]) => tint(k));
    const both = known.filter(([, was]) => was && was[0] !== null);
    out.push(shape('LINE_STRIP', 'chunk_replay', predicted, [1, 1, 1, 1], colors, 0.006));
    out.push(shape('SPHERE_LIST', 'chunk_replay', predicted, [1, 1, 1, 1], colors, 0.011));
    out.push(shape('SPHERE_LIST', 'chunk_replay', both.flatMap(([, was]) => was.slice(0, 3)), [0.8, 0.45, 1, 1], [], 0.011));
    out.push(shape('LINE_LIST', 'chunk_replay', both.flatMap(([row, was]) => [...row.slice(0, 3), ...was.slice(0, 3)]),
      [1, 0.25, 0.25, 0.8], [], 0.003));
  }
  return out;
}

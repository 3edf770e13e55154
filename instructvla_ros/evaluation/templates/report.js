// One time for the whole page: the video's, or the place of the last click when there is no video.
(function () {
  'use strict';
  var page = document.getElementById('run');
  var video = document.querySelector('video');
  var offset = parseFloat(page.dataset.offset);
  var charts = Array.from(document.querySelectorAll('svg.timed'));
  var thoughts = Array.from(document.querySelectorAll('.thoughts button'));
  var said = document.getElementById('said');
  var clock = document.getElementById('clock');
  var dots = Array.from(document.querySelectorAll('.dot')).map(function (dot) {
    return { dot: dot, track: dot.dataset.track.split(' ').map(function (p) { return p.split(',').map(Number); }) };
  });
  var current = -1;

  function at(track, t) {
    var lo = 0, hi = track.length - 1;
    if (t <= track[0][0]) { return track[0]; }
    if (t >= track[hi][0]) { return track[hi]; }
    while (hi - lo > 1) {
      var mid = (lo + hi) >> 1;
      if (track[mid][0] <= t) { lo = mid; } else { hi = mid; }
    }
    var s = (t - track[lo][0]) / (track[hi][0] - track[lo][0] || 1);
    return [t, track[lo][1] + s * (track[hi][1] - track[lo][1]), track[lo][2] + s * (track[hi][2] - track[lo][2])];
  }

  function show(t) {
    charts.forEach(function (svg) {
      var d = svg.dataset, t0 = +d.t0, t1 = +d.t1, x0 = +d.x0, x1 = +d.x1;
      var x = x0 + (Math.min(Math.max(t, t0), t1) - t0) / (t1 - t0) * (x1 - x0);
      var line = svg.querySelector('.cursor');
      line.setAttribute('x1', x);
      line.setAttribute('x2', x);
    });
    dots.forEach(function (d) {
      var p = at(d.track, t);
      d.dot.setAttribute('cx', p[1]);
      d.dot.setAttribute('cy', p[2]);
    });
    var now = -1;
    thoughts.forEach(function (b, k) { if (t >= +b.dataset.begin) { now = k; } });
    if (now !== current) {
      current = now;
      thoughts.forEach(function (b, k) { b.classList.toggle('on', k === now); });
      if (said) { said.textContent = now < 0 ? '\u2026' : thoughts[now].dataset.text; }
    }
    if (clock) { clock.textContent = t.toFixed(1) + ' s'; }
  }

  function seek(t) {
    if (video) { video.currentTime = Math.max(0, t - offset); }
    show(t);
  }

  charts.forEach(function (svg) {
    function go(event) {
      var box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal, d = svg.dataset;
      var x = (event.clientX - box.left) / box.width * view.width;
      var s = Math.min(Math.max((x - d.x0) / (d.x1 - d.x0), 0), 1);
      seek(+d.t0 + s * (d.t1 - d.t0));
    }
    svg.addEventListener('pointerdown', function (event) { svg.setPointerCapture(event.pointerId); go(event); });
    svg.addEventListener('pointermove', function (event) { if (event.buttons) { go(event); } });
  });
  thoughts.forEach(function (b) { b.addEventListener('click', function () { seek(+b.dataset.begin + 0.01); }); });
  if (video) {
    var tick = function () {
      show(video.currentTime + offset);
      if (!video.paused) { requestAnimationFrame(tick); }
    };
    ['play', 'timeupdate', 'seeked'].forEach(function (name) { video.addEventListener(name, tick); });
  }
  var asked = parseFloat((location.hash.match(/t=([\d.]+)/) || [])[1]);
  seek(isNaN(asked) ? offset : asked);
}());

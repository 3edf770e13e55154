"""The report page: complete, self-contained, safe with hostile words, and its charts show the data."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic_run import synthetic_run

from instructvla_ros.evaluation import plots, report, runlog, svg
from instructvla_ros.evaluation.runlog import RunLog
from instructvla_ros.evaluation.video import VideoError, VideoWriter

VOID = {'meta', 'link', 'br', 'img', 'input', 'hr'}


class Page(HTMLParser):
    """Collects tags, checks that they nest, and keeps the text."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ''
        self.feed(html)
        assert not self.open, f'never closed: {self.open}'

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f'</{tag}> closes {self.open[-3:]}'
        self.open.pop()

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope='module')
def log() -> RunLog:
    return synthetic_run()


@pytest.fixture(scope='module')
def html(log) -> str:
    return report.render(log)


def test_the_page_nests_and_says_what_happened(html):
    page = Page(html)
    for words in (
        'put the red cube in the bowl',
        'Task solved in 11.0 s',
        'joint_velocity',
        'camera to command',
        'fr3_joint7',
        'I will carry it to the bowl.',
    ):
        assert words in page.text, words
    assert '16.0' in page.text  # ms without policy time, from the synthetic run


def test_no_request_to_anywhere(html):
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ('src', 'href', 'action', 'poster', 'data', 'xlink:href'):
            value = attributes.get(name)
            assert value is None or value.startswith(('data:', '#')), (tag, name, value)
    style = re.search(r'<style>(.*?)</style>', html, re.S).group(1)
    assert '@import' not in style and 'url(' not in style
    script = re.search(r'<script>(.*?)</script>', html, re.S).group(1)
    assert not re.search(r'fetch\(|XMLHttpRequest|WebSocket|import\(|https?:', script)


def test_hostile_words_stay_words(log):
    evil = '<script>alert(1)</script> & "quotes" \'x\' {{ 7 * 7 }}'
    log = dataclasses.replace(
        log,
        meta={**log.meta, 'instruction': evil, 'reason': evil, 'command': evil, 'policy': evil},
        reasoning=({**log.reasoning[0], 'text': evil},),
        verdicts=tuple({**v, 'text': evil, 'rule': evil, 'subject': evil} for v in log.verdicts[:2]),
        objects={
            **log.objects,
            'start': [{**o, 'name': evil} for o in log.objects['start']],
            'end': [],
            'target': evil,
        },
    )
    html = report.render(log)
    assert '<script>alert' not in html and '49' not in re.findall(r'<h1>(.*?)</h1>', html)[0]
    assert html.count('<script>') == 1
    assert evil in Page(html).text


@pytest.mark.parametrize(
    ('meta', 'words'),
    [({'success': False, 'outcome': 'TIMEOUT', 'reason': '40 s passed'}, 'TIMEOUT'), ({'success': None}, 'not judged')],
)
def test_banner_of_other_endings(log, meta, words):
    html = report.render(dataclasses.replace(log, meta={**log.meta, **meta}))
    assert words in Page(html).text and 'Task solved' not in html


def test_slow_motion_is_said(log):
    slow = Page(report.render(dataclasses.replace(log, meta={**log.meta, 'speed': 0.25}))).text
    assert 'Simulated at 0.25 of real time' in slow
    assert 'of real time' not in Page(report.render(dataclasses.replace(log, meta={**log.meta, 'speed': 1.0}))).text


def test_an_almost_empty_run_has_a_page():
    html = report.render(
        RunLog(
            meta={'instruction': 'x', 'policy': 'hold', 'created': '', 'command': '', 'success': False},
            joint_names=('a', 'b'),
        )
    )
    assert 'The policy said nothing.' in Page(html).text


def test_not_finite_numbers_leave_no_nan_in_the_page(log):
    q = log.controller.measured_q.copy()
    q[100:110] = np.nan
    xyz = log.controller.measured_xyz.copy()
    xyz[5] = np.inf
    steps = log.steps.copy()
    steps[3] = np.nan
    broken = dataclasses.replace(
        log, controller=dataclasses.replace(log.controller, measured_q=q, measured_xyz=xyz), steps=steps
    )
    html = report.render(broken)
    assert not re.search(r'(?<![a-z])(nan|inf)(?![a-z])', html.split('<script>')[0], re.I)


def test_thoughts_and_charts_share_the_video_time(log):
    html = report.render(
        dataclasses.replace(
            log, video={'file': 'v', 'views': ['third_person'], 'start_ns': log.start_ns + 500_000_000, 'dropped': 3}
        )
    )
    assert 'data-offset="0.5000"' in html and '3 frames are missing' in html
    begins = [float(v) for v in re.findall(r'data-begin="([\d.]+)"', html)]
    assert begins == sorted(begins) and begins[0] == pytest.approx(0.5, abs=1e-3)
    spans = {tuple(map(float, m)) for m in re.findall(r'data-t0="([\d.]+)" data-t1="([\d.]+)"', html)}
    assert len(spans) == 1


def test_a_sentence_said_again_is_one_entry(log):
    first, second, *rest = log.reasoning
    again = {**second, 'text': first['text']}
    said = report.sentences(dataclasses.replace(log, reasoning=(first, again, *rest)))
    assert [s['times'] for s in said] == [2, 1, 1] and said[0]['end'] == said[1]['begin']
    assert sum(s['chunks'] for s in said) == len(log.chunk_ids)


def test_video_is_embedded_or_linked(log, tmp_path, monkeypatch):
    (tmp_path / 'video.mp4').write_bytes(b'0' * 3000)
    log = dataclasses.replace(log, video={'file': 'video.mp4', 'views': ['a'], 'start_ns': log.start_ns, 'dropped': 0})
    assert report.video_source(tmp_path, log)['src'].startswith('data:video/mp4;base64,')
    monkeypatch.setattr(report, 'EMBED_LIMIT', 2000)
    runlog.save(log, tmp_path)
    text = report.write_report(tmp_path).read_text()
    assert 'href="video.mp4"' in text and 'base64' not in text


def test_planned_paths_end_where_the_deltas_say(log):
    path = report.planned_path(log, 4)
    assert path.shape == (9, 3)
    np.testing.assert_allclose(path[-1] - path[0], log.chunk_steps(4)[:, :3].sum(axis=0), atol=1e-12)


# Charts.


def test_polyline_goes_through_the_data():
    frame = svg.Frame((0, 10), (0, 1), 0, 0, 100, 50)
    path = svg.polyline(frame, svg.Curve([0, 5, 10], [0, 1, 0]))
    assert 'M0.0 50.0L50.0 0.0L100.0 50.0' in path
    assert svg.polyline(frame, svg.Curve([0, 1, 2, 3], [0, np.nan, 1, 1])).count('M') == 1


def test_simplify_keeps_within_the_tolerance():
    x = np.linspace(0, 400, 3000)
    y = 60 * np.sin(x / 30) + np.random.default_rng(0).normal(0, 0.05, len(x))
    sx, sy = svg.simplify(x, y, 0.3)
    assert len(sx) < 300
    assert np.abs(np.interp(x, sx, sy) - y).max() < 0.3 * np.hypot(
        1, 2.6
    )  # vertical distance on a slope of 2, plus noise


def test_ticks_are_round_and_inside():
    assert svg.ticks(0.0, 1.0, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert svg.ticks(-0.31, 0.29, 4) == [-0.2, 0.0, 0.2]
    assert svg.ticks(2.0, 2.0, 4) == [2.0]


def test_histogram_counts_everything():
    chart = plots.histogram([('c1', np.r_[np.ones(30), 500.0])], unit='ms', upper=10.0, bins=10)
    heights = [float(h) for h in re.findall(r'class="bar c1"[^>]*height="([\d.]+)"', chart)]
    assert len(heights) == 2 and max(heights) / min(heights) == pytest.approx(30, rel=0.1)
    assert 'no samples' in plots.histogram([('c1', [])], unit='ms')


# Video.


def frames(writer: VideoWriter, count: int, size=(48, 64), step_ms: float = 1000 / 15) -> None:
    rng = np.random.default_rng(0)
    for k in range(count):
        stamp = 10**18 + round(k * step_ms * 1e6)
        for view in ('right', 'left'):  # the left one sets the pace
            image = np.full((*size, 3), 40 if view == 'left' else 200, dtype=np.uint8)
            image[:8, :8] = rng.integers(0, 255, 3)
            writer.add(view, stamp, image)
        while writer.waiting > 30:  # frames are dropped when the queue is full
            time.sleep(0.002)


def probe(file) -> str:
    import imageio_ffmpeg

    return subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-i', str(file)], capture_output=True, text=True).stderr


def test_video_is_what_browsers_play(tmp_path):
    writer = VideoWriter(tmp_path / 'v.mp4', ('left', 'right'))
    frames(writer, 30)
    described = writer.close()
    assert (
        described['frames'] == 30
        and described['size'] == [128, 48]
        and described['start_ns'] == 10**18
        and described['dropped'] == 0
    )
    said = probe(tmp_path / 'v.mp4')
    assert 'h264' in said and 'yuv420p' in said and '128x48' in said and re.search(r'Duration: 00:00:02\.0', said)
    data = (tmp_path / 'v.mp4').read_bytes()
    assert data.index(b'moov') < data.index(b'mdat')  # faststart: plays before all of it is read


def test_video_time_is_real_time_over_a_gap(tmp_path):
    writer = VideoWriter(tmp_path / 'v.mp4', ('left', 'right'))
    frames(writer, 5, step_ms=400)
    assert writer.close()['frames'] == 25  # 1.6 s at 15 Hz, and the last picture


def test_odd_sizes_and_a_missing_view(tmp_path):
    writer = VideoWriter(tmp_path / 'v.mp4', ('left', 'right'))
    for k in range(20):
        writer.add('left', 10**18 + k * 66_000_000, np.zeros((33, 47, 3), dtype=np.uint8))
    described = writer.close()
    assert described['views'] == ['left'] and described['size'] == [48, 34] and described['frames'] >= 10


def test_no_frames_no_video(tmp_path):
    assert VideoWriter(tmp_path / 'v.mp4', ('left',)).close() == {}


def test_a_failing_encoder_is_named(tmp_path):
    writer = VideoWriter(tmp_path / 'nowhere' / 'v.mp4', ('left', 'right'))
    frames(writer, 40)
    with pytest.raises(VideoError, match='v.mp4'):
        writer.close()


def test_page_data_is_strict_json(log, tmp_path):
    runlog.save(log, tmp_path)
    json.loads((tmp_path / 'run.json').read_text(), parse_constant=lambda name: pytest.fail(name))

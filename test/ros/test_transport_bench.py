"""`instructvla bench transport`: two real processes, plausible times, nothing lost without saying so."""

from __future__ import annotations

import json

from instructvla_ros import cli


def test_images_and_joint_states_between_two_processes(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv('ROS_DOMAIN_ID', raising=False)  # a free one is taken
    out = tmp_path / 'b.json'
    code = cli.main(['bench', 'transport', '--quick', '--json', '--out', str(out)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    found = json.loads(captured.out)['transport']
    assert found['joint state']['sent'] == 300 and found['image']['sent'] == 45
    assert found['image']['bytes'] == 640 * 480 * 3
    for name, times in found.items():
        assert 0.7 * times['sent'] <= times['received'] <= times['sent'], name
        assert 1e-5 < times['p50'] <= times['p99'] <= times['max'] < 5.0, name
    assert found['joint state']['p50'] < found['image']['p50'] < 0.2

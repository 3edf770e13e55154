"""What is wrong with launch arguments, told without launch."""

from __future__ import annotations

import pytest

from instructvla_ros import launch_checks


def test_a_package_is_found_in_any_sourced_prefix(tmp_path, monkeypatch):
    index = tmp_path / 'overlay' / 'share' / 'ament_index' / 'resource_index' / 'packages'
    index.mkdir(parents=True)
    (index / 'rviz2').touch()
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'{tmp_path / "underlay"}:{tmp_path / "overlay"}:')
    assert launch_checks.installed('rviz2') and not launch_checks.installed('rviz')
    monkeypatch.delenv('AMENT_PREFIX_PATH')
    assert not launch_checks.installed('rviz2')


@pytest.mark.parametrize(
    ('kind', 'good', 'bad', 'words'),
    [
        (int, '8765', 'many', 'a whole number'),
        (float, '1', 'fast', 'a number'),
        (bool, 'false', '0', 'true or false'),
        (int, '3', '[', 'a whole number'),
    ],
)
def test_values_of_another_type_are_named(monkeypatch, kind, good, bad, words):
    monkeypatch.setattr(launch_checks, 'installed', lambda name: False)
    for text, expected in ((good, []), (bad, [f'port:={bad} has to be {words}'])):
        assert launch_checks.problems({'port': text, 'rviz': 'false'}.__getitem__, {'port': kind}) == expected
    (told,) = launch_checks.problems({'rviz': 'true'}.__getitem__, {})
    assert 'rviz2' in told and 'apt install' in told

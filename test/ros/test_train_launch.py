"""train.launch.py as `ros2 launch` sees it; runs where launch and launch_ros are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('launch', reason='launch is not on the package index: part of a full ROS 2 install')
pytest.importorskip('launch_ros', reason='launch_ros is not on the package index: part of a full ROS 2 install')

from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction  # noqa: E402
from launching import module_of  # noqa: E402

from instructvla_ros.commands import train  # noqa: E402
from launch import LaunchContext  # noqa: E402

FILE = Path(__file__).resolve().parents[2] / 'launch' / 'train.launch.py'


def module() -> Any:
    return module_of(FILE)


def words(**arguments: str) -> list[str]:
    """Arguments of the process that these launch arguments start."""
    context = LaunchContext()
    context.launch_configurations.update(arguments)
    loaded = module()
    for entity in loaded.generate_launch_description().entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
    return loaded.command(context)


def test_every_argument_is_described_and_the_folder_is_required() -> None:
    entities = module().generate_launch_description().entities
    declared = {e.name: e for e in entities if isinstance(e, DeclareLaunchArgument)}
    for argument in declared.values():
        assert argument.description and argument.description != 'no description given', argument.name
    assert declared['out'].default_value is None
    assert sum(isinstance(e, OpaqueFunction) for e in entities) == 1
    with pytest.raises(RuntimeError, match='out'):
        words()


def test_the_arguments_are_those_of_the_verb() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    plain = parser.parse_args(words(out='runs/a'))
    assert (plain.run, plain.out, plain.data, plain.deploy) == ('onsite', 'runs/a', [], '')
    full = parser.parse_args(
        words(
            run='stage2',
            out='runs/b',
            data="a 'b c'",
            init='models/x',
            set='steps=5 lr=0.1',
            deploy='true',
            dry_run='true',
        )
    )
    assert full.data == ['a', 'b c'] and full.set == ['steps=5', 'lr=0.1'] and full.init == 'models/x'
    assert full.deploy == '/instructvla/load_checkpoint' and full.dry_run and full.run == 'stage2'


def test_the_process_ends_the_launch() -> None:
    context = LaunchContext()
    context.launch_configurations.update({'out': 'runs/a', 'run': 'onsite', 'data': '', 'set': '', 'init': ''})
    context.launch_configurations.update({'dry_run': 'false', 'deploy': 'false', 'service': '/a/load_checkpoint'})
    (process,) = module().start(context)
    assert isinstance(process, ExecuteProcess)

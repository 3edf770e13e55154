"""The contracts refuse what cannot be meant, and leave to the safety ladder what it has to name."""

import numpy as np
import pytest

from instructvla_ros import datatypes as d
from instructvla_ros.errors import ChunkError, ObservationError


def chunk(**changes):
    values = dict(
        id='c', observation_stamp_ns=0, created_stamp_ns=0, step_period=0.1, steps=np.zeros((8, 7)),
        frame_id='base', reference_pose=np.eye(4),
    )
    return d.ActionChunk(**{**values, **changes})


def observation(**changes):
    values = dict(
        stamp_ns=0, views={'a': np.zeros((4, 5, 3), np.uint8)}, proprio=np.zeros(8), q=np.zeros(7),
        dq=np.zeros(7), frame_id='base', instruction='wave',
    )
    return d.Observation(**{**values, **changes})


def test_chunk_knows_its_length():
    assert chunk().horizon == 8
    assert chunk().duration == pytest.approx(0.8)


@pytest.mark.parametrize(
    'changes',
    [dict(steps=np.zeros((0, 7))), dict(steps=np.zeros((8, 6))), dict(steps=np.zeros(7)), dict(step_period=0.0),
     dict(step_period=float('nan')), dict(step_period=-1.0), dict(delta_frame='world'), dict(rotation='quat')],
)
def test_malformed_chunks_are_refused(changes):
    with pytest.raises(ChunkError):
        chunk(**changes)


def test_non_finite_steps_reach_the_ladder():
    assert np.isnan(chunk(steps=np.full((2, 7), np.nan)).steps).all()


@pytest.mark.parametrize(
    'changes',
    [dict(proprio=np.zeros(7)), dict(proprio=np.full(8, np.nan)), dict(views={'a': np.zeros((4, 5, 3))}),
     dict(views={'a': np.zeros((4, 5), np.uint8)}), dict(views={'a': np.zeros((0, 5, 3), np.uint8)})],
)
def test_malformed_observations_are_refused(changes):
    with pytest.raises(ObservationError):
        observation(**changes)


def test_ids_are_unique():
    assert len({d.new_id('chunk') for _ in range(1000)}) == 1000


def test_contracts_are_frozen():
    with pytest.raises(AttributeError):
        observation().stamp_ns = 3

"""Scenes as data: objects, places, looks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructvla_ros.datatypes import SceneObject
from instructvla_ros.errors import TaskError
from instructvla_ros.geometry import pose_from_xyz_rpy
from instructvla_ros.settings import Randomization
from instructvla_ros.sim.scene import (
    CATEGORIES,
    COLORS,
    DRAWER_TRAVEL,
    GRASPABLE,
    HANDLE_HEIGHT,
    HANDLE_STANDOFF,
    SIZES,
    WORKSPACE_X,
    WORKSPACE_Y,
    Look,
    SceneSpec,
    arrange,
    handle_position,
    make_object,
    opening_direction,
    overlaps,
    sample_look,
    with_unique_names,
)


def test_catalogue():
    assert len(COLORS) == 8 and len(SIZES) == 3
    assert max(SIZES.values()) < 0.08 - 0.02  # the hand opens 0.08 m
    rgb = np.array(list(COLORS.values()))
    gaps = np.linalg.norm(rgb[:, None] - rgb[None], axis=2) + np.eye(8) * 9
    assert gaps.min() > 0.3  # no two colour words look alike


@pytest.mark.parametrize('category', CATEGORIES)
def test_objects_stand_on_the_table(category):
    thing = make_object(category, xy=(0.5, 0.1))
    assert thing.xyz == (0.5, 0.1, thing.extent[2] / 2)
    assert (thing.size != '') == (category in GRASPABLE)


@pytest.mark.parametrize(
    'arguments, part',
    [
        (('cub',), "Did you mean 'cube'"),
        (('cube', 'rad'), "Did you mean 'red'"),
        (('cube', 'red', 'huge'), 'small'),
    ],
)
def test_unknown_words_get_the_nearest(arguments, part):
    with pytest.raises(TaskError, match=part):
        make_object(*arguments)


def test_opening_is_checked():
    assert make_object('drawer', opening=DRAWER_TRAVEL).opening == DRAWER_TRAVEL
    with pytest.raises(TaskError, match='opening'):
        make_object('drawer', opening=DRAWER_TRAVEL + 0.01)
    with pytest.raises(TaskError, match='opening'):
        make_object('cube', opening=0.01)


def test_color_jitter_stays_near_the_word():
    rng = np.random.default_rng(0)
    for _ in range(50):
        thing = make_object('cube', 'red', rng=rng, color_jitter=0.06)
        assert np.abs(np.array(thing.rgb) - COLORS['red']).max() <= 0.06 + 1e-9


def test_names_are_unique():
    things = with_unique_names([make_object('cube', 'red')] * 3)
    assert [t.name for t in things] == ['red_cube', 'red_cube_2', 'red_cube_3']
    with pytest.raises(TaskError, match='red_cube'):
        SceneSpec((make_object('cube', 'red'), make_object('cube', 'red', 'small')))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.booleans())
def test_arranged_objects_keep_room_for_the_hand(seed, count, drawer):
    rng = np.random.default_rng(seed)
    fixed = (make_object('drawer', xy=(0.70, -0.22), yaw=0.1),) if drawer else ()
    things = arrange(
        rng, with_unique_names([make_object('cube', 'red')] * count + [make_object('bowl', 'blue')]), fixed
    )
    every = (*things, *fixed)
    for i, a in enumerate(every):
        assert not any(overlaps(a, b) for b in every[i + 1 :])
    cubes = np.array([t.xyz for t in things if t.category == 'cube'])
    gaps = np.linalg.norm(cubes[:, None] - cubes[None], axis=2) + np.eye(len(cubes)) * 9
    assert gaps.min() >= 0.10
    for thing in things:
        assert WORKSPACE_X[0] <= thing.xyz[0] <= WORKSPACE_X[1] and WORKSPACE_Y[0] <= thing.xyz[1] <= WORKSPACE_Y[1]


def test_same_seed_same_scene():
    things = [make_object('cube', 'red'), make_object('ball', 'blue')]
    a, b, c = (arrange(np.random.default_rng(s), things) for s in (3, 3, 4))
    assert a == b != c


def test_too_many_objects_are_refused():
    with pytest.raises(TaskError, match='fewer distractors'):
        arrange(np.random.default_rng(0), [make_object('bowl')] * 12)


def test_nothing_enters_the_floor_a_drawer_needs():
    drawer = make_object('drawer', xy=(0.70, 0.0))
    handle_when_open = 0.70 - drawer.extent[0] / 2 - DRAWER_TRAVEL - HANDLE_STANDOFF
    for x in np.linspace(handle_when_open, 0.70, 12):
        assert overlaps(make_object('cube', xy=(float(x), 0.0)), drawer)
    assert not overlaps(make_object('cube', xy=(0.5, 0.22)), drawer)


def test_look_without_randomization_is_the_default():
    off = Randomization(light=0.0, color=0.0, table=0.0, camera=0.0, distractors=0)
    assert sample_look(np.random.default_rng(5), off) == Look()


def test_each_part_of_the_look_has_its_own_switch():
    full = Randomization(light=0.5, table=0.5, camera=0.05)
    base = sample_look(np.random.default_rng(5), full)
    assert max(abs(v) for v in base.camera_shift) <= 0.05 and base.camera_shift != (0.0, 0.0, 0.0)
    without = sample_look(np.random.default_rng(5), replace(full, light=0.0))
    assert without.light == Look().light and without.light_position == Look().light_position
    assert (without.table_rgb, without.texture, without.camera_shift) == (
        base.table_rgb,
        base.texture,
        base.camera_shift,
    )
    assert sample_look(np.random.default_rng(6), full) != base


@pytest.mark.parametrize('yaw', [0.0, 0.4, -1.0])
def test_handle_moves_with_the_drawer(yaw):
    spec = make_object('drawer', xy=(0.7, -0.2))
    shut, pulled = (
        SceneObject('drawer', 'drawer', '', '', pose_from_xyz_rpy([*spec.xyz, 0, 0, yaw]), np.array(spec.extent), o)
        for o in (0.0, 0.1)
    )
    assert opening_direction(shut) == pytest.approx([-math.cos(yaw), -math.sin(yaw), 0.0])
    assert handle_position(pulled) - handle_position(shut) == pytest.approx(0.1 * opening_direction(shut))
    assert handle_position(shut)[2] == pytest.approx(HANDLE_HEIGHT)

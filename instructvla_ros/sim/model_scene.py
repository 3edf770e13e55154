"""Table, floor, walls, light and cameras of the simulated room."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial.transform import Rotation

from ..errors import ConfigError, suggest
from ..geometry import pose
from ..settings import Embodiment, Sim
from .camera import FLIP, optical_pose
from .gl import mujoco
from .model_objects import add_object, material
from .scene import TEXTURES, Look, SceneSpec

TABLE_CENTER = (0.35, 0.0)
TABLE_SIZE = (1.30, 1.60, 0.04)
FLOOR = -0.75
TEXTURE_PIXELS = 256


def build_scene(spec: mujoco.MjSpec, scene: SceneSpec, sim: Sim, embodiment: Embodiment) -> None:
    """Add everything that is not the arm to ``spec``.

    Raises:
        ConfigError: a camera hangs on a body that does not exist.
    """
    look = scene.look
    _visual(spec, look, sim)
    _room(spec, look)
    for name in ('base', embodiment.base_frame):
        spec.add_exclude(bodyname1=name, bodyname2='table')
    for thing in scene.objects:
        add_object(spec, thing)
        if thing.category == 'drawer':
            spec.add_exclude(bodyname1=f'{thing.name}/tray', bodyname2='table')
    _cameras(spec, look, sim, embodiment)


def _visual(spec: mujoco.MjSpec, look: Look, sim: Sim) -> None:
    visual = spec.visual
    # MSAA and large shadow maps cost most of a frame in software rendering.
    visual.quality.offsamples = 0
    visual.quality.shadowsize = 1024
    # Software OpenGL lights each vertex: fewer of them save a quarter of a frame and are not missed at 640x480.
    visual.quality.numslices, visual.quality.numstacks, visual.quality.numquads = 24, 10, 1
    visual.map.znear = 0.01
    visual.map.zfar = 20.0
    visual.map.shadowclip = 0.7
    visual.global_.offwidth = max([c.width for c in sim.cameras], default=640)
    visual.global_.offheight = max([c.height for c in sim.cameras], default=480)
    spec.stat.extent = 1.0
    spec.stat.center = [0.4, 0.0, 0.2]
    visual.headlight.ambient = [look.ambient] * 3
    visual.headlight.diffuse = [0.10] * 3
    visual.headlight.specular = [0.0] * 3
    sun = np.array([0.45, 0.0, 0.0]) - np.asarray(look.light_position)
    spec.worldbody.add_light(
        name='main',
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=look.light_position,
        dir=sun / np.linalg.norm(sun),
        diffuse=[look.light] * 3,
        specular=[0.25 * look.light] * 3,
        castshadow=sim.shadows,
    )
    spec.worldbody.add_light(
        name='fill',
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[1.5, 1.2, 1.2],
        dir=[-0.65, -0.5, -0.55],
        diffuse=[0.35 * look.light] * 3,
        specular=[0.0] * 3,
        castshadow=False,
    )


def _room(spec: mujoco.MjSpec, look: Look) -> None:
    wall = np.asarray(look.wall_rgb)
    pixels = table_pixels(look)
    texture = spec.add_texture(
        name='table', type=mujoco.mjtTexture.mjTEXTURE_2D, width=pixels.shape[1], height=pixels.shape[0], nchannel=3
    )
    texture.data = pixels.tobytes()
    top = spec.add_material(name='table', texrepeat=[1.0, 1.0], texuniform=False, specular=0.05, shininess=0.1)
    top.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = 'table'
    table = spec.worldbody.add_body(name='table', pos=[*TABLE_CENTER, -TABLE_SIZE[2] / 2])
    half = [v / 2 for v in TABLE_SIZE]
    table.add_geom(
        name='table', type=mujoco.mjtGeom.mjGEOM_BOX, size=half, material='table', friction=[1.0, 0.02, 0.0006], group=1
    )
    scenery = {'contype': 0, 'conaffinity': 0, 'group': 1}
    leg = material(spec, 'leg', (0.25, 0.25, 0.27))
    for sx in (-1, 1):
        for sy in (-1, 1):
            table.add_geom(
                type=mujoco.mjtGeom.mjGEOM_BOX,
                size=[0.03, 0.03, -FLOOR / 2 - half[2]],
                pos=[sx * (half[0] - 0.06), sy * (half[1] - 0.06), FLOOR / 2 - half[2]],
                material=leg,
                **scenery,
            )
    spec.worldbody.add_geom(
        name='floor',
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[4.0, 4.0, 0.1],
        pos=[0, 0, FLOOR],
        material=material(spec, 'floor', [float(v) for v in 0.55 * wall], emission=0.1),
        friction=[1.0, 0.02, 0.01],
        group=1,
    )
    # Walls instead of a sky box, which takes half of a frame in software rendering.
    paint = material(spec, 'wall', look.wall_rgb, emission=0.35)
    for name, size, at in (
        ('behind', [0.02, 3.0, 2.0], [-1.3, 0.0, FLOOR + 2.0]),
        ('left', [2.5, 0.02, 2.0], [1.2, 3.0, FLOOR + 2.0]),
        ('right', [2.5, 0.02, 2.0], [1.2, -3.0, FLOOR + 2.0]),
        ('front', [0.02, 3.0, 2.0], [3.7, 0.0, FLOOR + 2.0]),
    ):
        spec.worldbody.add_geom(
            name=f'wall {name}', type=mujoco.mjtGeom.mjGEOM_BOX, size=size, pos=at, material=paint, **scenery
        )


def table_pixels(look: Look) -> NDArray[np.uint8]:
    """Texture (256, 256, 3) of the table top: a mixture of the look's two colours."""
    rng = np.random.default_rng(look.texture_seed)
    n = TEXTURE_PIXELS
    if look.texture == 'wood':
        grain = gaussian_filter(rng.standard_normal((n, n)), (0.8, 24.0), mode='wrap')
        fine = gaussian_filter(rng.standard_normal((n, n)), (0.4, 8.0), mode='wrap')
        mix = _unit(grain) * 0.7 + _unit(fine) * 0.3
        # Boards with their own tone.
        tone = np.repeat(rng.uniform(-0.18, 0.18, 8), n // 8)
        mix = mix + tone[:, None]
        mix[:: n // 8] += 0.35
    elif look.texture == 'stone':
        layers = [zoom(rng.standard_normal((c, c)), n / c, order=1)[:n, :n] / c**0.35 for c in (8, 16, 32, 64, 128)]
        mix = _unit(np.sum(layers, axis=0))
    elif look.texture == 'cloth':
        u = np.arange(n)
        weave = 0.5 + 0.25 * np.sin(2 * math.pi * u / 8)[None, :] + 0.25 * np.sin(2 * math.pi * u / 8)[:, None]
        mix = 0.6 * weave + 0.4 * _unit(gaussian_filter(rng.standard_normal((n, n)), 1.0, mode='wrap'))
    elif look.texture == 'plain':
        mix = 0.15 * rng.random((n, n))
    else:
        raise ConfigError(f'unknown table texture {look.texture!r}.{suggest(look.texture, TEXTURES)}')
    mix = np.clip(mix, 0.0, 1.0)[:, :, None]
    rgb = (1.0 - mix) * np.asarray(look.table_rgb) + mix * np.asarray(look.table_rgb2)
    return np.asarray(np.clip(rgb * 255.0, 0, 255), dtype=np.uint8)


def _unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    lo, hi = np.percentile(values, [2.0, 98.0])
    return np.asarray(np.clip((values - lo) / max(hi - lo, 1e-9), 0.0, 1.0))


def _cameras(spec: mujoco.MjSpec, look: Look, sim: Sim, embodiment: Embodiment) -> None:
    for camera in sim.cameras:
        where = optical_pose(camera)
        if camera.parent == 'world':
            body, where = spec.worldbody, pose(look.camera_shift) @ where
            view = embodiment.views.get(camera.view)
            housing = spec.body(view.frame_id) if view else None
            if housing is not None:
                # The camera's own housing goes with it, or a shifted camera would look at it from inside.
                housing.pos = np.asarray(housing.pos) + look.camera_shift
        else:
            prefix = embodiment.base_frame.split('_')[0]
            body = spec.body(camera.parent) or spec.body(f'{prefix}_{camera.parent}')
            if body is None:
                names = ['world', *(b.name for b in spec.bodies if b.name)]
                raise ConfigError(f'camera {camera.view!r} hangs on {camera.parent!r}.{suggest(camera.parent, names)}')
        quat = Rotation.from_matrix(where[:3, :3] @ FLIP).as_quat()
        body.add_camera(name=camera.view, pos=where[:3, 3], quat=[quat[3], *quat[:3]], fovy=camera.fovy)

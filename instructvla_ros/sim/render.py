"""Pictures of a world, in any thread: a snapshot is copied out of the physics, a rig draws it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datatypes import Image
from ..errors import SetupError
from ..geometry import Array
from ..settings import SimCamera
from .camera import find_camera
from .gl import make_context, mujoco
from .model_arm import GROUP_HIDDEN


@dataclass(frozen=True)
class Snapshot:
    """Everything a picture depends on, detached from the running physics.

    Attributes:
        model: shared and never changed after it was built. qpos: copy of the generalised positions.
        time: of the world [s].
    """

    model: Any
    qpos: Array
    time: float


class CameraRig:
    """Draws snapshots with off-screen OpenGL.

    Make it, use it and close it in the same thread: an OpenGL context belongs to one. Drawing releases the
    interpreter lock, so physics goes on in another thread meanwhile.

    Args:
        cameras: of the simulator. shadows: draw them (about four times slower in software).
    """

    def __init__(self, cameras: tuple[SimCamera, ...], shadows: bool = False):
        self._cameras = cameras
        self._shadows = shadows
        self._gl: Any = None
        self._model: Any = None
        self._data: Any = None
        self._scene: Any = None
        self._context: Any = None
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 1
        self._option.geomgroup[GROUP_HIDDEN] = 0
        self._option.sitegroup[:] = 0
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = 0

    def render(self, snapshot: Snapshot, view: str) -> Image:
        """Picture of one camera, uint8 RGB (H, W, 3).

        Raises:
            ConfigError: no such view. SetupError: this machine cannot render; names the packages.
        """
        camera = find_camera(self._cameras, view)
        self._use(snapshot.model)
        data = self._data
        if not np.array_equal(data.qpos, snapshot.qpos) or data.time != snapshot.time:
            data.qpos[:] = snapshot.qpos
            data.time = snapshot.time
            mujoco.mj_kinematics(self._model, data)
            mujoco.mj_comPos(self._model, data)
            mujoco.mj_camlight(self._model, data)
        eye = mujoco.MjvCamera()
        eye.type = mujoco.mjtCamera.mjCAMERA_FIXED
        eye.fixedcamid = self._model.camera(view).id
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, eye, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = int(self._shadows)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        area = mujoco.MjrRect(0, 0, camera.width, camera.height)
        mujoco.mjr_render(area, self._scene, self._context)
        pixels = np.empty((camera.height, camera.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, area, self._context)
        return np.ascontiguousarray(pixels[::-1])

    def _use(self, model: Any) -> None:
        if self._gl is None:
            width = max(c.width for c in self._cameras)
            height = max(c.height for c in self._cameras)
            self._gl = make_context(width, height)
        self._gl.make_current()
        if self._model is model:
            return
        if self._context is not None:
            self._context.free()
        self._model, self._data = model, mujoco.MjData(model)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        try:
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except mujoco.FatalError as err:
            raise SetupError(f'OpenGL refuses to draw: {err}') from err
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._data.qpos[:] = np.nan  # the first snapshot always counts as new

    def close(self) -> None:
        """Free the OpenGL context; the rig may be used again and makes a new one then."""
        if self._gl is not None:
            self._gl.make_current()
            if self._context is not None:
                self._context.free()
            self._gl.free()
        self._gl = self._context = self._scene = self._data = self._model = None

"""Off-screen OpenGL: EGL or OSMesa, chosen before MuJoCo is imported.

MuJoCo and PyOpenGL read ``MUJOCO_GL`` once, when they are imported. So every module here writes
``from .gl import mujoco``; a value that is already set is kept.
"""

from __future__ import annotations

import ctypes
import logging
import os
from typing import Any

from ..errors import SetupError

HELP = (
    'MuJoCo cannot render here: neither EGL nor OSMesa works. On Debian or Ubuntu: '
    '`apt install libegl1 libgl1 libgl1-mesa-dri` (EGL) or `apt install libosmesa6` (OSMesa). '
    'MUJOCO_GL=egl|osmesa|glfw chooses one by hand; World(..., render=False) needs none'
)


def _load(*names: str) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def egl_works() -> bool:
    """Whether some EGL device of this machine can be initialised and a desktop OpenGL library is there."""
    egl = _load('libEGL.so.1', 'libEGL.so')
    if egl is None or _load('libOpenGL.so.0', 'libGL.so.1', 'libOpenGL.so', 'libGL.so') is None:
        return False
    lookup = egl.eglGetProcAddress
    lookup.restype, lookup.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    query, display_of = lookup(b'eglQueryDevicesEXT'), lookup(b'eglGetPlatformDisplayEXT')
    if not query or not display_of:
        return False
    devices, count = (ctypes.c_void_p * 16)(), ctypes.c_int(0)
    pointer = ctypes.c_void_p
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, pointer, pointer)(query)
    get_display = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(display_of)
    if not query_devices(16, ctypes.cast(devices, pointer), ctypes.cast(ctypes.byref(count), pointer)):
        return False
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    egl.eglTerminate.argtypes = [pointer]
    platform_device_ext = 0x313F
    for device in devices[: count.value]:
        display = get_display(platform_device_ext, device, None)
        if display and egl.eglInitialize(display, None, None):
            egl.eglTerminate(display)
            return True
    return False


def osmesa_works() -> bool:
    """Whether the library that renders without any device is there."""
    return _load('libOSMesa.so.8', 'libOSMesa.so.6', 'libOSMesa.so') is not None


def choose_backend() -> str:
    """Set ``MUJOCO_GL`` when nobody has, and return it; '' when this machine can render neither way."""
    chosen = os.environ.get('MUJOCO_GL', '').lower()
    if chosen:
        return chosen
    if egl_works():
        chosen = 'egl'
    elif osmesa_works():
        chosen = 'osmesa'
    if chosen:
        os.environ['MUJOCO_GL'] = chosen
        os.environ.setdefault('PYOPENGL_PLATFORM', chosen)
    return chosen


BACKEND = choose_backend()

import mujoco as mujoco  # noqa: E402  the environment variable has to be there first

# Otherwise MuJoCo appends its warnings to MUJOCO_LOG.TXT in whatever folder the process runs in.
mujoco.set_mju_user_warning(logging.getLogger(__name__).warning)


def make_context(width: int, height: int) -> Any:
    """OpenGL context of the calling thread with ``make_current()`` and ``free()``.

    Raises:
        SetupError: no backend works; names the system packages.
    """
    try:
        if BACKEND == 'egl':
            from mujoco.egl import GLContext
        elif BACKEND == 'osmesa':
            from mujoco.osmesa import GLContext
        elif BACKEND:
            from mujoco.gl_context import GLContext
        else:
            raise SetupError(HELP)
        return GLContext(width, height)
    except SetupError:
        raise
    except Exception as err:  # PyOpenGL raises AttributeError, ImportError, GLError, ... for a missing driver
        raise SetupError(f'{HELP}. MUJOCO_GL={BACKEND} failed: {type(err).__name__}: {err}') from err

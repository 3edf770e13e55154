"""What a run was made on: processor, memory, operating system, versions of what matters for the result."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ('instructvla_ros', 'numpy', 'scipy', 'mujoco', 'pin', 'pin-pink', 'torch', 'transformers', 'rosbags')


def facts() -> dict[str, str]:
    """Machine in words; what cannot be found out is left out."""
    out = {
        'processor': _processor(),
        'cores': _cores(),
        'memory': _memory(),
        'system': _system(),
        'kernel': platform.release(),
    }
    return {k: v for k, v in out.items() if v}


def versions() -> dict[str, str]:
    """Versions of Python, ROS, the middleware and the packages that are installed."""
    out = {'python': platform.python_version()}
    distro = os.environ.get('ROS_DISTRO', '') or _wheel_distribution()
    if distro:
        out['ROS 2'] = distro
    out['rmw'] = os.environ.get('RMW_IMPLEMENTATION', 'default')
    for name in PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def _wheel_distribution() -> str:
    for distro in ('kilted', 'jazzy', 'lyrical', 'rolling'):
        try:
            return f'{distro} (rclpy wheel {version(f"ros-{distro}-rclpy")})'
        except PackageNotFoundError:
            continue
    return ''


def _processor() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _cores() -> str:
    return f'{usable_cores()} usable of {os.cpu_count()}'


def _memory() -> str:
    try:
        return f'{os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30:.0f} GiB'
    except (ValueError, OSError):
        return ''


def _system() -> str:
    try:
        names = platform.freedesktop_os_release()
        return names.get('PRETTY_NAME', '')
    except (OSError, AttributeError):
        return platform.platform()

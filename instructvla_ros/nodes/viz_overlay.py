"""The newest thought as text over the picture of RViz (display ``TextOverlay``), where its messages are installed.

rviz_2d_overlay_msgs is optional: without it the same sentence stands at the gripper and below the camera image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from std_msgs.msg import ColorRGBA

from ..settings import Visual
from ..visual import wrap
from . import qos

try:
    from rviz_2d_overlay_msgs.msg import OverlayText
except ImportError:  # not released with every ROS 2
    OverlayText = None

TOPIC = 'overlay'
AGAIN = 1.0  # s: a display that was added later gets the text too
_COLUMNS, _LINES = 78, 4
_LINE_HEIGHT, _MARGIN = 1.7, 14  # of a line in text sizes; of the box [px]
_WHITE, _DARK = ColorRGBA(r=1.0, g=1.0, b=1.0, a=0.95), ColorRGBA(r=0.08, g=0.09, b=0.11, a=0.7)


def overlay_message(kind: Any, sentence: str, small: str, size: float) -> Any:
    """OverlayText at the top left: a sentence, broken into lines, and a line of ids; an empty sentence removes it.

    Args:
        kind: the message class. size: height of the letters [px].
    """
    if not sentence.strip():
        return kind(action=kind.DELETE)
    lines = [*wrap(sentence, _COLUMNS, _LINES), *([small] if small else [])]
    return kind(
        action=kind.ADD,
        width=round(0.62 * size * _COLUMNS) + 2 * _MARGIN,
        height=round(_LINE_HEIGHT * size * len(lines)) + 2 * _MARGIN,
        horizontal_distance=_MARGIN,
        vertical_distance=_MARGIN,
        horizontal_alignment=kind.LEFT,
        vertical_alignment=kind.TOP,
        bg_color=_DARK,
        fg_color=_WHITE,
        line_width=2,
        text_size=float(size),
        font='DejaVu Sans Mono',
        text='\n'.join(lines),
    )


class Overlay:
    """Publishes the text on change, and once a second while somebody looks.

    Args:
        advertise: creates a publisher from message class, topic and quality of service.
    """

    def __init__(self, advertise: Callable[[Any, str, Any], Any], visual: Visual) -> None:
        self._kind: Any = OverlayText
        self._size = visual.overlay_size
        self._publisher = None
        if visual.overlay and OverlayText is not None:
            self._publisher = advertise(OverlayText, TOPIC, qos.EVENT)
        self._said: tuple[str, str] = ('', '')
        self._next = 0.0

    @property
    def watched(self) -> bool:
        """Whether somebody would see it."""
        return self._publisher is not None and self._publisher.get_subscription_count() > 0

    def show(self, sentence: str, small: str, now: float) -> None:
        """Show this at ``now`` [s]; '' removes what is shown."""
        if self._publisher is None or not self.watched:
            self._said = ('', '')
            return
        said = (sentence, small)
        if said == self._said and (now < self._next or not sentence):
            return
        self._publisher.publish(overlay_message(self._kind, sentence, small, self._size))
        self._said, self._next = said, now + AGAIN

"""The optional text over RViz, with a stand-in for the message that is not installed here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from std_msgs.msg import ColorRGBA

from instructvla_ros.nodes import viz_overlay
from instructvla_ros.nodes.viz_overlay import AGAIN, Overlay, overlay_message
from instructvla_ros.settings import Visual


@dataclass
class OverlayText:
    """Fields and constants of rviz_2d_overlay_msgs/OverlayText; another field is an error, as with the real one."""

    ADD, DELETE = 0, 1
    LEFT, RIGHT, CENTER, TOP, BOTTOM = 0, 1, 2, 3, 4
    action: int = 0
    width: int = 0
    height: int = 0
    horizontal_distance: int = 0
    vertical_distance: int = 0
    horizontal_alignment: int = 0
    vertical_alignment: int = 0
    bg_color: ColorRGBA = field(default_factory=ColorRGBA)
    fg_color: ColorRGBA = field(default_factory=ColorRGBA)
    line_width: int = 0
    text_size: float = 0.0
    font: str = ''
    text: str = ''


class Publisher:
    def __init__(self) -> None:
        self.watchers = 1
        self.sent: list[Any] = []

    def get_subscription_count(self) -> int:
        return self.watchers

    def publish(self, message: Any) -> None:
        self.sent.append(message)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> tuple[Overlay, Publisher]:
    monkeypatch.setattr(viz_overlay, 'OverlayText', OverlayText)
    publisher = Publisher()
    asked: list[Any] = []

    def advertise(*arguments: Any) -> Publisher:
        asked.append(arguments)
        return publisher

    overlay = Overlay(advertise, Visual())
    assert [(kind, topic) for kind, topic, _ in asked] == [(OverlayText, 'overlay')]
    return overlay, publisher


def test_the_sentence_stands_at_the_top_left_in_a_box_that_fits() -> None:
    short = overlay_message(OverlayText, 'I will move to the cube.', 'say-1 -> chunk-1', 14.0)
    long = overlay_message(OverlayText, 'word ' * 200, '', 14.0)
    assert short.text.split('\n') == ['I will move to the cube.', 'say-1 -> chunk-1']
    assert (short.action, short.horizontal_alignment, short.vertical_alignment) == (0, 0, 3)
    assert short.fg_color.a > 0.5 and short.bg_color.a > 0.0 and short.text_size == 14.0
    assert len(long.text.split('\n')) == 4 and long.text.endswith('...') and long.height > short.height
    assert overlay_message(OverlayText, ' ', 'ids', 14.0).action == OverlayText.DELETE


def test_it_is_sent_on_change_again_each_second_and_removed(shown: tuple[Overlay, Publisher]) -> None:
    overlay, publisher = shown
    overlay.show('', '', 10.0)
    assert not publisher.sent, 'nothing to remove'
    for now in (10.1, 10.2, 10.3):
        overlay.show('one', 'a', now)
    assert len(publisher.sent) == 1
    overlay.show('one', 'b', 10.4)
    overlay.show('one', 'b', 10.5 + AGAIN)
    overlay.show('', '', 12.0)
    overlay.show('', '', 20.0)
    assert [(m.action, m.text) for m in publisher.sent] == [(0, 'one\na'), (0, 'one\nb'), (0, 'one\nb'), (1, '')]


def test_nobody_looks_nothing_is_sent_and_who_comes_gets_the_text(shown: tuple[Overlay, Publisher]) -> None:
    overlay, publisher = shown
    publisher.watchers = 0
    overlay.show('one', '', 1.0)
    assert not publisher.sent and not overlay.watched
    publisher.watchers = 1
    overlay.show('one', '', 1.1)
    assert [m.text for m in publisher.sent] == ['one']


def test_without_the_package_or_when_switched_off_there_is_no_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError('advertised')

    monkeypatch.setattr(viz_overlay, 'OverlayText', None)
    overlay = Overlay(never, Visual())
    overlay.show('one', '', 1.0)
    assert not overlay.watched
    monkeypatch.setattr(viz_overlay, 'OverlayText', OverlayText)
    assert not Overlay(never, Visual(overlay=False)).watched

"""What the parts below ROS have to say (a model that loads or warms up) in the log of the process."""

from __future__ import annotations

import logging

from rclpy.logging import get_logger

PACKAGE = 'instructvla_ros'


class RosLog(logging.Handler):
    """Hands records of the standard library's logging to the ROS logger of the same name."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record."""
        try:
            text, logger = self.format(record), get_logger(record.name)
            # One call per severity: rclpy remembers the severity of a line of code and refuses another one.
            if record.levelno >= logging.ERROR:
                logger.error(text)
            elif record.levelno >= logging.WARNING:
                logger.warning(text)
            else:
                logger.info(text)
        except Exception:  # as every handler: what cannot be logged must not end the work that logs
            self.handleError(record)


def forward() -> None:
    """From now on the package's records from INFO on go to ROS; calling it again changes nothing."""
    ours = logging.getLogger(PACKAGE)
    if not any(isinstance(h, RosLog) for h in ours.handlers):
        ours.addHandler(RosLog())
        ours.setLevel(logging.INFO)

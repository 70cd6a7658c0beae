"""Structured logs: one JSON line an event on stderr, or readable text on a terminal."""

from __future__ import annotations

import logging
import sys

import structlog


class _Forward(logging.Handler):
    """Passes what libraries say on to structlog, without the trace of a failed start: ``service.app`` has said it in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if not message.startswith("Traceback"):
            structlog.get_logger().log(record.levelno, message, logger=record.name)


def configure(level: str = "info") -> None:
    """Set up structlog once, at start."""
    renderer: structlog.typing.Processor = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # the reply says what was wrong with the form

"""Structured logs: one JSON line an event on stderr, or readable text on a terminal.

A line that is said in the course of a request has its ``request_id``, and its ``trace_id`` where there is one, on the processor's threads
too.  The device's thread works for many requests at once: its lines have neither.
"""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType

import structlog


class _Forward(logging.Handler):
    """Passes what libraries say on to structlog, without the trace of a failed start: ``service.app`` has said it in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # its format does not fit its values: no reason to fail a request
            message = f"{record.msg} {record.args}"
        if not message.startswith("Traceback"):
            level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)  # structlog knows these five alone
            structlog.get_logger().log(level, message, logger=record.name, exc_info=record.exc_info or None)


def _died(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None, where: str) -> None:
    """An error that nobody caught, as one line like any other."""
    if error is not None and not isinstance(error, (SystemExit, KeyboardInterrupt)):
        structlog.get_logger().critical("an error nobody caught", thread=where, exc_info=(kind, error, trace))


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
    logging.captureWarnings(True)
    threading.excepthook = lambda died: _died(died.exc_type, died.exc_value, died.exc_traceback, died.thread.name if died.thread else "?")
    sys.excepthook = lambda kind, error, trace: _died(kind, error, trace, "main")
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # the reply says what was wrong with the form

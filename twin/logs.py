"""How the service logs: one line an event on stderr, or JSON for a collector."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import structlog


def configure(level: str, is_json: bool, file: Path | None = None) -> None:
    """Send what every module logs (through the standard library or structlog) to stderr, or `file`, in one form."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    renderer: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if is_json
        else structlog.dev.ConsoleRenderer(
            colors=file is None and sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    out = logging.StreamHandler(sys.stderr) if file is None else logging.FileHandler(file, encoding="utf-8")
    out.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=renderer,
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers = [out]
    root.setLevel(level.upper())
    for chatty in ("uvicorn", "websockets", "asyncio"):  # at debug they write headers and frames, and so tokens
        logging.getLogger(chatty).setLevel(max(logging.INFO, root.level))

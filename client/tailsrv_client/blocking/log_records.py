"""What Python logs as bytes, whatever is in it. Pure.

Law: a record always becomes a payload. What JSON can't carry is written in escapes or by its `repr`; what goes wrong
while a record is rendered is a field of it; what is too long is cut, and says how long it was.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any, Final

import msgspec

STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that every record has; the others come from `extra=`."""

DEEPEST: Final = 20
"""Levels of containers that are rendered as such; what lies deeper, as a cycle does, by its `repr`."""

SHORTEST: Final = 16
"""Characters that are kept of each field at least."""

LARGEST_INT: Final = (1 << 63) - 1
"""Larger numbers are rendered as text: most readers of JSON would round them."""

_PLAIN: Final = logging.Formatter()


def as_json(record: logging.LogRecord, limit: int) -> bytes:
    """One JSON object of up to `limit` bytes: time, level, logger, message, the `extra`, exception and stack."""
    facts: dict[str, Any] = {
        "time": _time(record),
        "level": record.levelname,
        "logger": record.name,
    }
    _add(facts, "message", record.getMessage)
    if "error" in facts:
        facts["message"], facts["args"] = _text(record.msg), _repr(record.args)
    facts.update((key, value) for key, value in vars(record).items() if key not in STANDARD)
    exc_info = record.exc_info
    if exc_info and not isinstance(exc_info, bool):
        _add(facts, "exception", lambda: _PLAIN.formatException(exc_info))
    elif record.exc_text:  # of a record that came from another process
        facts["exception"] = record.exc_text
    if record.stack_info:
        facts["stack"] = record.stack_info
    payload = _encode(facts)
    return payload if len(payload) <= limit else _shortened(facts, limit, len(payload))


def as_text(record: logging.LogRecord, formatter: logging.Formatter, limit: int, *, escape: bool) -> bytes:
    """What `formatter` makes of it, in up to `limit` bytes; with `escape`, without line breaks and zero bytes."""
    try:
        text = formatter.format(record)
    except Exception as error:  # noqa: BLE001 - whatever an argument's or a formatter's code raises
        text = f"{record.levelname} {record.name}: {_text(record.msg)} {_repr(record.args)} ({_describe_error(error)})"
    if escape:
        text = text.replace("\n", "\\n").replace("\0", "\\0")
    payload = text.encode("utf-8", "backslashreplace")
    if len(payload) <= limit:
        return payload
    note = f"... [cut: {len(payload)} bytes]"
    return payload[: max(0, limit - len(note))].decode("utf-8", "ignore").encode() + note.encode()


def rfc3339(seconds: float) -> str:
    """A time as logs have it, in UTC, to the microsecond."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1e6):06d}Z"


def _time(record: logging.LogRecord) -> str:
    try:
        return rfc3339(record.created)
    except (TypeError, ValueError, OverflowError, OSError):
        return _repr(record.created)  # an application may set it to anything


def _add(facts: dict[str, Any], key: str, render: Any) -> None:  # noqa: ANN401 - a call without arguments
    try:
        facts[key] = render()
    except Exception as error:  # noqa: BLE001 - whatever an argument's code raises
        facts["error"] = _describe_error(error)


def _encode(facts: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(facts, enc_hook=repr)
    except Exception:  # noqa: BLE001 - lone surrogates, cycles, what raises in its repr, odd keys, large integers
        return msgspec.json.encode(_plain(facts, DEEPEST))


def _plain(value: Any, depth: int) -> Any:  # noqa: ANN401 - anything becomes something that JSON has
    """`value` made of what JSON has."""
    kind = type(value)
    if kind is str:
        return value.encode("utf-8", "backslashreplace").decode()
    if depth and kind is dict:
        return {_text(key): _plain(item, depth - 1) for key, item in value.items()}
    if depth and kind in {list, tuple}:
        return [_plain(item, depth - 1) for item in value]
    fits = value is None or kind is bool or (kind is int and abs(value) <= LARGEST_INT)
    return value if fits or (kind is float and math.isfinite(value)) else _repr(value)


def _shortened(facts: dict[str, Any], limit: int, size: int) -> bytes:
    """As many characters of each field as there is room for, and how many bytes there were."""
    most = limit // 2
    while most >= SHORTEST:
        kept = {_cut(_text(key), most): _cut_value(value, most) for key, value in facts.items()}
        payload = _encode({**kept, "cut": size})
        if len(payload) <= limit:
            return payload
        most //= 2
    few: dict[str, Any] = {key: _cut_value(facts[key], SHORTEST) for key in ("level", "logger", "message")}
    return _encode({"time": facts["time"], **few, "cut": size})


def _cut_value(value: Any, most: int) -> Any:  # noqa: ANN401 - see `_plain`
    if isinstance(value, str):
        return _cut(value, most)
    if value is None or isinstance(value, (bool, float)):
        return value
    text = _encode({"": value})[4:-1].decode()
    return value if len(text) <= most else _cut(text, most)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "..."


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {_text(error)}"


def _text(value: object) -> str:
    try:
        text = str(value)
    except Exception as error:  # noqa: BLE001 - see `_repr`
        return f"<{type(value).__name__} whose str raises {type(error).__name__}>"
    return text.encode("utf-8", "backslashreplace").decode()


def _repr(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - it is an application's code
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text.encode("utf-8", "backslashreplace").decode()

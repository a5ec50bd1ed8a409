"""A `Protocol` class as the interface of a service: its methods, whose annotations are the schema of the messages.

This module does not import ZeroMQ, so interfaces can be declared where it is not installed.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Call:
    """One method or property of an interface: its parameters in order, and the types of arguments and result."""

    name: str
    parameters: tuple[inspect.Parameter, ...]
    kinds: tuple[Any, ...]
    answer: Any
    is_property: bool  # read rather than called
    repeatable: bool
    long_poll: bool
    doc: str


@cache
def calls(interface: type) -> dict[str, Call]:
    """All public methods and properties of an interface by name."""
    return {name: _call(interface, name) for name in dir(interface) if not name.startswith("_")}


def _call(interface: type, name: str) -> Call:
    member: Any = inspect.getattr_static(interface, name)
    function: Any = member.fget if isinstance(member, property) else member
    hints = typing.get_type_hints(function)
    parameters = tuple(inspect.signature(function).parameters.values())[1:]
    kinds = tuple(hints[one.name] for one in parameters)
    doc = inspect.getdoc(function) or ""
    flags = (isinstance(member, property), hasattr(function, "repeatable"), hasattr(function, "long_poll"))
    return Call(name, parameters, kinds, hints["return"], *flags, doc)


def repeatable(method: Method) -> Method:
    """Mark an interface method that is safe to run again on a retry. The server does not cache its (large) replies."""
    method.repeatable = True  # type: ignore[attr-defined]
    return method


def long_poll(method: Method) -> Method:
    """Mark an interface method whose answer the server holds back while it equals the last argument.

    The server answers once the result differs, or after `HOLD_SECONDS` of `common/rpc/server.py`. It asks the target
    again and again from its I/O thread, so the method must return at once: it may use neither disk nor locks.
    """
    method.long_poll = True  # type: ignore[attr-defined]
    return method

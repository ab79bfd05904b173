"""Docs of dataclass fields for `help()`: the string under each field, which Python does not keep at run time."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from itertools import pairwise
from typing import TypeVar

__all__ = ["document_fields"]

T = TypeVar("T")


def document_fields(cls: type[T]) -> type[T]:
    """Decorate a dataclass made with `slots=True`, so that `help()` and `inspect.getdoc()` show its fields' docs."""
    # inspect takes the docs of slots from __slots__ where that is a dict.
    cls.__slots__ = _FieldDocs(cls)  # type: ignore[attr-defined]
    return cls


class _FieldDocs(dict[str, str | None]):
    """The docs by field name, read from the source when the first one is asked for, so that an import costs nothing."""

    def __init__(self, cls: type) -> None:
        super().__init__(dict.fromkeys(field.name for field in dataclasses.fields(cls)))
        self._cls: type | None = cls

    def __getitem__(self, name: str) -> str | None:
        if self._cls is not None:
            cls, self._cls = self._cls, None
            with contextlib.suppress(OSError, TypeError):  # there is no source
                self.update(_read(inspect.getsource(cls)))
        return super().__getitem__(name)


def _read(source: str) -> dict[str, str]:
    """Return the docs of a class's fields, given its source: a class at the margin of its module."""
    import ast  # noqa: PLC0415 - costs milliseconds, and only help() needs it

    docs = {}
    statements = (
        statement for node in ast.parse(source).body if isinstance(node, ast.ClassDef) for statement in node.body
    )
    for field, below in pairwise(statements):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            docs[field.target.id] = inspect.cleandoc(below.value.value)
    return docs

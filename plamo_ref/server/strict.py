"""The base of every part of a request: strict about types, and about names.

Invariant: a field is known, or `elsewhere.py` says what becomes of it, or it is refused; the
document says the same.
"""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from plamo_ref.server.known import Table, checked


def _describe(schema: dict[str, Any], part: Any) -> None:
    """Into the document: what is taken of the fields that belong elsewhere."""
    schema["properties"] |= {name: entry.schema for name, entry in part.ELSEWHERE.items()}


class Strict(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(
        strict=True, extra="forbid", protected_namespaces=(), json_schema_extra=_describe
    )
    ELSEWHERE: ClassVar[Table] = {}

    @model_validator(mode="before")
    @classmethod
    def _know(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return checked(data, known, cls.ELSEWHERE)

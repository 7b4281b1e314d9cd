"""The base of every part of a request: strict about types and names, and quick to say no.

Invariant: a field is known, or `elsewhere.py` says what becomes of it, or it is refused; however
long a list or a map is, validating it stops at its first mistake, and at its limit. The document
says the same.

Pydantic collects every mistake: of a list with two million wrong items, gigabytes of complaints.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from plamo_ref.server.edge.known import Table, checked

MAX_ITEMS = 1 << 13  # of a list, and entries of a map, where nothing else is said
NUMBERS = ("int", "float")


def _describe(schema: dict[str, Any], part: Any) -> None:
    """Into the document: what is taken of the fields that belong elsewhere."""
    schema["properties"] |= {name: entry.schema for name, entry in part.ELSEWHERE.items()}


def _bound(schema: Any) -> None:
    """Bound every list and map in a schema. Lists of numbers, as prompts are, may be as long as a
    body lets them."""
    if isinstance(schema, list | tuple):
        for part in schema:
            _bound(part)
        return
    if not isinstance(schema, dict):
        return
    for name, part in schema.items():
        if name not in ("metadata", "serialization"):
            _bound(part)
    if schema.get("type") == "list":
        schema["fail_fast"] = True
    numbers = schema.get("items_schema", {}).get("type") in NUMBERS
    if schema.get("type") in ("list", "dict") and not numbers:
        most = schema.setdefault("max_length", MAX_ITEMS)
        checked = core_schema.no_info_before_validator_function(_at_most(most), schema.copy())
        schema.clear()
        schema.update(checked)


def _at_most(most: int) -> Callable[[Any], Any]:
    """Pydantic's own check of the length comes after all items have been validated."""

    def check(value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > most:
            raise ValueError(f"there are {len(value):,} items, at most {most:,} may be")
        return value

    return check


class Strict(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(
        strict=True, extra="forbid", protected_namespaces=(), json_schema_extra=_describe
    )
    ELSEWHERE: ClassVar[Table] = {}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _bound(schema)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _know(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return checked(data, known, cls.ELSEWHERE)

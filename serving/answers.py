"""Refusals: one shape for every answer that is not 2xx, with a remedy and never with what was sent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Final, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, FailFast, ValidationError, create_model
from starlette.requests import Request
from starlette.responses import JSONResponse

from serving.context import request_id
from serving.schemas import FieldProblem, explain_errors

R = TypeVar("R", bound=BaseModel)
MANY_FIELDS: Final = 20_000
"""More errors than this are counted, not described."""
LONG_BODY: Final = 256 * 1024
"""Bytes up to which everything wrong with a body is found. A longer one is read up to its first item with errors: eight
megabytes of nothing but errors would take seconds, and gigabytes to hold them."""


class Refusal(Exception):
    """An answer other than 2xx."""

    def __init__(
        self, status: int, code: str, message: str, remedy: str, fields: Sequence[FieldProblem] = ()
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message
        self.remedy = remedy
        self.fields = list(fields)

    def problem(self) -> dict[str, Any]:
        """What is wrong, as JSON."""
        return {
            "code": self.code,
            "message": self.message,
            "remedy": self.remedy,
            "fields": [field.model_dump() for field in self.fields],
        }

    def answer(self) -> JSONResponse:
        """The refusal as the caller gets it."""
        body = {"error": self.problem(), "request_id": request_id.get()}
        headers = {"WWW-Authenticate": 'Bearer realm="wardcast"'} if self.status == 401 else {}
        return JSONResponse(body, status_code=self.status, headers=headers)


def parse(contract: type[R], body: bytes) -> R:
    """Read a request body as its contract.

    Raises
    ------
    Refusal
        400 where it is not JSON, 422 where fields are wrong; names them, never their content.
    """
    whole = len(body) <= LONG_BODY
    try:
        return cast(R, (contract if whole else _hasty(contract)).model_validate_json(body))
    except ValidationError as error:
        count = error.error_count()
        details = error.errors(include_url=False) if count <= MANY_FIELDS else []
    if details and details[0]["type"] == "json_invalid":
        raise Refusal(
            400,
            "invalid_json",
            "The body is not JSON that can be read.",
            "Send one JSON object, no deeper than the contract.",
        )
    many = FieldProblem(
        field="body", problem=f"{count:,} fields have problems", remedy="See /openapi.json for the contract."
    )
    fields = explain_errors(details, contract) if details else [many]
    raise Refusal(
        422,
        "invalid_input",
        unusable(count) if whole else f"At least {unusable(count)}",
        "Mend the fields named here."
        if whole
        else "Mend the fields named here; what follows them was not read.",
        fields,
    )


def unusable(count: int) -> str:
    """How many fields of a request cannot be used, as a sentence."""
    return f"{count:,} field{'' if count == 1 else 's'} cannot be used."


@cache
def _hasty(contract: type[BaseModel]) -> type[BaseModel]:
    """The contract, giving up on a list at its first item that has errors."""
    lists: dict[str, Any] = {}
    for name, field in contract.model_fields.items():
        if get_origin(field.annotation) is list:
            item = get_args(field.annotation)[0]
            item = _hasty(item) if isinstance(item, type) and issubclass(item, BaseModel) else item
            lists[name] = (Annotated[list[item], FailFast()], field)  # type: ignore[valid-type]
    return create_model(contract.__name__, __base__=contract, **lists) if lists else contract


def too_many_events(found: int, limit: int, field: str = "events") -> Refusal:
    """More items than one call may carry."""
    return Refusal(
        413,
        f"too_many_{field}",
        f"{found:,} {field} in one call; the limit is {limit:,}.",
        f"Send them in calls of at most {limit:,}, oldest first. The limit is WARDCAST_MAX_EVENTS.",
        [FieldProblem(field=field, problem=f"holds {found:,} items", remedy=f"At most {limit:,} a call.")],
    )


def not_signed_in() -> Refusal:
    """Nobody we know is calling. The same words whatever is wrong, so that nobody learns how near they came."""
    return Refusal(
        401, "not_signed_in", "This needs a token.", "Send Authorization: Bearer, or open /sign-in."
    )


def too_large(limit: int) -> Refusal:
    """More bytes than one call may carry."""
    return Refusal(
        413,
        "body_too_large",
        f"The body is larger than {limit:,} bytes.",
        "Send fewer events a call. The limit is WARDCAST_MAX_BODY_BYTES.",
    )


def media_type(request: Request) -> str:
    """What the caller says the body is."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_json(request: Request) -> None:
    """Refuse bodies of another type, or packed.

    Raises
    ------
    Refusal
        415.
    """
    if (
        media_type(request) != "application/json"
        or request.headers.get("content-encoding", "identity") != "identity"
    ):
        raise Refusal(
            415,
            "unsupported_media_type",
            "The body must be JSON, not packed.",
            "Send Content-Type: application/json and no Content-Encoding.",
        )

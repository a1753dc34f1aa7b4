"""What CDS clients send: requests for cards and feedback on them, as CDS Hooks 2.0 says.

Fields that are not known here are left alone, since EHRs add their own; those that are must be right.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

FhirId = Annotated[str, Field(pattern=r"^[A-Za-z0-9\-.]{1,64}$")]
Text = Annotated[str, Field(min_length=1, max_length=2048)]
Hook = Literal["patient-view", "encounter-discharge"]


class Sent(BaseModel):
    """What every request of a CDS client has in common."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)


class Authorization(Sent):
    """A token for the client's FHIR server. It is used for this request, and neither kept nor logged."""

    access_token: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,8192}$", repr=False)]
    token_type: Literal["Bearer"]
    expires_in: int
    scope: str
    subject: str
    patient: str | None = None


class Context(Sent):
    """Where in the EHR the user is."""

    userId: Text
    patientId: FhirId
    encounterId: FhirId | None = None


class HookRequest(Sent):
    """A CDS client asks for cards."""

    hook: Hook
    hookInstance: UUID
    context: Context
    fhirServer: Text | None = None
    fhirAuthorization: Authorization | None = None
    prefetch: dict[str, Any] = Field(
        {}, description="`patient` and, where the context has an encounterId, `encounter`; see the discovery."
    )
    extension: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> HookRequest:
        if self.fhirAuthorization is not None and self.fhirServer is None:
            raise ValueError(
                "fhirServer is missing, though fhirAuthorization is there|Send both, or neither."
            )
        if self.hook == "encounter-discharge" and self.context.encounterId is None:
            raise ValueError("encounterId is missing from the context|encounter-discharge always has one.")
        return self


class Coding(Sent):
    """A code of a system."""

    code: Annotated[str, Field(min_length=1, max_length=128)]
    system: Annotated[str, Field(max_length=256)] | None = None


class OverrideReason(Sent):
    """Why a card was not followed: one of the card's reasons, words, or both."""

    reason: Coding | None = None
    userComment: Annotated[str, Field(max_length=2000)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> OverrideReason:
        if self.reason is None and not self.userComment:
            raise ValueError(
                "reason is missing, and so is userComment|Send one of them, or no overrideReason."
            )
        return self


class AcceptedSuggestion(Sent):
    """A suggestion that was taken."""

    id: Text


class CardFeedback(Sent):
    """What a user did with one card."""

    card: UUID
    outcome: Literal["accepted", "overridden"]
    outcomeTimestamp: AwareDatetime
    acceptedSuggestions: list[AcceptedSuggestion] = []
    overrideReason: OverrideReason | None = None
    extension: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> CardFeedback:
        if self.outcome == "accepted" and not self.acceptedSuggestions:
            raise ValueError("acceptedSuggestions is missing|An accepted card names what was accepted.")
        return self


class FeedbackRequest(Sent):
    """What users did with cards, any number at once."""

    feedback: Annotated[list[CardFeedback], Field(min_length=1, max_length=1000)]


CDS_REQUESTS: Final = (HookRequest, FeedbackRequest)

"""What can go wrong between the agent and the API server, on one page."""

from __future__ import annotations

from fusevol.model.errors import FusevolError


class KubernetesError(FusevolError):
    """Everything below; str() is one line for people."""


class CredentialsError(KubernetesError):
    """Credentials cannot be had: a broken kubeconfig, an exec plugin that failed."""


class Disconnected(KubernetesError):
    """A connection or a stream ended, or was silent for too long, before the answer was complete.

    `processed` is false where the API server has certainly not acted on the request: it may be sent again.
    """

    def __init__(self, message: str, *, processed: bool = True) -> None:
        super().__init__(message)
        self.processed = processed


class ApiError(KubernetesError):
    """The API server said no. str() is the message of its Status object; `retry_after` is in seconds."""

    def __init__(self, code: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @property
    def not_found(self) -> bool:
        return self.code == 404

    @property
    def forbidden(self) -> bool:
        return self.code == 403

    @property
    def gone(self) -> bool:
        """The resourceVersion is not known any more: everything is to be read anew."""
        return self.code == 410 or self.reason in ("Expired", "Gone")


class Undecodable(KubernetesError):
    """The answer is not what the API promises. The message names the field, never a value."""

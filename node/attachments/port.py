"""The Describer port: what the peer asks of whatever looks at attachments.

Implementations: `nsllm.node.attachments.host` (a worker process) and `TablesOnly` (here; for simulations, which have no
processes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from nsllm.node.attachments.attached import Attached
from nsllm.node.attachments.tables import TableError, describe_table
from nsllm.node.errors import InvalidRequestError

How = Literal["ocr+labels", "table", "json", "native"]


@dataclass(frozen=True, slots=True)
class Description:
    """An attachment in words."""

    text: str
    how: How


class Describer(Protocol):
    """Looks at attachments. The same bytes give the same answer, on the same machine."""

    async def describe(self, attached: Attached) -> Description:
        """An attachment in words, for a model that reads.

        Raises:
            InvalidRequestError: it cannot be used, or this peer has not what it takes; names the field.
            OverloadedError: too many wait.
        """
        ...

    async def prepare(self, attached: Attached, max_bytes: int) -> bytes:
        """A picture for a model that sees: upright, in RGB, of bounded size, as a PNG file of at most `max_bytes`.

        Raises as `describe`.
        """
        ...


class TablesOnly:
    """Describes tables at once, in this process, and no pictures."""

    async def describe(self, attached: Attached) -> Description:
        """A table in words."""
        if attached.kind == "image":
            raise _no_pictures(attached)
        try:
            text, how = describe_table(attached.data, attached.format)
        except TableError as error:
            raise InvalidRequestError(str(error), param=attached.at) from None
        return Description(text, how)

    async def prepare(self, attached: Attached, max_bytes: int) -> bytes:
        """Raises: there are no pictures here."""
        del max_bytes
        raise _no_pictures(attached)


def _no_pictures(attached: Attached) -> InvalidRequestError:
    return InvalidRequestError("this peer does not look at pictures", hint="send text", param=attached.at)

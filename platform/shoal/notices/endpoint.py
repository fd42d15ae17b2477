"""A metadata service over HTTP, with a limit on the whole of each question: connecting, headers, body.

A limit on single reads would not do: a server that sends a byte now and then would hold the watcher for ever. Proxies
that the environment names are not used, since the service is on this machine's own link.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shoal.errors import ConfigError
from shoal.notices.notice import Answer, Request

if TYPE_CHECKING:
    import aiohttp

LINK_LOCAL = "http://169.254.169.254"
"""Where AWS, Google Cloud and Azure all have it, by address: name servers may hang, too."""
ANSWER_S = 3.0
"""Longest wait for an answer, beyond what the service may keep it back."""
MOST_BYTES = 1 << 18


class Endpoint:
    """Asks one service. Use it as an asynchronous context."""

    def __init__(self, base: str = LINK_LOCAL, *, answer_s: float = ANSWER_S) -> None:
        """`base`: `http://host[:port]`. Raises ConfigError for anything else."""
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ConfigError(f"{base!r} is no address of a metadata service; give one such as {LINK_LOCAL}")
        self.base, self._answer_s = base.rstrip("/"), answer_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Endpoint:
        import aiohttp

        self._session = aiohttp.ClientSession(trust_env=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def ask(self, request: Request) -> Answer:
        """See `Ask`."""
        import aiohttp

        assert self._session is not None, "used outside its context"
        limit = aiohttp.ClientTimeout(total=self._answer_s + request.holds_s)
        try:
            async with self._session.request(
                request.method, self.base + request.path, headers=request.headers, timeout=limit, allow_redirects=False
            ) as response:
                body = await response.content.read(MOST_BYTES)
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, body.decode(errors="replace"), headers)
        except asyncio.TimeoutError:  # not the built-in one before Python 3.11
            raise TimeoutError(f"{self.base} did not answer within {limit.total:g}s") from None
        except aiohttp.ClientError as error:
            raise ConnectionError(f"{self.base} does not answer: {error or type(error).__name__}") from None

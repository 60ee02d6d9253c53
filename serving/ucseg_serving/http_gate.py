"""A gate in front of the HTTP port of a local Triton: what would end the server does not reach it.

Everything else passes while it arrives, in both directions.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from ucseg_runtime.errors import type_and_place
from ucseg_serving.extra import extra_missing
from ucseg_serving.json_inputs import MOST_BYTES, RefusedRequestError, check_json_inputs

try:
    from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
    from aiohttp.http import HttpProcessingError
    from yarl import URL
except ImportError as error:
    raise extra_missing() from error

_HEADER_LENGTH = "Inference-Header-Content-Length"
_LONGEST_LENGTH = 20
_INFER = "/infer"
_OF_ONE_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "expect", "host"})
_OF_A_COMPRESSED_BODY = frozenset({"content-encoding", "content-length"})
_CODINGS = ("gzip", "deflate", "identity")
"""Those of Triton."""
_NOT_TO_BE_ADDED = ("User-Agent", "Accept", "Accept-Encoding")
_CONTENT_TYPE = "Content-Type"
_BYTES = "application/octet-stream"
"""Of every body: Triton looks at no type, but its HTTP library takes forms apart, and ends the server at 8 MB."""
_PIECE_BYTES = 1 << 20
_MOST_BODY_BYTES = (1 << 31) - 1
"""Triton's HTTP library counts no further."""
_UNFINISHED_S = 1.0
"""For requests whose clients do not go on when the gate ends, which is after Triton."""
_IDLE_S = 3600.0
"""For connections of clients that send nothing."""
_KEPT_S = 1.0
"""For connections to Triton between two requests: it waits for them when it is to end."""

_Started = Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]


class HttpGate:
    """Whether requests pass; at first they do not."""

    def __init__(self) -> None:
        self.is_open = False

    def open(self) -> None:
        """Let requests pass."""
        self.is_open = True

    def close(self) -> None:
        """Refuse new requests, and let those in work go on: a Triton that is to end waits for its connections."""
        self.is_open = False


@contextmanager
def http_gate(listener: socket.socket, triton: str) -> Iterator[HttpGate]:
    """Answer requests for the length of a ``with`` block, in a thread of its own; once it is opened, pass them on.

    Args:
        listener: At the port that clients use; closed at the end.
        triton: ``http://HOST:PORT`` of the server behind the gate.
    """
    started: _Started = Future()
    gate = HttpGate()
    # It keeps nobody from ending, should a signal come before it can be told to stop.
    thread = threading.Thread(target=_run, args=(listener, triton, gate, started), name="http-gate", daemon=True)
    thread.start()
    try:
        started.result()
        yield gate
    finally:
        loop, stop = started.result()
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def _run(listener: socket.socket, triton: str, gate: HttpGate, started: _Started) -> None:
    try:
        # Of one text at a time, also when its client has gone: it takes many times its size while it is read.
        with ThreadPoolExecutor(1, "http-gate-json") as reader:
            asyncio.run(_serve(listener, triton, gate, reader, started))
    finally:
        started.cancel()  # nobody waits for a gate that could not start


async def _serve(
    listener: socket.socket, triton: str, gate: HttpGate, reader: ThreadPoolExecutor, started: _Started
) -> None:
    stop = asyncio.Event()
    async with ClientSession(
        connector=TCPConnector(limit=0, keepalive_timeout=_KEPT_S),
        timeout=ClientTimeout(total=None),  # the client and the queue policy say how long an answer may take
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=_NOT_TO_BE_ADDED,
        read_bufsize=_PIECE_BYTES,
    ) as session:
        application = web.Application()
        passage = _Passage(session, triton, gate, reader)
        for method in ("GET", "POST"):
            application.router.add_route(method, "/{path:.*}", passage.answer)
        runner = web.AppRunner(
            application,
            access_log=None,
            logger=_LOGGER,
            handler_cancellation=True,  # a client that goes away cancels its request in the server
            keepalive_timeout=_IDLE_S,
            read_bufsize=_PIECE_BYTES,
            shutdown_timeout=_UNFINISHED_S,
        )
        await runner.setup()
        await web.SockSite(runner, listener).start()
        started.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()
        await runner.cleanup()


def _discreet(record: logging.LogRecord) -> bool:
    """Keep of an error what quotes no request; of a malformed request nothing, since its sender is told."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None or isinstance(error, HttpProcessingError | web.RequestPayloadError):
        return False
    record.msg, record.args = "a request over HTTP could not be passed on: %s", (type_and_place(error),)
    record.exc_info = None
    return True


_LOGGER = logging.getLogger(__name__)
_LOGGER.addFilter(_discreet)


class _Passage:
    """From a client to Triton and back."""

    def __init__(self, session: ClientSession, triton: str, gate: HttpGate, reader: ThreadPoolExecutor) -> None:
        self._session = session
        self._triton = URL(triton)
        self._gate = gate
        self._reader = reader

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """What Triton answers, or why the request was not passed on."""
        if not self._gate.is_open:
            return _refusal(503, "the server behind this port starts, or stops")
        try:
            return await self._passed_on(request, await self._checked_text(request))
        except RefusedRequestError as error:
            return _refusal(400, str(error))
        except web.RequestPayloadError:
            return _refusal(400, "the body of the request cannot be read")
        except ClientError:
            return _refusal(502, "the server behind this port does not answer")

    async def _checked_text(self, request: web.Request) -> bytes:
        """The JSON that a request of the KServe v2 protocol begins with; empty where there is none."""
        if len(request.headers.getall("Content-Encoding", [])) > 1 or _coding(request) not in _CODINGS:
            raise RefusedRequestError(f"Content-Encoding is not one of {', '.join(_CODINGS)}")
        if (request.content_length or 0) > _MOST_BODY_BYTES:
            raise RefusedRequestError(
                f"the body has more than {_MOST_BODY_BYTES} bytes; use gRPC, or send less at a time"
            )
        text = await _json_text(request) if request.method == "POST" else b""
        if text:
            await asyncio.get_running_loop().run_in_executor(self._reader, check_json_inputs, text)
        return text

    async def _passed_on(self, request: web.Request, text: bytes) -> web.StreamResponse:
        async with self._session.request(
            request.method,
            self._url(request),
            headers=_headers_for_triton(request),
            data=_body(text, request) if request.body_exists else None,
            allow_redirects=False,
        ) as answer:
            return await _copied(answer, request)

    def _url(self, request: web.Request) -> URL:
        asked = request.rel_url
        if not asked.raw_path.startswith("/"):
            raise RefusedRequestError("the request asks for no path")
        return URL.build(
            scheme="http",
            host=self._triton.host or "",
            port=self._triton.port,
            path=asked.raw_path,
            query_string=asked.raw_query_string,
            encoded=True,
        )


def _refusal(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)


async def _json_text(request: web.Request) -> bytes:
    lengths = request.headers.getall(_HEADER_LENGTH, [])
    if not lengths or not request.rel_url.raw_path.endswith(_INFER):  # elsewhere Triton does not look at it
        return await _whole_body(request)
    if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdecimal()) or len(lengths[0]) > _LONGEST_LENGTH:
        raise RefusedRequestError(f"{_HEADER_LENGTH} is no number of bytes of the JSON header")
    if int(lengths[0]) > MOST_BYTES:
        raise _too_long()
    try:
        return await request.content.readexactly(int(lengths[0]))
    except asyncio.IncompleteReadError as error:
        raise RefusedRequestError(f"the request is shorter than its {_HEADER_LENGTH}") from error


async def _whole_body(request: web.Request) -> bytes:
    text = bytearray()
    async for piece in request.content.iter_any():
        text += piece
        if len(text) > MOST_BYTES:
            raise _too_long()
    return bytes(text)


def _too_long() -> RefusedRequestError:
    return RefusedRequestError(f"more than {MOST_BYTES >> 20} MiB of JSON; send tensors as bytes with binary_data_size")


def _headers_for_triton(request: web.Request) -> list[tuple[str, str]]:
    left_out = _OF_ONE_CONNECTION | {_CONTENT_TYPE.lower()}
    if _coding(request) != "identity":  # the gate has unpacked the body
        left_out |= _OF_A_COMPRESSED_BODY
    return [*_without(request.headers, left_out), (_CONTENT_TYPE, _BYTES)]


def _coding(request: web.Request) -> str:
    return request.headers.get("Content-Encoding", "identity")


def _without(headers: Mapping[str, str], names: frozenset[str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in names]


async def _body(text: bytes, request: web.Request) -> AsyncIterator[bytes]:
    yield text
    passed = len(text)
    async for piece in request.content.iter_any():
        passed += len(piece)
        if passed > _MOST_BODY_BYTES:  # unpacked, or in pieces
            raise web.RequestPayloadError
        yield piece


async def _copied(answer: ClientResponse, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(
        status=answer.status, reason=answer.reason, headers=_without(answer.headers, _OF_ONE_CONNECTION)
    )
    await response.prepare(request)
    try:
        async for piece in answer.content.iter_any():
            await response.write(piece)
    except ClientError:  # half an answer must not look like a whole one
        if request.transport is not None:
            request.transport.abort()
    return response

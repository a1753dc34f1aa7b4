"""The MLLP listener: frames in, the log, answers out.

HL7 v2 Transport: MLLP release 1, which puts ``VT message FS CR`` on a stream. Real senders leave out the CR, send bytes
before the VT, break off, or send two messages at once; none of it may be met with silence or keep the listener waiting
for ever. Each message is answered once it lies in the log, synchronised to disk, and in the order of its connection.
Messages of all connections that wait at the same time are written together, so that a disk that takes a hundred
synchronisations a second still takes thousands of messages.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import re
import socket
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from serving.clock import to_us
from serving.ingest import acks
from serving.ingest.acks import KEPT, Letter
from serving.settings import Settings
from serving.store.messages import MessageLog, Stored

logger = logging.getLogger("wardcast")

VT: Final = b"\x0b"
FS: Final = 0x1C
READ: Final = 1 << 18
IDLE_S: Final = 30.0
"""How long a frame may pause."""
FRAME_S: Final = 600.0
"""How long a frame may take, however slowly it drips."""
GRACE_S: Final = 0.2
"""How long the CR after FS is waited for; without it the FS is taken for the end all the same."""
MOST_CONNECTIONS: Final = 256
MOST_WAITING: Final = 64
"""Messages of one connection that may wait for their answer before more is read of it."""
GROUP: Final = 1000
GROUP_BYTES: Final = 64 << 20
MOST_BYTES: Final = 256 << 20
"""Bytes of all connections that may wait for the log before more is read."""
LITTLE, BIG = b"\x1c\x00\r\x00", b"\x00\x1c\x00\r"
WIDE_END: Final = {b"\xff\xfe": LITTLE, b"M\x00": LITTLE, b"\xfe\xff": BIG, b"\x00M": BIG}
START: Final = re.compile(rb"\x0b(?=\xef\xbb\xbf|\xff\xfe|\xfe\xff|M\x00|\x00M|MSH|\x1c)")


@dataclass(frozen=True, slots=True)
class Frame:
    """The content of one frame: its beginning, its size and hash; ``fault`` where the frame itself is wrong."""

    content: bytes
    size: int
    digest: bytes
    fault: str = ""


@dataclass(slots=True)
class Framer:
    """Frames out of a stream of bytes. Holds at most ``limit`` bytes of one frame, and :data:`KEPT` of a larger one."""

    limit: int
    buffer: bytearray = field(default_factory=bytearray)
    junk: int = 0
    _searched: int = 0
    _inside: bool = False
    _fresh: bool = False
    _size: int = 0
    _hash: hashlib._Hash | None = None
    _head: bytes = b""

    @property
    def partial(self) -> bool:
        """Whether something has come that is no whole frame yet."""
        return self._inside or self._hash is not None or bool(bytes(self.buffer).strip(b"\r\n\t \x00"))

    @property
    def may_have_ended(self) -> bool:
        """Whether the last byte is an FS whose CR may never come."""
        return bool(self.buffer) and self.buffer[-1] == FS

    def feed(self, data: bytes) -> list[Frame]:
        """Add bytes; the frames that they complete."""
        self.buffer += data
        frames: list[Frame] = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def finish(self) -> list[Frame]:
        """Nothing more comes: what is there is a frame if it ends with FS, else one that was cut."""
        if self.may_have_ended:
            frames = self.feed(b"\r")
            if frames:
                return frames
        if not self.partial:
            return []
        return [self._close(len(self.buffer), 0, "frame_cut")]

    def _next(self) -> Frame | None:
        if not self._inside and self._hash is None:
            self._open()
        if self._fresh and self.buffer:
            self._fresh = False
            if self.buffer.startswith(b"\x00"):
                del self.buffer[:1]
        end = self._end()
        again = START.search(self.buffer, self._searched, len(self.buffer) if end is None else end[0])
        if again is not None and (self._inside or self._hash is not None):
            return self._close(again.start(), 0, "frame_cut")
        if end is not None:
            if not self._inside and not self.buffer[: end[0]].strip(b"\r\n\t \x00") and self._hash is None:
                # An end without a beginning or a content: somebody's stray bytes, yet a sender may wait.
                return self._close(*end, "empty_frame")
            return self._close(*end)
        self._spill()
        self._searched = max(0, len(self.buffer) - 4)
        return None

    def _open(self) -> None:
        """Find the VT that begins a frame; what stands before it is junk."""
        self.buffer = self.buffer.lstrip(b"\r\n\t ")
        start = self.buffer.find(VT)
        first_end = self.buffer.find(FS)
        if start >= 0 and (first_end < 0 or start < first_end):
            self.junk += len(self.buffer[:start].strip(b"\x00"))
            # In UTF-16 a VT has a second byte: before it, or still to come.
            self._fresh = self.buffer[start - 1 : start] != b"\x00"
            del self.buffer[: start + 1]
            self._inside, self._searched = True, 0
        elif not self.buffer:
            self._searched = 0

    def _end(self) -> tuple[int, int] | None:
        """Where the content ends and where the next begins."""
        wide = self._wide()
        place = self.buffer.find(FS, self._searched)
        while place >= 0:
            if wide:
                begin = place - wide.index(FS)
                if begin >= 0 and self.buffer.startswith(wide, begin):
                    return begin, begin + 4
            after = bytes(self.buffer[place + 1 : place + 2])
            if after == b"\r":
                return place, place + 2
            if after in (b"\n", VT) and not wide:
                return place, place + 1
            place = self.buffer.find(FS, place + 1)
        return None

    def _wide(self) -> bytes:
        """How a frame of UTF-16 ends that is UTF-16 itself; empty for other contents."""
        return WIDE_END.get((self._head or bytes(self.buffer[:2]))[:2], b"")

    def _spill(self) -> None:
        """Let go of the middle of a frame that is too large."""
        if len(self.buffer) <= self.limit and self._hash is None:
            return
        if self._hash is None:
            self._hash, self._head = hashlib.sha256(), bytes(self.buffer[:KEPT])
        keep = min(4, len(self.buffer))
        self._hash.update(self.buffer[:-keep])
        self._size += len(self.buffer) - keep
        del self.buffer[:-keep]

    def _close(self, end: int, after: int, fault: str = "") -> Frame:
        content = bytes(self.buffer[:end])
        del self.buffer[: max(end, after)]
        if self._hash is not None:
            self._hash.update(content)
            frame = Frame(self._head, self._size + len(content), self._hash.digest(), fault or "too_large")
        elif len(content) > self.limit:
            digest = hashlib.sha256(content).digest()
            frame = Frame(content[:KEPT], len(content), digest, fault or "too_large")
        else:
            frame = Frame(content, len(content), hashlib.sha256(content).digest(), fault)
        self._searched, self._inside, self._size, self._hash, self._head = 0, False, 0, None, b""
        if fault == "frame_cut" and not frame.content.strip(b"\r\n\t \x00"):
            return Frame(frame.content, frame.size, frame.digest, "empty_frame")
        return frame


class Committer:
    """Writes messages to the log, those of all connections together, and says when they are durable."""

    def __init__(self, log: MessageLog, loop: asyncio.AbstractEventLoop) -> None:
        self._log = log
        self._loop = loop
        self._waiting: list[tuple[Letter, asyncio.Future[Stored | None]]] = []
        self._some = threading.Condition()
        self._ended = False
        self.waiting_bytes = 0
        self._thread = threading.Thread(target=self._run, name="message log", daemon=True)
        self._thread.start()

    def put(self, letter: Letter) -> asyncio.Future[Stored | None]:
        """Hand over a message; the future has its place once it is durable, None where it could not be written."""
        future: asyncio.Future[Stored | None] = self._loop.create_future()
        with self._some:
            self._waiting.append((letter, future))
            self.waiting_bytes += len(letter.arrival.body)
            self._some.notify()
        return future

    def close(self) -> None:
        """Write what waits, and end."""
        with self._some:
            self._ended = True
            self._some.notify()
        self._thread.join()

    def _run(self) -> None:
        while group := self._group():
            stored = self._write([letter for letter, _ in group])
            self._loop.call_soon_threadsafe(_settle, [future for _, future in group], stored)

    def _group(self) -> list[tuple[Letter, asyncio.Future[Stored | None]]]:
        """Everything that waits, as far as one transaction should go; empty at the end."""
        with self._some:
            while not self._waiting and not self._ended:
                self._some.wait()
            size, n = 0, 0
            for letter, _ in self._waiting[:GROUP]:
                size += len(letter.arrival.body)
                if n and size > GROUP_BYTES:
                    break
                n += 1
            group, self._waiting = self._waiting[:n], self._waiting[n:]
            self.waiting_bytes -= sum(len(letter.arrival.body) for letter, _ in group)
            return group

    def _write(self, letters: Sequence[Letter]) -> list[Stored | None]:
        try:
            now = to_us(datetime.now(UTC))
            return list(self._log.add([letter.arrival for letter in letters], now))
        except Exception as error:  # whatever it is, nothing was written, and every sender must hear of it
            logger.error("mllp problem=not_stored kind=%s messages=%d", type(error).__name__, len(letters))
            return [None] * len(letters)


def _settle(futures: Sequence[asyncio.Future[Stored | None]], stored: Sequence[Stored | None]) -> None:
    for future, place in zip(futures, stored, strict=True):
        if not future.done():
            future.set_result(place)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Listener:
    """One port that takes HL7 v2 messages.

    Parameters
    ----------
    settings : ``mllp_host``, ``mllp_port`` (0 takes any free one), ``mllp_max_bytes``, ``mllp_senders``, TLS files
    log : where messages are kept
    """

    def __init__(self, settings: Settings, log: MessageLog) -> None:
        self._settings = settings
        self._log = log
        self.networks, self.names = senders(settings.mllp_senders)
        self._server: asyncio.Server | None = None
        self._committer: Committer | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Begin to listen; returns the port."""
        self._committer = Committer(self._log, asyncio.get_running_loop())
        self._server = await asyncio.start_server(
            self._connected, self._settings.mllp_host, self._settings.mllp_port,
            ssl=_tls(self._settings), limit=READ, backlog=256,
        )  # fmt: skip
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """End the connections, once what they sent is written."""
        if self._server is not None:
            self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        if self._committer is not None:
            await asyncio.to_thread(self._committer.close)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or self._committer is None:
            return
        self._open.add(task)
        try:
            allowed = self._allows(writer)
            fault = "" if allowed else "sender"
            fault = fault or ("busy" if len(self._open) > MOST_CONNECTIONS else "")
            await Conversation(self._settings, self._committer, self.names, fault).run(reader, writer)
        except (ConnectionError, asyncio.CancelledError, ssl.SSLError):
            pass
        except Exception as error:  # one connection's failure is not the others'
            logger.error("mllp problem=connection_failed kind=%s", type(error).__name__)
        finally:
            self._open.discard(task)
            writer.close()

    def _allows(self, writer: asyncio.StreamWriter) -> bool:
        peer = writer.get_extra_info("peername")
        sock = writer.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if not self.networks:
            return True
        return any(ipaddress.ip_address(peer[0]) in network for network in self.networks)


class Conversation:
    """One connection: what it sends is read, written to the log and answered, in its order."""

    def __init__(
        self, settings: Settings, committer: Committer, names: Sequence[str], fault: str = ""
    ) -> None:
        self._committer = committer
        self._names = names
        self._fault = fault
        self._framer = Framer(settings.mllp_max_bytes)
        self._letters: asyncio.Queue[tuple[Letter, asyncio.Future[Stored | None]] | None]
        self._letters = asyncio.Queue(MOST_WAITING)

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the connection until it ends."""
        answering = asyncio.create_task(self._answer(writer))
        try:
            await self._read(reader)
        finally:
            await self._letters.put(None)
            await answering

    async def _read(self, reader: asyncio.StreamReader) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while True:
            while self._committer.waiting_bytes > MOST_BYTES:
                await asyncio.sleep(0.01)
            frames, ended = await self._more(reader, begun + FRAME_S - loop.time())
            for frame in frames:
                fault = self._fault or frame.fault
                letter = acks.read(frame.content, self._names, fault, frame.size, frame.digest)
                await self._letters.put((letter, self._committer.put(letter)))
            if ended:
                return
            if frames or not self._framer.partial:
                begun = loop.time()

    async def _more(self, reader: asyncio.StreamReader, left: float) -> tuple[list[Frame], bool]:
        """The frames that the next bytes complete, and whether the connection is over."""
        framer = self._framer
        patience = None
        if framer.partial:
            patience = GRACE_S if framer.may_have_ended else max(0.01, min(IDLE_S, left))
        try:
            data = await asyncio.wait_for(reader.read(READ), patience)
        except TimeoutError:
            over = not framer.may_have_ended
            return framer.finish(), over
        except ConnectionError:
            return framer.finish(), True
        return (framer.feed(data), False) if data else (framer.finish(), True)

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        """Answer in the order in which the messages came."""
        while (waiting := await self._letters.get()) is not None:
            letter, future = waiting
            stored = await future
            now = datetime.now(UTC)
            if stored is None:
                lost = replace(letter, fault=acks.FAULTS["not_stored"])
                said = acks.answer(lost, now)
            else:
                said = acks.answer(letter, now, repeated=stored.repeated, conflict=stored.conflict)
            if said and not writer.is_closing():
                writer.write(VT + said + b"\x1c\r")
                if self._letters.empty():
                    try:
                        await writer.drain()
                    except ConnectionError:
                        writer.close()


def senders(entries: Sequence[str]) -> tuple[list[Network], list[str]]:
    """Allowed addresses (networks) and names (MSH-3, or MSH-3@MSH-4) among the entries of the setting."""
    networks: list[Network] = []
    names: list[str] = []
    for entry in entries:
        try:
            networks.append(ipaddress.ip_network(entry, strict=False))
        except ValueError:
            names.append(entry)
    return networks, names


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.tls_cert, settings.tls_key)
    return context

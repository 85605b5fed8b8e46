"""The WebSocket client of dev.py: every kind of frame, and servers that go away or speak something else."""

import base64
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterable

import pytest

from weft.tools.websocket import WebSocket


def frame(opcode: int, data: bytes, last: bool = True) -> bytes:
    head = bytes([opcode | 0x80 * last])
    if len(data) < 126:
        return head + bytes([len(data)]) + data
    if len(data) < 65536:
        return head + b"\x7e" + struct.pack(">H", len(data)) + data
    return head + b"\x7f" + struct.pack(">Q", len(data)) + data


@pytest.fixture
def serve_frames() -> Iterable[Callable]:
    """Start a server that greets one client as RFC 6455 says and sends frames; gives its port and what it got back.

    The latter is a function: it waits until the client is gone, so that nothing is still on its way.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    received = bytearray()

    def answer(frames: list[bytes], status: bytes) -> None:
        connection, _ = listener.accept()
        with connection:
            request = connection.recv(4096)
            key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
            accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            connection.sendall(b"HTTP/1.1 " + status + b"\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n")
            connection.sendall(b"".join(frames))
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(4096):
                received.extend(piece)

    threads = []

    def start(frames: list[bytes], status: bytes = b"101 Switching Protocols") -> tuple[int, Callable[[], bytearray]]:
        thread = threading.Thread(target=answer, args=(frames, status))
        threads.append(thread)
        thread.start()

        def all_received() -> bytearray:
            thread.join(timeout=10)
            return received

        return listener.getsockname()[1], all_received

    yield start
    for thread in threads:
        thread.join(timeout=10)
    listener.close()


def test_the_websocket_reads_every_kind_of_frame(serve_frames: Callable):
    texts = [json.dumps({"text": "x" * length}).encode() for length in (3, 300, 70000)]
    split = [frame(0x1, b'{"a":', last=False), frame(0x9, b"ping"), frame(0x0, b"1}")]
    port, all_received = serve_frames(
        [frame(0x2, b"preview"), *(frame(0x1, text) for text in texts), *split, frame(0x8, b"")]
    )
    client = WebSocket("127.0.0.1", port, "/ws")
    messages = list(client.messages())
    client.close()
    received = all_received()
    assert [len(message.get("text", "")) for message in messages] == [3, 300, 70000, 0]
    assert messages[-1] == {"a": 1}
    pong, length, mask, data = received[0], received[1], received[2:6], received[6:]
    assert (pong, length) == (0x8A, 0x80 | 4)
    assert bytes(byte ^ mask[i % 4] for i, byte in enumerate(data)) == b"ping"


def test_the_websocket_says_when_the_server_goes_away(serve_frames: Callable):
    port, _ = serve_frames([frame(0x1, b'{"a": 1}'), b"\x81\x05{"])
    client = WebSocket("127.0.0.1", port, "/ws")
    messages = client.messages()
    assert next(messages) == {"a": 1}
    with pytest.raises(ConnectionError, match="closed the connection"):
        next(messages)
    client.close()


def test_the_websocket_needs_a_server_that_speaks_it(serve_frames: Callable):
    port, _ = serve_frames([], status=b"404 Not Found")
    with pytest.raises(ConnectionError, match="404 Not Found"):
        WebSocket("127.0.0.1", port, "/ws")

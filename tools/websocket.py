"""The reading side of a WebSocket (RFC 6455), as much of it as ComfyUI's messages need."""

import base64
import json
import os
import socket
import struct
from collections.abc import Iterator

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


class WebSocket:
    """A connection to a server on this machine; raises ConnectionError when the other side goes away."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self.socket = socket.create_connection((host, port), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += self._read(1)
        if b" 101 " not in answer.split(b"\r\n")[0]:
            raise ConnectionError(f"no WebSocket at {path}: {answer.splitlines()[0].decode(errors='replace')}")
        self.socket.settimeout(None)  # a step of a large model on a CPU takes as long as it takes

    def messages(self) -> Iterator[dict]:
        """Yield the JSON messages; binary ones, which are previews, are left out."""
        payload, kind = b"", TEXT
        while True:
            last, opcode, data = self._frame()
            if opcode == CLOSE:
                return
            if opcode == PING:
                self._send(PONG, data)
            if opcode in (TEXT, BINARY):
                payload, kind = data, opcode
            elif opcode == CONTINUATION:
                payload += data
            if last and opcode in (TEXT, BINARY, CONTINUATION) and kind == TEXT:
                yield json.loads(payload)

    def close(self) -> None:
        """Drop the connection."""
        self.socket.close()

    def _frame(self) -> tuple[bool, int, bytes]:
        first, length = self._read(2)
        if length == 126:
            (length,) = struct.unpack(">H", self._read(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self._read(8))
        return bool(first & 0x80), first & 0x0F, self._read(length)

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self.socket.recv(min(count - len(data), 65536))
            if not piece:
                raise ConnectionError("the server closed the connection")
            data += piece
        return bytes(data)

    def _send(self, opcode: int, data: bytes) -> None:
        mask = os.urandom(4)  # what a client sends is masked; control frames are shorter than 126 bytes
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        self.socket.sendall(bytes((0x80 | opcode, 0x80 | len(data))) + mask + masked)

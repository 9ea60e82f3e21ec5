"""A small RTSP server, as a camera's: it passes a local RTP stream on over the session's TCP."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

METHODS = "OPTIONS, DESCRIBE, SETUP, PLAY, GET_PARAMETER, TEARDOWN"


class RtspServer:
    """Serves RTP and its reports, which come in at two local UDP ports, to whoever asks.

    Interleaved transport only (RFC 2326, 10.12), as players ask for with `rtsp_transport=tcp`.

    Args:
        port: of RTP; the reports' is the next one.
        session: its description, an SDP.
    """

    def __init__(self, port: int, session: str):
        self._session = session.rstrip("\n") + "\na=control:track0\n"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/clock"
        self._players: list[socket.socket] = []
        self._lock = threading.Lock()
        self._sources = []
        for channel in (0, 1):
            source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            source.bind(("127.0.0.1", port + channel))
            self._sources.append(source)
            threading.Thread(target=self._pass_on, args=(source, channel), daemon=True).start()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Hang up on everybody."""
        with self._lock:
            for each in (self._listener, *self._sources, *self._players):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                player, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(player,), daemon=True).start()

    def _serve(self, player: socket.socket) -> None:
        with contextlib.suppress(OSError), player, player.makefile("rb") as lines:
            while first := lines.read(1):
                if first == b"$":  # the player's own reports
                    _, size = struct.unpack(">BH", lines.read(3))
                    lines.read(size)
                    continue
                request = (first + lines.readline()).decode()
                headers = {}
                while line := lines.readline().strip():
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                method = request.partition(" ")[0]
                with self._lock:
                    player.sendall(self._answer(method, headers))
                    if method == "PLAY":
                        self._players.append(player)
                if method == "TEARDOWN":
                    return

    def _answer(self, method: str, headers: dict[str, str]) -> bytes:
        more, body = {"OPTIONS": f"Public: {METHODS}\r\n"}.get(method, ""), b""
        status = "200 OK"
        if method == "DESCRIBE":
            body = self._session.encode()
            more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        elif method == "SETUP":
            if "RTP/AVP/TCP" in headers.get("transport", ""):
                more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            else:
                status = "461 Unsupported Transport"
        head = f"RTSP/1.0 {status}\r\nCSeq: {headers.get('cseq', '0')}\r\nSession: 1\r\n{more}\r\n"
        return head.encode() + body

    def _pass_on(self, source: socket.socket, channel: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                framed = struct.pack(">cBH", b"$", channel, len(data)) + data
                with self._lock:
                    for player in list(self._players):
                        try:
                            player.sendall(framed)
                        except OSError:  # it hung up
                            self._players.remove(player)

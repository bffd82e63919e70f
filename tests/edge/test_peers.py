"""Whose process connects: what has gone is nobody's, whatever the system says of its socket."""

from __future__ import annotations

import os
import socket

import pytest

from machinehub.edge.peers import NOBODY, is_mine, uid_of


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_socket_that_was_closed_is_nobodys(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        ours = server.getsockname()[:2]
        client = socket.create_connection(ours)
        peer = client.getsockname()[:2]
        assert uid_of(peer, ours) == os.getuid()
        assert is_mine(peer, ours)
        client.sendall(b"DELETE / HTTP/1.1\r\n\r\n")
        client.close()  # the system says root of it now
        assert uid_of(peer, ours) == NOBODY
        assert not is_mine(peer, ours)
        accepted, _ = server.accept()
        accepted.close()

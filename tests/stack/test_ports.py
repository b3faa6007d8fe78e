"""Ports that nobody listens on."""

from __future__ import annotations

import socket

import pytest

from trainer_app.stack.ports import free_port, is_free


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_is_free_until_somebody_listens(host: str) -> None:
    port = free_port(host)
    assert is_free(host, port)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family):
        assert not is_free(host, port)


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(OSError, match="assign requested address"):
        is_free("192.0.2.1", 8000)

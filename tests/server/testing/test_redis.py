"""A private server lets nobody in without the password, forgets when told, hangs when told, and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from agenthive_server.testing.redis import RedisServer, open_redis


def test_it_survives_what_is_done_to_it_and_forgets(redis_program: Path) -> None:
    with open_redis(redis_program) as server:
        folder, pid = server._folder, _pid(server)
        assert server.ask("SET", "note", "1") == b"+OK\r\n"
        server.flush()
        assert server.ask("GET", "note") == b"$-1\r\n"
        for harm in (server.kill, server.stop):
            server.ask("SET", "note", "1")
            harm()
            with pytest.raises(OSError, match="refused"):
                server.ask("PING")
            server.start()
            assert server.ask("GET", "note") == b"$-1\r\n"
        server._password, known = "another", server._password
        with pytest.raises(OSError, match="does not let us in"):
            server.ask("PING")
        server._password = known
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()


def test_one_that_hangs_goes_on_or_can_be_stopped(redis: RedisServer) -> None:
    redis.pause()
    redis.resume()
    assert redis.ask("PING") == b"+PONG\r\n"
    redis.pause()
    redis.restart()
    assert redis.ask("PING") == b"+PONG\r\n"


def _pid(server: RedisServer) -> int:
    assert server._process is not None
    return server._process.pid

from __future__ import annotations

import pytest

from channels.redis_address import Endpoint, Kind, RedisAddress
from channels.redis_layout import layout_of


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://cache", RedisAddress(Kind.SINGLE, (Endpoint("cache", 6379),))),
        ("redis://cache:1/3", RedisAddress(Kind.SINGLE, (Endpoint("cache", 1),), database=3)),
        (
            "redis://ada:p%40ss%2F@[::1]:7/0",
            RedisAddress(Kind.SINGLE, (Endpoint("::1", 7),), username="ada", password="p@ss/"),
        ),
        (
            "rediss://:secret@cache/?ssl_ca_certs=/ca.pem&ssl_check_hostname=false",
            RedisAddress(
                Kind.SINGLE,
                (Endpoint("cache", 6379),),
                password="secret",
                tls={"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False},
            ),
        ),
        ("unix:///run/redis.sock?db=2", RedisAddress(Kind.SINGLE, (Endpoint("/run/redis.sock", 0),), database=2)),
        (
            "redis+sentinel://s1,s2:5/market/4?sentinel_password=x",
            RedisAddress(
                Kind.SENTINEL,
                (Endpoint("s1", 26379), Endpoint("s2", 5)),
                service="market",
                database=4,
                sentinel_password="x",
            ),
        ),
        (
            "rediss+cluster://c1:1,c2",
            RedisAddress(Kind.CLUSTER, (Endpoint("c1", 1), Endpoint("c2", 6379)), tls={}),
        ),
    ],
)
def test_what_a_url_means(url: str, address: RedisAddress) -> None:
    assert RedisAddress.parse(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "http://cache",
        "redis+magic://cache",
        "redis://",
        "redis://a,b",
        "redis://cache:x",
        "redis://cache/zero",
        "redis://cache/0/1",
        "redis://cache?timeout=1",
        "redis+sentinel://s1",
        "redis+cluster://c1/2",
        "unix://",
        "unix://host/path",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        RedisAddress.parse(url)


def test_passwords_are_not_shown() -> None:
    address = RedisAddress.parse("redis+sentinel://ada:hush1@s/m?sentinel_password=hush2")
    assert "hush" not in repr(address)


def test_a_layout_knows_gaps_between_slots() -> None:
    layout = layout_of([[5000, 16383, [b"b", 2]], [100, 200, [b"", 1]]], Endpoint("asked", 9))
    assert layout.endpoints == (Endpoint("asked", 1), Endpoint("b", 2))
    assert layout.starts == (0, 100, 201, 5000)
    assert layout.owners == (None, Endpoint("asked", 1), None, Endpoint("b", 2))

"""The HTTP client: which addresses are public, how patient it is with a server, and what it repeats."""

import asyncio
import ipaddress
from functools import partial

import httpx
import pytest
from tenacity import wait_none

from llm_auction_chain import http_client
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.http_client import NOT_PUBLIC, HTTPError, JsonSession, is_public, parse_url
from llm_auction_chain.waiting import AWAITING, BLOCKING, run

PATIENCE = {"timeout": 600.0, "max_retries": 2, "max_concurrency": 8}


@pytest.fixture(params=["sync", "async"])
def get(request):
    """Send a GET and return the answer's JSON, for callers that block and callers that await."""

    async def get(waiter, settings):
        async with JsonSession("http://gpu-7:8000", waiter, **{**PATIENCE, **settings}) as session:
            assert "sk-very-secret" not in repr(session)
            return await session.answer("/")

    if request.param == "sync":
        return lambda **settings: run(get(BLOCKING, settings))
    return lambda **settings: asyncio.run(get(AWAITING, settings))


@pytest.fixture
def served(monkeypatch):
    """Answer with these statuses, texts and errors in turn; return the options of the clients that were opened."""
    options, sync, asynchronous = [], httpx.Client, httpx.AsyncClient

    def serve(*responses):
        left = list(responses)

        def answer(request):
            response = left.pop(0)
            if isinstance(response, Exception):
                raise response
            return httpx.Response(200, text=response) if isinstance(response, str) else httpx.Response(response, json=1)

        def opened(kind, **settings):
            options.append(settings)
            return kind(**settings, transport=httpx.MockTransport(answer))

        monkeypatch.setattr(httpx, "Client", partial(opened, sync))
        monkeypatch.setattr(httpx, "AsyncClient", partial(opened, asynchronous))
        monkeypatch.setattr(http_client, "wait_exponential", lambda **_: wait_none())
        monkeypatch.setattr(http_client, "wait_random", lambda *_: wait_none())
        return options

    return serve


@pytest.mark.parametrize("network", NOT_PUBLIC)
def test_no_address_of_a_network_in_the_table_is_public(network):
    network = ipaddress.ip_network(network)
    assert not is_public(str(network.network_address))
    assert not is_public(str(network.broadcast_address))
    assert not is_public(str(network[network.num_addresses // 2]))


@pytest.mark.parametrize("network", NOT_PUBLIC)
def test_every_network_in_the_table_has_its_reason(network):
    assert any(source in NOT_PUBLIC[network] for source in ("RFC", "Azure", "Google", "IBM"))


def test_the_table_depends_on_no_release_of_python(monkeypatch):
    for kind in (ipaddress.IPv4Address, ipaddress.IPv6Address):
        monkeypatch.setattr(kind, "is_global", property(lambda self: pytest.fail("its tables change")))
        monkeypatch.setattr(kind, "is_private", property(lambda self: pytest.fail("its tables change")))
    assert is_public("8.8.8.8")
    assert is_public("2606:4700:4700::1111")
    assert not any(map(is_public, ("127.0.0.1", "192.0.0.8", "255.255.255.255", "::1", "fe80::1", "2001:db8::1")))


@pytest.mark.parametrize("address", [
    "1.1.1.1", "8.8.8.8", "11.0.0.0", "100.63.255.255", "100.128.0.0", "128.0.0.0", "161.25.255.255", "161.27.0.0",
    "166.7.255.255", "166.12.0.0", "168.63.129.15", "168.63.129.17", "169.253.255.255", "172.15.255.255", "172.32.0.0",
    "192.167.255.255", "198.20.0.0", "199.36.153.3", "199.36.153.12", "223.255.255.255",
    "2001:4860:4860::8888", "2606:4700:4700::1111", "2600:2d00:2::1", "2600:2d00:2:3000::1",
    "2a00:1450:4001:81b::200e", "2a00:1450::5eff:808:808", "2a00:1450::5efe:0:0:1",
])  # fmt: skip
def test_an_address_beside_those_networks_is_public(address):
    assert is_public(address)


@pytest.mark.parametrize("address", [
    "169.254.169.254", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16",
    "199.36.153.6", "199.36.153.10", "2600:2d00:2:1000::1", "2600:2d00:2:2000::1",
])  # fmt: skip
def test_the_metadata_and_inner_services_of_a_cloud_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("prefix", ["::ffff:", "64:ff9b::"], ids=["mapped", "NAT64"])
def test_an_address_that_carries_ipv4_is_as_public_as_that(prefix):
    assert is_public(f"{prefix}8.8.8.8")
    assert not any(is_public(f"{prefix}{address}") for address in ("127.0.0.1", "10.0.0.1", "169.254.169.254"))


@pytest.mark.parametrize("address", [
    "2002:808:808::", "2001:0:4136:e378::", "::8.8.8.8", "64:ff9b:1::808:808", "2a00:1450::5efe:8.8.8.8",
    "2a00:1450::200:5efe:7f00:1",
])  # fmt: skip
def test_a_tunnel_to_a_public_address_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["4000::1", "1fff::1", "e000::1", "2001:4860:4860::8888%eth0"])
def test_ipv6_in_no_public_use_and_scoped_is_not_public(address):
    assert not is_public(address)


def test_a_text_that_is_no_url_is_refused():
    with pytest.raises(ConfigurationError, match="URL cannot be read"):
        parse_url("https://[::1")


@pytest.mark.parametrize(("timeout", "connect"), [(600.0, 10.0), (1.0, 1.0), (None, 10.0)])
def test_a_server_that_is_not_there_is_given_up_soon(get, served, timeout, connect):
    options = served(200)
    get(timeout=timeout)
    assert (options[0]["timeout"].connect, options[0]["timeout"].read) == (connect, timeout)
    assert options[0]["timeout"].pool is None


def test_the_key_is_a_bearer_token_and_in_no_repr(get, served):
    options = served(200)
    get(api_key="sk-very-secret")
    assert options[0]["headers"] == {"Authorization": "Bearer sk-very-secret"}


@pytest.mark.parametrize("failure", [
    429, 500, 502, 503,
    httpx.ConnectTimeout("x"), httpx.ReadError("x"), httpx.RemoteProtocolError("x"),
])  # fmt: skip
def test_a_failure_that_may_pass_is_repeated(get, served, failure):
    served(failure, failure, 200)
    assert get() == 1


@pytest.mark.parametrize("failure", [
    301, 400, 401, 404, 504, "<html>",
    httpx.ReadTimeout("x"),
])  # fmt: skip
def test_a_failure_that_lasts_is_not_repeated(get, served, failure):
    served(failure)
    with pytest.raises(HTTPError):
        get()


def test_no_request_is_repeated_more_often_than_allowed(get, served):
    served(*[500] * 3)
    with pytest.raises(HTTPError):
        get()

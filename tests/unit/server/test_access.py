"""Keys and roles."""

import pytest

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.server.access import ANONYMOUS, Access, Key
from llm_auction_chain.server.wire import WireError


@pytest.fixture
def keys():
    pairs = [
        Key.new("client", name="web"),
        Key.new("owner", name="tune", owner="tune-group"),
        Key.new("operator", name="ops"),
    ]
    return {key.name: (text, key) for text, key in pairs}


def access_of(keys):
    return Access([key for _, key in keys.values()])


def test_each_key_is_recognised_as_its_own_caller(keys):
    for text, key in keys.values():
        assert access_of(keys).caller(f"Bearer {text}") is key
        assert access_of(keys).caller(f"bearer  {text} ") is key


def test_what_the_server_stores_does_not_hold_the_key(keys):
    for text, key in keys.values():
        assert text not in repr(key)
        assert text.partition("-")[2] not in repr(key)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "abc"])
def test_a_request_without_a_key_gets_401(keys, header):
    with pytest.raises(WireError) as caught:
        access_of(keys).caller(header)
    assert (caught.value.status, caught.value.code) == (401, "missing_api_key")


@pytest.mark.parametrize("text", ["client-guess", "schlüssel", "\udcff", "x" * 100_000])
def test_an_unknown_key_gets_401_and_is_not_repeated(keys, text):
    with pytest.raises(WireError) as caught:
        access_of(keys).caller(f"Bearer {text}")
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert text not in caught.value.message


def test_a_digest_is_no_key(keys):
    for _, key in keys.values():
        with pytest.raises(WireError):
            access_of(keys).caller(f"Bearer {key.digest}")


def test_a_role_that_may_not_do_this_gets_403(keys):
    with pytest.raises(WireError) as caught:
        access_of(keys).caller(f"Bearer {keys['web'][0]}").require("operator", "owner")
    assert caught.value.status == 403
    assert "operator or owner" in caught.value.message


def test_without_keys_each_caller_is_a_client():
    assert Access(None).caller(None) is ANONYMOUS
    ANONYMOUS.require("client", "operator")
    assert Access(None).caller("Bearer anything") is ANONYMOUS
    with pytest.raises(WireError, match="This server has no keys"):
        ANONYMOUS.require("operator")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"role": "admin"}, "role must be 'client' or 'owner' or 'operator', got 'admin'."),
        ({"role": "owner"}, "owner must be"),
        ({"role": "client", "owner": "A"}, "owner must be empty for the role 'client', got 'A'."),
        ({"name": " "}, "name must be"),
        ({"digest": "secret"}, "digest must be `sha256:` and 64 hexadecimal digits"),
    ],
)
def test_a_key_that_is_none_is_refused(arguments, text):
    _, key = Key.new("client", name="web")
    good = {"role": key.role, "name": key.name, "digest": key.digest}
    with pytest.raises(ConfigurationError) as caught:
        Key(**{**good, **arguments})
    assert text in str(caught.value)


def test_a_key_is_replaced_by_another_of_its_name():
    (old, one), (new, other) = Key.new("client", name="web"), Key.new("client", name="web")
    access = Access([one, other])
    assert access.caller(f"Bearer {old}").name == access.caller(f"Bearer {new}").name == "web"


def test_one_name_has_one_role_and_one_owner_and_one_digest_one_key(keys):
    key = keys["web"][1]
    with pytest.raises(ConfigurationError, match="Two keys have the same digest"):
        Access([key, key])
    others = (Key.new("operator", name="web"), Key.new("owner", name="tune", owner="other"))
    for (_, other), name in zip(others, ("web", "tune"), strict=True):
        with pytest.raises(ConfigurationError, match=f"Keys named '{name}' have different roles or owners"):
            Access([other, keys[name][1]])


def test_no_message_shows_a_key_that_is_given_for_its_digest(keys):
    text, key = keys["web"]
    with pytest.raises(ConfigurationError) as caught:
        Key(role=key.role, name=key.name, digest=text)
    assert text not in str(caught.value)


def test_an_empty_collection_of_keys_is_refused():
    with pytest.raises(ConfigurationError, match="no keys"):
        Access([])

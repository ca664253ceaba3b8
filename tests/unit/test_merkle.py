"""Roots and paths of Merkle trees."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_auction_chain.merkle import leaf, path, root, root_of

LEAVES = st.lists(st.text(max_size=3), min_size=1, max_size=40)


@given(LEAVES)
def test_each_leaf_leads_to_the_root(texts):
    leaves = [leaf(text) for text in texts]
    assert {root_of(one, path(leaves, place)) for place, one in enumerate(leaves)} == {root(leaves)}


@given(LEAVES, st.data())
def test_what_is_no_leaf_does_not_lead_to_the_root(texts, data):
    leaves = [leaf(text) for text in texts]
    place = data.draw(st.integers(0, len(leaves) - 1))
    steps = path(leaves, place)
    assert root_of(leaf(f"{texts[place]}."), steps) != root(leaves)
    for k in range(len(steps)):
        side, other = steps[k]
        turned = [*steps[:k], ("left" if side == "right" else "right", other), *steps[k + 1 :]]
        assert root_of(leaves[place], turned) != root(leaves) or other == root_of(leaves[place], steps[:k])


@given(LEAVES)
def test_a_path_has_no_more_steps_than_the_logarithm(texts):
    leaves = [leaf(text) for text in texts]
    assert all(len(path(leaves, place)) <= (len(leaves) - 1).bit_length() for place in range(len(leaves)))


def test_the_tree_has_the_shape_and_the_prefixes_of_rfc_6962():
    def sha(prefix, *parts):
        return f"sha256:{hashlib.sha256(prefix + ''.join(parts).encode()).hexdigest()}"

    a, b, c = (sha(b"\0", text) for text in "abc")
    assert root([leaf(text) for text in "abc"]) == sha(b"\1", sha(b"\1", a, b), c)
    assert path([a, b, c], 2) == [("left", sha(b"\1", a, b))]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
def test_a_node_is_never_a_leaf(count):
    leaves = [leaf(str(n)) for n in range(count)]
    assert root([*leaves[:-1], leaf(root(leaves))]) != root(leaves)

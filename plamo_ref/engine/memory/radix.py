"""A radix tree over token ids: which texts begin alike, and where they part.

A node stands for a position: so many tokens from the root, and which. An edge has as many tokens
as it can. Prompts of live requests have a path, and so has every moment that is kept; what nobody
needs is cut off and joined again, so a node has a meaning: something is kept here, a live request
has marked it, texts part here, or something was kept here once (see prefix.py).

Invariant: the edges below a node begin with different tokens; `num_live`, `num_begun`, `num_kept`
count the whole branch, the node itself included; nodes keep their identity when edges are cut or
joined.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Node(Generic[T]):
    """A position in some texts, and what is kept there."""

    parent: "Node[T] | None" = None  # None: the root
    tokens: tuple[int, ...] = ()  # from the parent to here
    position: int = 0  # tokens from the root to here
    children: dict[int, "Node[T]"] = field(default_factory=dict)  # by the first token of the edge
    kept: T | None = None
    num_marks: int = 0  # live requests whose prompt ends here, or has a border here
    is_border: bool = False  # somebody said that others may part here, first of all in his prompt
    was_kept: bool = False  # something was, and nothing has taken its place
    num_live: int = 0  # live requests in this branch
    num_begun: int = 0  # those of them that have begun, here or later
    num_kept: int = 0  # what is kept in this branch

    def path(self) -> Iterator["Node[T]"]:
        """This node and those above it, up to the root."""
        node: Node[T] | None = self
        while node is not None:
            yield node
            node = node.parent

    def count(self, *, live: int = 0, begun: int = 0, kept: int = 0) -> None:
        """There are so many more in this branch, and in those that it is part of."""
        node: Node[T] | None = self
        while node is not None:
            node.num_live += live
            node.num_begun += begun
            node.num_kept += kept
            node = node.parent

    @property
    def num_ways(self) -> int:
        """Children behind which anybody lives or anything is kept; 2 if they are more."""
        ways = 0
        for child in self.children.values():
            if child.num_live or child.num_kept:
                ways += 1
                if ways == 2:
                    break
        return ways

    @property
    def is_junction(self) -> bool:
        """Whether at least two texts that still matter part here."""
        return self.num_ways > 1


def descend(node: Node[T], tokens: Sequence[int]) -> tuple[Node[T], int]:
    """The last node that `tokens`, which begin at `node`, reach, and how many of them match.

    The rest of the match, if there is any, lies on an edge below that node.
    """
    tokens, done = tuple(tokens), 0
    while done < len(tokens) and (child := node.children.get(tokens[done])) is not None:
        common = _common(child.tokens, tokens[done : done + len(child.tokens)])
        done += common
        if common < len(child.tokens):
            break
        node = child
    return node, done


def reach(node: Node[T], tokens: Sequence[int]) -> tuple[Node[T], int]:
    """The first node that lies at, or below, the end of the match of `tokens`, which begin at
    `node`; and the position of that end."""
    last, matched = descend(node, tokens)
    at_last = last.position - node.position
    end = last if matched == at_last else last.children[tokens[at_last]]
    return end, node.position + matched


def nearest(node: Node[T] | None) -> T | None:
    """What is kept at the end of some way down from here, nothing else being kept on that way."""
    while node is not None and node.kept is None:
        node = next((child for child in node.children.values() if child.num_kept), None)
    return None if node is None else node.kept


def insert(node: Node[T], tokens: Sequence[int]) -> Node[T]:
    """The node at the end of `tokens`, which begin at `node`; made if it is missing."""
    tokens = tuple(tokens)
    last, matched = descend(node, tokens)
    done = last.position - node.position
    if matched > done:
        last = _split(last.children[tokens[done]], matched - done)
    if matched < len(tokens):
        rest = tokens[matched:]
        last.children[rest[0]] = Node(last, rest, last.position + len(rest))
        last = last.children[rest[0]]
    return last


def prune(node: Node[T]) -> None:
    """Cut off, or join, nodes without a meaning, from here upwards."""
    while node.parent is not None and node.kept is None and not (node.num_marks or node.was_kept):
        parent = node.parent
        if not node.children:
            del parent.children[node.tokens[0]]
        elif len(node.children) == 1:
            (child,) = node.children.values()
            child.parent, child.tokens = parent, node.tokens + child.tokens
            parent.children[child.tokens[0]] = child
        else:
            return
        node = parent


def _split(node: Node[T], length: int) -> Node[T]:
    """A new node `length` tokens behind the parent of `node`."""
    parent = node.parent
    assert parent is not None
    upper: Node[T] = Node(parent, node.tokens[:length], parent.position + length)
    upper.num_live, upper.num_begun, upper.num_kept = node.num_live, node.num_begun, node.num_kept
    parent.children[upper.tokens[0]] = upper
    node.parent, node.tokens = upper, node.tokens[length:]
    upper.children[node.tokens[0]] = node
    return upper


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # comparing slices is a thousand times faster than a loop over tokens
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low

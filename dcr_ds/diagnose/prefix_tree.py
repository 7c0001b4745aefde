"""The prefix tree of token sequences: where their distributions have to be read."""

from collections.abc import Sequence
from dataclasses import dataclass

from dcr_ds.diagnose.openings import Tokens
from dcr_ds.errors import UserError


@dataclass(frozen=True)
class Tree:
    """The prefix tree of openings: its inner nodes, parents first, and the paths that lead to the deepest of them."""

    openings: tuple[Tokens, ...]
    nodes: tuple[Tokens, ...]  # the root is ()
    paths: tuple[Tokens, ...]

    @classmethod
    def of(cls, openings: Sequence[Tokens]) -> "Tree":
        """Build the tree.

        Raises:
            UserError: there is no opening, one is empty, or one is a prefix of another (their probabilities would be
                counted twice).
        """
        if not openings or not all(openings):
            raise UserError("refusal log-odds: there are no openings, or one has no tokens")
        inner = {tokens[:length] for tokens in openings for length in range(len(tokens))}
        if len(set(openings)) < len(openings) or inner & set(openings):
            raise UserError("refusal log-odds: an opening is a prefix of another one; keep the shorter of the two")
        nodes = tuple(sorted(inner, key=lambda node: (len(node), node)))
        before = {node[:-1] for node in nodes if node}
        return cls(tuple(openings), nodes, tuple(node for node in nodes if node and node not in before))

    def children(self, node: Tokens) -> list[int]:
        """The tokens after a node that lead to openings."""
        size = len(node)
        return sorted({t[size] for t in (*self.openings, *self.nodes) if len(t) > size and t[:size] == node})

    def places(self) -> list[tuple[int, int]]:
        """For each inner node but the root: a path that contains it, and its last token's place in that path."""
        return [
            next((number, len(node) - 1) for number, path in enumerate(self.paths) if path[: len(node)] == node)
            for node in self.nodes[1:]
        ]

    def ancestors(self) -> list[list[bool]]:
        """[N − 1, N − 1] of inner nodes except the root: whether the second is the first or an ancestor of it."""
        return [[node[: len(other)] == other for other in self.nodes[1:]] for node in self.nodes[1:]]

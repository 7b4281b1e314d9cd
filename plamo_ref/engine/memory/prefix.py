"""Prefix caching in a hybrid model: what is reusable is a moment, not a block.

To go on at position n a request needs the Mamba state at exactly n, and the keys that n can see. So
what is kept is a checkpoint: a frozen holding, block tables and a slot, at one position of a radix
tree over token ids. A newcomer begins at the deepest one on its prompt's path: it shares the full
blocks and copies the slot and a partly filled block (see cache.py). In a model without Mamba a
later moment serves as well, as far as its windows reach back. Checkpoints come from

    an answer's end, preemption   its own holding, frozen where it is: the next turn begins there
    the end of a prompt           one token before it, so that the same prompt again finds it
    a junction                    where two texts part, both known by now
    a border                      where the caller says that others may part, as between messages

The last three are photographs of a prompt that is computed: where a chunk ends the slot is copied,
inside of one the scan leaves a state in a second slot (or all end there, without `photographs`).
Live requests have a path, those that wait too: so the first of a crowd knows where others part from
it, and who can begin there waits for it. Built in notebooks/09_hybrid_prefix_caching.ipynb.

Invariant: what is kept was computed from exactly the tokens on its path, all of them known to the
host; it is evictable at any time, so nobody's progress depends on it.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.memory.eviction import (
    Checkpoint,
    LeastRecentlyUsed,
    Photograph,
    SupersededFirst,
    above,
)
from plamo_ref.engine.memory.found import PrefixCounts, why_not_later
from plamo_ref.engine.memory.holding import Holding
from plamo_ref.engine.memory.pool import Pool
from plamo_ref.engine.memory.radix import Node, descend, insert, nearest, prune, reach
from plamo_ref.engine.request import Request


class PrefixCache:
    """Frozen moments of the texts of one engine. If it is not `enabled`, nothing is ever kept."""

    def __init__(
        self,
        cache: HybridCache,
        enabled: bool = True,
        eviction: type[LeastRecentlyUsed] = SupersededFirst,
    ) -> None:
        self.cache, self.enabled, self.order = cache, enabled, eviction(cache)
        self.interval = 0  # tokens, of photographs that nobody asked for; 0: none
        self.least = cache.block_size  # tokens that a checkpoint must save, to be worth a copy
        self.roots: dict[str | None, Node[Checkpoint]] = {}  # by salt: they never meet
        self.counts = PrefixCounts()
        self.most_gone = 256  # evicted ones that are remembered, to say why a prompt hits no more
        self._paths: dict[Request, Node[Checkpoint]] = {}  # where each live prompt ends, less one
        self._begun: dict[Request, int] = {}  # where each that runs has begun
        self._gone: dict[Node[Checkpoint], None] = {}  # the oldest first
        cache.evict = self.evict_for

    @property
    def kept(self) -> Iterable[Checkpoint]:
        """Everything, the one used longest ago first."""
        return self.order.kept.keys()

    # --- requests come and go ------------------------------------------------------------------

    def enter(self, request: Request) -> None:
        """From now on it is known which way this prompt goes."""
        if not self.enabled:
            return
        path, marks = self._root(request), request.marks
        for end in marks:
            path = insert(path, request.prompt_ids[path.position : end])
            path.num_marks += 1
            path.is_border |= end == marks[0] != marks[-1]
        path.count(live=1)
        self._paths[request] = path
        self.order.review(path)

    def rest(self, request: Request) -> None:
        """The request waits again."""
        path = self._paths.get(request)
        if path is not None and request in self._begun:
            del self._begun[request]
            path.count(begun=-1)
            self.order.review(path)

    def leave(self, request: Request) -> None:
        """The request has ended; what is kept of it stays."""
        self.rest(request)
        path = self._paths.pop(request, None)
        if path is None:
            return
        marks = request.marks
        nodes = [node for node in path.path() if node.position in marks]
        for node in nodes:
            node.num_marks -= 1
        path.count(live=-1)
        self.order.review(path)
        for node in reversed(nodes):  # from above: none is cut off before its turn
            self._prune(node)

    def clear(self) -> None:
        """Forget everything, requests too; the cache's own books are cleared by themselves."""
        for known in (self.roots, self.order, self._paths, self._begun, self._gone):
            known.clear()

    def reset(self) -> None:
        """Let everything go that is kept."""
        for checkpoint in list(self.kept):
            self._evict(checkpoint)
        self._forget(0)

    def distrust(self, request: Request) -> None:
        """It came to an error, and what is kept of it might lead others there."""
        root, known = self.roots.get(request.params.cache_salt), request.num_known_tokens
        if root is not None:
            for node in descend(root, request.tokens(0, known))[0].path():
                if node.kept is not None:
                    self._evict(node.kept)

    # --- reuse ---------------------------------------------------------------------------------

    def find(self, request: Request) -> tuple[int, Checkpoint | None]:
        """Where a request that has nothing can begin at best, and who has what it needs there."""
        path, limit = self._paths.get(request), request.num_reusable_tokens
        if path is None:
            return 0, None
        lowest, end = reach(path, request.tokens(path.position, limit))  # it may have some output
        for node in lowest.path():
            position = min(node.position, end, limit)
            kept = node.kept if self.cache.slots is not None else nearest(node)
            if kept is None or not position:
                continue
            if position == kept.position or self.cache.serves(kept.holding, position):
                return position, kept
        return 0, None

    def use(self, checkpoint: Checkpoint) -> Holding:
        """What to branch off; it was wanted just now."""
        self.order.use(checkpoint)
        return checkpoint.holding

    def waits(self, request: Request, running: Iterable[Request]) -> bool:
        """Whether somebody running is about to come to a moment from which this one could begin:
        is not past it in its own prompt, so nobody waits for long."""
        path = self._paths.get(request)
        if path is None:
            return False
        last, first = request.num_reusable_tokens, self.least + self.find(request)[0]
        ahead = (node for node in path.path() if node.num_begun and first <= node.position <= last)
        wanted = {node for node in ahead if self._is_wanted(node)}
        if not wanted:
            return False
        last = max(node.position for node in wanted)
        others = (r for r in running if r.num_computed_tokens <= last and r in self._paths)
        return any(
            node in wanted and node.position >= other.num_computed_tokens
            for other in others
            for node in self._paths[other].path()
        )

    def begin(self, request: Request, position: int) -> str:
        """A request begins at `position`. Returns why not later; "" if that cannot be."""
        path = self._paths.get(request)
        why = why_not_later(request, position, path, self.least, self.roots)
        if path is not None:
            self._begun[request] = position
            path.count(begun=1)
            self.order.review(path)
        if request.num_cached_tokens is None:  # else it has begun before
            request.num_cached_tokens, request.cache_miss = position, why
            if self.enabled:
                self.counts.add(request, position, why)
        return why

    # --- what is kept --------------------------------------------------------------------------

    def freeze(self, request: Request) -> None:
        """Take a request's memory; what it has computed is kept. The host knows those tokens: who
        has one that is on its way stays until it is read (`endings.is_leaving`)."""
        computed, held = request.num_computed_tokens, request.request_id in self.cache.holdings
        path = self._paths.get(request)
        if held and path is not None:
            start = path if computed >= path.position else self._root(request)
            node = insert(start, request.tokens(start.position, computed))
            if node.kept is None:
                self._keep(node, self.cache.freeze(request.request_id, computed))
                return
            self.order.use(node.kept)
        self.cache.release(request.request_id)

    def photograph(self, request: Request) -> None:
        """Keep a copy of a running request's memory, if it stands where that is wanted."""
        computed = request.num_computed_tokens
        for node in self.wanted(request, computed - 1)[:1]:
            if computed and node.position == computed:
                self.develop(self._expose(request, node, now=True))

    def expose(self, request: Request, end: int, exposed: list[Photograph]) -> None:
        """Add what a step that computes a request up to `end` is to leave of it on its way there,
        as far as there is room; others can begin there when the step is launched."""
        wanted = self.wanted(request, request.num_computed_tokens)
        for node in chain(wanted, self._by_the_way(request, end)):
            is_taken = node.kept is not None or any(node is other.node for other in exposed)
            if node.position < end and not is_taken:
                exposed += self._expose(request, node, now=False)

    def _by_the_way(self, request: Request, end: int) -> Iterator[Node[Checkpoint]]:
        """Moments of no known use, while slots have no other: who leaves this text first, where
        nobody could know it, begins at the last of them."""
        path, slots, step = self._paths.get(request), self.cache.slots, self.interval
        if path is not None and slots is not None and step:
            next_one = (request.num_computed_tokens // step + 1) * step
            for position in range(next_one, min(end, path.position), step):
                if slots.num_free or self.order.has_superseded:
                    start = next(node for node in path.path() if node.position <= position)
                    yield insert(start, request.prompt_ids[start.position : position])

    def develop(self, photographs: Iterable[Photograph]) -> None:
        """They are taken; those of a request that came to an error are not kept."""
        for request, node, holding in photographs:
            node.num_marks -= 1
            self.cache.develop(holding)
            if node.kept is None and request.finish_reason != "error":
                self._keep(node, holding)
            else:
                self.cache.let_go(holding)
                self._prune(node)

    def _expose(self, request: Request, node: Node[Checkpoint], now: bool) -> list[Photograph]:
        node.num_marks += 1  # it stays, whatever goes to make room
        holding = self.cache.expose(request.request_id, node.position, now)
        if holding is not None:
            return [Photograph(request, node, holding)]
        node.num_marks -= 1
        self._prune(node)
        return []

    def wanted(self, request: Request, computed: int) -> list[Node[Checkpoint]]:
        """Where on a prompt's path, behind so many tokens, checkpoints are wanted, in order."""
        path, ahead, wanted = self._paths.get(request), [], []
        last = self._begun.get(request, 0)  # what was kept there goes first, now that it is used
        while path is not None and path.position > computed:
            ahead.append(path)
            path = path.parent
        for node in reversed(ahead):
            if node.position - last >= self.least and self._is_wanted(node):
                last = node.position
                wanted.append(node)
        return wanted

    def _is_wanted(self, node: Node[Checkpoint]) -> bool:
        """Whether a checkpoint here would be used, as far as anybody can know."""
        if node.kept is not None or not (node.num_marks or node.is_junction):
            return False
        return node.position - above(node).position >= self.least

    def _keep(self, node: Node[Checkpoint], holding: Holding) -> None:
        node.kept = Checkpoint(node, holding)
        node.was_kept = False
        self._gone.pop(node, None)
        node.count(kept=1)
        self.order.use(node.kept)
        self.order.review(node)

    # --- eviction ------------------------------------------------------------------------------

    def evict_for(self, pool: Pool) -> None:
        """Let one go, for a place of this pool."""
        self.counts.evicted += 1
        self._evict(self.order.least(pool))

    def _evict(self, checkpoint: Checkpoint) -> None:
        node = checkpoint.node
        self.order.discard(checkpoint)
        self.cache.let_go(checkpoint.holding)
        node.kept, node.was_kept = None, True
        node.count(kept=-1)
        self.order.review(node)
        self._gone[node] = None
        self._forget(self.most_gone)

    def _forget(self, most: int) -> None:
        """Remember only so many of those that are gone."""
        while len(self._gone) > most:
            node = next(iter(self._gone))
            del self._gone[node]
            node.was_kept = False
            self._prune(node)

    def _prune(self, node: Node[Checkpoint]) -> None:
        *_, root = node.path()
        prune(node)
        if not root.children and not root.num_live:
            self.roots = {salt: other for salt, other in self.roots.items() if other is not root}

    def _root(self, request: Request) -> Node[Checkpoint]:
        return self.roots.setdefault(request.params.cache_salt, Node())

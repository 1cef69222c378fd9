"""A picture as JSON, small enough to be sent ten times a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from draft_service.live.picture import Picture, Step
from draft_service.live.speed import plain_tokens_per_second
from draft_service.live.tap import Fault, Tap
from draft_service.live.trees import Fate, Prediction, Tree
from draft_service.status import HeadStatus
from pipedec.metrics.head import HeadState

Json = dict[str, Any]
TokenText = Callable[[int], str]
MAX_NODES = 48  # of a tree, in one frame


class Watched(Protocol):
    """What is watched; `draft_service.loop.Head` is one."""

    tap: Tap
    status: HeadStatus

    def watch(self, wanted: bool) -> None: ...

    def running(self) -> tuple[int, ...]: ...

    def state(self) -> HeadState: ...


@dataclass(frozen=True, slots=True)
class About:
    """What does not change: the model's name, the layers of every stage (half-open), the policy in force. `text` gives
    the text of a token; None where texts must not be shown."""

    model: str
    layers: tuple[tuple[int, int], ...]
    policy: str
    text: TokenText | None = None

    def greeting(self) -> Json:
        """The first message to a watcher."""
        shows_text = self.text is not None
        return {"model": self.model, "layers": self.layers, "policy": self.policy, "showsText": shows_text}


def frame(picture: Picture, about: About, head: Watched, now: float) -> Json:
    """What is sent at one moment; batches that are over are in one frame only. Times are in milliseconds."""
    status, state = head.status, head.state()
    tree = next(iter(picture.trees.values()), None)
    return {
        "now": _ms(now),
        "ready": status.ready,
        "epoch": status.epoch,
        "reason": status.reason,
        "degraded": status.degraded,
        "missing": list(status.missing),
        "running": state.running,
        "waiting": state.waiting,
        **_rates(picture, state.running, now),
        "batches": [_step(step, now) for step in (*picture.take_finished(), *picture.in_flight.values())],
        "tree": None if tree is None else _tree(tree, about.text),
        "faults": [_fault(each) for each in head.tap.faults],
    }


def _rates(picture: Picture, running: int, now: float) -> Json:
    trip, stages = picture.passages.round_trip(), range(picture.passages.stages)
    return {
        "tokensPerSecond": _rounded(picture.speed.tokens_per_second),
        "plainTokensPerSecond": _rounded(plain_tokens_per_second(running, *trip)) if trip else None,
        "hitRate": _rounded(picture.speed.hit_rate),
        "busy": [_rounded(share) for share in picture.busy(now)],
        "stepMs": [_rounded(1000 * picture.passages.seconds(stage, 1)) for stage in stages],
    }


def _fault(fault: Fault) -> Json:
    live = None if fault.live is None else _ms(fault.live)
    return {"epoch": fault.epoch, "reason": fault.reason, "lost": _ms(fault.lost), "live": live}


def _step(step: Step, now: float) -> Json:
    """`spans` has begin and end at every stage that the batch has reached."""
    reached = [span for span in zip(step.passage.begins, step.passage.ends, strict=True) if span[0] <= now]
    if step.over is None and reached and reached[-1][1] < now and len(reached) == len(step.passage.begins):
        reached[-1] = (reached[-1][0], now)  # it should be back by now: so it is at the last stage still
    return {
        "step": step.number,
        "prompt": step.prompt,
        "useful": step.count(Fate.USEFUL),
        "wasted": step.count(Fate.WASTED),
        "open": step.count(Fate.OPEN),
        "decided": step.decided,
        "over": step.over is not None,
        "lost": step.lost,
        "spans": [_ms(min(at, now) if step.lost else at) for span in reached for at in span],
    }


def _tree(tree: Tree, text: TokenText | None) -> Json:
    """`path`: (position, node, hit, text) of decided tokens. `nodes`: (node, parent, position, step, text)."""
    nodes = tree.in_flight()
    shown = _chosen(nodes, tree.cursor)
    return {
        "request": tree.request,
        "prompt": tree.num_prompt,
        "output": tree.num_output,
        "path": [[each.position, each.id, each.hit, text and text(each.token)] for each in tree.path],
        "cursor": tree.cursor.id if tree.cursor else None,
        "position": tree.cursor.position if tree.cursor else None,
        "step": tree.cursor.step if tree.cursor else None,
        "nodes": [[n.id, n.parent_id, n.position, n.step, text and text(n.token)] for n in shown],
        "hidden": len(nodes) - len(shown),
    }


def _chosen(nodes: list[Prediction], cursor: Prediction | None) -> list[Prediction]:
    """Of a large tree equally many from every batch: the first, which are the likeliest, and never without parents."""
    if len(nodes) <= MAX_NODES or cursor is None:
        return nodes
    by_step: dict[int, list[Prediction]] = {}
    for node in nodes:
        by_step.setdefault(node.step, []).append(node)
    each, shown, chosen = max(2, MAX_NODES // len(by_step)), {cursor.id}, []
    for step in sorted(by_step):
        room = each
        for node in by_step[step]:
            if room and node.parent_id in shown:
                chosen.append(node)
                shown.add(node.id)
                room -= 1
    return chosen


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)

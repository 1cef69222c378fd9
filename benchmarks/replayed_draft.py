"""A draft in replay: what was recorded stands for running it. Also one of chosen quality, to study policies with.

A node on the answer's path has the recorded logits of its position. A node off the path has those of a random recorded
position one token off this answer's path: a model of the rest of the text, that matters only as far as such nodes
compete with those on the path. `tests/benchmarks/test_replay.py` compares it with really running every node.

A real draft's own logits are recorded. An **emulated** draft, always labelled so, has the target's plus seeded noise,
whose level is set so that the draft's first choice is the target's in a given share of the recorded positions. Noise
belongs to a token after a prefix: it does not depend on when, or how often, the draft is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.recording import Ints, Logits, Transcript
from benchmarks.replay import Transcripts
from draft_service.draft.drafter import Adjust
from draft_service.schedule.guidance import UNGUIDED, Guides
from pipedec.errors import PipeDecError
from pipedec.proposals import Proposals
from pipedec.wire.messages import Batch

OFF_DRAWS = 8  # noises for each recorded row off the path
_MASK = (1 << 64) - 1
_OFF = 0x5851F42D4C957F2D

Keys = npt.NDArray[np.uint64]


def _mix(key: int) -> int:
    """SplitMix64's output function: scrambles a 64-bit integer."""
    key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    key = (key ^ (key >> 27)) * 0x94D049BB133111EB & _MASK
    return key ^ (key >> 31)


def child_key(key: int, token: int) -> int:
    """The key of a prefix that is one token longer."""
    return _mix((key + (token + 1) * 0x9E3779B97F4A7C15) & _MASK)


def path_keys(transcript: Transcript) -> list[int]:
    """Keys of the prefixes that end at each position of prompt and answer."""
    keys, key = [], 0
    for token in (*transcript.prompt, *transcript.answer):
        keys.append(key := child_key(key, token))
    return keys


def noise_of(keys: Keys, tokens: Ints) -> npt.NDArray[np.float32]:
    """Standard normal noise of each token [rows, top] after the prefixes with these keys [rows]."""
    with np.errstate(over="ignore"):
        mixed = keys[:, None] ^ ((tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    uniform = ((mixed >> np.uint64(32)).astype(np.float64) + 0.5) / 2**32
    angle = (mixed & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2 * np.pi / 2**32)
    normal: npt.NDArray[np.float32] = (np.sqrt(-2 * np.log(uniform)) * np.cos(angle)).astype(np.float32)
    return normal


def proposals_of(logits: Logits, keys: Keys, level: float, children: int) -> Proposals:
    """The noisy likeliest children of each row."""
    noisy = logits.values + np.float32(level) * noise_of(keys, logits.tokens)
    top = noisy.max(-1, keepdims=True)
    logprobs = noisy - top - np.log(np.exp(noisy - top).sum(-1, keepdims=True))
    best = np.argsort(-noisy, axis=-1)[:, :children]
    return Proposals(np.take_along_axis(logits.tokens, best, -1), np.take_along_axis(logprobs, best, -1))


def agreement(transcripts: Sequence[Transcript], level: float, top: int = 1) -> float:
    """Share of positions at which the target's choice is among the draft's `top` first ones, at a noise level."""
    agreed = total = 0
    for transcript in transcripts:
        on = _answer_keys(transcript)
        proposals = proposals_of(transcript.on, on, level, top)
        agreed += int((proposals.tokens == np.array(transcript.answer)[:, None]).any(-1).sum())
        total += len(transcript.answer)
    return agreed / total


def noise_level(transcripts: Sequence[Transcript], wanted: float) -> float:
    """The level at which `agreement` is the wanted one."""
    low, high = 0.0, 20.0
    if not 0 < wanted <= 1:
        raise PipeDecError(f"--draft emulated:{wanted}: the agreement is a share, more than 0 and at most 1")
    if wanted == 1:
        return 0.0
    for _ in range(14):
        level = (low + high) / 2
        low, high = (level, high) if agreement(transcripts, level) > wanted else (low, level)
    return (low + high) / 2


def _answer_keys(transcript: Transcript) -> Keys:
    first = len(transcript.prompt) - 1
    return np.array(path_keys(transcript)[first : first + len(transcript.answer)], np.uint64)


@dataclass(frozen=True, slots=True)
class _Tables:
    """What the draft proposes for one transcript; `off` is drawn from by key."""

    path: list[int]
    on: Proposals
    off: Proposals


class ReplayedDraft:
    """Proposes what transcripts say, with noise of a level: those of the target, or a draft's own and no noise."""

    def __init__(self, transcripts: Sequence[Transcript], level: float, children: int) -> None:
        self._transcripts = Transcripts(transcripts)
        self._level, self._children = level, children
        self._tables: dict[tuple[int, ...], _Tables] = {}
        self._nodes = _Nodes()

    def reset(self, num_slots: int) -> None:
        self._transcripts.clear()
        self._nodes.clear()

    def propose(self, batch: Batch, guides: Guides = UNGUIDED) -> Proposals:
        self._transcripts.apply(batch.ops)
        tokens, logprobs = [], []
        for request, node, parent, token, position, _, _ in batch.rows:
            transcript = self._transcripts.of(request, token)
            tables = self._tables.get(transcript.prompt) or self._prepare(transcript)
            key, on_path = self._nodes.enter(tables.path, request, node, parent, token, position)
            index = position + 1 - len(transcript.prompt)
            table = tables.on
            if not on_path or index >= len(table):
                table = tables.off
                index = _mix(key ^ _OFF) % len(table)
            tokens.append(table.tokens[index])
            logprobs.append(table.logprobs[index])
        return Proposals(np.array(tokens), np.array(logprobs)) if tokens else Proposals.of(())

    def _prepare(self, transcript: Transcript) -> _Tables:
        rng = np.random.default_rng(len(transcript.prompt))
        repeated = Logits(
            np.tile(transcript.off.tokens, (OFF_DRAWS, 1)), np.tile(transcript.off.values, (OFF_DRAWS, 1))
        )
        keys = rng.integers(0, _MASK, len(repeated.tokens), np.uint64)
        tables = _Tables(
            path_keys(transcript),
            proposals_of(transcript.on, _answer_keys(transcript), self._level, self._children),
            proposals_of(repeated, keys, self._level, self._children),
        )
        self._tables[transcript.prompt] = tables
        return tables


class _Nodes:
    """The prefix of every node that the draft was given, as a key, and whether it is the answer's."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._known: dict[tuple[int, int], tuple[int, bool]] = {}

    def enter(
        self, path: Sequence[int], request: int, node: int, parent: int, token: int, position: int
    ) -> tuple[int, bool]:
        """A row's key and whether it is on the path. A row whose parent is not known is a cursor, and certain."""
        if (above := self._known.get((request, parent))) is None:
            entry = (path[position], True)
        else:
            key = child_key(above[0], token)
            entry = (key, above[1] and position < len(path) and path[position] == key)
        self._known[request, node] = entry
        return entry


def noisy(transcripts: Sequence[Transcript], level: float, top: int) -> Adjust:
    """The same draft, for a `Drafter` that really runs the target on every node: see `Drafter.adjust`."""
    known, nodes = Transcripts(transcripts), _Nodes()

    def adjust(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        known.apply(batch.ops)
        best = logits.topk(min(top, logits.shape[-1]))
        keys = [
            nodes.enter(path_keys(known.of(request, token)), request, node, parent, token, position)[0]
            for request, node, parent, token, position, _, _ in batch.rows
        ]
        noise = noise_of(np.array(keys, np.uint64), best.indices.to(torch.int32).numpy())
        return torch.full_like(logits, -torch.inf).scatter(
            -1, best.indices, best.values + level * torch.from_numpy(noise)
        )

    return adjust

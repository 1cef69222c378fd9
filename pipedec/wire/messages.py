"""Every message between the processes of a pipeline. Plain data: no sockets, no torch.

Data channel: `Batch` (draft pod -> stage 0 -> ... -> last stage) and `Verdict` (last stage -> draft pod).
Control channel (draft pod <-> each stage): `Register`, `Formation`, `Joined`, `Started`, `Cancel`, `Heartbeat`,
`Refused`, `Shutdown`.

A batch carries *ops*, in order, then *rows*. Its activation rows are: the tokens of its `Prefill` ops in
order, then its tree rows in order. A tree row attends to the committed slots of its request, its ancestors'
slots, and itself; the message says which, so stages have no tree logic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipedec.sampling_params import SamplingParams

PROTOCOL_VERSION = 5
NO_PARENT = -1  # parent of a request's first tree row
NO_EPOCH = 0  # in a stage's heartbeat: it is in no epoch, or has left the one it had joined; real ones are greater
BEAT_SECONDS = 1.0  # between heartbeats, both ways

Int32 = npt.NDArray[np.int32]

_ADDRESS = re.compile(r"tcp://(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Open:
    """A request begins: its committed list is empty. `num_prompt` of the first tokens are the client's prompt
    (after a fault, tokens already emitted are prefilled too, and count as output for penalties)."""

    request: int
    sampling: SamplingParams
    num_prompt: int


@dataclass(frozen=True, slots=True)
class Prefill:
    """Certain tokens at positions `start`, `start + 1`, ...; each is committed as it is computed, so each attends
    to everything committed before it and to itself."""

    request: int
    start: int
    tokens: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reuse:
    """Certain tokens at positions `start`, `start + 1`, ... whose K and V lie in these slots already: another request,
    which began with the same tokens, had them computed. They follow on the committed list, and nothing is computed."""

    request: int
    start: int
    tokens: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """These slots, computed earlier as tree rows, follow on the request's committed list."""

    request: int
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """The request is over; whatever is known of it can be forgotten."""

    request: int


@dataclass(frozen=True, slots=True)
class Poison:
    """Fill these freed slots with NaN. Sent in tests only: it proves that nothing alive reads a freed slot."""

    slots: tuple[int, ...]


Op = Open | Prefill | Reuse | Commit | Close | Poison


class Row(NamedTuple):
    """One tree node in a batch, as the scheduler writes it. `ancestors`: slots back to the first uncommitted node."""

    request: int
    node: int
    parent: int
    token: int
    position: int
    slot: int
    ancestors: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The tree rows of a batch, as columns; each int32 of shape [rows].

    Ancestors are ragged: row i has `ancestor_slots[ancestor_offsets[i]:ancestor_offsets[i + 1]]`.
    """

    request: Int32
    node: Int32
    parent: Int32
    token: Int32
    position: Int32
    slot: Int32
    ancestor_offsets: Int32  # [rows + 1]
    ancestor_slots: Int32

    def __len__(self) -> int:
        return len(self.request)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and list(self) == list(other)

    def __iter__(self) -> Iterator[Row]:
        offsets, slots = self.ancestor_offsets.tolist(), self.ancestor_slots.tolist()
        columns = (self.request, self.node, self.parent, self.token, self.position, self.slot)
        for i, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            yield Row._make((*values, tuple(slots[offsets[i] : offsets[i + 1]])))

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Rows:
        """Columns from rows."""
        *columns, ancestors = zip(*rows, strict=True) if rows else ((),) * len(Row._fields)
        offsets = np.fromiter(accumulate(map(len, ancestors), initial=0), np.int32, len(rows) + 1)
        slots = np.fromiter(chain.from_iterable(ancestors), np.int32, offsets[-1])
        request, node, parent, token, position, slot = np.array(columns, np.int32)
        return cls(request, node, parent, token, position, slot, offsets, slots)


EMPTY_ROWS = Rows.of(())


@dataclass(frozen=True, slots=True)
class Batch:
    """What travels stage to stage in one step. `step` counts from 0 in each epoch."""

    epoch: int
    step: int
    ops: tuple[Op, ...] = ()
    rows: Rows = field(default_factory=lambda: EMPTY_ROWS)

    @property
    def num_prefill(self) -> int:
        return sum(len(op.tokens) for op in self.ops if isinstance(op, Prefill))

    @property
    def num_rows(self) -> int:
        """Activation rows: prefill tokens, then tree rows."""
        return self.num_prefill + len(self.rows)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of a decided token and the likeliest alternatives, from the unprocessed logits."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """The tokens one batch decided for one request, in order; `logprobs` is empty or as long as `tokens`. Where no
    token can follow, `failure` says what is wrong with the logits, or `refusal` which demand of the request leaves none
    to choose; both are empty where one can."""

    request: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    failure: str = ""
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the last stage says of a batch; sent for every batch, also when nothing was decided."""

    epoch: int
    step: int
    decisions: tuple[Decision, ...] = ()


def is_address(text: str) -> bool:
    """Whether this is an address of a data channel: `tcp://host:port`, an IPv6 host in brackets."""
    parts = _ADDRESS.fullmatch(text)
    return parts is not None and 0 < int(parts[1]) < 65536


@dataclass(frozen=True, slots=True)
class Register:
    """A stage offers itself: `layers` is a half-open span, `slots` the KV slots it can hold, `address` where its
    predecessor connects, `incarnation` a random id of this process, `width` the activation's last dimension."""

    stage: int
    stages: int
    layers: tuple[int, int]
    revision: str
    address: str
    slots: int
    incarnation: str
    width: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Formation:
    """A new epoch: connect to `successor`, forget all requests, hold `slots` KV slots."""

    epoch: int
    successor: str
    slots: int


@dataclass(frozen=True, slots=True)
class Joined:
    """A stage has reset its state and is connected for this epoch."""

    epoch: int
    stage: int


@dataclass(frozen=True, slots=True)
class Started:
    """A stage began to compute this step; stage 0's are the scheduler's signal to compose the next batch."""

    epoch: int
    stage: int
    step: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Rows that can no longer become tokens, in batches up to `step`; stages may skip them (early cancellation)."""

    epoch: int
    step: int
    nodes: tuple[tuple[int, int], ...]  # (request, node)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Alive. From a stage: the epoch it is in, its last finished step, and `seconds`, its recent compute time by row
    bucket. From the draft pod: the newest epoch, and the stage it is sent to."""

    epoch: int
    stage: int
    step: int
    seconds: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """The draft pod will not have this stage, and why (another revision, a wrong split, ...)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Shutdown:
    """The draft pod leaves in good order. Stages keep their weights, and wait for the next one."""

    reason: str = field(default="")


Control = Register | Formation | Joined | Started | Cancel | Heartbeat | Refused | Shutdown
Message = Batch | Verdict | Control


def tree_slots(ops: Iterable[Op]) -> list[int]:
    """All slots that the ops of a batch name, for bounds checks."""
    return [slot for op in ops if isinstance(op, Prefill | Reuse | Commit | Poison) for slot in op.slots]

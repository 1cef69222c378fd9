"""Programs of fixed shape over fixed memory: what a CUDA graph can record and replay.

Rows are padded to the next of a few sizes. The same programs run as plain calls where there are no graphs, so that
everything but the recording itself is the same there.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from pipedec.model.attention import PoolCache
from pipedec.model.context import Context, Ints
from pipedec.model.layers import GoesOn, Layers, Rotated
from pipedec.model.span import Span
from pipedec.model.staging import Staging
from pipedec.model.table import Column, Layout, needed
from pipedec.model.table_attention import Bound, TableAttention

Program = Callable[[], None]
Record = Callable[[Program], Program]  # makes of a program one that does the same again, with what its memory holds
Progress = Callable[[float], None]

_READERS = 4  # of a slot, on average, that a table has room for: requests may share what they begin with
_EXTRA_KEYS = 512  # for which each row has room; a batch with more is computed without a program
_CUT = 0.75  # of the layers, after which it is asked again whether to go on


def cut_of(layers: int) -> int:
    """After how many layers of a span it is asked again whether to go on: before the last, if there is another."""
    return max(1, min(math.ceil(_CUT * layers), layers - 1))


def plain(program: Program) -> Program:
    """No recording: the program itself, once it has shown that it runs."""
    program()
    return program


class CudaGraphs:
    """Records programs of one device. They share memory for what they compute on the way, so that one must be done
    before the next begins; what they leave must lie in memory of its own."""

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, program: Program) -> Program:
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            program()  # whatever is compiled or allocated once is, before the recording
            with _no_waiting():
                program()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._stream.device), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            program()
        replay: Program = graph.replay
        return replay


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raises RuntimeError where the device is waited for. Within a recording that is an error too, but one after which
    torch believes to be recording for ever, and keeps all memory that more than one stream has used."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class StaticSpan:
    """The layers of a span at a few numbers of rows, `sizes`, ascending. `prepare` comes before `run`."""

    def __init__(
        self,
        model: Span,
        layers: Layers,
        attention: TableAttention,
        sizes: Sequence[int],
        staging: Staging,
        record: Record,
    ) -> None:
        self._model, self._layers, self._attention = model, layers, attention
        self._staging, self._record = staging, record
        self._cache = PoolCache(attention, model.span[0])
        rows, slots = sizes[-1], attention.num_slots
        distances = rows * min(_EXTRA_KEYS, slots)
        self._layouts = {size: attention.layout(size, _READERS * slots, distances) for size in sizes}
        self._sizes = tuple(sizes)
        self._table = torch.zeros(
            max(each.size for each in self._layouts.values()), dtype=torch.int32, device=model.device
        )
        self._hidden = torch.zeros(rows, model.hidden_size, dtype=model.dtype, device=model.device)
        cut = cut_of(len(layers))
        self._parts = [(0, cut), (cut, len(layers))] if cut < len(layers) else [(0, cut)]
        self._programs: dict[int, list[Program]] = {}
        self._places: dict[int, tuple[torch.Tensor, Rotated]] = {}  # of a size's rows, which its first part leaves

    @torch.inference_mode()
    def prepare(self, progress: Progress = lambda done: None) -> None:
        """Record the programs, the largest first: the others then need no memory of their own."""
        for done, size in enumerate(reversed(self._sizes), start=1):
            layout = self._layouts[size]
            self._fill(torch.from_numpy(self._attention.maker.empty(layout)))
            self._programs[size] = [self._record(self._program(layout, part)) for part in self._parts]
            progress(done / len(self._sizes))

    def fits(self, contexts: Sequence[Context], count: int) -> bool:
        """Whether there is a program for so many rows with these contexts."""
        largest = self._layouts[self._sizes[-1]]
        keys, distances = needed(contexts)
        return count <= largest.rows and keys <= largest.keys and distances <= largest.distances

    def run(
        self,
        contexts: Sequence[Context],
        order: Ints,
        tokens: Ints | None,
        hidden: torch.Tensor | None,
        goes_on: GoesOn | None = None,
    ) -> torch.Tensor | None:
        """As `SpanExecutor.execute`, for rows that `fits` holds for. Tokens, or hidden states on the device."""
        count = len(order)
        size = self._sizes[bisect_left(self._sizes, count)]
        self._fill(torch.from_numpy(self._attention.maker.make(self._layouts[size], contexts, order, tokens)))
        if hidden is not None:
            self._hidden[:count].copy_(hidden)
        for (start, _), program in zip(self._parts, self._programs[size], strict=True):
            if goes_on is not None:
                if start:
                    self._staging.wait()
                if not goes_on(start):
                    return None
            program()
        return self._hidden[:count].clone()

    def _fill(self, table: torch.Tensor) -> None:
        self._table[: len(table)].copy_(self._staging.upload(table))

    def _program(self, layout: Layout, part: tuple[int, int]) -> Program:
        """Layers [start, end) over the rows in `_hidden`, whose place their output takes."""
        start, end = part
        rows = self._hidden[: layout.rows]

        def program() -> None:
            bound = Bound(layout, self._table)
            self._attention.bind(bound)
            hidden = rows
            if self._model.first and not start:
                hidden = self._model.architecture.embedding(bound.column(Column.TOKEN).long())
            if not start:
                positions = bound.column(Column.POSITION).long()
                self._places[layout.rows] = positions, self._layers.rotate(hidden, positions)
            positions, rotated = self._places[layout.rows]
            output = self._layers(hidden, positions, self._cache, rotated, start=start, end=end)
            assert output is not None, "nothing stops it"
            rows.copy_(output)

        return program


class StaticRows:
    """A function of rows, each for itself, at a few numbers of them: [rows, width] -> tensors of [rows, ...]."""

    def __init__(
        self,
        function: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
        like: torch.Tensor,
        sizes: Sequence[int],
        record: Record,
    ) -> None:
        """`like` [1, width] is one row. Records at once."""
        self._function, self._sizes = function, tuple(sizes)
        self._input = like.new_zeros(sizes[-1], like.shape[1])
        self._outputs = tuple(out.new_zeros(sizes[-1], *out.shape[1:]) for out in function(like))
        self._programs = {size: record(self._program(size)) for size in reversed(self._sizes)}

    @torch.inference_mode()
    def __call__(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count = len(rows)
        if not 0 < count <= self._sizes[-1]:
            return self._function(rows)
        self._input[:count].copy_(rows)
        self._programs[self._sizes[bisect_left(self._sizes, count)]]()
        return tuple(output[:count].clone() for output in self._outputs)

    def _program(self, size: int) -> Program:
        def program() -> None:
            for output, result in zip(self._outputs, self._function(self._input[:size]), strict=True):
                output[:size].copy_(result)

        return program

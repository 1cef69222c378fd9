"""The benchmark measures what it says: the ring closes, the bytes come back, and both reports can be read."""

from __future__ import annotations

from benchmarks.transport import Load, measure, table


def test_a_small_ring() -> None:
    load = Load(rows=4, hidden=64)
    report = measure(stages=2, load=load, rounds=2)
    assert report.message_bytes == sum(len(frame) for frame in load.frames()) > 4 * 64 * 2
    assert min(report.bare_tcp_ms, report.plain_ms, report.curve_ms, report.header_decode_us) > 0
    assert f"{report.plain_over_bare:.2f}x" in table(report)

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.scheduler import Snapshot, WaitingJob, admit

waiting_jobs = st.lists(
    st.builds(WaitingJob, uid=st.uuids().map(str), priority=st.integers(0, 1000), seq=st.integers(1, 10_000)),
    unique_by=lambda job: job.seq,
    max_size=30,
)
snapshots = st.builds(Snapshot, waiting_jobs, st.integers(0, 10), st.integers(1, 10))


@given(snapshots)
def test_never_more_than_there_is_room_for(snapshot: Snapshot) -> None:
    assert len(admit(snapshot)) <= max(0, snapshot.max_running_jobs - snapshot.num_running)


@given(snapshots)
def test_no_room_is_left_empty_while_somebody_waits(snapshot: Snapshot) -> None:
    room = max(0, snapshot.max_running_jobs - snapshot.num_running)
    assert len(admit(snapshot)) == min(room, len(snapshot.waiting))


@given(snapshots)
def test_nobody_is_passed_over(snapshot: Snapshot) -> None:
    admitted = admit(snapshot)
    rank = {job.uid: (-job.priority, job.seq) for job in snapshot.waiting}
    assert [rank[uid] for uid in admitted] == sorted(rank.values())[: len(admitted)]


@given(snapshots)
def test_order_of_the_snapshot_does_not_matter(snapshot: Snapshot) -> None:
    backwards = Snapshot(snapshot.waiting[::-1], snapshot.num_running, snapshot.max_running_jobs)
    assert admit(snapshot) == admit(backwards)

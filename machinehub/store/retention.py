"""Which checkpoints and inputs of a session are kept, and the deleting of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from machinehub.store import effect_statements
from machinehub.store import statements as sql

if TYPE_CHECKING:
    from machinehub.ids import Seq, SessionKey
    from machinehub.model import Retention
    from machinehub.store.database import Connection


class Cut(NamedTuple):
    """What goes of a session: checkpoints, inputs of timers up to one, all inputs up to another."""

    checkpoints: list[Seq]
    ticks_to: int
    inputs_to: int

    @property
    def compacted_to(self) -> int:
        """Inputs up to this one may be missing; 0 for none that are not missing already."""
        return max(self.ticks_to, self.inputs_to)


def prune(connection: Connection, key: SessionKey, keep: Retention, *, compacts: bool) -> None:
    """Deletes what is not to be kept of a session that has got a checkpoint."""
    seqs = [seq for (seq,) in connection.fetch(sql.checkpoint_seqs, of_key=key)]
    cut = cut_of(seqs, keep, compacts=compacts)
    if cut.ticks_to:
        connection.run(sql.forget_ticks, [{"of_key": key, "of_seq": cut.ticks_to}])
    if cut.inputs_to:
        connection.run(sql.forget_entries, [{"of_key": key, "of_seq": cut.inputs_to}])
        connection.run(effect_statements.forget_ended, [{"of_key": key, "of_seq": cut.inputs_to}])
    if cut.compacted_to:
        connection.run(sql.note_compacted, [{"of_key": key, "of_seq": cut.compacted_to}])
    if cut.checkpoints:
        gone = [{"of_key": key, "of_seq": seq} for seq in cut.checkpoints]
        connection.run(sql.delete_checkpoint, gone)


def cut_of(seqs: list[Seq], keep: Retention, *, compacts: bool) -> Cut:
    """`seqs` are those of the session's checkpoints, in order. With `compacts` the inputs of timers
    go, up to the checkpoint before the newest one: from there the newest can still be made again,
    should it be damaged.
    """
    ticks_to = seqs[-2] if compacts and len(seqs) > 1 else 0
    # What is left of the journal can still be replayed, from the checkpoint just before it.
    old = (seq for seq in seqs if keep.journal and seq <= seqs[-1] - keep.journal)
    inputs_to = max(old, default=0)
    every = (
        min(keep.checkpoint_every or keep.journal, max(1, keep.journal // 2))
        if keep.journal
        else keep.checkpoint_every
    )  # or none would ever be old enough
    first = max(ticks_to, inputs_to)
    gone = set(superfluous(seqs, newest=keep.checkpoints, every=every)) - {first}
    gone |= {seq for seq in seqs if seq < first}
    return Cut(sorted(gone), ticks_to, inputs_to)


def superfluous(seqs: list[Seq], *, newest: int, every: int) -> list[Seq]:
    """Which of a session's checkpoints to drop: all but the newest ones and the first at or after
    every so many inputs.
    """
    kept = set(seqs[-newest:]) if newest else set(seqs)
    last = 0
    for seq in seqs:
        if every and seq // every > last // every:
            kept.add(seq)
            last = seq
    return [seq for seq in seqs if seq not in kept]

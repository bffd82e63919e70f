"""The receipts of a session: what its last events came to, by their ids, so that a second copy
counts for nothing.

Decides: which ids are remembered. What is forgotten here is found in the journal, more slowly.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from machinehub.ids import Seq
from machinehub.session.decide.turn import Receipt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from machinehub.ids import EventId
    from machinehub.model import Entry
    from machinehub.session.decide.turn import Pending


class Receipts:
    """At most `remembered` of them, the oldest of which are forgotten first, and those of events
    that still wait: the journal knows nothing of them yet.
    """

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._receipts: OrderedDict[EventId, Receipt] = OrderedDict()

    def __len__(self) -> int:
        return len(self._receipts)

    def __contains__(self, event_id: object) -> bool:
        return event_id in self._receipts

    def of(self, event_id: EventId | None) -> tuple[Receipt, bool]:
        """The receipt for an event with this id, and whether the event is new as far as is known
        here.
        """
        if event_id is None:
            return Receipt(Seq(0)), True
        known = self._receipts.get(event_id)
        if known is not None:
            return known, False
        receipt = self._receipts[event_id] = Receipt(Seq(0))
        while len(self._receipts) > self._remembered:
            eldest = next(iter(self._receipts))
            if not self._receipts[eldest].settled:
                break
            del self._receipts[eldest]
        return receipt, True

    def forget(self, event_id: EventId | None) -> None:
        """The event was refused through no fault of its own: the same id may be tried again."""
        if event_id is not None:
            self._receipts.pop(event_id, None)

    def keep_only(self, pending: Iterable[Pending]) -> None:
        """Forgets all but those of events that still wait."""
        waiting = {each.event_id for each in pending}
        self._receipts = OrderedDict(
            (event_id, receipt)
            for event_id, receipt in self._receipts.items()
            if event_id in waiting
        )

    def recall(self, entries: list[Entry], pending: Iterable[Pending]) -> list[Receipt]:
        """Takes up what the journal says of events, oldest first.

        Returns the receipts that this settles: of events that wait here, and had been committed
        after all. One of them may have been forgotten here while its event waited.
        """
        waiting = {each.event_id: each.receipt for each in pending}
        recalled: OrderedDict[EventId, Receipt] = OrderedDict()
        settled: list[Receipt] = []
        for entry in entries:
            assert entry.event_id is not None
            receipt = self._receipts.pop(entry.event_id, None) or waiting.get(entry.event_id)
            if receipt is not None and not receipt.settled:
                settled.append(receipt)
            recalled[entry.event_id] = receipt = receipt or Receipt(entry.seq)
            receipt.keep(entry)
        self._receipts = OrderedDict([*recalled.items(), *self._receipts.items()])
        return settled

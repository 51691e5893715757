"""A target run watched against what the proxies promised: bands, how they are carried, alarms and their causes."""

from typing import TYPE_CHECKING

from widthwise.proxies._lazy import exported

if TYPE_CHECKING:
    from widthwise.transfer.watching.alarms import Alarm, Watcher, measured, watch_of
    from widthwise.transfer.watching.records import Bands, Watch
    from widthwise.transfer.watching.telling import told

__all__ = ["Alarm", "Bands", "Watch", "Watcher", "measured", "told", "watch_of"]

__getattr__, __dir__ = exported(
    __name__,
    {"alarms": "Alarm Watcher measured watch_of", "records": "Bands Watch", "telling": "told"},
)

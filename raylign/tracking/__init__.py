"""Metrics of a run in files and services, and its progress in the terminal.

Imports neither ray nor torch; W&B and TensorBoard are imported only by a run that asks for them.
"""

from raylign.storage.metrics_log import read_metrics
from raylign.tracking.console import progress_console
from raylign.tracking.live import LiveView
from raylign.tracking.progress import format_clock
from raylign.tracking.sink import Sink, TrackedRun
from raylign.tracking.tracker import Tracker
from raylign.tracking.view import NullView, PlainView, View, make_view

__all__ = [
    "LiveView",
    "NullView",
    "PlainView",
    "Sink",
    "TrackedRun",
    "Tracker",
    "View",
    "format_clock",
    "make_view",
    "progress_console",
    "read_metrics",
]

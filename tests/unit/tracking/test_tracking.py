"""Tracking against the real clients, read back from what they left on disk; the views as text."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raylign.config import ALGORITHMS, TrackingConfig, WandbConfig
from raylign.errors import DataError, UserError
from raylign.tracking import (
    LiveView,
    NullView,
    PlainView,
    Sink,
    TrackedRun,
    Tracker,
    make_view,
    progress_console,
    read_metrics,
)
from raylign.tracking.progress import Progress, format_clock, format_seconds, format_value, sparkline
from raylign.tracking.sink import SINKS

PPO = {
    "reward/mean": 0.52,
    "kl/k1": 1.3,
    "throughput/tokens_per_second": 5123.0,
    "time/step": 4.0,
    "time/generate": 2.0,
    "time/update_policy": 1.5,
    "time/idle_fraction": 0.12,
}

HEADLINE = ALGORITHMS["ppo"].headline


def tracker(
    run_dir: Path, config: TrackingConfig | None = None, state: dict | None = None, first_step: int = 0
) -> Tracker:
    return Tracker(run_dir, config or TrackingConfig(), "a-run", {"seed": 3}, state, first_step=first_step)


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


class TestJsonl:
    def test_a_line_is_on_disk_when_log_returns(self, tmp_path: Path):
        with tracker(tmp_path) as t:
            t.log(1, {"reward/mean": 0.5, "tokens/generated": 64})
            (line,) = lines(tmp_path)
        assert line.pop("time") >= 0
        assert line == {"step": 1, "reward/mean": 0.5, "tokens/generated": 64}

    def test_values_that_are_not_finite_are_null(self, tmp_path: Path):
        with tracker(tmp_path) as t:
            t.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.0})
        (line,) = lines(tmp_path)
        assert [line[name] for name in "abcd"] == [None, None, None, 0.0]

    def test_resume_cuts_uncommitted_steps_and_a_torn_line(self, tmp_path: Path):
        with tracker(tmp_path) as t:
            for step in range(1, 6):
                t.log(step, {"x": step})
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(path.read_bytes() + '{"step": 6, "x": "é'.encode()[:-1])  # torn inside a character
        assert [m["step"] for m in read_metrics(path)] == [1, 2, 3, 4, 5]
        with tracker(tmp_path, first_step=4) as t:
            assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
            t.log(4, {"x": 40})
        assert [(line["step"], line["x"]) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]
        assert list(tmp_path.iterdir()) == [path]

    def test_a_torn_line_that_happens_to_parse_is_dropped(self, tmp_path: Path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 1, "time": 1.0, "x": 1}\n{"step": 2, "time": 2.0, "x": 2}')
        with tracker(tmp_path, first_step=3) as t:
            t.log(3, {"x": 3})
        assert [line["step"] for line in lines(tmp_path)] == [1, 3]

    def test_a_killed_process_leaves_every_logged_step(self, tmp_path: Path):
        code = """
            import os, signal, sys, pathlib
            from raylign.config import TrackingConfig
            from raylign.tracking import Tracker
            t = Tracker(pathlib.Path(sys.argv[1]), TrackingConfig(), "n", {})
            for step in range(1, 4):
                t.log(step, {"x": step})
            os.kill(os.getpid(), signal.SIGKILL)
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=False, timeout=60)
        assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]

    def test_time_continues_after_a_resume(self, tmp_path: Path):
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 100.0}\n{"step": 2, "time": 900.0}\n')
        with tracker(tmp_path, first_step=2) as t:
            t.log(2, {})
        assert 100 <= lines(tmp_path)[-1]["time"] < 200

    def test_a_damaged_line_is_named(self, tmp_path: Path):
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 1.0}\nrubbish\n{"step": 2, "time": 2.0}\n')
        with pytest.raises(DataError, match=r"metrics\.jsonl:2: not a JSON object"):
            tracker(tmp_path, first_step=2)

    def test_reports_of_one_step_are_merged(self, tmp_path: Path):
        with tracker(tmp_path) as t:
            t.log(1, {"a": 1})
            t.log(1, {"b": 2})
        (step,) = read_metrics(tmp_path / "metrics.jsonl")
        assert (step["step"], step["a"], step["b"]) == (1, 1, 2)

    @pytest.mark.parametrize(
        ("step", "metrics", "problem"),
        [
            (4, {}, "steps only go up"),
            (5, {"time": 1.0}, "'time' is reserved"),
            (5, {"x": "1.0"}, "is the text '1.0'"),
        ],
    )
    def test_mistakes_of_the_caller(self, tmp_path: Path, step: int, metrics: dict, problem: str):
        with tracker(tmp_path) as t:
            t.log(5, {"x": 1.0})
            with pytest.raises(ValueError, match=problem):
                t.log(step, metrics)
        assert [line["step"] for line in lines(tmp_path)] == [5]


class TestTensorboard:
    def test_values_read_back_and_resumed_steps_purged(self, tmp_path: Path):
        config = TrackingConfig(tensorboard=True)
        with tracker(tmp_path, config) as t:
            for step in range(1, 6):
                t.log(step, {"reward/mean": float(step)})
        with tracker(tmp_path, config, first_step=4) as t:
            t.log(4, {"reward/mean": 40.0})
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 1), (2, 2), (3, 3), (4, 40)]


@pytest.fixture
def clean_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No credentials and no settings of the person who runs the tests; the client's service ends with the test."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.teardown()


def wandb_records(file: Path) -> Iterator:
    """Records of a .wandb file: a 7-byte header, then LevelDB log blocks (crc, length, type) of protobuf messages."""
    from wandb.proto import wandb_internal_pb2

    data, block, message = file.read_bytes(), 32768, b""
    at = 7
    while at + 7 <= len(data):
        if block - at % block < 7:  # no room for a header: the rest of a block is padding
            at += block - at % block
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        message += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole message, or its last part
            record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
            record.ParseFromString(message)
            message = b""
            yield record


def wandb_file(run_dir: Path) -> Path:
    """The one .wandb file of a run directory, once the client's service has written all of it and ended."""
    import wandb

    wandb.teardown()
    (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    return file


def wandb_history(file: Path) -> list[dict]:
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(file)
        if record.WhichOneof("record_type") == "history"
    ]


@pytest.mark.usefixtures("clean_wandb")
class TestWandb:
    offline = TrackingConfig(wandb=WandbConfig(project="p", mode="offline"))

    def test_offline_run_holds_the_metrics_and_is_continued(self, tmp_path: Path):
        with tracker(tmp_path, self.offline) as t:
            for step in (1, 2, 3):
                t.log(step, {"reward/mean": step / 2})
            state = json.loads(json.dumps(t.state()))
            assert Path(t.location or "").is_relative_to(tmp_path)
        file = wandb_file(tmp_path)
        history = wandb_history(file)
        assert [(h["step"], h["_step"], h["reward/mean"]) for h in history] == [(1, 1, 0.5), (2, 2, 1.0), (3, 3, 1.5)]
        configs = [
            json.loads(u.value_json) for r in wandb_records(file) for u in r.run.config.update if u.key == "seed"
        ]
        assert configs == [3]
        assert file.name == f"run-{state['wandb_run_id']}.wandb"

        file.unlink()  # the second process may start within the same second, which names the folder
        with tracker(tmp_path, self.offline, state, first_step=3) as t:
            t.log(3, {"reward/mean": 1.5})
            assert t.state() == state
        again = wandb_file(tmp_path)
        assert again.name == file.name
        assert [h["step"] for h in wandb_history(again)] == [3]

    def test_exit_code_reaches_the_run(self, tmp_path: Path):
        t = tracker(tmp_path, self.offline)
        t.close(exit_code=1)
        file = wandb_file(tmp_path)
        assert [r.exit.exit_code for r in wandb_records(file) if r.WhichOneof("record_type") == "exit"] == [1]

    def test_no_credentials_is_an_error_at_the_start(self, tmp_path: Path):
        with pytest.raises(UserError, match=r"^tracking\.wandb: no credentials for .*WANDB_API_KEY.*offline$"):
            tracker(tmp_path, TrackingConfig(wandb=WandbConfig(project="p")))
        assert not (tmp_path / "metrics.jsonl").exists()

    def test_error_of_a_malformed_key_does_not_show_the_key(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("WANDB_API_KEY", "tooshort")
        with pytest.raises(UserError, match="WANDB_API_KEY") as caught:
            tracker(tmp_path, TrackingConfig(wandb=WandbConfig(project="p")))
        assert "tooshort" not in str(caught.value)

    def test_a_server_that_is_away_costs_no_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        from raylign.tracking.wandb_sink import WandbSink

        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
        sink = WandbSink(TrackedRun(tmp_path, "n"), WandbConfig(project="p"), init_timeout=2, finish_timeout=2)
        sink.log(1, {"x": 1.0})
        sink.close(0)
        assert "kept offline" in caplog.text
        file = wandb_file(tmp_path)
        assert [h["x"] for h in wandb_history(file)] == [1.0]

    def test_refused_credentials_are_an_error_at_the_start(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        class Refuse(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_error(401)

            def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - the base class's name

        with ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
            with pytest.raises(
                UserError, match=r"^tracking\.wandb: the server refused project 'p'.*WANDB_API_KEY"
            ) as caught:
                tracker(tmp_path, TrackingConfig(wandb=WandbConfig(project="p")))
            server.shutdown()
        assert "\n" not in str(caught.value)

    def test_a_dead_client_costs_no_run(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        import wandb

        with tracker(tmp_path, self.offline) as t:
            t.log(1, {"x": 1})
            wandb.teardown()  # the service process ends, as if it had crashed
            t.log(2, {"x": 2})
            t.log(3, {"x": 3})
        assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
        assert caplog.text.count("no more is sent") == 1


def screen(width: int) -> Console:
    return progress_console(io.StringIO(), record=True, force_terminal=True, width=width, height=40)


class TestLiveView:
    @pytest.mark.parametrize("width", [40, 80, 120])
    def test_shows_where_the_run_is(self, width: int):
        console = screen(width)
        view = LiveView("my-run", 100, console=console, headline=HEADLINE)
        for step in range(1, 11):
            view.update(step, PPO | {"reward/mean": 0.1 * step})
        view.status("generating")
        console.print(view)
        text = console.export_text()
        for part in ("my-run", "generating  0:00", "step 10/100", "reward", "1.000", "▁", "█", "kl", "1.300", "5,123"):
            assert part in text
        assert ("time per step   4.0 s" in text) == (width > 40)
        assert {len(line) for line in text.splitlines()} == {width}

    def test_speaks_before_the_first_step(self):
        console = screen(80)
        view = LiveView("my-run", 100, console=console, headline=HEADLINE)
        view.status("placing actors")
        console.print(view)
        text = console.export_text()
        assert "placing actors  0:00" in text
        assert "step 0/100" in text

    def test_offline_algorithms_show_their_own_metric(self):
        for algorithm in ALGORITHMS.values():
            for metric, label in algorithm.headline:
                console = screen(80)
                view = LiveView("my-run", 4, console=console, headline=algorithm.headline)
                view.update(1, {metric: 0.75})
                console.print(view)
                assert any(label in line and "0.750" in line for line in console.export_text().splitlines())

    def test_values_that_are_not_finite_are_shown_not_fatal(self):
        console = screen(80)
        view = LiveView("my-run", 4, console=console, headline=HEADLINE)
        for step in (1, 2, 3):
            view.update(step, dict.fromkeys(PPO, math.nan))
        console.print(view)
        assert "nan" in console.export_text()

    def test_live_notes_and_the_end(self):
        console = screen(80)
        with LiveView("my-run", 2, console=console, headline=HEADLINE) as view:
            view.note("saved to runs/[x]")
            view.update(2, PPO)
        text = console.export_text()
        assert "• saved to runs/[x]" in text
        assert "✓ finished in 0:00" in text

    def test_an_error_passes_through_and_is_shown(self):
        console = screen(80)
        with pytest.raises(RuntimeError, match="boom"), LiveView("my-run", 2, console=console, headline=HEADLINE):
            raise RuntimeError("boom")
        assert "✗ stopped after 0:00" in console.export_text()


class TestPlainView:
    def run(self, **options) -> list[str]:
        stream = io.StringIO()
        with PlainView("my-run", 100, console=progress_console(stream, width=20), headline=HEADLINE, **options) as view:
            view.status("placing actors")
            for step in range(1, 11):
                view.status("generating")
                view.update(step, PPO)
        text = stream.getvalue()
        assert all(char.isprintable() or char == "\n" for char in text)
        return text.splitlines()

    def test_few_lines_and_always_the_last_step(self):
        lines = self.run(line_seconds=3600)
        assert lines[:2] == ["my-run: placing actors", "my-run: generating"]
        assert lines[2].startswith("step 10/100  reward 0.520  kl 1.300  tokens/s 5,123  eta ")
        assert lines[3] == "my-run: finished at step 10/100 after 0:00"
        assert len(lines) == 4

    def test_every_step_where_steps_are_slow(self):
        steps = [line.split()[1] for line in self.run(line_seconds=0) if line.startswith("step")]
        assert steps == [f"{step}/100" for step in range(1, 11)]

    def test_a_status_that_lasts_is_printed_again(self):
        stream = io.StringIO()
        with PlainView(
            "my-run", 9, console=progress_console(stream), headline=HEADLINE, heartbeat_seconds=0.02
        ) as view:
            view.status("placing actors")
            view._stopped.wait(0.3)
        assert "my-run: placing actors, 0:00" in stream.getvalue().splitlines()


@pytest.mark.parametrize("kind", [LiveView, PlainView])
class TestNobodyReads:
    def test_closed_stream(self, kind: type):
        stream = io.StringIO()
        console = progress_console(stream, force_terminal=kind is LiveView)
        with kind("my-run", 2, headline=HEADLINE, console=console) as view:
            stream.close()
            view.update(1, PPO)
            view.note("still here")

    def test_broken_pipe(self, kind: type):
        read_end, write_end = os.pipe()
        os.close(read_end)
        stream = os.fdopen(write_end, "w")
        with kind(
            "my-run", 2, headline=HEADLINE, console=progress_console(stream, force_terminal=kind is LiveView)
        ) as view:
            view.update(1, PPO)
            view.note("still here")
        with pytest.raises(BrokenPipeError):  # the control: the pipe was broken
            os.write(write_end, b"x")
        with contextlib.suppress(BrokenPipeError):
            stream.close()


@pytest.mark.parametrize("redirection", ["2>&-", "2>&1 | true", ">&- 2>&-"])
def test_shells_that_close_the_stream(tmp_path: Path, redirection: str):
    code = f"""
        import pathlib, time
        from raylign.tracking import make_view
        with make_view("r", 3, headline=()) as view:
            time.sleep(0.2)  # for the reader to go
            for step in (1, 2, 3):
                view.update(step, {{}})
                view.note("n")
        pathlib.Path({str(tmp_path / "survived")!r}).touch()
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    subprocess.run(f"{sys.executable} {script} {redirection}", shell=True, check=False, timeout=60)
    assert (tmp_path / "survived").exists()


def test_make_view_picks_what_fits():
    terminal = progress_console(io.StringIO(), force_terminal=True)
    assert isinstance(make_view("r", 1, headline=HEADLINE, console=terminal), LiveView)
    assert isinstance(make_view("r", 1, headline=HEADLINE, console=progress_console(io.StringIO())), PlainView)
    assert isinstance(make_view("r", 1, headline=HEADLINE, console=terminal, quiet=True), NullView)


def test_eta_is_the_pace_of_the_steps_without_the_start_up():
    now = 0.0
    progress = Progress("r", 10, headline=HEADLINE, clock=lambda: now)
    assert progress.eta is None
    now = 1000.0  # placing and loading
    progress.update(1, {"time/step": 7.0})
    assert progress.eta == 63.0
    now = 1004.0
    assert progress.eta == 59.0  # counts down between steps
    progress.update(2, {})
    assert progress.eta == 32.0
    now = 2000.0
    assert progress.eta == 0.0


def test_a_resumed_run_does_not_take_old_steps_for_its_own():
    now = 10.0
    progress = Progress("r", 100, first_step=50, headline=HEADLINE, clock=lambda: now)
    progress.update(51, {})
    now = 12.0
    progress.update(52, {})
    assert progress.eta == 96.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (sparkline([0, 1, 2, 3], 4), "▁▃▆█"),
        (sparkline([0, 0, 7, 7], 2), "▁█"),
        (sparkline([5, 5, 5], 9), "▄▄▄"),
        (sparkline([], 9), ""),
        (sparkline([1, 2], 0), ""),
        (format_clock(80), "1:20"),
        (format_clock(7380), "2:03:00"),
        (format_clock(3 * 86400 + 4 * 3600), "3d 04h"),
        (format_seconds(0.014), "14 ms"),
        (format_seconds(8.14), "8.1 s"),
        (format_seconds(80), "1:20"),
        (format_value(0.5234), "0.523"),
        (format_value(-12.345), "-12.35"),
        (format_value(5123.4), "5,123"),
        (format_value(1e-6), "1.0e-06"),
        (format_value(0.0), "0.000"),
        (format_value(2560), "2,560"),
        (format_value(math.inf), "inf"),
    ],
)
def test_formats(text: str, expected: str):
    assert text == expected


def test_importing_tracking_is_light():
    code = "import raylign.tracking, sys; print([m for m in ('torch', 'ray', 'wandb', 'tensorboardX') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


class TestSinks:
    def test_every_service_of_the_config_has_a_sink(self):
        assert list(TrackingConfig.model_fields) == list(SINKS)
        assert all(Sink in resolve_name(path).__mro__ for path in SINKS.values())

    def test_a_sink_of_the_user_gets_the_metrics_and_keeps_no_state_in_commits(self, tmp_path: Path):
        class Mine(Sink):
            def __init__(self) -> None:
                self.seen: list = []

            def log(self, step: int, metrics: Mapping[str, float]) -> None:
                self.seen.append((step, dict(metrics)))

            def state(self) -> dict:
                return {"mine": len(self.seen)}

            def close(self, exit_code: int) -> None:
                self.seen.append(exit_code)

        with Tracker(tmp_path, TrackingConfig(), "r", {}, sinks=[mine := Mine()]) as t:
            t.log(1, {"x": 1.0})
            assert t.state() == {}  # its maker makes it again; only services of the config are taken up
            assert t.location is None
        assert mine.seen == [(1, {"x": 1.0}), 0]


def test_a_sink_of_the_user_needs_no_state_to_be_committed(tmp_path):
    class Bare:
        """The oldest form of a sink: no subclass of Sink, and nothing but these two."""

        def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

        def close(self, exit_code: int) -> None: ...

    bare: Any = Bare()
    with Tracker(tmp_path, TrackingConfig(), "run", {}, sinks=[bare]) as tracker:
        tracker.log(1, {"reward/mean": 1.0})
        assert tracker.state() == {}

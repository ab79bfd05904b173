"""The tables on the screen."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cases import CASES, GROUPS, MESSAGES_PER_SECOND, MODES, Metric, Mode
from results import Results
from runner import DISTURBED_SHARE
from summary import Spread

TITLES = {
    "shapes": "connections / payload bytes, one message in flight on each connection",
    "pipelined": "pipelined: 16 and 64 messages of 20 bytes in flight on each of 100 connections",
    "batches": "64 records of 32 bytes in flight on each of 100 connections, one column added up",
    "large": "large messages",
    "latency": "latency: p50 of a lone connection; p99 at half of the baseline's saturation rate",
    "sessions": "sessions: upgrades per second, resident memory per idle session",
    "fan-out": "fan-out: members x messages per round, each published to all of them; the figures are per message and "
    "member",
    "fan-out-latency": "p99 of 100 connections with 2,000 echoes per second, beside 10,000 members who are sent 10 "
    "messages per second",
    "fan-out-memory": "resident memory added by 100 members that do not read 10,000 messages of 1 KiB each",
}

WIDTH_WITHOUT_TERMINAL = 160
MIB = 1 << 20


def console() -> Console:
    """The screen; in a file, lines are as long as the tables need."""
    screen = Console()
    return screen if screen.is_terminal else Console(width=WIDTH_WITHOUT_TERMINAL)


def show(results: Results, screen: Console) -> None:
    """All tables for which there are measurements."""
    versions = results.machine.get("versions", {})
    screen.print(f"Linux {results.machine.get('kernel')}, {results.machine.get('cpu')}", style="dim", highlight=False)
    if isinstance(versions, dict):
        screen.print(", ".join(f"{name} {version}" for name, version in versions.items()), style="dim", highlight=False)
    screen.print(
        f"Ratios are to {results.baseline}; above 1 is better. Medians over rounds, and quartiles. "
        "Below each ratio: the figure itself, and in throughput mode how busy the CPU of the server and that of the "
        "client were.",
        style="dim",
        highlight=False,
    )
    for mode in MODES:
        for group in GROUPS:
            cases = [name for name in results.measurements.cases(mode) if CASES[name].group == group]
            if cases:
                screen.print(table(results, cases, mode, f"{mode}: {TITLES[group]}"))
    disturbed = [one for one in results.measurements.all if one.values.get("disturbed_share", 0) > DISTURBED_SHARE]
    if disturbed:
        screen.print(
            f"In {len(disturbed)} of {len(results.measurements.all)} measurements something else took more than "
            f"{DISTURBED_SHARE:.0%} of a CPU: believe the ratios only as far as their quartiles are close.",
            style="yellow",
            highlight=False,
        )
    for server, reason in results.skipped.items():
        screen.print(f"skipped: {server} ({reason})", style="yellow", highlight=False)


def table(results: Results, cases: Sequence[str], mode: Mode, title: str) -> Table:
    """Servers by cases."""
    shapes = len(cases) > 1 and all(CASES[name].group == "shapes" for name in cases)
    grid = Table(title=title, title_justify="left", title_style="bold")
    grid.add_column("server")
    for name in cases:
        grid.add_column(name, justify="right")
    if shapes:
        grid.add_column("geometric mean", justify="right")
    measurements = results.measurements
    for server in measurements.servers():
        if not any(measurements.value(server, name, mode) for name in cases):
            continue
        row = [Text(server), *(cell(results, server, name, mode) for name in cases)]
        if shapes:
            mean = measurements.geometric_mean(server, results.baseline, cases, mode)
            row.append(Text("" if mean is None else f"{mean:.2f}", style="bold"))
        grid.add_row(*row)
    return grid


def cell(results: Results, server: str, case: str, mode: Mode) -> Text:
    """The ratio, the figure, and who was busy."""
    measurements = results.measurements
    value = measurements.value(server, case, mode)
    if value is None:
        return Text("-", style="dim")
    ratio = measurements.ratio(server, results.baseline, case, mode)
    metric = CASES[case].metric(mode)
    text = Text(f"{ratio_text(ratio)}\n", style="bold" if server == results.baseline else "")
    text.append(value_text(value.median, metric), style="dim")
    if mode == "throughput" and metric is MESSAGES_PER_SECOND:
        of_server = measurements.value(server, case, mode, "server_cpu_share")
        of_client = measurements.value(server, case, mode, "client_cpu_share")
        if of_server and of_client:
            text.append(f"\n{of_server.median:.0%} {of_client.median:.0%}", style="dim")
    return text


def ratio_text(ratio: Spread | None) -> str:
    """Median and quartiles."""
    return "" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def value_text(value: float, metric: Metric) -> str:
    """Three or four digits, with a unit."""
    if metric is MESSAGES_PER_SECOND:
        return f"{value / 1e6:.2f} M/s" if value >= 1e6 else f"{value / 1e3:.1f} k/s"
    if metric.unit == "bytes" and value >= MIB:
        return f"{value / MIB:,.1f} MiB"
    digits = 0 if value >= 100 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f} {metric.unit}"

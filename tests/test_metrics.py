"""stats.py and metrics.py: nothing counted is left out, and the text is what Prometheus parses."""

from __future__ import annotations

import dataclasses
import re
from typing import get_args

import pytest

from uringws import metrics
from uringws.errors import RejectReason
from uringws.metrics import prometheus_text
from uringws.stats import Stats

COUNTS = [field.name for field in dataclasses.fields(Stats) if field.type == "int"]
FULL = Stats(
    backend="io_uring",
    rejected={"origin": 3, "sessions_max": 1},
    close_codes={1000: 7, 1006: 2, 4999: 1},
    **{name: 1000 + number for number, name in enumerate(COUNTS)},
)

LINE = re.compile(
    r"# HELP [a-z_]+ [^\n]+"
    r"|# TYPE [a-z_]+ (counter|gauge)"
    r'|(?P<name>[a-z_]+)(\{(?P<label>[a-z]+)="(?P<value>([^"\\\n]|\\["\\n])*)"\})? (?P<sample>[0-9]+)'
)


def samples_of(stats: Stats) -> dict[str, int]:
    """Read the text with a small parser of its own, each line held to the format."""
    text = prometheus_text(stats).decode()
    assert text.endswith("\n")
    found = {}
    for line in text.removesuffix("\n").split("\n"):
        match = LINE.fullmatch(line)
        assert match is not None, line
        if match["name"]:
            key = match["name"] + (f"/{match['value']}" if match["label"] else "")
            assert key not in found, key
            found[key] = int(match["sample"])
    return found


def test_events_per_turn() -> None:
    assert Stats().events_per_turn == 0.0
    assert Stats(turns=4, events=10).events_per_turn == 2.5


def test_stats_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Stats().turns = 1  # type: ignore[misc]


def test_every_field_is_exposed() -> None:
    assert {metric.field for metric in metrics._METRICS} | {"backend"} == {f.name for f in dataclasses.fields(Stats)}


def test_every_value_is_exposed_once() -> None:
    found = samples_of(FULL)
    assert found["uringws_info/io_uring"] == 1
    for name in COUNTS:
        assert list(found.values()).count(getattr(FULL, name)) == 1, name
    assert found["uringws_connections_rejected_total/origin"] == 3
    assert found["uringws_connections_rejected_total/sessions_max"] == 1
    assert found["uringws_sessions_closed_total/1006"] == 2
    assert found["uringws_sessions_closed_total/4999"] == 1


def test_every_reason_has_a_sample_from_the_start() -> None:
    found = samples_of(Stats(backend="epoll"))
    assert {key for key in found if "rejected" in key} == {
        f"uringws_connections_rejected_total/{reason}" for reason in get_args(RejectReason)
    }
    assert sum(found.values()) == 1


def test_names_follow_the_rules() -> None:
    for metric in metrics._METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.help.endswith(".")


def test_label_values_are_escaped() -> None:
    assert 'backend="a\\"b\\\\c\\nd"' in prometheus_text(Stats(backend='a"b\\c\nd')).decode()
    samples_of(Stats(backend='a"b\\c\nd'))


def test_the_parser_of_prometheus_reads_the_metrics() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    families = {family.name: family for family in parser.text_string_to_metric_families(prometheus_text(FULL).decode())}
    assert len(families) == len(metrics._METRICS) + 1
    assert all(family.documentation and family.type in ("counter", "gauge") for family in families.values())
    (sent,) = families["uringws_sent_bytes"].samples
    assert (sent.name, sent.value) == ("uringws_sent_bytes_total", FULL.bytes_out)
    closed = {sample.labels["code"]: sample.value for sample in families["uringws_sessions_closed"].samples}
    assert closed == {"1000": 7, "1006": 2, "4999": 1}

"""The chat example: its rooms over the wire, and names that try to pass for others.

Covers: the members that get a message, presence, coming back with and without a hole, the policy for slow readers,
hostile messages, and names with characters that are invisible, change the direction, or look like others.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from servers import ROOT, ServerProcess
from wire import BINARY, TEXT, Peer, http

CONTROLS = [chr(code) for code in (*range(32), *range(0x7F, 0xA0)) if not chr(code).isspace()]
INVISIBLE = [
    "\u00ad", "\u034f", "\u061c", "\u115f", "\u1160", "\u17b4", "\u180b", "\u180e", "\u200b", "\u200c", "\u200d",
    "\u2060", "\u2800", "\u3164", "\ufe0f", "\ufeff", "\uffa0", "\U000e0041", "\U000e0100",
]  # fmt: skip
DIRECTIONS = ["\u200e", "\u200f", "\u202a", "\u202b", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069"]


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


chat = load("chat_broker")


# ---- names


@pytest.mark.parametrize(
    "name",
    [
        "Ada", "Jos\u00e9", "\u674e\u96f7", "\u0410\u0434\u0430", "O'Neill", "Anna-Lena", "\u677e\u672c Hanako",
        "\U0001f469 Eva", "R2D2",
    ],
)  # fmt: skip
def test_names_of_people_are_taken_as_they_are(name: str) -> None:
    assert chat.clean_name(name) == name


@pytest.mark.parametrize("letters", [CONTROLS, INVISIBLE, DIRECTIONS], ids=["controls", "invisible", "directions"])
def test_a_name_with_a_character_that_does_not_show_is_refused_with_its_number(letters: list[str]) -> None:
    for letter, place in itertools.product(letters, (0, 1, 3)):
        with pytest.raises(ValueError, match=r"U\+[0-9A-F]{4}|two accents"):
            chat.clean_name("Ada"[:place] + letter + "Ada"[place:])


@pytest.mark.parametrize(
    "name",
    [
        "", "   ", "x" * 25, "<b>Ada</b>", "Ada #2", "\u0410da", "Ad\u03b1", "a" + "\u0301" * 4, "\u0301a", "...",
        "\ud800",
    ],
)  # fmt: skip
def test_other_names_are_refused_with_a_reason(name: str) -> None:
    with pytest.raises(ValueError, match="a name"):
        chat.clean_name(name)


SPACES = "\t\n\v\f\r \x85\u00a0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000"


@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"U+{ord(space):04X}")
def test_every_space_is_the_one_space(space: str) -> None:
    assert chat.clean_name(f"{space}Ada{space}{space}L{space}") == "Ada L"


ALIKE = [
    ("Ada", "ADA"), ("Ada", "\uff21da"), ("Ada", "A d a"), ("Ada", "A-d.a"), ("Ida", "lda"), ("Ida", "1da"),
    ("Bob", "B0b"), ("modern", "modem"), ("will", "vvill"), ("cope", "\u0441\u043e\u0440\u0435"), ("Jose", "Jos\u00e9"),
    ("fina", "\ufb01na"), ("Strasse", "Stra\u00dfe"), ("Ada", "\u0251da"), ("TOM", "\u0422\u041e\u041c"),
    ("HAT", "\u0397\u0391\u03a4"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_names_that_look_alike_are_marked_as_such(one: str, other: str) -> None:
    for first, second in ((one, other), (other, one)):
        names = chat.Names()
        owner = names.claim(chat.clean_name(first), "token of the first")
        later = names.claim(chat.clean_name(second), "token of the second")
        assert (owner.is_alike, later.is_alike) == (False, True)
        assert owner.number != later.number
        assert names.claim(chat.clean_name(first), "token of the first") == owner, "it comes back as itself"


def test_names_that_differ_are_not_marked() -> None:
    names = chat.Names()
    people = [names.claim(name, name) for name in ("Ada", "Bob", "Adam", "Eve", "\u0410\u0434\u0430", "\u674e\u96f7")]
    assert not any(person.is_alike for person in people)
    assert len({person.number for person in people}) == len(people)


def test_a_room_that_has_forgotten_names_marks_every_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "NAMES_MAX", 2)
    names = chat.Names()
    assert [names.claim(name, name).is_alike for name in ("Ada", "Bob", "Eve", "Eve")] == [False, False, True, True]


# ---- rooms


@pytest.fixture(scope="module")
def broker() -> Iterator[ServerProcess]:
    with ServerProcess("examples/chat_broker.py", "--port", "0") as server:
        yield server


@pytest.fixture(autouse=True)
def _room_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a room of its own on the one server."""
    monkeypatch.setattr(Member, "room", f"tea {next(ROOMS)}")


ROOMS = itertools.count(1)


class Member:
    """A client of the chat."""

    room = ""

    def __init__(self, server: ServerProcess, **join: str) -> None:
        self.peer = Peer.connect(server.address)
        self.say(**{"join": self.room, "name": "Ada", **join})

    def say(self, **message: Any) -> None:
        self.peer.send(TEXT, json.dumps(message).encode())

    def read(self, key: str) -> Any:
        """The next message of that kind."""
        while key not in (message := json.loads(self.peer.read_frame().payload)):
            pass
        return message[key]

    def read_people(self, count: int) -> list[str]:
        """The names that are listed once there are so many people."""
        while (people := self.read("people"))["count"] != count:
            pass
        return [person["name"] for person in people["listed"]]

    def texts(self, count: int) -> list[str]:
        return [self.read("said")["text"] for _ in range(count)]


@contextlib.contextmanager
def member(server: ServerProcess, **join: str) -> Iterator[Member]:
    client = Member(server, **join)
    with client.peer:
        yield client


def test_a_room_hears_its_members_in_one_order_and_no_other_room(broker: ServerProcess) -> None:
    with (
        member(broker) as ada,
        member(broker, name="Bob") as bob,
        member(broker, join=f"{Member.room} b", name="Eve") as eve,
    ):
        assert sorted(bob.read_people(2)) == ["Ada", "Bob"]
        assert eve.read_people(1) == ["Eve"]
        for number in range(5):
            ada.say(say=f"a{number}")
            bob.say(say=f"b{number}")
        eve.say(say="alone")
        heard = ada.texts(10)
        assert sorted(heard) == sorted(f"{who}{number}" for who in "ab" for number in range(5))
        assert bob.texts(10) == heard
        assert eve.texts(1) == ["alone"]
        bob.peer.shake_hands()
        assert ada.read_people(1) == ["Ada"]


def test_a_new_member_gets_the_history_and_then_all_that_is_said(broker: ServerProcess) -> None:
    with member(broker) as ada:
        for number in range(205):
            ada.say(say=f"{number}")
        ada.texts(205)
        with member(broker, name="Bob") as bob:
            assert bob.read("welcome")["room"] == Member.room
            ada.say(say="now")
            assert bob.texts(201) == [f"{number}" for number in range(5, 205)] + ["now"]


def test_coming_back_fills_the_hole_and_repeats_nothing(broker: ServerProcess) -> None:
    with member(broker, token="one", name="Bob") as bob:
        with member(broker, token="secret") as ada:
            welcome = ada.read("welcome")
            bob.say(say="heard")
            at = ada.read("said")["at"]
            assert bob.texts(1) == ["heard"]
        bob.read_people(1)
        for number in range(3):
            bob.say(say=f"missed {number}")
        bob.texts(3)
        with member(broker, token="secret", since=f"{welcome['epoch']}:{at}") as ada:
            assert ada.read("welcome")["you"] == welcome["you"], "the same person, with the same number"
            bob.say(say="live")
            assert ada.texts(4) == ["missed 0", "missed 1", "missed 2", "live"]
        with member(broker, token="other") as thief:
            assert thief.read("welcome")["you"]["is_alike"]


@pytest.mark.parametrize("since", ["nonsense", ":", "x:1", "\u0663", "-1", "9" * 500])
def test_a_position_of_another_room_is_not_taken_for_one_of_this(broker: ServerProcess, since: str) -> None:
    with member(broker) as ada:
        ada.say(say="kept")
        ada.texts(1)
        with member(broker, name="Bob", since=since) as bob:
            assert bob.texts(1) == ["kept"]


def test_a_member_may_change_rooms(broker: ServerProcess) -> None:
    with member(broker) as ada, member(broker, name="Bob") as bob:
        ada.say(join=f"{Member.room} b", name="Ada")
        assert ada.read("welcome")["room"] == Member.room
        assert ada.read("welcome")["room"] == f"{Member.room} b"
        assert bob.read_people(1) == ["Bob"]
        bob.say(say="in tea")
        ada.say(say="in coffee")
        assert ada.texts(1) == ["in coffee"]


HOSTILE = {
    "no-json": b"hello",
    "no-object": b"[1]",
    "deep": b"[" * 10_000,
    "say-first": b'{"say": "x"}',
    "number-for-a-room": b'{"join": 5}',
    "list-for-a-name": b'{"join": "tea", "name": ["x"]}',
    "bidi-name": '{"join": "tea", "name": "A\u202eda"}'.encode(),
    "escaped-nul": b'{"join": "tea", "name": "A\\u0000da"}',
    "half-a-pair": b'{"join": "tea", "name": "\\ud800"}',
    "huge-number": b'{"join": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_message_ends_its_connection_with_a_reason_and_no_other(broker: ServerProcess, hostile: str) -> None:
    with member(broker) as ada, Peer.connect(broker.address) as peer:
        peer.send(TEXT, HOSTILE[hostile])
        closed = peer.read_frame()
        assert closed.close_code == 4400
        assert len(closed.payload) > 10
        ada.say(say="still here")
        assert ada.texts(1) == ["still here"]


def test_texts_that_cannot_be_sent_are_made_sendable_or_refused(broker: ServerProcess) -> None:
    with member(broker) as ada:
        ada.say(say="\ud800 half")
        ada.say(say="  ")
        ada.say(say="<script>")
        assert ada.texts(2) == ["? half", "<script>"]
        ada.say(say="x" * 2001)
        while (frame := ada.peer.read_frame()).opcode == TEXT:
            pass
        assert frame.close_code == 4400
    with member(broker) as ada:
        ada.peer.send(BINARY, b"x")
        while (frame := ada.peer.read_frame()).opcode == TEXT:
            pass
        assert frame.close_code == 1003


def test_a_slow_reader_loses_the_oldest_messages_and_keeps_its_place(broker: ServerProcess) -> None:
    with member(broker) as ada, member(broker, name="Bob") as slow:
        slow.read("welcome")
        count = 4000
        for start in range(0, count, 50):
            for number in range(start, start + 50):
                ada.say(say=f"{number} {'x' * 1900}")
            ada.texts(50)
        numbers: list[int] = []
        while not numbers or numbers[-1] != count - 1:
            numbers.append(int(slow.texts(1)[0].split()[0]))
        assert numbers == sorted(set(numbers))
        assert len(numbers) < count, "something was left out"


def test_the_clock_strikes_for_all_through_a_sender() -> None:
    with (
        ServerProcess("examples/chat_broker.py", "--port", "0", "--tick-seconds", "0.05") as server,
        member(server) as ada,
        member(server, join="coffee") as eve,
    ):
        for client in (ada, eve, ada):
            assert client.read("clock").startswith("It is ")


def test_the_page_is_served_and_fetches_nothing_from_elsewhere(broker: ServerProcess) -> None:
    response = http(broker.address, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.search(rb"(src|href)=\"?(https?:)?//", response.body)
    assert not re.search(rb"innerHTML|insertAdjacentHTML|document\.write", response.body)
    assert http(broker.address, b"GET /favicon.ico HTTP/1.1\r\nHost: localhost\r\n\r\n").status == 404

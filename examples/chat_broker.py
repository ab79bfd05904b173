"""A chat with rooms: names, presence, history, and a policy for members who read slowly.

    python examples/chat_broker.py [--host 127.0.0.1] [--port 9002] [--backend auto|io_uring|epoll] [--tick-seconds 30]

The page to chat with is on the same port; `/?room=tea` opens a room. Ctrl-C ends the server.

A room is two topics. One has all that is said: a member who reads slowly loses the oldest messages that wait for it,
and one who comes back gets those that it missed, and nothing twice. The other has the list of people. It conflates: a
member who reads slowly gets the newest list only. A clock in a thread of its own publishes to a third topic, of all
members, through a `Sender`.

The protocol is JSON in text messages. A page first sends {"join": room, "name": ..., "token": ..., "since": ...}, then
{"say": text}. The server sends {"welcome": ...}, {"said": ...}, {"people": ...} and {"clock": ...}.
"""

import argparse
import json
import math
import re
import secrets
import sys
import threading
import time
import unicodedata
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from uringws import Connection, Frame, Handler, Message, Options, Reactor, Request, Response, Sender

PAGE = Path(__file__).with_suffix(".html")
PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
NAME_LETTERS_MAX = 24
TEXT_LETTERS_MAX = 2000
TOKEN_LETTERS_MAX = 64
NAMES_MAX = 4096  # that a room remembers
HOLDERS_MAX = 64  # of one name
ROOMS_MAX = 200
LISTED_MAX = 100  # people that a list names; their number is always told
JOIN_SECONDS_MAX = 10.0
PRESENCE_SECONDS = 0.1  # joins and leaves that come closer together are told once
TICK_SECONDS_MIN, TICK_SECONDS_MAX = 0.01, 86400
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what a client here calls them
EVERYBODY = "everybody"
REFUSED = 4400  # close code: the page shows the reason and does not come back by itself

HISTORY_MAX = 200  # messages that a room keeps
OPTIONS = Options(
    message_bytes_max=16 * 1024,  # a longer message ends its session with 1009
    refuse_binary=True,
    backlog_bytes_max=256 * 1024,  # from here on a slow reader loses the oldest messages that wait for it
    idle_seconds_max=None,  # pings show which members are still there
)


# ---- names

INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
"""Letters and marks that show nothing. All others that show nothing are of a category that is refused."""

MIXED = frozenset({"LATIN", "CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "BOPOMOFO"})
"""Scripts that are written together; none of these is taken for another."""

ALIKE = str.maketrans(
    "\u0410\u0412\u0415\u0405\u0406\u0408\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0430"
    "\u0435\u0455\u0456\u0458\u043e\u0440\u0441\u0443\u0445\u0501\u04bb\u051b\u051d\u04cf\u044c\u0432"
    "\u043a\u043c\u043d\u0442"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03b1\u03bf"
    "\u03c1\u03b9\u03c5\u03bd\u03ba\u03c4\u03c7"
    "\u0131\u0251\u02610!|",
    "ABESIJKMHOPCTYXaesijopcyxdhqwlbbkmhtABEZHIKMNOPTYXaopiuvktxiagoii",
)
"""Cyrillic letters, Greek letters and other signs, and the Latin letters that they look like."""


def clean_name(text: str) -> str:
    """Return a name as it is shown, with one kind of space. Raises ValueError, whose text is for its owner.

    A name holds letters of one script, digits, emoji, spaces and . ' - _ only: nothing in it is invisible, changes the
    direction of writing, or looks like the number that tells two people of one name apart.
    """
    name = unicodedata.normalize("NFKC", " ".join(text.split()))
    if not name:
        raise ValueError("give a name")
    if len(name) > NAME_LETTERS_MAX:
        raise ValueError(f"a name has at most {NAME_LETTERS_MAX} letters")
    for letter in name:
        kind = unicodedata.category(letter)
        is_emoji = kind == "So" and letter >= "\U0001f300"
        if letter in INVISIBLE or is_variation(letter) or not (kind[0] in "LMN" or letter in " .'-_\u2019" or is_emoji):
            shown = letter if letter.isascii() and letter.isprintable() else f"U+{ord(letter):04X}"
            raise ValueError(f"a name has letters, digits, spaces, emoji and . ' - _ only, and no {shown}")
    if re.search(r"[^\W\d_]", name) is None and not any(unicodedata.category(letter) == "So" for letter in name):
        raise ValueError("a name has a letter")
    if marks_in_a_row(name) > 2 or unicodedata.category(name[0])[0] == "M":
        raise ValueError("a name has at most two accents on a letter")
    scripts = {unicodedata.name(letter, "").split()[0] for letter in name if letter.isalpha()}
    if len(scripts) > 1 and not scripts <= MIXED:
        raise ValueError(f"a name is written in one alphabet, not in {' and '.join(sorted(map(str.title, scripts)))}")
    return name


def is_variation(letter: str) -> bool:
    """Whether it only selects how the letter in front of it is drawn."""
    return "VARIATION SELECTOR" in unicodedata.name(letter, "")


def marks_in_a_row(name: str) -> int:
    """Return the most combining marks that follow each other."""
    kinds = "".join("M" if unicodedata.category(letter)[0] == "M" else " " for letter in name)
    return max(map(len, kinds.split()), default=0)


def skeleton(name: str) -> str:
    """Return what a hasty reader sees of a name: two names that look alike have the same."""
    folded = unicodedata.normalize("NFKD", name.translate(ALIKE).casefold()).translate(ALIKE)
    letters = "".join(letter for letter in folded if letter.isalnum() or unicodedata.category(letter) == "So")
    return letters.replace("rn", "m").replace("vv", "w").translate(str.maketrans("1il5", "iiis"))


class Person(NamedTuple):
    """A member of a room as the others see it. Its number is never that of another person of the room."""

    number: int
    name: str
    is_alike: bool  # another one had a name that looks like this: the number is shown


class Names:
    """The names that a room has heard, and the tokens of their holders: a person who comes back keeps its number."""

    def __init__(self) -> None:
        self._holders: dict[str, dict[str, int]] = {}
        self._next = 1

    def claim(self, name: str, token: str) -> Person:
        """Return the person who holds a clean name by that token."""
        key = skeleton(name)
        holders = self._holders.get(key)
        if holders is None and len(self._holders) < NAMES_MAX:
            holders = self._holders[key] = {}
        if holders is None:  # it cannot be known any more who held that name
            return Person(self._new_number(), name, is_alike=True)
        number = holders.get(token)
        if number is None:
            number = self._new_number()
            if len(holders) < HOLDERS_MAX:
                holders[token] = number
        return Person(number, name, is_alike=number != next(iter(holders.values())))

    def _new_number(self) -> int:
        number, self._next = self._next, self._next + 1
        return number


# ---- rooms


class Room:
    """People, and what they say to each other."""

    def __init__(self, reactor: Reactor, name: str) -> None:
        self.name = name
        self.epoch = secrets.token_hex(8)  # a position of another server's room, or of an earlier one, is not ours
        self.talk = reactor.topic(f"talk {self.epoch}", on_full="drop_old")
        self.presence = reactor.topic(f"people {self.epoch}", on_full="conflate")
        self.names = Names()
        self.people: dict[Connection, Person] = {}
        self._history: deque[Frame] = deque(maxlen=HISTORY_MAX)
        self._position = 0  # of the last message
        self._reactor = reactor
        self._is_telling = False

    def enter(self, conn: Connection, person: Person, since: str) -> None:
        """Let a member in: first it is sent the messages after the position `since`, then all that come."""
        self.people[conn] = person
        conn.send_text(encode(welcome={"room": self.name, "epoch": self.epoch, "you": person._asdict()}))
        for frame in self._after(since):
            conn.send(frame)
        if conn.is_open:  # else its backlog had no room for the history
            self.talk.add(conn)
            self.presence.add(conn)
        self._tell_people()

    def _after(self, since: str) -> list[Frame]:
        """Return the messages that are kept and come after a position; all of them if it is not one of this room."""
        epoch, _, position = since.partition(":")
        count = len(self._history)
        if epoch == self.epoch and position.isdecimal():
            count = min(count, max(0, self._position - int(position)))
        return list(self._history)[len(self._history) - count :]

    def leave(self, conn: Connection) -> None:
        """Let a member out."""
        del self.people[conn]
        if conn.is_open:
            self.talk.remove(conn)
            self.presence.remove(conn)
        self._tell_people()

    def say(self, person: Person, text: str) -> None:
        """Send a text to all members. Its position lets them see what they missed."""
        self._position += 1
        said = {"at": self._position, "from": person._asdict(), "text": text, "time": time.time()}
        frame = self._reactor.frame(encode(said=said))  # framed once, for the members of today and of later
        self._history.append(frame)
        self.talk.publish(frame)

    def _tell_people(self) -> None:
        if not self._is_telling:
            self._is_telling = True
            self._reactor.call_later(PRESENCE_SECONDS, self._publish_people)

    def _publish_people(self) -> None:
        self._is_telling = False
        people = {person.number: person for person in self.people.values()}
        listed = [person._asdict() for _, person in sorted(people.items())[:LISTED_MAX]]
        self.presence.publish(encode(people={"count": len(people), "listed": listed}))


def encode(**message: Any) -> str:
    """Return a message to the page."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))


class Member:
    """The `data` of a connection: where it is, and as whom. Both None until it has joined."""

    __slots__ = ("person", "room")

    def __init__(self) -> None:
        self.room: Room | None = None
        self.person: Person | None = None


class Broker(Handler):
    """Keeps the rooms, and lets members in."""

    def __init__(self, page: bytes) -> None:
        self._page = page
        self._rooms: dict[str, Room] = {}
        self._reactor: Reactor

    def begin(self, reactor: Reactor) -> None:
        """Make the topic of what is said to everybody."""
        self._reactor = reactor
        self._everybody = reactor.topic(EVERYBODY, on_full="conflate")

    def on_request(self, request: Request) -> Response | None:
        """Serve the page to a browser."""
        if request.path != "/":
            return Response(404, body="not found\n")
        return Response(200, PAGE_HEADERS, self._page)

    def on_open(self, conn: Connection) -> None:
        """Expect the first message, which says into which room."""
        conn.data = Member()
        self._reactor.call_later(JOIN_SECONDS_MAX, self._close_stranger, conn)

    def on_message(self, conn: Connection, message: Message) -> None:
        """Let a member in, or send its text to its room."""
        try:
            wanted = json.loads(message.text())
        except (ValueError, RecursionError):
            wanted = None
        if not isinstance(wanted, dict):
            conn.close(REFUSED, "a message is a JSON object")
        elif "join" in wanted:
            self._join(conn, wanted)
        elif conn.data.room is None:
            conn.close(REFUSED, "join a room first")
        else:
            self._say(conn, wanted)

    def _join(self, conn: Connection, wanted: dict[str, Any]) -> None:
        fields = [wanted.get(key) or "" for key in ("join", "name", "token", "since")]
        if not all(isinstance(field, str) for field in fields):
            conn.close(REFUSED, "join, name, token and since are strings")
            return
        asked, named, token, since = fields
        try:
            room = self._room(clean_name(asked or "lobby"))
            name = clean_name(named or "Guest")
        except ValueError as error:
            conn.close(REFUSED, str(error))
            return
        member: Member = conn.data
        if member.room is not None:
            member.room.leave(conn)
        else:
            self._everybody.add(conn)
        member.room, member.person = room, room.names.claim(name, token[:TOKEN_LETTERS_MAX] or secrets.token_hex())
        room.enter(conn, member.person, since)

    def _room(self, name: str) -> Room:
        """Return a room that exists, or make it. Raises ValueError if there are too many."""
        key = skeleton(name)
        room = self._rooms.get(key)
        if room is None:
            if len(self._rooms) >= ROOMS_MAX:
                self._remove_an_empty_room()
            room = self._rooms[key] = Room(self._reactor, name)
        return room

    def _remove_an_empty_room(self) -> None:
        for key, room in self._rooms.items():
            if not room.people:
                del self._rooms[key]
                return
        raise ValueError(f"there are {ROOMS_MAX} rooms already: take one of them")

    def _say(self, conn: Connection, wanted: dict[str, Any]) -> None:
        text = wanted.get("say")
        if not isinstance(text, str) or len(text) > TEXT_LETTERS_MAX:
            conn.close(REFUSED, f"say is a string of at most {TEXT_LETTERS_MAX} letters")
        elif text.strip():
            # Half of a surrogate pair, which JSON can name and UTF-8 cannot encode, becomes "?".
            conn.data.room.say(conn.data.person, text.encode(errors="replace").decode())

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        """Tell the others."""
        if conn.data.room is not None:
            conn.data.room.leave(conn)

    def _close_stranger(self, conn: Connection) -> None:
        if conn.is_open and conn.data.room is None:
            conn.close(REFUSED, "join a room first")


def clock(sender: Sender, seconds: float, stop: threading.Event) -> None:
    """Tell everybody the time until `stop`: one command for each stroke, however many members there are."""
    with sender:  # released at the end; a reactor runs on while a Sender lives
        while not stop.wait(seconds):
            sender.publish(EVERYBODY, encode(clock=time.strftime("It is %H:%M:%S")))


def serve(arguments: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    broker, stop = Broker(PAGE.read_bytes()), threading.Event()
    with Reactor(broker, OPTIONS, backend=arguments.backend) as reactor:
        broker.begin(reactor)
        host, port = reactor.bind(arguments.host, arguments.port)
        shown, called = (f"[{name}]" if ":" in name else name for name in (host, EVERY_ADDRESS.get(host, host)))
        ticking = threading.Thread(target=clock, args=(reactor.sender(), arguments.tick_seconds, stop))
        ticking.start()
        try:
            print(f"listening on ws://{shown}:{port} ({reactor.backend})")
            print(f"in a browser:  http://{called}:{port}/", flush=True)
            reactor.run()
        finally:
            stop.set()
            ticking.join()


def seconds(text: str) -> float:
    """A time of the command line: a number from 0.01 to a day."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not TICK_SECONDS_MIN <= value <= TICK_SECONDS_MAX:  # neither is nan
        raise argparse.ArgumentTypeError(f"{text!r} is no time: give {TICK_SECONDS_MIN} to {TICK_SECONDS_MAX} seconds")
    return value


def main() -> int:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="A WebSocket chat with rooms on io_uring, with its page.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9002, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--backend", choices=("auto", "io_uring", "epoll"), default="auto")
    parser.add_argument("--tick-seconds", type=seconds, default=30.0, help="of the clock (default: %(default)s)")
    try:
        serve(parser.parse_args())
    except KeyboardInterrupt:
        pass  # before the reactor ran; after that Ctrl-C drains it
    except (OSError, ValueError) as error:  # UringUnavailable is an OSError
        print(f"chat_broker: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

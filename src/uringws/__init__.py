"""uringws: a WebSocket server for Linux on io_uring, one thread for all sessions.

from uringws import Handler, Reactor

class Echo(Handler):
    def on_message(self, conn, message):
        conn.send(message)

with Reactor(Echo()) as reactor:
    reactor.bind("127.0.0.1", 9001)
    reactor.run()
"""

from uringws.batch import Batch, BatchMessage, BatchSent
from uringws.closing import Close, Closing
from uringws.connection import Connection, SendResult
from uringws.engine import EngineColumns, EngineMessage, OutboundSegment, ServerEngine
from uringws.errors import (
    BacklogFull,
    ConnectionClosed,
    Gap,
    HandshakeError,
    LimitReached,
    OptionsError,
    ProtocolError,
    ReactorStateError,
    SenderFull,
    UnavailableReason,
    UringUnavailable,
    UringWSError,
    WrongThread,
)
from uringws.extensions import Deflate, DeflateTerms
from uringws.frames import CloseCode, FrameHeader, Incomplete, Opcode, parse_header, unmask
from uringws.handler import BatchHandler, Handler, HandlerProtocol, handler_fn
from uringws.handshake import LATER, Accept, Later, RawAnswer, Reject, RequestHead, check_upgrade, encode_accept
from uringws.http import Headers, Request, Response, encode_refusal, encode_response, parse_request
from uringws.message import Message
from uringws.options import Options
from uringws.prepared import Frame
from uringws.reactor import Reactor
from uringws.reactor_thread import ReactorThread
from uringws.sender import Sender
from uringws.stats import Stats
from uringws.timers import Timer
from uringws.topics import History, Topic, TopicStats
from uringws.version import __version__
from uringws.watches import Watch

__all__ = [
    "LATER",
    "Accept",
    "BacklogFull",
    "Batch",
    "BatchHandler",
    "BatchMessage",
    "BatchSent",
    "Close",
    "CloseCode",
    "Closing",
    "Connection",
    "ConnectionClosed",
    "Deflate",
    "DeflateTerms",
    "EngineColumns",
    "EngineMessage",
    "Frame",
    "FrameHeader",
    "Gap",
    "Handler",
    "HandlerProtocol",
    "HandshakeError",
    "Headers",
    "History",
    "Incomplete",
    "Later",
    "LimitReached",
    "Message",
    "Opcode",
    "Options",
    "OptionsError",
    "OutboundSegment",
    "ProtocolError",
    "RawAnswer",
    "Reactor",
    "ReactorStateError",
    "ReactorThread",
    "Reject",
    "Request",
    "RequestHead",
    "Response",
    "SendResult",
    "Sender",
    "SenderFull",
    "ServerEngine",
    "Stats",
    "Timer",
    "Topic",
    "TopicStats",
    "UnavailableReason",
    "UringUnavailable",
    "UringWSError",
    "Watch",
    "WrongThread",
    "__version__",
    "check_upgrade",
    "encode_accept",
    "encode_refusal",
    "encode_response",
    "handler_fn",
    "parse_header",
    "parse_request",
    "unmask",
]

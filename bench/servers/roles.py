"""The roles of connections to a server that publishes: the path of the upgrade request names one.

What /publisher sends goes to every /member, what a /chat sends to every /chat, itself included; any other path echoes.
"""

from typing import Final

MEMBER: Final = "/member"
PUBLISHER: Final = "/publisher"
CHAT: Final = "/chat"

AUDIENCE: Final = {PUBLISHER: MEMBER, CHAT: CHAT}
"""To whom the messages of a role are published."""
AUDIENCES: Final = (MEMBER, CHAT)

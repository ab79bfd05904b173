"""The roles of connections to a server that publishes: the path of the upgrade request names one.

The messages of /publisher go to every /member, those of a /chat to every /chat, itself included; any other path echoes.
"""

from typing import Final

MEMBER: Final = "/member"
PUBLISHER: Final = "/publisher"
CHAT: Final = "/chat"

AUDIENCE: Final = {PUBLISHER: MEMBER, CHAT: CHAT}
"""To whom the messages of a role are published."""
AUDIENCES: Final = (MEMBER, CHAT)

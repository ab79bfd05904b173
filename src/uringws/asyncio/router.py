"""`route` and `unix_route`: a server with a handler per path. The matching is werkzeug's, which must be installed."""

from __future__ import annotations

import inspect
import urllib.parse
from typing import TYPE_CHECKING, Any

from uringws.asyncio.server import serve

if TYPE_CHECKING:
    import os
    import ssl as ssl_module
    from collections.abc import Callable

    from uringws.asyncio.classes import Request, Response
    from uringws.asyncio.connection import ServerConnection
    from uringws.asyncio.server import Server

__all__ = ["Router", "route", "unix_route"]


def route(
    url_map: Any,
    *args: Any,
    server_name: str | None = None,
    ssl: ssl_module.SSLContext | bool | None = None,
    create_router: Callable[..., Router] | None = None,
    **settings: Any,
) -> Server:
    """Return a server that finds the handler of a connection by its path in a werkzeug.routing.Map.

    The endpoints of the map are handlers; they are called with the connection and, as keyword arguments, what the rule
    took from the path. `server_name` is the host that redirects name, by default the request's Host. `ssl=True` says
    that a proxy in front ends TLS, so that redirects name wss. All else is as for `serve`. Raises ImportError without
    werkzeug.
    """
    router = (Router if create_router is None else create_router)(url_map, server_name, "ws" if ssl is None else "wss")
    if not isinstance(ssl, bool | None):
        settings["ssl"] = ssl
    first: Any = settings.pop("process_request", None)

    async def process_request(connection: ServerConnection, request: Request) -> Response | None:
        """Ask the application's own hook, then the map."""
        found: Any = None if first is None else first(connection, request)
        response: Response | None = await found if inspect.isawaitable(found) else found
        return router.route_request(connection, request) if response is None else response

    return serve(router.handler, *args, process_request=process_request, **settings)


def unix_route(url_map: Any, path: str | os.PathLike[str] | None = None, **settings: Any) -> Server:
    """Return a server of that kind on a Unix socket."""
    return route(url_map, unix=True, path=path, **settings)


class Router:
    """Finds the handler of a connection. Subclass it for other answers than 404 and 302."""

    def __init__(self, url_map: Any, server_name: str | None = None, url_scheme: str = "ws") -> None:
        """See `route` for the arguments."""
        try:
            import werkzeug.routing  # noqa: F401, PLC0415
        except ImportError:
            raise ImportError("route() requires werkzeug: pip install werkzeug") from None
        self.url_map = url_map
        self.server_name = server_name
        self.url_scheme = url_scheme
        for rule in url_map.iter_rules():
            rule.websocket = True

    def get_server_name(self, connection: ServerConnection, request: Request) -> str:
        """Return the host that redirects name."""
        return request.headers["Host"] if self.server_name is None else self.server_name

    def redirect(self, connection: ServerConnection, url: str) -> Response:
        """Return the answer to a path that has moved."""
        response = connection.respond(302, f"Found at {url}")
        response.headers["Location"] = url
        return response

    def not_found(self, connection: ServerConnection) -> Response:
        """Return the answer to a path that no rule matches."""
        return connection.respond(404, "Not Found")

    def route_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Note the handler of a request's path; return an answer if it has none."""
        from werkzeug.exceptions import NotFound  # noqa: PLC0415
        from werkzeug.routing import RequestRedirect  # noqa: PLC0415

        adapter = self.url_map.bind(server_name=self.get_server_name(connection, request), url_scheme=self.url_scheme)
        parsed = urllib.parse.urlparse(request.path)
        try:
            connection.handler, connection.handler_kwargs = adapter.match(
                path_info=parsed.path, query_args=parsed.query
            )
        except RequestRedirect as redirect:
            return self.redirect(connection, redirect.new_url)
        except NotFound:
            return self.not_found(connection)
        return None

    async def handler(self, connection: ServerConnection) -> Any:
        """Call the handler that was found."""
        return await connection.handler(connection, **connection.handler_kwargs)

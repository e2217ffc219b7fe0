"""The routes of the log of checkpoints: what C2SP tlog-tiles names, and one document about it all.

Guarantees: hashes, sizes, keys and signatures only, nothing of what an entry says; reading them needs an operator's
token and is not recorded on the trail, since each record would be one leaf more. A checkpoint is served with the
cosignatures it has.

    create_app(…, acting=[*log_routes(notary)], beside=[tlog(notary)])
"""

import asyncio
from typing import Annotated

from litestar import Response, Router, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import PathParameter

from tasktrail.events.errors import TasktrailError
from tasktrail.projections.tlog.errors import LogDamaged
from tasktrail.projections.tlog.note import Note
from tasktrail.projections.tlog.tiles import Tiles, place
from tasktrail.services.http.documented import REFUSALS, refusal
from tasktrail.services.notary import LogShown, Notary

_NOT_THERE = {**REFUSALS, 404: refusal("There is no such checkpoint or tile.")}
_TEXT = "text/plain; charset=utf-8"


class NotThere(TasktrailError):
    """The log holds no such checkpoint or tile."""

    http_status = 404
    reason = "not_found"


def log_routes(notary: Notary) -> list[HTTPRouteHandler]:
    """`GET /log`, for a router at `/api/v1`."""

    @get("/log", responses=REFUSALS)
    async def log() -> LogShown:
        """The log of checkpoints: name, key, size, the newest checkpoint, and who else keeps or cosigns it."""
        return await asyncio.to_thread(notary.shown)

    return [log]


def tlog(notary: Notary) -> Router:
    """The log's own files, at `/tlog`: the prefix of C2SP tlog-tiles."""
    tiles = Tiles(notary.folder)

    @get("/checkpoint", media_type=_TEXT, responses=_NOT_THERE)
    async def checkpoint() -> Response[bytes]:
        """The newest checkpoint, a signed note, with the cosignatures it has."""
        return _note(await asyncio.to_thread(notary.newest_cosigned))

    @get("/checkpoints/{size:int}", media_type=_TEXT, responses=_NOT_THERE)
    async def of_size(size: Annotated[int, PathParameter(ge=0, le=2**63 - 1)]) -> Response[bytes]:
        """The checkpoint of this size, with the cosignatures it has."""
        return _note(await asyncio.to_thread(notary.checkpoint, size))

    @get("/tile/{tile:path}", media_type="application/octet-stream", responses=_NOT_THERE)
    async def hashes(tile: str) -> Response[bytes]:
        """A tile of hashes, 32 bytes each: `<level>/<index>` or `<level>/<index>.p/<width>`."""
        named = place(f"tile/{tile.removeprefix('/')}")
        if named is None:
            message = "this is the path of no tile"
            raise NotThere(message)
        try:
            found = await asyncio.to_thread(tiles.read, *named)
        except LogDamaged:
            message = "the log holds no such tile"
            raise NotThere(message) from None
        return Response(found, media_type="application/octet-stream")

    return Router("/tlog", route_handlers=[checkpoint, of_size, hashes], security=[{"responder": []}], tags=["log"])


def _note(note: Note | None) -> Response[bytes]:
    if note is None:
        message = "the log holds no such checkpoint"
        raise NotThere(message)
    return Response(note.encode(), media_type=_TEXT)

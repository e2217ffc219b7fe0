"""What each adapter is built on, said in a sentence where it is missing.

Guarantees: an import that fails within the block fails still, as the same kind of error, whose text names the extra of
tasktrail that brings it. Standard library only.

    with Needs(__name__, "the official MCP SDK v2", extra="mcp"):
        from mcp.server import MCPServer
"""

from types import TracebackType


class Needs:
    """A block of imports of `module` that only `extra` brings; `what` it is. Other versions of it count as missing."""

    def __init__(self, module: str, what: str, *, extra: str) -> None:
        self._module, self._what, self._extra = module, what, extra

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """End the block.

        Raises:
            ImportError: an import failed; `ModuleNotFoundError` if it was one.
        """
        if isinstance(error, ImportError):
            message = f"{self._module} needs {self._what}: install tasktrail[{self._extra}] ({error.msg})"
            missing = ModuleNotFoundError if isinstance(error, ModuleNotFoundError) else ImportError
            raise missing(message, name=error.name, path=error.path) from error

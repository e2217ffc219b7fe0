"""The digest by which a tool's definition is known again, the same whichever SDK the tool is written for.

Guarantees: two definitions that a client is told in the same words have the same digest. Needs msgspec.

    definition_sha256(tool.name, tool.description, tool.parameters, tool.output_schema)
"""

import hashlib

import msgspec


def definition_sha256(name: str, description: str | None, parameters: object, output_schema: object) -> str:
    """SHA-256, in hex, of what a client is told of a tool; the schemas are JSON Schema documents, or None."""
    told = [name, description, parameters, output_schema]
    return hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()

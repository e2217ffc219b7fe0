"""How things stand in the OpenAPI document: refusals, the same few for every route and those of some; tuples.

@post("/grants", responses={**REFUSALS, 404: NO_TASK})
"""

from collections.abc import Mapping
from typing import Any

from litestar.openapi import ResponseSpec
from litestar.openapi.spec import OpenAPIType, Schema
from litestar.plugins import OpenAPISchemaPlugin

from tasktrail.services.http import problems
from tasktrail.services.http.problems import Problem


def refusal(description: str) -> ResponseSpec:
    """One refusal, as problem+json."""
    return ResponseSpec(Problem, description=description, media_type=problems.MEDIA_TYPE, generate_examples=False)


REFUSALS: Mapping[int, ResponseSpec] = {
    400: refusal("The request is not as documented; `detail` says where."),
    401: refusal("No operator's token, or a wrong one."),
    403: refusal("The operator may not do this, or the request comes from a page of another origin."),
    421: refusal("The Host is none of this service's."),
    503: refusal("The service cannot answer now; try again later."),
}
NO_TASK = refusal("Nothing on the trail has this reference or id.")
TOO_LARGE = refusal("The body is larger than 64 KiB.")
NOT_JSON = refusal("The body is not declared as JSON.")
REFUSED = refusal("The task does not admit this now; the refusal is on the trail.")
MAYBE = refusal("It may have been written; look before you send it again.")


class Tuples(OpenAPISchemaPlugin):
    """`tuple[X, ...]` as the array of X that it is: bounded ones would be arrays of X or anything (Litestar 2.25)."""

    def is_plugin_supported_field(self, field_definition: Any) -> bool:  # noqa: ANN401 - Litestar's own
        """Whether this is a tuple of any length."""
        inner = field_definition.inner_types
        return field_definition.origin is tuple and len(inner) == 2 and inner[1].annotation is Ellipsis  # noqa: PLR2004 - X and ...

    def to_openapi_schema(self, field_definition: Any, schema_creator: Any) -> Schema:  # noqa: ANN401 - see above
        """The array."""
        items = schema_creator.not_generating_examples.for_field_definition(field_definition.inner_types[0])
        most = getattr(field_definition.kwarg_definition, "max_items", None)
        return Schema(type=OpenAPIType.ARRAY, items=items, max_items=most)

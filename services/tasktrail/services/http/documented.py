"""How refusals stand in the OpenAPI document: the same few for every route, and those of some.

@post("/grants", responses={**REFUSALS, 404: NO_TASK})
"""

from collections.abc import Mapping

from litestar.openapi import ResponseSpec

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

"""What schemathesis checks here in place of its own `positive_data_acceptance`.

Invariant tested: a request that fits the document is accepted, or refused for one of the reasons
that no JSON schema can give (`plamo_ref/server/document.py` lists them). It is loaded by
schemathesis, as SCHEMATHESIS_HOOKS says.
"""

import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

BEYOND_A_SCHEMA = {
    "context_length_exceeded",
    "invalid_combination",
    "template_refuses",
    "unsupported_grammar",
    "unsupported_tools",
}


@schemathesis.check
def what_fits_the_document_is_accepted(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    code = response.json()["error"]["code"] if response.status_code == 400 else None
    if code not in BEYOND_A_SCHEMA:
        positive_data_acceptance(ctx, response, case)

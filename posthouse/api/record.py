"""Records the OpenAPI document: `python -m posthouse.api.record docs/reference/openapi.json`.

The tests compare the recorded file with what the program says, so that a change of the interface is always deliberate.
"""

import json
import sys
from pathlib import Path

from posthouse.api.application import document, make_rest


def recorded_text() -> str:
    """The document as it is recorded."""
    return json.dumps(document(make_rest(None, None)), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(recorded_text())

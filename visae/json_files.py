"""JSON files that are either whole or not there."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, data: Any) -> None:
    """Writes JSON, under another name until it is whole."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(data, indent=1), encoding="utf8")
    os.replace(partial, path)

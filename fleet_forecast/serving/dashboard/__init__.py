"""The dashboard's static files: one page of ES modules that uses the public API, served by routes.dashboard.

Charts are drawn by the JavaScript that the Python package plotly contains. Imports nothing of the project.
"""

from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_NAMES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".css", ".js"))


class StaticFile(NamedTuple):
    """A file that is served. immutable: its path has its version, so browsers may keep it."""

    path: Path
    media_type: str
    immutable: bool = False


def _plotly() -> Path:
    """The script within the package, which is not imported."""
    found = util.find_spec("plotly")
    if found is None or found.origin is None:
        raise ImportError("the package plotly is not installed; run: pip install -r requirements.txt")
    return Path(found.origin).parent / "package_data" / "plotly.min.js"


PLOTLY_PATH = f"/dashboard/plotly-{metadata.version('plotly')}.js"
FILES = {
    "/": StaticFile(FOLDER / "index.html", _TYPES["html"]),
    **{f"/dashboard/{name}": StaticFile(FOLDER / name, _TYPES[name.rpartition(".")[2]]) for name in _NAMES},
    PLOTLY_PATH: StaticFile(_plotly(), _TYPES["js"], immutable=True),
}

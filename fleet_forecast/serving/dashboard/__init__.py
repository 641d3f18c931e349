"""The dashboard's static files: one page that uses the public API, served by routes.dashboard.

Imports nothing.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/dashboard/style.css": ("style.css", "text/css; charset=utf-8"),
    "/dashboard/chart.js": ("chart.js", "text/javascript; charset=utf-8"),
    "/dashboard/explanation.js": ("explanation.js", "text/javascript; charset=utf-8"),
    "/dashboard/page.js": ("page.js", "text/javascript; charset=utf-8"),
}

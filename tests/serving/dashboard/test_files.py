"""The dashboard's files: their policy and caching, no content from other hosts, no markup from data."""

import gzip
import re

from fleet_forecast.serving.dashboard import FILES, FOLDER, PLOTLY_PATH
from tests.serving.daemon_client import TOKEN, daemon


def test_the_files_need_no_token_and_have_the_content_security_policy(tmp_path):
    with daemon(tmp_path, token=TOKEN) as client:
        for path in FILES:
            answer = client.get(path)
            assert answer.status_code == 200
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_plotly_is_compressed_and_kept_by_browsers_and_the_other_files_are_not(tmp_path):
    with daemon(tmp_path) as client:
        plain = client.get(PLOTLY_PATH, headers={"accept-encoding": "identity"})
        compressed = client.get(PLOTLY_PATH, headers={"accept-encoding": "gzip"})
        assert "content-encoding" not in plain.headers
        assert compressed.headers["content-encoding"] == "gzip"
        assert int(compressed.headers["content-length"]) < len(plain.content) / 3
        assert compressed.content == plain.content == FILES[PLOTLY_PATH].path.read_bytes()
        assert len(gzip.compress(plain.content, 6, mtime=0)) == int(compressed.headers["content-length"])
        assert compressed.headers.get_list("cache-control") == ["public, max-age=31536000, immutable"]
        for path in FILES.keys() - {PLOTLY_PATH}:
            assert client.get(path).headers.get_list("cache-control") == ["no-store"]


def test_addresses_are_relative_to_the_page_and_all_files_of_the_folder_are_served(tmp_path):
    with daemon(tmp_path) as client:
        page = client.get("/").text
    used = re.findall(r'(?:href|src|content)="((?:dashboard|/)[^"]*)"', page)
    assert {f"/{path}" for path in used} <= FILES.keys()
    assert PLOTLY_PATH.lstrip("/") in used
    assert {file.path for file in FILES.values() if file.path.is_relative_to(FOLDER)} == {
        path for path in FOLDER.iterdir() if path.suffix in (".html", ".css", ".js")
    }


def test_no_file_names_another_host_or_inserts_markup():
    for path in FOLDER.iterdir():
        if path.suffix in (".html", ".css", ".js"):
            text = path.read_text()
            assert not re.search(r"https?://|[\"'`]/(?:api|dashboard|status)", text), path
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|style=|<[^>]*\son\w+=", text
            ), path

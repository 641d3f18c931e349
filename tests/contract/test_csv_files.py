"""CSV dialects: each gives the data of the plain file."""

import bz2
import gzip

import pandas as pd
import pytest
import zstandard

from data_contract import DataFileError, check_metrics, read_metrics
from fleet_forecast.contract.csv_files import dialect_of
from tests.contract.frames import fleet


@pytest.fixture
def reference(tmp_path):
    frame = fleet(["ppml0001", "büro 1"], cpu_pct=[12.5, 13.25, 14, None, 40, 41, 42, 43], profile="generic")
    frame.to_csv(tmp_path / "reference.csv", index=False)
    return frame, read_metrics(tmp_path / "reference.csv").frame


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("decimal", [".", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_separators_decimal_signs_and_marked_encodings(tmp_path, reference, separator, decimal, encoding):
    if separator == decimal:
        pytest.skip("such a file cannot be written")
    frame, expected = reference
    frame.to_csv(tmp_path / "m.csv", index=False, sep=separator, decimal=decimal, encoding=encoding)
    pd.testing.assert_frame_equal(read_metrics(tmp_path / "m.csv").frame, expected)


PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".Tsv"])
def test_suffixes_in_any_case_and_every_compression(tmp_path, reference, suffix, packed):
    frame, expected = reference
    content = frame.to_csv(index=False, sep="\t" if suffix.lower() == ".tsv" else ",").encode()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / f"FLEET{suffix}{packed.upper()}").write_bytes(PACK[packed](content))
    pd.testing.assert_frame_equal(read_metrics(folder).frame, expected)


def test_the_separator_line_of_spreadsheets_is_followed(tmp_path, reference):
    frame, expected = reference
    (tmp_path / "m.csv").write_text("sep=;\n" + frame.to_csv(index=False, sep=";"), encoding="utf-8")
    pd.testing.assert_frame_equal(read_metrics(tmp_path / "m.csv").frame, expected)


def test_a_decimal_comma_is_kept_where_the_file_has_text_among_its_numbers(tmp_path):
    text = "timestamp;server_name;cpu_pct\n2026-11-23T10:00:00Z;a;12,5\n2026-11-23T10:05:00Z;a;n.a.\n"
    (tmp_path / "m.csv").write_text(text + "2026-11-23T10:10:00Z;a;13,5\n")
    data = read_metrics(tmp_path / "m.csv")
    assert data.frame["cpu_pct"].fillna(-1).tolist() == [12.5, -1, 13.5]
    assert "text in a metric column, for example n.a. (row 2" in data.notices[0]


@pytest.mark.parametrize("text", ["a;b\n1,5;2.5\n", "cpu_pct,mem_pct\n1,2\n", "cpu_pct;x\n1;2\n", "", "cpu_pct"])
def test_without_a_number_with_a_comma_the_decimal_sign_is_a_point(tmp_path, text):
    (tmp_path / "m.csv").write_text(text)
    assert dialect_of(tmp_path / "m.csv").decimal == "."


def test_utf_16_without_a_mark_is_refused_with_the_remedy(tmp_path, reference):
    (tmp_path / "m.csv").write_bytes(reference[0].to_csv(index=False).encode("utf-16-le"))
    with pytest.raises(DataFileError, match=r"neither UTF-8 nor marked as UTF-16.*save it as UTF-8"):
        check_metrics(tmp_path / "m.csv")


@pytest.mark.parametrize("time", ["Time", "time", "timestamp", "Date"])
def test_one_column_per_server_is_refused_with_the_form_that_fits(tmp_path, time):
    (tmp_path / "m.csv").write_text(f"{time},web1,web2\n2026-11-23T10:00:00Z,1,2\n")
    with pytest.raises(ValueError, match="write one row per server and time"):
        check_metrics(tmp_path / "m.csv")

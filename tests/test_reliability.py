"""The promises of docs/operations.md: small versions in `make test`, full size in `make test-all`."""

import json
import os
from pathlib import Path

import pytest

from tests.reliability import __main__ as table
from tests.reliability import durability, hostile, models, strain
from tests.reliability.finding import Finding
from tests.reliability.promises import PROMISES, Promise
from tests.reliability.small import SMALL, check
from tests.serving.daemon_client import wait_for
from tests.serving.fake_daemon import FakeDaemon

FULL = {
    **{name: trial for promise in PROMISES for name, trial in promise.experiments.items()},
    "ten times the load": lambda folder, _model: hostile.ten_times_the_load(folder, limit_ms=2_000),
    "10,000 servers": lambda folder, model: strain.large_cycle(folder, model, limit_ms=500),
    "soak": lambda folder, _model: strain.soak(folder, float(os.environ.get("SOAK_MINUTES", "1"))),
}


@pytest.mark.parametrize("name", list(SMALL)[::2])
def test_a_promise_holds_in_small_size(name, tmp_path, tiny_model_dir):
    check(SMALL[name](tmp_path, tiny_model_dir))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("trial", FULL.values(), ids=FULL)
def test_a_promise_holds_in_full_size(trial, tmp_path, tiny_model_dir):
    check(trial(tmp_path, tiny_model_dir))


# --- the experiments detect broken promises -------------------------------------------------------------------------


def test_the_ledger_detects_lost_and_torn_batches(tmp_path):
    from fleet_forecast.serving.ingest.bodies import ReceivedBody
    from fleet_forecast.serving.ingest.validation import TimeLimits, check_body
    from fleet_forecast.serving.storage.store import HistoryStore
    from tests.reliability.traffic import BATCH_RECORDS, Ledger

    ledger = Ledger()
    store = HistoryStore(tmp_path / "h.sqlite", 300)

    def samples(batch):
        return check_body(ReceivedBody(ledger.body(batch).encode()), 100, TimeLimits(0, 10**15)).samples

    whole, torn, lost = (ledger.new_batch() for _ in range(3))
    store.append(samples(whole))
    store.append(samples(torn)[:-1]).result(5)
    store.close()
    ledger.acknowledged |= {whole, lost}
    found = ledger.missing(tmp_path / "h.sqlite")
    assert (found["acknowledged"], found["lost"], found["torn_batches"]) == (2 * BATCH_RECORDS, BATCH_RECORDS, 1)


TRACE = """\
1 recvfrom(8<socket:[1]>, "POST /api/v1/metrics HTTP/1.1", 99, 0) = 99
2 fdatasync(5</h.sqlite-wal> <unfinished ...>
1 recvfrom(9<socket:[2]>, "POST /api/v1/metrics HTTP/1.1", 99, 0) = 99
2 <... fdatasync resumed>) = 0
1 sendto(8<socket:[1]>, "HTTP/1.1 200 OK", 99, 0) = 99
1 sendto(9<socket:[2]>, "HTTP/1.1 200 OK", 99, 0) = 99
"""


def test_a_response_before_its_own_fdatasync_is_detected(tmp_path):
    (tmp_path / "trace").write_text(TRACE)  # the second batch arrived after the fdatasync had started
    assert durability._answers_after_sync(tmp_path / "trace") == (2, 1)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from joblib import load",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "__import__(name)",
    ],
)
def test_code_that_could_run_a_file_is_detected(source):
    assert models.code_running(source)


def run_table(monkeypatch, capsys, kept, *flags):
    promises = (Promise("It holds", {"holding": lambda folder, model: Finding(kept, "1 of 1", {"n": 1})}),)
    monkeypatch.setattr(table, "PROMISES", promises)
    code = table.main(["--model", str(Path.cwd()), *flags])
    return code, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("kept", "code", "verdict"), [(True, 0, "kept"), (False, 1, "BROKEN"), (None, 0, "skipped")])
def test_the_table_shows_the_findings_and_fails_if_a_promise_is_broken(monkeypatch, capsys, kept, code, verdict):
    got, lines = run_table(monkeypatch, capsys, kept)
    assert got == code
    assert lines[-2] == f"| It holds | {verdict} | 1 of 1 |"
    assert json.loads(lines[-1])["experiments"][0]["figures"] == {"n": 1}


def test_an_experiment_that_fails_breaks_its_promise():
    def failing(_folder, _model):
        raise RuntimeError("no daemon")

    finding = table._finding_of(failing, Path(), Path())
    assert (finding.kept, finding.shown) == (False, "the experiment failed: RuntimeError: no daemon")


def test_words_that_no_promise_contains_are_refused(monkeypatch, capsys):
    assert run_table(monkeypatch, capsys, True, "--only", "perpetual motion")[0] == 2


def test_a_daemon_that_does_not_get_ready_leaves_no_process(tmp_path):
    child = (
        "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, file=open('child', 'w')); raise SystemExit(3)"
    )

    class Broken(FakeDaemon):
        program = ("-c", child)

    daemon = Broken(tmp_path)
    daemon.use_checkout(tmp_path)
    with pytest.raises(AssertionError), daemon:
        pass
    status = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    wait_for(lambda: not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z")

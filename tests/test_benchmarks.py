"""The benchmarks run and every contestant makes the right thing; no timing decides here."""

import mmap
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.peers import leave_out

pytest.importorskip("resource", reason="the benchmarks are for POSIX")

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # last, so that an installed accumulator is the one that is tested

from benchmarks import __main__ as command  # noqa: E402  after the path
from benchmarks import _codecs  # noqa: E402
from benchmarks._cases import ORDERS, CaseSpec, make_case  # noqa: E402
from benchmarks._measure import Run, disk_nbytes, measure, measure_here, peak_nbytes, reset_peak  # noqa: E402
from benchmarks._outcome import UnavailableError  # noqa: E402
from benchmarks._questions import AgainstFastest, Exponent, Question, Result  # noqa: E402
from benchmarks._report import report  # noqa: E402
from benchmarks._stitch_cases import StitchCase, StitchSpec, hann  # noqa: E402
from benchmarks._workloads import WORKLOADS  # noqa: E402

ENTRIES = {
    f"{workload.name}: {name}": run
    for workload in (make(is_smoke=True) for make in WORKLOADS.values())
    for name, run in workload.entries.items()
}


def _is_same(_case, outcome):
    assert outcome.facts == {"same": 1, "ways": 14}


def _is_share(case, outcome):
    assert 0 < len(outcome.outputs[0]) < len(case.locs)


CLAIMS = {"same_bytes": _is_same, "rank_memory": _is_share}  # of contestants that make no rows


def expected(case):
    """Put every prediction in its row, one by one, by the location's value."""
    row_of = {tuple(loc): row for row, loc in enumerate(case.locs.tolist())}
    outputs = [np.zeros((len(case.locs), *shape), dtype) for shape, dtype in case.heads]
    for batch in case.batches:
        for i, loc in enumerate(batch.locs.tolist()):
            for output, head in zip(outputs, batch.heads, strict=True):
                output[row_of[tuple(loc)]] = head[i]
    return outputs


def assert_right(run, case, outcome, folder):
    """Compare what a contestant made with the same thing made in the plainest way."""
    if isinstance(case, StitchCase):
        assert_map(run, case, outcome)
        return
    assert_rows(run, case, outcome, folder)


def assert_rows(run, case, outcome, folder):
    """Compare rows, or what was found out about them."""
    if run.contestant in {"raw_write", "direct_write"}:
        written = b"".join(head.tobytes() for batch in case.batches for head in batch.heads)
        assert (folder / "raw").read_bytes() == written
    elif run.contestant == "index_match":
        for rows, batch in zip(outcome.outputs, case.batches, strict=True):
            assert np.array_equal(case.locs[rows], batch.locs)
    elif run.contestant in {"index_build", "dict_build"}:
        assert np.array_equal(outcome.outputs[0], case.locs)
    elif run.contestant == "resume":
        expected = np.concatenate([batch.locs for batch in case.batches[::10]])
        np.testing.assert_array_equal(outcome.outputs[0], expected)
    elif run.contestant in CLAIMS:
        CLAIMS[run.contestant](case, outcome)
    elif run.contestant == "codec_alone":
        assert_encoded(run, case, folder)
    elif run.contestant == "hdf5":
        with pytest.importorskip("h5py").File(folder / "result.h5") as file:
            assert_outputs([file[str(number)] for number in range(len(case.heads))], case)
    elif run.options.get("sink") != "nothing":
        assert_outputs(outcome.outputs, case)


def assert_outputs(outputs, case):
    """Compare heads with the same heads made in the plainest way."""
    for output, right in zip(outputs, expected(case), strict=True):
        assert np.dtype(getattr(output.dtype, "numpy_dtype", output.dtype)) == right.dtype
        assert tuple(output.shape) == right.shape
        for row in range(len(right)):  # a row at a time: a sparse result is large when dense
            if not np.array_equal(np.asarray(output[row]), right[row]):  # tiatoolbox's are dask arrays
                pytest.fail(f"row {row} is wrong")


def assert_map(run, case, outcome):
    """Compare a map with the same map made in the plainest way, in float64."""
    if run.options.get("place", "RAM") is None:  # a model alone
        assert outcome.outputs == []
        return
    output = outcome.outputs[0][:]
    if run.contestant == "memory_limit":
        assert outcome.facts["largest"] == max(batch.heads[0].max() for batch in case.batches)
        assert output.shape == case.shape
        return
    window = np.ones(case.patch)
    if run.contestant == "stitch_model" or run.options.get("blend") == "hann":
        window = hann(case.patch, has_zeros=run.contestant == "tiler").astype(np.float64)
    sums, weights = np.zeros(case.shape), np.zeros((*case.shape[:-1], 1))
    for batch in case.batches:
        for patch, loc in zip(batch.heads[0], batch.locs, strict=True):
            starts = loc[: len(case.patch)][::-1]
            box = tuple(slice(at, at + length) for at, length in zip(starts, case.patch, strict=True))
            sums[box] += patch * window[..., None]
            weights[box] += window[..., None]
    right = np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0)
    if run.contestant == "monai_zarr":
        output = np.moveaxis(output[0], 0, -1)
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, right, rtol=2e-5 if run.contestant == "tiler" else 2e-6)


def assert_encoded(run, case, folder):
    """Decode what the codec alone wrote, and compare it with what it was given."""
    decode = _codecs.ALONE[run.options["codec"]].decode
    heads = [head for batch in case.batches for head in batch.heads]
    assert len(list(folder.glob("[0-9]*"))) == len(heads)
    for number, head in enumerate(heads):
        assert bytes(decode((folder / str(number)).read_bytes())) == head.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("run", ENTRIES.values(), ids=ENTRIES)
def test_every_entry_makes_the_right_thing(run, tmp_path):
    """A contestant that does less than the others would win for nothing."""
    spec = run.case
    if isinstance(spec, CaseSpec) and spec.heads == "wide":
        spec = replace(spec, heads="small")
    try:
        metrics, outcome = measure_here(replace(run, case=spec, spare=0, is_synced=False), tmp_path)
    except UnavailableError as reason:
        if isinstance(reason.__cause__, ImportError):
            leave_out()
        pytest.skip(str(reason))
    assert_right(run, spec.make(), outcome, tmp_path)
    assert metrics["seconds"] > 0
    assert metrics["cpu_seconds"] >= 0
    assert metrics["peak_nbytes"] >= 0
    shutil.rmtree(tmp_path / "full_batch_tmp", ignore_errors=True)  # tiatoolbox leaves that to its caller


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n_locs", [1, 70, 2_000])
def test_orders_name_every_row_at_most_once(order, n_locs):
    """No order repeats a row, and those that are only shuffled leave none out."""
    case = make_case(CaseSpec(n_locs, "small", order))
    rows = np.concatenate([np.arange(n_locs)[batch.rows] for batch in case.batches] or [np.arange(0)])
    assert len(np.unique(rows)) == len(rows) == case.n_rows
    if "shuffled" in order or order == "in order":
        assert len(rows) == n_locs


def test_grid_has_no_repeats_and_square_patches():
    """The locations are a list that the library accepts."""
    locs = make_case(CaseSpec(1_000, "none")).locs
    assert len(np.unique(locs, axis=0)) == 1_000
    assert (locs[:, 2:] - locs[:, :2] == 256).all()


def touch_new_pages(nbytes):
    """Take memory of the system's, not what earlier tests gave back to malloc, and let it go."""
    with mmap.mmap(-1, nbytes) as pages:
        for start in range(0, nbytes, mmap.PAGESIZE):
            pages[start] = 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can set the peak back")
def test_peak_is_what_was_touched_after_the_reset():
    """A larger peak before the reset does not count."""
    touch_new_pages(2**26)
    before = reset_peak()
    touch_new_pages(2**25)
    assert 2**25 <= peak_nbytes() - before + 2**20 < 2**26


def test_disk_counts_blocks_and_no_holes(tmp_path):
    """A file of 1 GiB with 8 KiB in it takes little."""
    with (tmp_path / "file").open("wb") as file:
        file.write(b"\1" * 8192)
        file.truncate(2**30)
    assert 8192 <= disk_nbytes(tmp_path) < 2**20


def test_a_run_in_a_fresh_process_cleans_up(tmp_path, monkeypatch):
    """Metrics come back, and the temporary folder goes."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    metrics = measure(Run("accumulator", CaseSpec(100, "small"), {"place": "zarr"}))
    assert metrics["output_nbytes"] == metrics["pushed_nbytes"] == 100 * 192
    assert metrics["disk_nbytes"] >= 100 * 192
    assert metrics["push_us"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["workplace"]


def test_a_result_in_the_wrong_place_is_no_measurement(tmp_path, monkeypatch):
    """Disk is never reported as RAM."""
    monkeypatch.setattr("accumulator._core.memory.available_memory", lambda: 0)
    with pytest.raises(RuntimeError, match="not in RAM"):
        measure_here(Run("accumulator", CaseSpec(10, "small"), {"place": "RAM"}), tmp_path)


@pytest.mark.parametrize(
    ("question", "value", "met"),
    [
        (Question("", ("a", "seconds"), ("b", "seconds")), 2.0, None),
        (Question("", ("a", "seconds"), ("b", "seconds"), at_most=2), 2.0, True),
        (Question("", ("a", "seconds"), ("b", "seconds"), at_least=3), 2.0, False),
        (Question("", ("a", "seconds"), at_most=5), 6.0, False),
    ],
)
def test_questions(question, value, met):
    """A question is a metric or a ratio of two, with a target on one side or none."""
    metrics = {"a": {"seconds": 6.0}, "b": {"seconds": 3.0}}
    assert question.value(metrics) == value
    assert question.is_met(value) is met


def test_of_several_entries_the_least_counts():
    """The limit is the better of two, in each round."""
    question = Question("", ("a", "b", "seconds"), ("c", "seconds"), at_least=0.85)
    assert question.value({"a": {"seconds": 6}, "b": {"seconds": 3}, "c": {"seconds": 4}}) == 0.75
    assert question.entries == ["a", "b", "c"]


def test_against_the_fastest_and_not_the_least():
    """The peak of the fastest of several counts, whoever has the least."""
    question = AgainstFastest("", ("a", "peak_nbytes"), ("b", "c", "peak_nbytes"))
    metrics = {"a": {"peak_nbytes": 6e6}, "b": {"seconds": 1, "peak_nbytes": 3e6}}
    metrics["c"] = {"seconds": 2, "peak_nbytes": 1e6}
    assert question.value(metrics) == 2


def test_a_run_that_was_killed_has_no_time():
    """What it left is shown, and the rest is said not to be measured."""
    workload = WORKLOADS["stitch_container"](is_smoke=True)
    (name,) = workload.entries
    killed = {"finished": 0.0, "oom_kills": 1.0, "limit_met": 9.0, "group_peak_nbytes": 2e9}
    page = report([Result(workload, [{name: killed}], {})])
    assert "| stitch_container | finished | NO | NO | NO | yes | **no** |" in page
    assert "| stitch_container | time | not measured: it was killed |  |  |  |  |" in page


@pytest.mark.parametrize("shape", [(64, 96), (70, 64), (32, 32)])
def test_patches_overlap_by_half_and_cover_the_map(shape):
    """The last on each axis ends where the map does, and pools in another layout hold the same batches."""
    case = StitchSpec(shape, (32, 32), 3, pool_nbytes=32 * 12_288).make()
    assert len(np.unique(case.locs, axis=0)) == len(case.locs) == case.n_rows
    assert case.locs.min(axis=0)[:2].tolist() == [0, 0]
    assert case.locs.max(axis=0)[2:].tolist() == [*shape[::-1]]
    assert case.shape == (*shape, 3)
    for batch, same in zip(case.batches, case.batches_of(case.pool), strict=True):
        assert np.array_equal(batch.heads[0], same)


def test_exponent_is_the_slope():
    """Time that is quadratic in N has an exponent of 2."""
    question = Exponent("", ("a", "b", "c", "seconds"), at_most=1.1, sizes=(10, 100, 1000))
    value = question.value({name: {"seconds": 3 * n**2} for name, n in (("a", 10), ("b", 100), ("c", 1000))})
    assert value == pytest.approx(2)
    assert question.is_met(value) is False


METRICS = {"seconds": 1.0, "cpu_seconds": 0.5, "peak_nbytes": 3e6, "disk_nbytes": 0, "least_nbytes": 2e6}


def test_report_has_median_range_and_verdict():
    """Verdicts are by the median, and a missed target stands out, with its reason."""
    workload = WORKLOADS["ram"](is_smoke=True)
    peak = replace(workload.questions[1], reason="one has to be")
    workload = replace(workload, questions=[peak, *workload.questions[2:]])
    names = set(workload.entries) - {"tiatoolbox"}
    rounds = [dict.fromkeys(names, METRICS | {"seconds": seconds}) for seconds in (1.0, 2.0, 9.0)]
    page = report([Result(workload, rounds, {"tiatoolbox": "tiatoolbox is not installed"})])
    assert (
        "| ram | peak memory / (output + one batch) | 1.50 | 1.50 | 1.50 | at most 1.05 "
        "| **no**: one has to be |" in page
    )
    assert "| ram | accumulator | 2 s | 0.5 s |  | 3.0 MB | 0.0 MB |" in page
    assert "| ram | tiatoolbox | left out: tiatoolbox is not installed |  |  |  |  |" in page
    assert "| not measured: tiatoolbox is not installed |  |  | at least 1.00 |  |" in page


def test_rounds_leave_out_who_cannot_and_who_need_not(monkeypatch):
    """An entry that is not available is asked once; a slow one runs in the first rounds only."""
    asked = []

    def fake(run):
        asked.append(run.contestant)
        if run.contestant == "tiatoolbox":
            raise UnavailableError("no")
        return METRICS

    monkeypatch.setattr(command, "measure", fake)
    workload = WORKLOADS["ram"](is_smoke=True)
    result = command.run_rounds(replace(workload, seldom={"accumulator": 2}), 3)
    assert result.absent == {"tiatoolbox": "no"}
    assert asked.count("tiatoolbox") == 1
    assert len(result.runs("accumulator")) == len(result.answers(workload.questions[0])) == 2
    assert len(result.runs("Hugging Face's way")) == 3


def test_plots_are_drawn(tmp_path):
    """Each plot is a file beside the page, whoever took part."""
    pytest.importorskip("matplotlib")
    script = """
import sys
from collections import defaultdict
from pathlib import Path
from benchmarks._plots import draw
from benchmarks._questions import Result
from benchmarks._report import report
from benchmarks._workloads import WORKLOADS
workloads = [WORKLOADS[name](is_smoke=True) for name in ("disk", "ram", "growth")]
metrics = defaultdict(lambda: 1.0)
results = [Result(each, [dict.fromkeys(each.entries, metrics)] * 2, {}) for each in workloads]
images = draw(results, Path(sys.argv[1]) / "images")
page = report(results, images)
print(len(images), all(path in page for path in images.values()))
"""
    # In a process of its own, as matplotlib keeps its fonts open.
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.split() == ["3", "True"]
    images = list((tmp_path / "images").iterdir())
    assert len(images) == 3
    assert all("<svg" in image.read_text("utf-8") for image in images)


def test_a_group_that_cannot_be_made_is_no_measurement(monkeypatch):
    """Without a memory cgroup the container is left out."""
    monkeypatch.setattr("benchmarks._cgroup._LIMITS", ())
    with pytest.raises(UnavailableError, match="cgroup"):
        measure(Run("accumulator", CaseSpec(10, "small"), {"place": "zarr"}, memory_limit=2**30))


def test_one_workload_is_printed_and_written_where_told(tmp_path, monkeypatch, capsys):
    """--only runs one, and --output says where its page goes."""
    monkeypatch.setattr(command, "measure", lambda run: measure_here(run, tmp_path)[0])
    page = tmp_path / "page.md"
    command.main(["--smoke", "--only", "same_bytes", "--output", str(page)])
    assert "| same_bytes | same SHA-256 in all ways | yes | yes | yes | yes | yes |" in page.read_text(
        "utf-8"
    )
    assert page.read_text("utf-8") in capsys.readouterr().out


@pytest.mark.slow
def test_smoke_runs_workloads_from_the_command_line():
    """Those asked for run, and what is no timing is as it should be; CI runs all of them besides."""
    names = ["sparse", "same_bytes", "stitch_2d"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--smoke", "--only", *names],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    for name in WORKLOADS:
        assert (f"| {name} |" in done.stdout) == (name in names)
    for row in done.stdout.splitlines():
        if row.startswith(("| sparse |", "| same_bytes |")):
            assert "**no**" not in row
            assert "| NO |" not in row

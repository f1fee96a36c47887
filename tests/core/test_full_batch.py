"""FullBatch: how long it lives, how it is kept, and what is refused."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers.files import tree
from helpers.oracle import distinct, grid
from helpers.tuned import tune

from accumulator import FullBatch, FullBatchAccumulator
from accumulator._stores.files import system
from accumulator.exceptions import (
    ClosedError,
    OptionError,
    ResultExistsError,
    ResultFormatError,
    ResultNotFoundError,
    StorageError,
)

N = 11
LOCS = grid(N)
ROWS = [0, 1, 2, 3, 7, 9]


def make(threshold, **options):
    """Return a result with gaps, of two named heads."""
    with FullBatchAccumulator(LOCS, memory_threshold=threshold, **options) as accumulator:
        heads = {"map": distinct(N)[ROWS], "score": distinct(N, (3,), "i2")[ROWS]}
        accumulator.push(heads, LOCS[ROWS])
    return accumulator.finalize()


def check(result):
    """Compare with what `make` put in."""
    for name, values in {"map": distinct(N), "score": distinct(N, (3,), "i2")}.items():
        expected = np.zeros_like(values)
        expected[ROWS] = values[ROWS]
        np.testing.assert_array_equal(result.outputs[name][:], expected, strict=True)
    assert list(result.outputs) == ["map", "score"]
    np.testing.assert_array_equal(result.output_locs, LOCS, strict=True)
    np.testing.assert_array_equal(np.flatnonzero(result.written), ROWS)
    np.testing.assert_array_equal(result.missing_locs, np.delete(LOCS, ROWS, axis=0))


def test_outlives_block_and_accumulator(where):
    """The result is whole after the block, and after the accumulator is gone."""
    result = make(where["memory_threshold"])
    gc.collect()
    check(result)
    assert result.nbytes == N * (16 + 6)
    result.close()


def test_folder_is_private_unique_and_goes_with_the_result():
    """A spilled result lies in its own 0700 folder inside save_path, gone with the last reference."""
    results = [make(0, save_path="some/place") for _ in range(2)]
    folders = list(Path("some/place").iterdir())
    assert len(folders) == 2
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in folders)
    assert {result.path.parent for result in results} == {folder.absolute() for folder in folders}
    del results[0]
    gc.collect()
    assert len(list(Path("some/place").iterdir())) == 1
    results[0].close()
    assert list(Path.cwd().iterdir()) == []


def test_arrays_alone_keep_the_folder():
    """One array taken out of a result that is dropped stays readable."""
    array = make(0).outputs["map"]
    gc.collect()
    np.testing.assert_array_equal(array[1], distinct(N)[1])
    del array
    gc.collect()
    assert list(Path.cwd().iterdir()) == []


def test_close_removes_at_once_and_refuses_reading():
    """After close() arrays on disk raise instead of showing zeros; a second close does nothing."""
    with make(0) as result:
        array = result.outputs["map"]
    assert list(Path.cwd().iterdir()) == []
    with pytest.raises(ClosedError, match="was closed"):
        array[:]
    with pytest.raises(ClosedError):
        result.save("kept")
    result.close()
    assert "score" in repr(result)
    assert list(Path.cwd().iterdir()) == []


def test_close_leaves_ram_alone():
    """Arrays in RAM are the caller's."""
    with make(100) as result:
        pass
    check(result)
    result.outputs["map"][0] = 5


def test_folder_is_removed_at_interpreter_exit(tmp_path):
    """A result still referenced when the interpreter ends leaves nothing on disk."""
    script = """
import numpy as np
from accumulator import FullBatchAccumulator
a = FullBatchAccumulator([[0], [1]], memory_threshold=0)
a.push(np.ones((1, 2)), [[1]])
kept_alive_by_main = a.finalize()
b = FullBatchAccumulator([[0], [1]], memory_threshold=0)
b.push(np.ones((1, 2)), [[1]])
import os; print(len(os.listdir("temp_fullbatch")))
b.close()
"""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ended.stdout, ended.stderr) == ("2\n", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["workplace"]


def test_accumulator_dropped_at_the_end_is_quiet(tmp_path):
    """One that still holds something when the interpreter ends gives no broken traceback."""
    script = """
import numpy as np
from accumulator import FullBatchAccumulator
a = FullBatchAccumulator([[0], [1]], memory_threshold=0)
a.push(np.ones((1, 2)), [[1]])
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (ended.stdout, ended.stderr) == ("", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["workplace"]


def test_exit_of_a_forked_child_removes_nothing(tmp_path):
    """A data-loader worker that was forked and exits normally leaves the parent's folder."""
    script = """
import os, sys, warnings
import numpy as np
warnings.simplefilter("ignore", DeprecationWarning)  # fork beside zarr's thread
from accumulator import FullBatchAccumulator
a = FullBatchAccumulator([[0], [1]], memory_threshold=0)
a.push(np.ones((1, 2)), [[1]])
result = a.finalize()
child = os.fork()
if child == 0:
    sys.exit(0)
os.waitpid(child, 0)
print(result.outputs[0][:].sum(), result.path.exists())
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "2.0 True\n"


def test_worker_that_ends_removes_its_own_folder(tmp_path):
    """A multiprocessing worker, which ends without atexit, leaves nothing of its own, and its parent's."""
    script = """
import multiprocessing, warnings
import numpy as np
warnings.simplefilter("ignore", DeprecationWarning)  # fork beside zarr's thread
from accumulator import FullBatchAccumulator
def make():
    a = FullBatchAccumulator([[0], [1]], memory_threshold=0)
    a.push(np.ones((1, 2)), [[1]])
    return a.finalize()
def work():
    global kept
    kept = make()
if __name__ == "__main__":
    for method in ("spawn", "forkserver"):
        worker = multiprocessing.get_context(method).Process(target=work)
        worker.start(); worker.join()
        assert worker.exitcode == 0
    result = make()
    import os; print(len(os.listdir("temp_fullbatch")))
"""
    (tmp_path / "script.py").write_text(script)
    ended = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "1\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["script.py", "workplace"]


@pytest.mark.parametrize("threshold", [0, 100])
def test_saved_result_loads_the_same(threshold):
    """What is loaded is what was saved, from RAM and from disk; the result itself stays usable."""
    result = make(threshold)
    result.save("deep/kept.zarr")
    check(result)
    loaded = FullBatch.load("deep/kept.zarr")
    check(loaded)
    assert loaded.path == Path("deep/kept.zarr").absolute()
    assert all(isinstance(output, zarr.Array) for output in loaded.outputs.values())
    with pytest.raises(ValueError, match="read-only"):
        loaded.outputs["map"][0] = 1
    result.close()
    loaded.close()
    with pytest.raises(ClosedError, match=r"FullBatch.load opens it again"):
        loaded.outputs["map"][:]
    with pytest.raises(ClosedError, match=r"FullBatch.load opens it again"):
        loaded.save("other.zarr")
    check(FullBatch.load("deep/kept.zarr"))
    assert [p.name for p in Path("deep").iterdir()] == ["kept.zarr"]
    assert stat.S_IMODE(Path("deep/kept.zarr").stat().st_mode) != 0o700


def test_lists_load_as_lists():
    """A result without names has a list of outputs, also when loaded, in a loaded one's order."""
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push([distinct(N, (k + 1,)) for k in range(12)], LOCS)
    accumulator.finalize().save("kept")
    outputs = FullBatch.load("kept").outputs
    assert isinstance(outputs, list)
    assert [output.shape for output in outputs] == [(N, k + 1) for k in range(12)]


def test_saving_a_spilled_result_moves_it():
    """On one file system no byte is copied: the same chunk files, and no temporary folder."""
    result = make(0)
    before = {p.name: p.stat().st_ino for p in result.path.rglob("c.*") if "outputs" in str(p)}
    result.save("kept")
    assert before == {p.name: p.stat().st_ino for p in Path("kept/outputs").rglob("c.*")}
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["kept"]
    assert result.path == Path("kept").absolute()
    check(result)
    result.save("again")
    check(FullBatch.load("again"))
    check(FullBatch.load("kept"))


@pytest.mark.usefixtures("tiny_chunks")
def test_saving_across_file_systems_copies(monkeypatch):
    """Where a rename is impossible the rows are copied, gaps staying gaps."""
    result = make(0)
    place, real = result.path, system.rename

    def rename(source, target):
        if source == place:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return real(source, target)

    monkeypatch.setattr(system, "rename", rename)
    result.save("kept")
    check(FullBatch.load("kept"))
    check(result)
    chunks = {p.name for p in Path("kept/outputs/map").glob("c.*")}
    assert chunks == {"c.0.0.0.0", "c.1.0.0.0", "c.2.0.0.0"}  # rows of 16 bytes, 4 a chunk
    result.close()
    check(FullBatch.load("kept"))


def test_saving_keeps_what_the_user_wrote_into_gaps(where):
    """Rows filled in by hand after finalize() are saved like all others."""
    result = make(where["memory_threshold"])
    result.outputs["map"][5] = 42
    result.save("kept")
    result.save("copied")
    for name in ("kept", "copied"):
        assert (FullBatch.load(name).outputs["map"][5] == 42).all()


def test_save_into_its_own_temporary_folder_is_refused():
    """A place that goes with the result keeps nothing."""
    result = make(0)
    with pytest.raises(OptionError, match="temporary folder of this result"):
        result.save(result.path.parent / "kept")
    check(result)
    result.close()


def test_result_with_other_chunks_is_copied_whole(monkeypatch):
    """What another version saved in chunks of another size is copied by its own chunks."""
    with monkeypatch.context() as patched:
        tune(patched, chunk_nbytes=64)
        make(100).save("small")
        tune(patched, chunk_nbytes=32)
        FullBatch.load("small").save("smaller")
    FullBatch.load("smaller").save("large")
    check(FullBatch.load("smaller"))
    check(FullBatch.load("large"))


def test_minus_zero_is_kept(where):
    """A row of minus zeros is a row."""
    with FullBatchAccumulator(LOCS, **where) as accumulator:
        accumulator.push(np.full((1, 3), -0.0), LOCS[:1])
    result = accumulator.finalize()
    result.save("kept")
    result.save("copied")
    for name in ("kept", "copied"):
        assert np.signbit(FullBatch.load(name).outputs[0][0]).all()


def test_folder_that_vanished_is_an_error_not_zeros():
    """When somebody removes the files, arrays refuse instead of showing zeros; so do copies of them."""
    result = make(0)
    result.save("saved")
    copy = pickle.loads(pickle.dumps(result))  # noqa: S301  our own bytes
    check(copy)
    shutil.rmtree(result.path)
    for array in (result.outputs["map"], copy.outputs["map"]):
        with pytest.raises(ClosedError, match="is gone"):
            array[:]
    result.close()


def test_editing_the_result_leaves_the_accumulator():
    """The record and the locations of a result are its own."""
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push(np.ones((1, 1)), LOCS[:1])
    result = accumulator.finalize()
    result.written[:], result.output_locs[:] = True, 0
    assert accumulator.written.sum() == 1
    np.testing.assert_array_equal(accumulator.missing_locs, LOCS[1:])


def test_save_never_overwrites(where, monkeypatch):
    """Something at the path, even a dangling link, is refused and left as it was."""
    result = make(where["memory_threshold"])
    Path("file").write_text("precious")
    Path("link").symlink_to("nowhere")
    for name in ("file", "link"):
        with pytest.raises(ResultExistsError, match="save elsewhere") as caught:
            result.save(name)
        assert isinstance(caught.value, FileExistsError)
        assert caught.value.filename == str(Path(name).absolute())
    assert Path("file").read_text() == "precious"
    check(result)
    with monkeypatch.context() as patched:
        patched.setattr(os.path, "lexists", _answers("", "there"))
        Path("folder/in/the/way").mkdir(parents=True)
        with pytest.raises(ResultExistsError):
            result.save("folder")
    result.close()


def _answers(*answers):
    """Return a function that gives one answer after the other."""
    remaining = iter(answers)
    return lambda _: next(remaining)


def test_save_that_fails_leaves_nothing(where, monkeypatch):
    """An error while saving leaves no half result at the path, and this one as it was."""
    result = make(where["memory_threshold"])
    Path("file").write_text("")
    for bad in ("file/below", "x" * 300):
        with pytest.raises(StorageError):
            result.save(bad)
    with monkeypatch.context() as patched:
        patched.setattr("accumulator._stores.writing.record.MARK", object())
        with pytest.raises(TypeError):
            result.save("kept")
    with monkeypatch.context() as patched:
        patched.setattr("zarr.open_group", _no_space)
        with pytest.raises(StorageError, match="cannot be completed"):
            result.save("kept")
    with monkeypatch.context() as patched:
        patched.setattr(system, "rename", _no_space)
        with pytest.raises(StorageError, match="kept"):
            result.save("new/kept")
    assert not Path("kept").exists()
    assert not Path("new").exists()
    check(result)
    result.close()
    assert [p.name for p in Path.cwd().iterdir()] == ["file"]


def _no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_load_refuses_what_is_not_a_result():
    """Nothing there, a file, an empty folder, other zarr data, or a path that is none: typed errors."""
    with pytest.raises(ResultNotFoundError) as caught:
        FullBatch.load("nowhere")
    assert isinstance(caught.value, FileNotFoundError)
    Path("file").write_text("")
    Path("folder").mkdir()
    zarr.create_group("other")
    zarr.create_array("array", shape=(1,), dtype="i1")
    for name in ("file", "folder", "other", "array"):
        before = tree(Path.cwd())
        with pytest.raises(
            ResultFormatError, match=r"is neither a result|is a file: a saved result is a folder"
        ):
            FullBatch.load(name)
        assert tree(Path.cwd()) == before
    with pytest.raises(OptionError):
        FullBatch.load(7)
    with pytest.raises(OptionError):
        FullBatch.load("a\0b")
    with pytest.raises(StorageError):
        FullBatch.load("x" * 300)


@pytest.mark.parametrize("damage", ["version", "written", "names", "locs"])
def test_load_refuses_a_damaged_result(damage):
    """Parts that do not belong together, and layouts of the future, are refused."""
    make(100).save("kept")
    group = zarr.open_group("kept")
    if damage == "version":
        group.attrs["accumulator"] = {"version": 4, "names": None, "n_heads": 2}
    elif damage == "names":
        group.attrs["accumulator"] = {**group.attrs["accumulator"], "names": ["one"]}
    elif damage == "written":
        group.create_array("written", data=np.ones(N, "i1"), overwrite=True)
    else:
        group.create_array("output_locs", data=LOCS[1:], overwrite=True)
    with pytest.raises(ResultFormatError, match="version 4" if damage == "version" else "damaged"):
        FullBatch.load("kept")


def test_saved_result_is_a_plain_zarr_group():
    """Any zarr reader finds outputs, locations and the written record."""
    make(100).save("kept")
    group = zarr.open_group("kept", mode="r")
    assert group.metadata.zarr_format == 3
    assert sorted(group.array_keys()) == ["checksums", "output_locs", "written"]
    np.testing.assert_array_equal(group["outputs/map"][1], distinct(N)[1])
    assert group["outputs/score"].attrs["name"] == "score"
    mark = group.attrs["accumulator"]
    assert (mark["version"], mark["state"], mark["names"]) == (3, "complete", ["map", "score"])


def test_result_without_locations_or_heads_is_kept_too():
    """An empty slide has a result as well."""
    with FullBatchAccumulator(LOCS[:0]) as accumulator:
        pass
    accumulator.finalize().save("kept")
    loaded = FullBatch.load("kept")
    assert (loaded.outputs, loaded.output_locs.shape, loaded.written.shape) == ([], (0, 4), (0,))


def test_repr_tells_heads_coverage_and_place(where):
    """One line, without any array's contents."""
    result = make(where["memory_threshold"])
    place = "RAM" if where["memory_threshold"] else result.path.as_uri()
    heads = "map: (11, 2, 2, 1) float32, score: (11, 3) int16"
    assert repr(result) == f"<FullBatch {{{heads}}}, 6 of 11 written, {place}>"
    result.close()


def test_folder_removed_by_others_is_not_an_error():
    """When somebody cleaned up before, close() has nothing to do."""
    result = make(0)
    shutil.rmtree(result.path.parent)
    result.close()
    assert os.listdir("temp_fullbatch") == [] if Path("temp_fullbatch").exists() else True  # noqa: PTH208

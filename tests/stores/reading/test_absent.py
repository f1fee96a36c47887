"""What is absent is not empty: files under a live result that are gone or changed are no values."""

from __future__ import annotations

import contextlib
import copy
import json
import multiprocessing
import os
import pickle
import random
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import Process
from helpers.vandal import ACTS
from zarr.codecs import GzipCodec

from accumulator import FullBatch, FullBatchAccumulator, Stitcher, prepare_multitask_full_batch, stitch
from accumulator.exceptions import (
    AccumulatorError,
    ClosedError,
    DamagedError,
    ProcessError,
    StorageError,
    UnsavedError,
)

ROUNDS = int(os.environ.get("ACCUMULATOR_VANDALS", "60"))
N = 24
LOCS = np.array([[4 * (i % 4), 4 * (i // 4), 4 * (i % 4) + 4, 4 * (i // 4) + 4] for i in range(N)])
CAME = np.array([*range(10), *range(16, 21)])  # chunks of four rows: the fourth is empty, two are in part
FORMS = {
    "raw": {"chunks": 4},
    "compressed": {"chunks": 4, "compressors": GzipCodec()},
    "sharded": {"chunks": 2, "shards": 4},
    "cut": {"chunks": (4, 2, 4, 1)},
    "filled": {"chunks": 4, "fill_value": 7},
}


def patches(rows=CAME):
    """Return the patches of rows, no value of which is another's, or a fill value."""
    return np.asarray(rows)[:, None, None, None] * 100.0 + np.arange(32).reshape(4, 4, 2) + 1000


def right(form="raw"):
    """Return what a result has to hold."""
    values = np.full((N, 4, 4, 2), float(FORMS[form].get("fill_value", 0)))
    values[CAME] = patches()
    return values


def collect(form="raw", **options):
    """Return an accumulator that all rows were pushed to, some of them late."""
    accumulator = FullBatchAccumulator(LOCS, **{"memory_threshold": 0} | FORMS[form] | options)
    for rows in (CAME[:5], CAME[7:], CAME[5:7]):
        accumulator.push({"map": patches(rows)}, LOCS[rows])
        accumulator.flush()
    return accumulator


def spilled(form):
    """Return a result in a temporary folder."""
    return collect(form).finalize()


def kept(form):
    """Return the result of a run that was kept."""
    return collect(form, store="run.zarr").finalize()


def loaded(form):
    """Return a result that was loaded."""
    collect(form, store="run.zarr").finalize()
    return FullBatch.load("run.zarr")


def saved(form):
    """Return a result that was saved, and moved by that."""
    result = spilled(form)
    result.save("saved.zarr")
    return result


def copied(form):
    """Return a result that was copied from another folder."""
    spilled(form).save("saved.zarr")
    FullBatch.load("saved.zarr").save("copied.zarr")
    return FullBatch.load("copied.zarr")


KINDS = {each.__name__: each for each in (spilled, kept, loaded, saved, copied)}


def files_of(result, rows=None):
    """Return the chunk files of a result; of the chunk of four rows that a row is in."""
    chunk = "*" if rows is None else str(rows // 4)
    return sorted(result.path.glob(f"outputs/map/c.{chunk}.*"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_chunk_that_rows_were_written_to_is_not_absent(form, kind):
    """Reading a removed chunk is an error that names its rows; all others and the gaps read as they are."""
    result = KINDS[kind](form)
    array = result.outputs["map"]
    np.testing.assert_array_equal(array[:], right(form))
    for file in files_of(result, 16):
        file.unlink()
    for rows in (slice(16, 20), slice(None), slice(17, 18)):
        with pytest.raises(DamagedError) as caught:
            array[rows]
        assert caught.value.rows.tolist() == [16, 17, 18, 19]
    np.testing.assert_array_equal(array[:16], right(form)[:16])
    np.testing.assert_array_equal(array[20:], right(form)[20:])


@pytest.mark.parametrize("kind", KINDS)
def test_only_rows_that_came_are_named(kind):
    """A chunk that is absent has lost those of its rows that were written."""
    result = KINDS[kind]("raw")
    files_of(result, 8)[0].unlink()
    with pytest.raises(DamagedError) as caught:
        result.outputs["map"][8:12]
    assert caught.value.rows.tolist() == [8, 9]


@pytest.mark.parametrize("act", ["remove", "cut", "lengthen", "overwrite", "replace", "obstruct"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_file_of_a_chunk_that_was_read_before_is_found(kind, act):
    """Whatever becomes of one of a chunk's files, right or not when it was read first."""
    result = KINDS[kind]("cut")
    np.testing.assert_array_equal(result.outputs["map"][:], right())
    ACTS[act](files_of(result, 16)[1], random.Random(1))  # noqa: S311  no secret
    with pytest.raises(DamagedError):
        result.outputs["map"][16:20]
    np.testing.assert_array_equal(result.outputs["map"][:16], right()[:16])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["raw", "sharded"])
def test_save_makes_no_checksums_of_what_is_gone(form, kind):
    """A result that has lost a chunk is not saved, and nothing is left where it would be."""
    result = KINDS[kind](form)
    files_of(result, 16)[0].unlink()
    with pytest.raises(DamagedError):
        result.save("another.zarr")
    assert not Path("another.zarr").exists()
    with pytest.raises(DamagedError):
        stitch(result)
    np.testing.assert_array_equal(result.outputs["map"][:16], right(form)[:16])


@pytest.mark.parametrize("options", [{}, {"store": "run.zarr"}])
@pytest.mark.parametrize("form", FORMS)
def test_canvas_under_way_tells_of_lost_chunks(form, options):
    """The canvas is read as results are; what is pushed later goes to its place."""
    accumulator = collect(form, **options)
    (array,) = accumulator.canvas
    np.testing.assert_array_equal(array[:], right(form))
    folder = Path(str(array.store).removeprefix("file://"))
    for file in folder.glob("outputs/map/c.4.*"):
        file.unlink()
    for canvas in (array, *accumulator.canvas):
        with pytest.raises(DamagedError):
            canvas[18]
    accumulator.push({"map": patches([13])}, LOCS[[13]])
    np.testing.assert_array_equal(accumulator.canvas[0][13], patches([13])[0])
    accumulator.close()


@pytest.mark.parametrize("act", ["remove", "overwrite", "cut"])
@pytest.mark.parametrize("options", [{}, {"store": "run.zarr"}])
@pytest.mark.parametrize("form", ["raw", "compressed", "cut"])
def test_rows_are_not_added_to_a_chunk_that_was_changed(form, options, act):
    """Late rows do not make a chunk right that somebody has changed since it was written."""
    accumulator = collect(form, on_duplicate="last", **options)
    (array,) = accumulator.canvas
    folder = Path(str(array.store).removeprefix("file://"))
    for file in folder.glob("outputs/map/c.5.*"):  # which has row 20 alone
        ACTS[act](file, random.Random(1))  # noqa: S311  no secret
    with contextlib.suppress(StorageError, DamagedError):
        accumulator.push({"map": patches([21])}, LOCS[[21]])
        accumulator.flush()
        assert options, "the change went unseen"
    with contextlib.suppress(StorageError, DamagedError):
        values = accumulator.canvas[0][20:22]
        assert options
        np.testing.assert_array_equal(values, patches([20, 21]))
    with contextlib.suppress(StorageError, DamagedError):
        accumulator.close()


def test_row_that_is_replaced_is_not_read_from_a_changed_file():
    """A push that has to keep what a row held says that it is lost."""
    accumulator = collect("raw", on_duplicate="last", store="run.zarr")
    ACTS["overwrite"](Path("run.zarr/outputs/map/c.0.0.0.0"), random.Random(1))  # noqa: S311  no secret
    with pytest.raises(DamagedError) as caught:
        accumulator.push({"map": patches([1])}, LOCS[[1]])
    assert caught.value.rows.tolist() == [1]
    accumulator.close()


@pytest.mark.parametrize("kind", KINDS)
def test_file_that_appears_in_a_gap_is_no_value(kind):
    """A chunk that no row was written to reads as it was, or is refused."""
    result = KINDS[kind]("raw")
    files = files_of(result, 16)
    shutil.copyfile(files[0], str(files[0]).replace("c.4.", "c.3."))
    with pytest.raises(DamagedError):
        result.outputs["map"][12:16]
    with pytest.raises(DamagedError):
        result.save("another.zarr")


@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_no_byte_is_no_damage(kind):
    """Permissions and names may change under a result that stays, which has checksums."""
    result = KINDS[kind]("raw")
    result.outputs["map"][:]
    if kind != "spilled":
        for file in files_of(result):
            file.chmod(0o600)
            file.with_name("twin").unlink(missing_ok=True)
            file.with_name("twin").hardlink_to(file)
    np.testing.assert_array_equal(result.outputs["map"][:], right())


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_that_is_gone_gives_no_other_values(kind):
    """An array that is open needs its metadata no more, and it is not saved without."""
    result = KINDS[kind]("raw")
    (result.path / "outputs/map/zarr.json").unlink()
    np.testing.assert_array_equal(result.outputs["map"][:], right())
    if kind == "spilled":
        with pytest.raises(AccumulatorError):
            result.save("another.zarr")
        assert not Path("another.zarr").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_folder_that_is_gone_is_an_error(kind):
    """A head's folder, or all of it."""
    result = KINDS[kind]("raw")
    shutil.rmtree(result.path / "outputs/map")
    with pytest.raises(DamagedError):
        result.outputs["map"][0]
    shutil.rmtree(result.path)
    with pytest.raises(ClosedError, match="is gone"):
        result.outputs["map"][0]
    result.close()


@pytest.mark.parametrize("options", [{}, {"store": "maps.zarr"}])
def test_maps_tell_of_lost_chunks(options):
    """A map on disk is read, saved and exported whole, or not at all."""
    with Stitcher(LOCS, memory_threshold=0, **options) as stitcher:
        stitcher.push({"map": patches()}, LOCS[CAME])
    maps = stitcher.finalize()
    whole = np.array(maps.outputs["map"])
    assert (whole[:4, :4] == patches([0])[0]).all()
    for file in maps.path.glob("outputs/map/c.0.*"):
        file.unlink()
    with pytest.raises(DamagedError):
        maps.outputs["map"][:4]
    for save in (maps.save, maps.save_ome_zarr, maps.save_ome_tiff):
        with pytest.raises(DamagedError):
            save("another")
        assert not Path("another").exists()


def test_arrays_of_the_function_tell_of_lost_chunks():
    """What the function has put on disk belongs to its caller, and is checked all the same."""
    (array,), _, _ = prepare_multitask_full_batch(
        [patches()], LOCS[CAME], LOCS, None, None, "here", 0, is_last=True
    )
    np.testing.assert_array_equal(array[:], right())
    array[22] = 5  # the caller's own
    assert (array[22] == 5).all()
    next(Path("here").rglob("c.*")).unlink()
    with pytest.raises(DamagedError):
        array[0]
    shutil.rmtree("here")


def test_pipe_in_the_place_of_a_file_is_not_waited_for():
    """Nobody writes to it."""
    result = loaded("compressed")
    file = files_of(result, 0)[0]
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DamagedError):
        result.outputs["map"][0]


# Results that are sent to other processes.


def _work(form):
    return spilled(form)


def _read(array):
    return np.asarray(array[:]) if not isinstance(array, FullBatch) else np.asarray(array.outputs["map"][:])


@pytest.mark.parametrize("send", [pickle.dumps, copy.deepcopy])
def test_spilled_result_is_refused_when_it_is_sent(send):
    """With the remedy; and it stays what it was."""
    result = spilled("raw")
    maps = stitch(result, memory_threshold=0)
    for each in (result, result.outputs["map"], maps, maps.outputs["map"]):
        with pytest.raises(UnsavedError, match=r"save\(\) it before") as caught:
            send(each)
        assert isinstance(caught.value, (ProcessError, pickle.PicklingError))
    np.testing.assert_array_equal(result.outputs["map"][:], right())


def test_worker_that_returns_a_spilled_result_tells_why_it_cannot():
    """The parent gets the words of the error, and no rows of zeros."""
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool, pytest.raises(Exception, match=r"save\(\) it before"):
        pool.map(_work, ["raw"])
    with ProcessPoolExecutor(1, mp_context=context) as executor, pytest.raises(UnsavedError):
        executor.submit(_work, "raw").result()
    for folder in Path("temp_fullbatch").glob("full_batch_*"):  # of the worker that the pool has ended
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", [each for each in KINDS if each != "spilled"])
def test_result_that_stays_is_whole_in_another_process(kind):
    """It is sent, read there, and checked there."""
    result = KINDS[kind]("cut")
    twin = pickle.loads(pickle.dumps(result))  # noqa: S301  our own bytes
    np.testing.assert_array_equal(twin.outputs["map"][:], right())
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor:
        np.testing.assert_array_equal(executor.submit(_read, result).result(), right())
        files_of(result, 16)[0].unlink()
        with pytest.raises(DamagedError):
            executor.submit(_read, result).result()
    with pytest.raises(DamagedError):
        twin.outputs["map"][:]


@pytest.mark.parametrize("kind", KINDS)
def test_forked_child_reads_its_parents_result(kind):
    """As the workers of a data loader do."""
    result = KINDS[kind]("compressed")
    result.outputs["map"][:8]
    context = multiprocessing.get_context("fork")
    parent, child = context.Pipe()

    def work():
        child.send(np.asarray(result.outputs["map"][:]))

    process = context.Process(target=work)
    process.start()
    assert parent.poll(60), "it hangs"
    np.testing.assert_array_equal(parent.recv(), right())
    process.join()
    for end in (parent, child):
        end.close()
    process.close()


def test_temporary_folder_is_renamed_before_it_is_removed(monkeypatch):
    """So that whoever still reads it by its name finds nothing, and not a half."""
    result = spilled("raw")
    place, seen = result.path, []

    def look(folder):
        seen.append((place.exists(), sorted(path.name for path in Path(folder).rglob("c.*"))))
        shutil.rmtree(folder)

    monkeypatch.setattr("accumulator._stores.files.system.remove_tree", look)
    result.close()
    assert [exists for exists, _ in seen] == [False]
    assert len(seen[0][1]) == 5


# Random acts of another process.


@pytest.fixture(scope="module")
def vandal(tmp_path_factory):
    """Return a process that does what it is told to files."""
    process = Process(tmp_path_factory.mktemp("vandal") / "errors", "helpers.vandal")
    yield process
    process.process.stdin.close()
    assert process.process.wait(60) == 0
    process.process.stdout.close()


def make(kind, form):
    """Return something live, its array, and what that has to hold."""
    if kind == "canvas":
        accumulator = collect(form)
        return accumulator, accumulator.canvas[0], right(form)
    if kind == "map":
        with Stitcher(LOCS, memory_threshold=0) as stitcher:
            stitcher.push({"map": patches()}, LOCS[CAME])
        maps = stitcher.finalize()
        return maps, maps.outputs["map"], np.array(maps.outputs["map"])
    result = KINDS[kind](form)
    return result, result.outputs["map"], right(form)


def count_right(array, expected, chance):
    """Read some rows, which are right or refused; return how many readings were right."""
    start = chance.randrange(len(expected))
    stop = chance.randrange(start, len(expected)) + 1
    try:
        values = array[start:stop]
    except AccumulatorError:
        return 0
    np.testing.assert_array_equal(values, expected[start:stop])
    return 1


def check_saving(owner, expected):
    """Save it, which is refused; or what was saved is right, or is refused to be read."""
    try:
        owner.save("another.zarr")
    except AccumulatorError:
        assert not Path("another.zarr").exists()
        return
    with contextlib.suppress(AccumulatorError):
        np.testing.assert_array_equal(FullBatch.load("another.zarr").outputs["map"][:], expected)


@pytest.mark.slow
@pytest.mark.parametrize("is_at_once", [False, True])
def test_no_wrong_value_whatever_another_process_does_to_files(vandal, is_at_once, quick_path, monkeypatch):
    """Files under live results are removed, cut and replaced, between two readings or during one."""
    monkeypatch.chdir(quick_path)
    seed = random.randrange(2**32)  # noqa: S311  no secret
    chance = random.Random(seed)  # noqa: S311
    n_right = n_read = 0
    for number in range(ROUNDS // 2):
        kind, form = chance.choice([*KINDS, "map", "canvas"]), chance.choice([*FORMS])
        print(f"seed {seed}, round {number}: {kind}, {form}")  # noqa: T201  shown if it fails
        owner, array, expected = make(kind, form)
        for _ in range(chance.randrange(3)):
            assert count_right(array, expected, chance)
        root = Path(str(array.store).removeprefix("file://"))
        files = sorted(root.rglob("*") if chance.random() < 0.2 else root.glob("outputs/map/c.*"))
        for _ in range(chance.randrange(1, 4)):
            act, file = chance.choice([*ACTS]), chance.choice(files)
            print(act, file)  # noqa: T201
            vandal.tell(json.dumps([act, chance.randrange(2**32), str(file)]))
            if not is_at_once:
                assert vandal.line() == "done"
            n_right += sum(count_right(array, expected, chance) for _ in range(3))
            n_read += 3
            if is_at_once:
                assert vandal.line() == "done"
        if kind != "canvas" and chance.random() < 0.3:
            check_saving(owner, expected)
        with contextlib.suppress(AccumulatorError):
            owner.close()
        del owner, array
        for each in Path.cwd().iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink()
    assert 0.1 < n_right / n_read < 0.95, "that is no test"


@pytest.mark.parametrize(("value", "is_damage"), [(0.0, False), (-0.0, True), (1.0, True)])
def test_chunk_that_is_gone_from_a_store_is_damage_unless_it_reads_the_same(value, is_damage):
    """Rows of the fill value may be a hole; any other bit in them is missed."""
    locs = np.arange(8)[:, None]
    with FullBatchAccumulator(locs, store="run.zarr", chunks=4) as accumulator:
        accumulator.push(np.full((8, 4), value), locs)
    accumulator.finalize().close()
    (Path("run.zarr") / "outputs" / "0" / "c.0.0").unlink()
    batch = FullBatch.load("run.zarr")
    if is_damage:
        with pytest.raises(DamagedError):
            batch.outputs[0][...]
    else:
        assert (batch.outputs[0][...] == value).all()


@pytest.mark.parametrize("is_kept", [False, True])
def test_link_in_place_of_the_last_chunk_is_damage_of_its_rows(is_kept):
    """The file it leads to may be right: a store has none. Of a last chunk only the rows that there are."""
    locs = np.arange(10)[:, None]
    where = {"store": "kept.zarr"} if is_kept else {"memory_threshold": 0}
    accumulator = FullBatchAccumulator(locs, chunks=4, **where)
    accumulator.push(np.ones((10, 3)), locs)
    with accumulator.finalize() as result:
        file = result.path / "outputs" / "0" / "c.2.0"
        file.rename(file.with_name("other"))
        file.symlink_to("other")
        with pytest.raises(DamagedError) as caught:
            result.outputs[0][:]
        assert caught.value.rows.tolist() == [8, 9]

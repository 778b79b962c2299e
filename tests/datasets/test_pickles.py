"""Pickles are read as NumPy reads them, if they contain only data."""

import os
import pickle
import struct

import numpy as np
import pytest

from reptile_jax.datasets import pickles
from reptile_jax.datasets.pickles import load_arrays
from tests.attacks import cheap, no_hang


@pytest.mark.parametrize("dtype", ["<u2", ">i4", "<f8", "?", "<U3", "S2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, dtype, order):
    array = np.asarray(np.arange(6).reshape(2, 3).astype(dtype), order=order)
    for protocol in range(6):
        path = tmp_path / "x.pkl"
        scalar = array.reshape(-1)[1]
        path.write_bytes(pickle.dumps({"a": {"b": array}, "c": scalar}, protocol))
        read = load_arrays(path)
        np.testing.assert_array_equal(read["a"]["b"], array)
        assert read["a"]["b"].dtype == array.dtype
        assert read["c"] == scalar


class CraftedArray:
    """Its dtype says of itself that it holds no objects, and its bytes are pointers to nowhere."""

    class Dtype:
        def __reduce__(self):
            return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)

    def __reduce__(self):
        make = np.zeros(0).__reduce__()[0]
        return make, (np.ndarray, (0,), b"b"), (1, (4,), self.Dtype(), False, b"A" * 32)


def test_arrays_of_pointers_are_refused(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"image_data": CraftedArray(), "class_dict": {}}))
    with pytest.raises(ValueError, match=r"cannot read .*x\.pkl: .*an array of O8, not of numbers"):
        load_arrays(path)


@pytest.mark.parametrize("protocol", range(6))
def test_large_arrays_are_read_as_numpy_reads_them(tmp_path, protocol):
    """From protocol 3 on their data are parts of the file."""
    array = np.random.default_rng(0).integers(0, 256, (50, 60, 70), np.uint8)
    content = {"a": array, "b": [array, 1], "c": {"d": array[:2], "e": b"x" * 100_000}, "f": "y"}
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    read = load_arrays(path)
    np.testing.assert_array_equal(read["a"], array)
    np.testing.assert_array_equal(read["c"]["d"], array[:2])
    assert bytes(read["c"]["e"]) == b"x" * 100_000
    assert read["f"] == "y"
    assert not read["a"].flags.writeable


def test_the_labels_of_mini_imagenet_as_numbers_of_numpy_are_not_too_many(tmp_path):
    path = tmp_path / "x.pkl"
    labels = list(np.arange(38_400))
    path.write_bytes(pickle.dumps({"labels": labels}, 4))
    assert load_arrays(path)["labels"] == labels


def name(module, function):
    return f"c{module}\n{function}\n".encode()


def text(content, code=b"X"):
    return code + struct.pack("<I", len(content)) + content


def shared(pair):
    """Each of 100 things is made of the one before, twice."""
    get = lambda number: b"h" + bytes([number])
    pairs = [pair(get(number)) + b"q" + bytes([number + 1]) + b"0" for number in range(99)]
    return b"}K\1q\x000" + b"".join(pairs) + get(99)


MEMO = "in its memo after . instructions"
MANY = "more than 400,000 instructions"
COPIES = "it copies or compares .* things, but has"
LIST = name("builtins", "list") + b"q\x010"
ENCODE = text(b"latin1") + b"q\x010" + name("_codecs", "encode") + b"q\x020"
DTYPE = name("numpy", "dtype") + text(b"u1") + b"K\0K\1\x87Rq\x010"
ARRAYS = DTYPE + name("numpy.core.multiarray", "_reconstruct") + b"q\x020"
ARRAY = b"h\2)R(K\1(J" + struct.pack("<i", 10**6) + b"th\1\x89h\0tb"
COLLIDING = [(number * (2**61 - 1)).to_bytes(10, "little") for number in range(60_000)]
# hash(-1) == hash(-2), and so it is for tuples of them: 30,000 different pairs of such tuples.
HALVES = [
    b"".join(b"J" + struct.pack("<i", -1 - (n >> bit & 1)) for bit in range(8)) for n in range(174)
]
MEMO_OF_HALVES = b"".join(b"(" + half + b"tq" + bytes([n]) + b"0" for n, half in enumerate(HALVES))
PAIRS = [b"h" + bytes([i]) + b"h" + bytes([j]) + b"\x86" for i in range(174) for j in range(174)]
LONG = name("numpy", "dtype") + text(b"f16") + b"K\0K\1\x87R"
BOMBS = {
    "a memo of 8 GB": (b"Nr\xff\xff\xff\x1f.", MEMO),
    "in text": (b"Np500000000\n.", MEMO),
    "a key that is 2 million deep": (b"})" + b"\x85" * 2_000_000 + b"Ns.", "than 100 deep"),
    "lists in lists": (b"]" * 300_000 + b"a" * 299_999 + b".", "than 100 deep"),
    "a key of 2 to the 100": (shared(lambda last: last * 2 + b"\x86") + b"Ns.", COPIES),
    "twice what is on top": (b"}K\1" + b"2\x86" * 80 + b"Ns.", COPIES),
    "dicts of the same dicts": (
        b"}q\0" + shared(lambda last: b"}K\0" + last + b"sK\1" + last + b"s") + b".",
        COPIES,
    ),
    "copies of a list": (
        b"(" + b"N" * 100_000 + b"lq\x000" + LIST + b"(" + b"h\1h\0\x85R" * 70_000 + b"l.",
        COPIES,
    ),
    "copies of a list that was filled later": (
        b"]q\x000" + LIST + b"h\0(" + b"N" * 100_000 + b"e0(" + b"h\1h\0\x85R" * 70_000 + b"l.",
        COPIES,
    ),
    "copies of a text": (
        text(b"a" * 10**6) + b"q\x000" + ENCODE + b"(" + b"h\2h\0h\1\x86R" * 1000 + b"l.",
        COPIES,
    ),
    "copies of an array": (
        text(b"a" * 10**6) + b"q\x000" + ARRAYS + b"(" + ARRAY * 1000 + b"l.",
        COPIES,
    ),
    "2 GB of zeros": (name("builtins", "bytearray") + b"J\xff\xff\xff\x7f\x85R.", "it asks for"),
    "numbers with the same hash": (
        b"}(" + b"".join(b"\x8a\n" + number + b"N" for number in COLLIDING) + b"u.",
        "a number of more than 64 bits",
    ),
    "tuples with the same hash": (
        MEMO_OF_HALVES + b"}(" + b"".join(pair + b"N" for pair in PAIRS) + b"u.",
        COPIES,
    ),
    "one after another": (
        MEMO_OF_HALVES + b"}" + b"".join(pair + b"Ns" for pair in PAIRS) + b".",
        COPIES,
    ),
    "in a set": (MEMO_OF_HALVES + b"\x8f(" + b"".join(PAIRS) + b"\x90.", COPIES),
    "in a frozenset": (MEMO_OF_HALVES + b"(" + b"".join(PAIRS) + b"\x91.", COPIES),
    "in a call of set": (
        MEMO_OF_HALVES + name("builtins", "set") + b"](" + b"".join(PAIRS) + b"e\x85R.",
        "more than 20 tuples",
    ),
    "pairs of a call": (
        MEMO_OF_HALVES
        + name("collections", "OrderedDict")
        + b"]("
        + b"".join(b"](" + pair + b"Ne" for pair in PAIRS)
        + b"e\x85R.",
        "more than 20 tuples",
    ),
    "a frozenset of 2 to the 100": (
        shared(lambda last: last * 2 + b"\x86")[:-2] + b"(h\x63\x910N.",
        COPIES,
    ),
    "numbers of 80 bits": (b"}" + LONG + b"N.", "an array of f16, not of numbers"),
    "a list of data": (
        LIST + b"h\1\x8e" + struct.pack("<Q", 2**17) + bytes(2**17) + b"\x85R.",
        "not iterable",
    ),
    "digits": (b"L" + b"9" * 10**6 + b"L\n.", "a number of more than 64 bits"),
    "nothing, often": (b"(" + b"N" * 50_000_000 + b"l.", MANY),
    "dicts": (b"(" + b"}" * 20_000_000 + b"l.", MANY),
    "marks": (b"(" * 10**6, MANY),
    "a length beyond the end": (b"\x8e\xff\xff\xff\xff\xff\0\0\0N.", "it is damaged"),
    "a length below zero": (b"T\xff\xff\xff\xffN.", "it is damaged"),
    "a line without an end": (b"cbuiltins\nlist", "it is damaged"),
    "nothing on the stack": (b"\x85.", "it is damaged"),
    "a buffer from elsewhere": (b"\x97.", "not enough out-of-band buffers"),
    "no end": (b"]", "it is damaged"),
}


@pytest.mark.attack
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_is_refused_before_it_takes_much(tmp_path, bomb):
    data, message = BOMBS[bomb]
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\4" + data)
    with no_hang(), cheap(), pytest.raises(ValueError, match=rf"cannot read .*x\.pkl: .*{message}"):
        load_arrays(path)


@pytest.mark.attack
def test_data_that_are_not_used_are_not_read(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\4\x8e" + struct.pack("<Q", 7 * 2**30))
    os.truncate(path, 7 * 2**30 + 11)
    with open(path, "ab") as file:
        file.write(b"0N.")
    with cheap():
        assert load_arrays(path) is None
    os.truncate(path, 2**40)
    with pytest.raises(OSError, match=r"has 1,099,511,627,776 bytes, expected at most 8,589,9"):
        load_arrays(path)


@pytest.mark.attack
@pytest.mark.parametrize("place", sorted(pickles._DataUnpickler._ADMITTED))
def test_a_pickle_cannot_change_what_it_may_call(tmp_path, place):
    admitted = pickles._DataUnpickler._ADMITTED[place]
    module = {"multiarray": "numpy.core.multiarray", "numeric": "numpy.core.numeric"}
    function = name(module.get(place[0], place[0]), place[1])
    before = {key: getattr(admitted, key, None) for key in ("__defaults__", "__dict__", "__doc__")}
    before["__dict__"] = dict(before["__dict__"])
    path = tmp_path / "x.pkl"
    state = text(b"__defaults__") + b"K\5\x85" + text(b"__doc__") + text(b"changed")
    path.write_bytes(b"\x80\4" + function + b"}" + text(b"a") + b"Ks}(" + state + b"u\x86b.")
    with pytest.raises(ValueError, match="cannot read"):
        load_arrays(path)
    path.write_bytes(b"\x80\4" + function + b"N}(" + state + b"u\x86b0N.")
    assert load_arrays(path) is None  # a function of the moment was changed
    after = {key: getattr(admitted, key, None) for key in before}
    assert {**after, "__dict__": dict(after["__dict__"])} == before
